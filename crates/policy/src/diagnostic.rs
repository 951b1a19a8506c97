//! What is wrong with a policy file: a typed cause for programs, a marked excerpt for people.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

mod excerpt;
mod lines;

pub use lines::Lines;

/// Errors that [`Diagnostics::render`] shows; the rest is counted.
pub(crate) const SHOWN: usize = 20;
/// Errors that are kept; the rest is counted. Bounds the memory that a bad file takes.
pub(crate) const KEPT: usize = 1000;

/// Why a file is refused (or frowned upon), for programs. Stable: the API and tests compare it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    // The file.
    /// Not HuJSON.
    Syntax,
    /// More bytes than a policy may have.
    TooLarge,
    /// Brackets nested too deeply.
    TooDeep,
    /// The same name twice in one object.
    DuplicateKey,
    /// A key that the language does not have.
    UnknownKey,
    /// A key that must be there is not.
    MissingKey,
    /// A string where a list should be, and the like.
    WrongType,
    /// Known to the language, but not to this server.
    Unsupported,

    // Names.
    /// A group, tag, host, set or posture whose name has the wrong form.
    BadName,
    /// `tag:x` that `tagOwners` does not have.
    TagNotFound,
    /// `group:x` that neither `groups` nor the identity provider has.
    GroupNotFound,
    /// `ipset:x` that `ipsets` does not have.
    IpSetNotFound,
    /// `posture:x` that `postures` does not have.
    PostureNotFound,
    /// `autogroup:x` that does not exist.
    UnknownAutogroup,
    /// Neither an address nor the name of a host.
    InvalidAddress,
    /// `user:*@domain` or `localpart:*@domain` of a domain that is not the tailnet's.
    ForeignDomain,
    /// `alice@` in a tailnet without a domain of its own.
    NoDomain,
    /// A member of a group that is not a user.
    BadGroupMember,
    /// A group in a group.
    NestedGroup,
    /// A set that contains itself.
    IpSetCycle,
    /// Several tags that own each other.
    TagOwnerCycle,

    // Who may stand where.
    /// Not valid as a source.
    NotASource,
    /// Not valid as a destination.
    NotADestination,
    /// Not valid as a target of `nodeAttrs`.
    NotATarget,
    /// Not valid as an approver.
    NotAnApprover,
    /// Not valid as an owner of a tag.
    NotAnOwner,
    /// Not valid in an `ipset`.
    NotAnIpSetMember,
    /// `via` names something else than a tag.
    ViaNotATag,
    /// `autogroup:self` with sources that are not people.
    SelfNeedsUsers,
    /// SSH from tags to devices of people, or to a user's devices from somebody else.
    SshToUser,
    /// An app capability towards `autogroup:internet`.
    AppToInternet,
    /// 0.0.0.0/0 or `::/0` as the destination of a grant.
    DefaultRoute,

    // Values.
    /// `action` is missing.
    ActionMissing,
    /// An `action` that does not exist.
    BadAction,
    /// A protocol that does not exist.
    BadProtocol,
    /// Ports that are not numbers, ranges or `*`.
    BadPorts,
    /// Port 0.
    PortZero,
    /// Ports for a protocol that has none.
    PortsWithoutPorts,
    /// A grant of nothing.
    EmptyGrant,
    /// A capability name that is not `domain/path`.
    BadCapabilityName,
    /// A capability in the domain tailscale.com that policies may not grant.
    ReservedCapability,
    /// Not an attribute's name.
    BadAttribute,
    /// A pool outside of 100.64.0.0/10.
    IpPoolOutOfRange,
    /// A pool that overlaps addresses with a meaning of their own.
    IpPoolReserved,
    /// SSH `users` is missing or empty.
    SshUsersMissing,
    /// Not a user name for SSH.
    BadSshUser,
    /// An empty string in `acceptEnv`.
    EmptyAcceptEnv,
    /// Not a duration.
    BadDuration,
    /// A `checkPeriod` below zero.
    CheckPeriodNegative,
    /// A `checkPeriod` above 168 hours.
    CheckPeriodTooLong,
    /// A `checkPeriod` where nothing is checked.
    CheckPeriodWithoutCheck,
    /// `check` where the server cannot ask (a warning).
    CheckNotServed,
    /// An assertion of a posture that is not one.
    BadAssertion,
    /// An operation of an ipset that is not one.
    BadIpSetOperation,
    /// A value that an option does not have.
    BadOption,
    /// `derpMap` is not one.
    BadDerpMap,
    /// An element that a test of SSH may not have as its destination.
    SshTestDestination,
    /// A test of SSH whose destination is a tag that does not exist.
    SshTestUnknownTag,

    // After compilation.
    /// An entry of `tests` failed.
    TestFailed,
    /// An entry of `sshTests` failed.
    SshTestFailed,

    // Warnings.
    /// Neither `acls` nor `grants`: everything is allowed.
    NoRules,
    /// A group without members as a source or destination.
    EmptyGroup,
    /// A rule that can never apply.
    EmptyRule,
    /// A prefix with bits set behind its length.
    HostBits,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnostic {
    /// Why, typed.
    pub cause: Cause,
    /// Refused, or a warning?
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// The offending text, as a range of bytes.
    pub span: Range<usize>,
    /// What was expected there; shown under the text.
    pub label: String,
    /// What to do; a suggestion for near misses.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A reason to refuse the file.
    #[must_use]
    pub fn error(
        cause: Cause,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        let (message, label) = (message.into(), label.into());
        Self {
            cause,
            severity: Severity::Error,
            message,
            span,
            label,
            help: None,
        }
    }

    /// Legal, but surely not meant.
    #[must_use]
    pub fn warning(
        cause: Cause,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(cause, span, message, label)
        }
    }

    /// The same, with advice.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

