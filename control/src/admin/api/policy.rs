//! The policy.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::IpNet;
use policy::Diagnostics;
use policy::check::{Access, Difference, Explanation};
use policy::diagnostic::Severity;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::{Answer, Shared};
use crate::admin::peer::Author;
use crate::service::{Adopted, Control, Draft, Failure, ServiceError, Standing, TestReport};
use crate::store::StoredPolicy;

/// Longest body, bytes: beyond what a policy may have, so that the parser says that it is too long.
const MAX_BODY: usize = 64 << 20;
/// Longest name of a file, characters; what is longer is cut.
const MAX_NAME: usize = 4096;

/// A policy that somebody wrote.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct DraftJson {
    /// What diagnostics call the file.
    pub(in crate::admin) name: String,
    pub(in crate::admin) text: String,
    /// For `set`: only in place of this version.
    #[serde(default)]
    pub(in crate::admin) replaces: Option<i64>,
}

/// Something that is wrong with a policy, or may surprise its author.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::admin) struct DiagnosticJson {
    pub(in crate::admin) cause: String,
    /// `error` or `warning`.
    pub(in crate::admin) severity: String,
    pub(in crate::admin) message: String,
    /// From 1.
    pub(in crate::admin) line: usize,
    /// From 1, in characters.
    pub(in crate::admin) column: usize,
    /// In characters.
    pub(in crate::admin) length: usize,
    pub(in crate::admin) help: Option<String>,
}

/// All of these, for programs and for people.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(in crate::admin) struct DiagnosticsJson {
    pub(in crate::admin) list: Vec<DiagnosticJson>,
    pub(in crate::admin) excerpts: String,
}

/// A policy that is in order.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct AcceptedJson {
    /// `None`: it has none, all is allowed.
    pub(in crate::admin) rules: Option<usize>,
    pub(in crate::admin) tests: usize,
    pub(in crate::admin) warnings: DiagnosticsJson,
}

/// A policy that is in force.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct AdoptedJson {
    pub(in crate::admin) version: i64,
    pub(in crate::admin) unchanged: bool,
    #[serde(flatten)]
    pub(in crate::admin) accepted: AcceptedJson,
    /// Pairs of nodes, and of nodes and prefixes.
    pub(in crate::admin) gained: usize,
    pub(in crate::admin) lost: usize,
    pub(in crate::admin) routes_approved: Vec<ApprovedJson>,
}

/// A route that a policy approved.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct ApprovedJson {
    pub(in crate::admin) node: String,
    pub(in crate::admin) prefix: IpNet,
}

/// How tests went.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct TestsJson {
    pub(in crate::admin) tests: usize,
    pub(in crate::admin) failures: DiagnosticsJson,
}

/// A question.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct WhyJson {
    pub(in crate::admin) source: String,
    pub(in crate::admin) destination: String,
}

/// A version of the policy; with its text if it was asked for.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct VersionJson {
    pub(in crate::admin) version: i64,
    pub(in crate::admin) author: String,
    #[serde(with = "rfc3339")]
    pub(in crate::admin) created: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) text: Option<String>,
}

/// The policy in force, for `status`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::admin) struct StandingJson {
    /// `default` (never set, all is allowed), `set` or `file`.
    pub(in crate::admin) source: String,
    pub(in crate::admin) file: Option<String>,
    pub(in crate::admin) version: Option<i64>,
    pub(in crate::admin) author: Option<String>,
    #[serde(with = "rfc3339::option")]
    pub(in crate::admin) since: Option<OffsetDateTime>,
    pub(in crate::admin) warnings: Vec<DiagnosticJson>,
    /// Why the file is not what is in force.
    pub(in crate::admin) failure: Option<FailureJson>,
}

/// A policy file that is not in force.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::admin) struct FailureJson {
    pub(in crate::admin) reason: String,
    #[serde(with = "rfc3339")]
    pub(in crate::admin) since: OffsetDateTime,
    pub(in crate::admin) diagnostics: Vec<DiagnosticJson>,
}

