//! Refused policies: for the same reason?

use policy::Cause;
use policy::diagnostic::Diagnostic;

use crate::case::Case;

/// Part of the server's message and what we call it.
const CAUSES: [(&str, Cause); 24] = [
    (
        "autogroup:self can only be used with",
        Cause::SelfNeedsUsers,
    ),
    ("to allow all IP addresses, use", Cause::DefaultRoute),
    ("src=tag not found", Cause::TagNotFound),
    ("ip and app can not both be empty", Cause::EmptyGrant),
    (
        "cannot use app grants with autogroup:internet",
        Cause::AppToInternet,
    ),
    ("action must be specified", Cause::ActionMissing),
    ("is not a valid action", Cause::BadAction),
    ("not valid on the src side", Cause::NotASource),
    ("users must be specified", Cause::SshUsersMissing),
    ("invalid duration", Cause::BadDuration),
    ("invalid first integer", Cause::BadPorts),
    ("first port must be >0", Cause::PortZero),
    ("group members cannot be recursive", Cause::NestedGroup),
    ("is not associated with this Tailnet", Cause::ForeignDomain),
    ("network within reserved range", Cause::IpPoolReserved),
    ("is above the max", Cause::CheckPeriodTooLong),
    ("must be a positive duration", Cause::CheckPeriodNegative),
    (
        "capability name must not be in the tailscale.com domain",
        Cause::ReservedCapability,
    ),
    (
        "capability name must have the form",
        Cause::BadCapabilityName,
    ),
    ("acceptEnv values cannot be empty", Cause::EmptyAcceptEnv),
    ("invalid address", Cause::InvalidAddress),
    (
        "SSH tests dst contains unknown tag",
        Cause::SshTestUnknownTag,
    ),
    (
        "SSH tests dst contains disallowed element",
        Cause::SshTestDestination,
    ),
    ("is not valid", Cause::BadSshUser),
];

/// Compares whether and why the policy was refused; `cause`: our first reason.
pub(crate) fn compare(
    case: &Case,
    cause: Option<Cause>,
    list: &[Diagnostic],
) -> Result<(), String> {
    let told = told(case)?;
    if told == cause {
        return Ok(());
    }
    let theirs = case
        .error
        .as_ref()
        .map_or("accepted", |it| it.message.as_str());
    let ours = list.first().map_or("accepted", |it| it.message.as_str());
    Err(format!("told: {theirs} ({told:?}); we: {ours} ({cause:?})"))
}

fn told(case: &Case) -> Result<Option<Cause>, String> {
    if case.status == 200 {
        return Ok(None);
    }
    let message = case.error.as_ref().map_or("", |it| it.message.as_str());
    if message == "test(s) failed" {
        let ssh = case.category == "sshtest";
        return Ok(Some(if ssh {
            Cause::SshTestFailed
        } else {
            Cause::TestFailed
        }));
    }
    let known = CAUSES.iter().find(|(part, _)| message.contains(part));
    known
        .map(|it| Some(it.1))
        .ok_or_else(|| format!("told: {message}, which has no code here"))
}