/// Does a diagnostic refuse the file?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// Yes.
    Error,
    /// No.
    Warning,
}

/// All that is wrong with one file, in the order of the file. Displays as the marked excerpts.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.render())]
pub struct Diagnostics {
    /// Name of the file, for the excerpts.
    pub name: String,
    /// The file.
    pub text: Arc<str>,
    /// At least one.
    pub list: Vec<Diagnostic>,
    /// How many more there are than `list` has room for.
    pub omitted: usize,
    /// Its lines, from when a place is first asked for.
    lines: OnceLock<Arc<Lines>>,
}

impl Diagnostics {
    /// What is wrong with a file: at least one thing. Keeps the first thousand and counts the rest.
    #[must_use]
    pub fn new(name: &str, text: Arc<str>, mut list: Vec<Diagnostic>) -> Self {
        let omitted = list.len().saturating_sub(KEPT);
        list.truncate(KEPT);
        Self {
            name: name.to_owned(),
            text,
            list,
            omitted,
            lines: OnceLock::new(),
        }
    }

    /// The cause of the first error.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        let mut errors = self.list.iter().filter(|it| it.severity == Severity::Error);
        errors.next().map(|it| it.cause)
    }

    /// Line and column (both from 1, columns in characters) of a place in the file.
    #[must_use]
    pub fn position(&self, byte: usize) -> (usize, usize) {
        let lines = self.lines.get_or_init(|| Arc::new(Lines::new(&self.text)));
        lines.position(&self.text, byte)
    }

    /// The excerpts, without colours.
    #[must_use]
    pub fn render(&self) -> String {
        self.render_with(false)
    }

    /// The excerpts, in colours if so asked: for a terminal.
    #[must_use]
    pub fn render_with(&self, colours: bool) -> String {
        let mut out = String::new();
        for diagnostic in self.list.iter().take(SHOWN) {
            excerpt::render(&mut out, self, diagnostic, colours);
            out.push('\n');
        }
        let hidden = self.list.len().saturating_sub(SHOWN) + self.omitted;
        if hidden > 0 {
            let s = if hidden == 1 { "" } else { "s" };
            out.push_str(&format!("… and {hidden} more error{s} in {}\n", self.name));
        }
        out
    }
}
