//! `ssh`: who may open sessions where, as whom (control.md 8.8).

use std::time::Duration;

use super::Located;
use super::reader::{Fields, Reader, Text};
use super::rule::Place;
use super::selector::{Autogroup, Position, Selector};
use crate::diagnostic::{Cause, Diagnostic};
use crate::syntax::Node;

/// An entry of `ssh`.
#[derive(Clone, Debug)]
pub struct SshRule {
    /// Where it stands.
    pub place: Place,
    /// Accept, or ask first.
    pub action: SshAction,
    /// Who.
    pub sources: Vec<Located<Selector>>,
    /// On which nodes.
    pub destinations: Vec<Located<Selector>>,
    /// As which users of those nodes.
    pub users: Vec<Located<SshUser>>,
    /// Environment variables that may be set, as globs.
    pub accept_env: Vec<String>,
}

/// What an SSH rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SshAction {
    /// Lets the session in.
    Accept,
    /// Has the user confirm in the browser; how long that counts, zero = for this session only.
    Check {
        /// Between confirmations.
        period: Duration,
    },
}

/// A user of a node.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SshUser {
    /// By name.
    Name(String),
    /// `autogroup:nonroot`
    NonRoot,
    /// `localpart:*@domain`: named like the first part of the login name.
    LocalPart {
        /// The domain.
        domain: String,
    },
}

const KEYS: &[&str] = &["action", "src", "dst", "users", "checkPeriod", "acceptEnv"];
/// How long a confirmation counts if the rule does not say.
const DEFAULT_PERIOD: Duration = Duration::from_secs(12 * 3600);
/// The longest that it may count: 168 hours.
const LONGEST_PERIOD: Duration = Duration::from_secs(168 * 3600);

impl<'n> Reader<'n> {
    /// `ssh`
    pub(super) fn ssh(&mut self, top: &Fields<'n>) -> Vec<SshRule> {
        let Some(node) = top.get("ssh") else {
            return Vec::new();
        };
        let elements = self.list(node, "ssh").iter().enumerate();
        elements
            .filter_map(|(index, element)| self.ssh_rule(element, index))
            .collect()
    }

    fn ssh_rule(&mut self, node: &'n Node<'n>, index: usize) -> Option<SshRule> {
        let fields = self.fields(node, "an SSH rule", KEYS)?;
        let action = self.ssh_action(node, &fields);
        let sources = self.texts(fields.get("src"), "src");
        let sources = self.selectors(&sources, Position::SshSource);
        let destinations = self.texts(fields.get("dst"), "dst");
        let destinations = self.selectors(&destinations, Position::SshDestination);
        self.check_ssh_pairs(&sources, &destinations);
        let users = self.texts(fields.get("users"), "users");
        if users.is_empty() {
            self.missing(Cause::SshUsersMissing, node, "an SSH rule", "users");
        }
        let users = users
            .iter()
            .filter_map(|text| self.ssh_user(&text.trim()))
            .collect();
        let accept_env = self.accept_env(&fields);
        let place = Place {
            section: "ssh",
            index,
            span: node.span.clone(),
        };
        Some(SshRule {
            place,
            action: action?,
            sources,
            destinations,
            users,
            accept_env,
        })
    }

    fn ssh_action(&mut self, node: &Node<'n>, fields: &Fields<'n>) -> Option<SshAction> {
        let action = match fields.get("action") {
            Some(action) => {
                Some(self.text(action, "action")?).filter(|text| !text.value.is_empty())
            }
            None => None,
        };
        let Some(action) = action else {
            self.missing(Cause::ActionMissing, node, "an SSH rule", "action");
            return None;
        };
        let period = fields
            .get("checkPeriod")
            .map(|node| self.check_period(node));
        match action.value {
            "check" => {
                if !self.ssh_check {
                    self.check_not_served(&action);
                }
                Some(SshAction::Check {
                    period: period.unwrap_or(Some(DEFAULT_PERIOD))?,
                })
            }
            "accept" => {
                if let Some(span) = fields.key_span("checkPeriod") {
                    let message = "checkPeriod in a rule that does not check";
                    let help = "write \"action\": \"check\", or remove checkPeriod";
                    self.error_help(
                        Cause::CheckPeriodWithoutCheck,
                        &span,
                        message,
                        "without effect",
                        help,
                    );
                }
                Some(SshAction::Accept)
            }
            other => {
                let message = format!("{other:?} is not an action of SSH rules");
                let help = "actions are \"accept\" and \"check\", in small letters";
                self.error_help(
                    Cause::BadAction,
                    &action.span,
                    message,
                    "expected accept or check",
                    help,
                );
                None
            }
        }
    }