pub(super) fn router() -> Router<Arc<Control>> {
    Router::new()
        .route("/v1/policy", get(current).post(set))
        .route("/v1/policy/check", post(check))
        .route("/v1/policy/test", get(test_current).post(test))
        .route("/v1/policy/diff", post(diff))
        .route("/v1/policy/why", post(why))
        .route("/v1/policy/versions", get(versions))
        .route("/v1/policy/versions/{number}", get(version))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

async fn current(State(control): Shared) -> Answer<VersionJson> {
    let newest = control.policy_version(None).await?;
    let none = || {
        ServiceError::NotFound(
            "no policy was ever set, so every node may reach every node: set one with \
             `tailrace-control policy set FILE`"
                .to_owned(),
        )
    };
    Ok(Json(with_text(newest.ok_or_else(none)?)))
}

async fn versions(State(control): Shared) -> Answer<Vec<VersionJson>> {
    let all = control.policies().await?.into_iter();
    let brief = all.map(|entry| VersionJson {
        version: entry.version,
        author: entry.author,
        created: entry.created,
        text: None,
    });
    Ok(Json(brief.collect()))
}

async fn version(State(control): Shared, Path(number): Path<i64>) -> Answer<VersionJson> {
    let none = || {
        ServiceError::NotFound(format!(
            "there is no version {number} of the policy (any more): see `tailrace-control policy \
             history`"
        ))
    };
    let found = control.policy_version(Some(number)).await?;
    Ok(Json(with_text(found.ok_or_else(none)?)))
}

async fn set(
    State(control): Shared,
    Extension(Author(author)): Extension<Author>,
    Json(draft): Json<DraftJson>,
) -> Answer<AdoptedJson> {
    let replaces = draft.replaces;
    let adopted = control.set_policy(draft.into(), &author, replaces).await?;
    Ok(Json(adopted_json(&control, adopted)))
}

async fn check(State(control): Shared, Json(draft): Json<DraftJson>) -> Answer<AcceptedJson> {
    Ok(Json(control.check_policy(draft.into()).await?.into()))
}

async fn test(State(control): Shared, Json(draft): Json<DraftJson>) -> Answer<TestsJson> {
    Ok(Json(control.test_policy(Some(draft.into())).await?.into()))
}

async fn test_current(State(control): Shared) -> Answer<TestsJson> {
    Ok(Json(control.test_policy(None).await?.into()))
}

async fn diff(State(control): Shared, Json(draft): Json<DraftJson>) -> Answer<Difference> {
    Ok(Json(control.diff_policy(draft.into()).await?))
}

async fn why(State(control): Shared, Json(ask): Json<WhyJson>) -> Answer<Explanation> {
    Ok(Json(control.why(&ask.source, &ask.destination).await?))
}

/// How the policy in force stands.
pub(super) fn standing(control: &Control) -> StandingJson {
    let Standing {
        version,
        warnings,
        failure,
    } = control.policy_standing();
    let file = control.settings().policy_file.as_ref();
    StandingJson {
        source: match (file, &version) {
            (Some(_), _) => "file",
            (None, Some(_)) => "set",
            (None, None) => "default",
        }
        .to_owned(),
        file: file.map(|path| path.display().to_string()),
        version: version.as_ref().map(|it| it.number),
        since: version.as_ref().map(|it| it.created),
        author: version.map(|it| it.author),
        warnings: listed(warnings.as_ref()).list,
        failure: failure.map(FailureJson::from),
    }
}

fn adopted_json(control: &Control, adopted: Adopted) -> AdoptedJson {
    let name = |id| {
        let view = control.engine().node(id);
        view.map_or_else(String::new, |view| view.node.name)
    };
    let routes = adopted.routes.into_iter();
    AdoptedJson {
        version: adopted.version,
        unchanged: adopted.unchanged,
        accepted: adopted.accepted.into(),
        gained: pairs(&adopted.difference.gained),
        lost: pairs(&adopted.difference.lost),
        routes_approved: routes
            .map(|(id, prefix)| ApprovedJson {
                node: name(id),
                prefix,
            })
            .collect(),
    }
}

/// Pairs of different ends.
fn pairs(list: &[Access]) -> usize {
    let one = |access: &Access| {
        let ends = |source| access.destinations.iter().filter(move |it| *it != source);
        access
            .sources
            .iter()
            .map(|source| ends(source).count())
            .sum::<usize>()
    };
    list.iter().map(one).sum()
}

/// A name for a line of a terminal or a log, whatever a client sends.
fn printable(name: &str) -> String {
    let mut printable = String::new();
    for letter in name.chars().take(MAX_NAME) {
        if letter.is_control() {
            printable.extend(letter.escape_default());
        } else {
            printable.push(letter);
        }
    }
    printable
}

fn with_text(stored: StoredPolicy) -> VersionJson {
    VersionJson {
        version: stored.version,
        author: stored.author,
        created: stored.created,
        text: Some(stored.text),
    }
}

fn listed(diagnostics: Option<&Diagnostics>) -> DiagnosticsJson {
    diagnostics.map_or_else(DiagnosticsJson::default, DiagnosticsJson::from)
}

impl From<DraftJson> for Draft {
    fn from(draft: DraftJson) -> Self {
        Self {
            name: printable(&draft.name),
            text: draft.text,
        }
    }
}

impl From<&Diagnostics> for DiagnosticsJson {
    fn from(all: &Diagnostics) -> Self {
        let list = all.list.iter().map(|it| {
            let (line, column) = all.position(it.span.start);
            let marked = all.text.get(it.span.clone()).unwrap_or_default();
            DiagnosticJson {
                cause: cause_name(it.cause),
                severity: match it.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                }
                .to_owned(),
                message: it.message.clone(),
                line,
                column,
                length: marked.chars().count(),
                help: it.help.clone(),
            }
        });
        Self {
            list: list.collect(),
            excerpts: all.render(),
        }
    }
}

/// As it is serialised: the stable name.
fn cause_name(cause: policy::Cause) -> String {
    match serde_json::to_value(cause) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

impl From<crate::service::Accepted> for AcceptedJson {
    fn from(accepted: crate::service::Accepted) -> Self {
        Self {
            rules: accepted.rules,
            tests: accepted.tests,
            warnings: listed(accepted.warnings.as_ref()),
        }
    }
}

impl From<TestReport> for TestsJson {
    fn from(report: TestReport) -> Self {
        Self {
            tests: report.tests,
            failures: listed(report.failures.as_ref()),
        }
    }
}

impl From<Failure> for FailureJson {
    fn from(failure: Failure) -> Self {
        Self {
            reason: failure.reason,
            since: failure.since,
            diagnostics: listed(failure.diagnostics.as_ref()).list,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_cut_and_cannot_steer_a_terminal() {
        assert_eq!(printable("a b/ü.hujson"), "a b/ü.hujson");
        assert_eq!(printable("a\x1b[2J\n"), "a\\u{1b}[2J\\n");
        assert_eq!(printable(&"x".repeat(1 << 20)).len(), MAX_NAME);
    }
}
