//! `POST /machine/register` until the node key is authorised.

use std::sync::Arc;
use std::time::Duration;

use control_proto::Timestamp;
use control_proto::capver;
use control_proto::tailcfg::{Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse};
use keys::{NodePrivate, NodePublic};
use tokio::sync::mpsc;

use super::ControlError;
use super::connection::Connection;

/// Pause before a follow-up that came back without news is sent again.
const FOLLOW_UP_PAUSE: Duration = Duration::from_secs(1);
/// How long the server may take to answer a register request that is not a follow-up.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// An expiry so far in the past that it means logging out (protocol/control.md §3.1).
const LOGOUT_EXPIRY: i64 = 123;

/// One attempt to have a node key authorised. Not for logs: it holds the auth key.
#[derive(Clone)]
pub(super) struct Attempt {
    /// The key to be authorised.
    pub(super) node_key: Arc<NodePrivate>,
    /// The key before.
    pub(super) old_node_key: Option<NodePublic>,
    /// Proof that needs no person.
    pub(super) auth_key: Option<String>,
    /// This host.
    pub(super) hostinfo: Hostinfo,
}

/// What an attempt says.
#[derive(Debug)]
pub(super) enum Progress {
    /// A person has to visit this URL; the attempt goes on.
    Visit(String),
    /// The attempt is over.
    Over(Result<Outcome, ControlError>),
}

/// How an attempt ended.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The node key is good.
    Authorised,
    /// The node key is of no use any more: try again with a new one.
    KeyExpired,
    /// No; the server's words.
    Refused(String),
}

/// What to do with an answer.
#[derive(Debug, Eq, PartialEq)]
enum Step {
    End(Outcome),
    /// Show the URL and ask again with it; the flag says whether it is the one we asked with.
    FollowUp {
        url: String,
        again: bool,
    },
}

/// Decides what an answer to a request with `followup` means (protocol/control.md §3).
fn decide(response: RegisterResponse, followup: &str) -> Step {
    if !response.error.is_empty() {
        Step::End(Outcome::Refused(response.error))
    } else if response.node_key_expired {
        Step::End(Outcome::KeyExpired)
    } else if response.auth_url.is_empty() {
        Step::End(Outcome::Authorised)
    } else {
        let again = response.auth_url == followup;
        Step::FollowUp {
            url: response.auth_url,
            again,
        }
    }
}

/// Runs an attempt to its end, telling `progress`.
pub(super) async fn run(
    connection: Connection,
    attempt: Attempt,
    progress: mpsc::Sender<Progress>,
) {
    let outcome = follow(&connection, &attempt, &progress).await;
    // Nobody listens any more: the session ended, so the outcome does not matter.
    let _ = progress.send(Progress::Over(outcome)).await;
}

async fn follow(
    connection: &Connection,
    attempt: &Attempt,
    progress: &mpsc::Sender<Progress>,
) -> Result<Outcome, ControlError> {
    let mut followup = String::new();
    loop {
        let request = request(attempt, &followup);
        let response = if followup.is_empty() {
            within_limit(connection.register(&request)).await?
        } else {
            // A long poll: the connection's own keepalive tells when the server is gone.
            connection.register(&request).await?
        };
        match decide(response, &followup) {
            Step::End(outcome) => return Ok(outcome),
            Step::FollowUp { again: true, .. } => tokio::time::sleep(FOLLOW_UP_PAUSE).await,
            Step::FollowUp { url, again: false } => {
                if progress.send(Progress::Visit(url.clone())).await.is_err() {
                    return Ok(Outcome::Refused("the login was given up".to_owned()));
                }
                followup = url;
            }
        }
    }
}

/// Tells the server that the node key shall be good no longer.
///
/// # Errors
///
/// Any [`ControlError`]; the server may or may not have heard.
pub(super) async fn logout(connection: &Connection, attempt: &Attempt) -> Result<(), ControlError> {
    let mut request = request(attempt, "");
    request.expiry = Timestamp::from_unix_seconds(LOGOUT_EXPIRY);
    let response = within_limit(connection.register(&request)).await?;
    if response.error.is_empty() {
        Ok(())
    } else {
        Err(ControlError::Refused(response.error))
    }
}

async fn within_limit(
    answer: impl Future<Output = Result<RegisterResponse, ControlError>>,
) -> Result<RegisterResponse, ControlError> {
    tokio::time::timeout(REGISTER_TIMEOUT, answer)
        .await
        .unwrap_or(Err(ControlError::Silent(REGISTER_TIMEOUT)))
}

fn request(attempt: &Attempt, followup: &str) -> RegisterRequest {
    RegisterRequest {
        version: capver::CURRENT,
        node_key: attempt.node_key.public(),
        old_node_key: attempt.old_node_key.unwrap_or_default(),
        auth: attempt.auth_key.as_ref().map(|auth_key| RegisterAuth {
            auth_key: auth_key.clone(),
            ..RegisterAuth::default()
        }),
        followup: followup.to_owned(),
        hostinfo: Some(attempt.hostinfo.clone()),
        ..RegisterRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_success_ends_the_login() {
        assert_eq!(
            decide(RegisterResponse::default(), ""),
            Step::End(Outcome::Authorised)
        );
        assert_eq!(
            decide(RegisterResponse::default(), "u"),
            Step::End(Outcome::Authorised)
        );
    }

    #[test]
    fn the_servers_words_win_over_everything_else() {
        let response = RegisterResponse {
            error: "no".into(),
            node_key_expired: true,
            auth_url: "u".into(),
            ..RegisterResponse::default()
        };
        assert_eq!(
            decide(response, ""),
            Step::End(Outcome::Refused("no".into()))
        );
    }

    #[test]
    fn an_expired_key_asks_for_a_new_one() {
        let response = RegisterResponse {
            node_key_expired: true,
            ..RegisterResponse::default()
        };
        assert_eq!(decide(response, ""), Step::End(Outcome::KeyExpired));
    }

    #[test]
    fn another_url_replaces_the_one_we_waited_for() {
        let response = |url: &str| RegisterResponse {
            auth_url: url.into(),
            ..Default::default()
        };
        assert_eq!(
            decide(response("a"), ""),
            Step::FollowUp {
                url: "a".into(),
                again: false
            }
        );
        assert_eq!(
            decide(response("a"), "a"),
            Step::FollowUp {
                url: "a".into(),
                again: true
            }
        );
        assert_eq!(
            decide(response("b"), "a"),
            Step::FollowUp {
                url: "b".into(),
                again: false
            }
        );
    }
}