    fn check_not_served(&mut self, action: &Text<'n>) {
        let message = "this server cannot ask users to confirm sessions yet";
        let warning = Diagnostic::warning(
            Cause::CheckNotServed,
            action.span.clone(),
            message,
            "refuses the sessions of this rule",
        );
        self.report(warning.help("write \"accept\" to let them in without asking"));
    }

    fn check_period(&mut self, node: &'n Node<'n>) -> Option<Duration> {
        let text = self.text(node, "checkPeriod")?;
        if text.value == "always" {
            return Some(Duration::ZERO);
        }
        let Some((negative, period)) = parse_duration(text.value) else {
            let message = format!("{:?} is not a duration", text.value);
            let help = "durations look like 12h, 1h30m, 20m; \"always\" asks each time";
            self.error_help(
                Cause::BadDuration,
                &text.span,
                message,
                "expected a duration",
                help,
            );
            return None;
        };
        if negative {
            let message = format!("a checkPeriod of {} is negative", text.value);
            let help = "\"always\" asks each time";
            self.error_help(
                Cause::CheckPeriodNegative,
                &text.span,
                message,
                "expected 0s to 168h",
                help,
            );
            return None;
        }
        if period > LONGEST_PERIOD {
            let message = format!("a checkPeriod of {} is longer than 168h", text.value);
            self.error(
                Cause::CheckPeriodTooLong,
                &text.span,
                message,
                "expected at most 168h, a week",
            );
            return None;
        }
        Some(period)
    }

    /// Tags are nobody's, so they may not enter devices of people; and nobody enters those of
    /// somebody else by name.
    fn check_ssh_pairs(
        &mut self,
        sources: &[Located<Selector>],
        destinations: &[Located<Selector>],
    ) {
        let tagged = |it: &Located<Selector>| {
            matches!(
                it.value,
                Selector::Tag(_) | Selector::Autogroup(Autogroup::Tagged)
            )
        };
        let from_tags = sources.iter().any(tagged);
        for destination in destinations {
            let of_people = matches!(
                destination.value,
                Selector::User(_) | Selector::Autogroup(Autogroup::SelfDevices | Autogroup::Member)
            );
            if from_tags && of_people {
                let message = "tagged devices may not open SSH sessions on devices of users";
                let help = "let tags reach tags, in a rule of their own";
                self.error_help(
                    Cause::SshToUser,
                    &destination.span,
                    message,
                    "not from tags",
                    help,
                );
            } else if let Selector::User(user) = &destination.value
                && sources
                    .iter()
                    .any(|source| !matches!(&source.value, Selector::User(it) if it == user))
            {
                let message = format!("only {user} may open SSH sessions on devices of {user}");
                let help = "for everybody's own devices write autogroup:self";
                self.error_help(
                    Cause::SshToUser,
                    &destination.span,
                    message,
                    "another user's",
                    help,
                );
            }
        }
    }

    fn ssh_user(&mut self, text: &Text<'n>) -> Option<Located<SshUser>> {
        let user = match text.value {
            "" | "*" => {
                let message = format!("{:?} is not the name of a user", text.value);
                let help = "name users; all but root are \"autogroup:nonroot\"";
                self.error_help(
                    Cause::BadSshUser,
                    &text.span,
                    message,
                    "expected a user",
                    help,
                );
                return None;
            }
            "autogroup:nonroot" => SshUser::NonRoot,
            name => match name.strip_prefix("localpart:*@") {
                // Without a domain it is an (odd) name, as it is for Tailscale.
                Some(domain) if !domain.is_empty() => {
                    let part = text.part(name.len() - domain.len()..name.len());
                    if !self.known_domain(&part) {
                        return None;
                    }
                    SshUser::LocalPart {
                        domain: domain.to_owned(),
                    }
                }
                _ => SshUser::Name(name.to_owned()),
            },
        };
        Some(text.located(user))
    }

    fn accept_env(&mut self, fields: &Fields<'n>) -> Vec<String> {
        let mut names = Vec::new();
        for text in self.texts(fields.get("acceptEnv"), "acceptEnv") {
            if text.value.is_empty() {
                let message = "an empty name in acceptEnv";
                let help = "names may have * and ?: \"LC_*\"";
                self.error_help(
                    Cause::EmptyAcceptEnv,
                    &text.span,
                    message,
                    "expected a name",
                    help,
                );
            } else {
                names.push(text.value.to_owned());
            }
        }
        names
    }
}

/// A duration as Go writes them: numbers with units, `1h30m`, `1.5h`, `-1m`; `0` needs no unit.
/// Returns its sign (true = negative) and size.
fn parse_duration(text: &str) -> Option<(bool, Duration)> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some((false, Duration::ZERO));
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_len..];
    }
    let total = Duration::try_from_secs_f64(total).ok()?;
    Some((negative && !total.is_zero(), total))
}
