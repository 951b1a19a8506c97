//! `tailrace up`: starts the node and waits until its tunnel is up.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::CliError;
use super::args::UpArgs;
use crate::localapi::{BackendState, Client, StartOptions, Status};
use crate::prefs::Prefs;

pub(super) async fn run(client: &Client, args: UpArgs) -> Result<(), CliError> {
    let auth_key = match &args.auth_key {
        Some(secret) => secret.reveal().map_err(CliError::Other)?,
        None => String::new(),
    };
    let stored: Prefs = client.json(Method::GET, "prefs", Bytes::new()).await?;
    let status: Status = client.json(Method::GET, "status", Bytes::new()).await?;
    let prefs = wanted(stored, &args, &status)?;
    let options = StartOptions {
        update_prefs: Some(prefs),
        auth_key,
        force_reauth: args.force_reauth,
    };
    let body = serde_json::to_vec(&options).map_err(|error| CliError::Other(error.to_string()))?;
    let mut budget = Budget::new(args.timeout);
    let started = client.request(Method::POST, "start", Bytes::from(body));
    match budget.spend(started).await {
        Some(started) => started?,
        None => return Err(timed_out(client, BackendState::NoState, args.timeout).await?),
    };
    wait(client, budget).await?;
    let status: Status = client
        .json(Method::GET, "status?peers=false", Bytes::new())
        .await?;
    println!("{}", summary(&status));
    for warning in &status.health {
        eprintln!("# warning: {warning}");
    }
    Ok(())
}

/// The stored preferences with what the command line says.
fn wanted(stored: Prefs, args: &UpArgs, status: &Status) -> Result<Prefs, CliError> {
    let mut prefs = stored;
    if let Some(url) = &args.login_server {
        prefs.control_url = url.trim_end_matches('/').to_owned();
    }
    if prefs.control_url.is_empty() {
        return Err(CliError::Other(
            "no coordination server is known yet: name it with --login-server URL".to_owned(),
        ));
    }
    if let Some(hostname) = &args.hostname {
        prefs.hostname.clone_from(hostname);
    }
    if let Some(shields_up) = args.shields_up {
        prefs.shields_up = shields_up;
    }
    args.routes.apply(&mut prefs, status)?;
    if args.routes.exit_node_allow_lan_access == Some(true) && prefs.exit_node().is_none() {
        return Err(CliError::Other(
            "--exit-node-allow-lan-access can only be used with --exit-node".to_owned(),
        ));
    }
    prefs.want_running = true;
    prefs.logged_out = false;
    Ok(prefs.checked()?)
}

/// The time that `--timeout` allows in all. Waiting for a person is not counted.
#[derive(Debug)]
struct Budget {
    whole: Duration,
    left: Duration,
}

impl Budget {
    fn new(whole: Duration) -> Self {
        Self { whole, left: whole }
    }

    /// Waits for the future as long as there is time left; `None` once there is none.
    async fn spend<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let start = Instant::now();
        let result = tokio::time::timeout(self.left, future).await;
        self.left = self.left.saturating_sub(start.elapsed());
        result.ok()
    }
}

/// Follows the daemon's notifications until the tunnel is up.
async fn wait(client: &Client, mut budget: Budget) -> Result<(), CliError> {
    let mut notices = client.watch().await?;
    let mut shown = None;
    let mut waits_for_person = false;
    let mut approval_told = false;
    let mut state = BackendState::NoState;
    loop {
        // A person takes as long as a person takes; the rest has one limit for all steps.
        let next = if waits_for_person {
            Some(notices.next().await)
        } else {
            budget.spend(notices.next()).await
        };
        let Some(notice) = next else {
            return Err(timed_out(client, state, budget.whole).await?);
        };
        let Some(notice) = notice? else {
            return Err(CliError::Other(
                "the daemon stopped before the tunnel was up: see its log".to_owned(),
            ));
        };
        if let Some(error) = notice.err_message {
            return Err(CliError::Other(error));
        }
        state = notice
            .state
            .and_then(BackendState::from_number)
            .unwrap_or(state);
        if state == BackendState::Running {
            return Ok(());
        }
        let url = notice.browse_to_url.filter(|url| !url.is_empty());
        waits_for_person = url.is_some() || state == BackendState::NeedsMachineAuth;
        if url != shown
            && let Some(url) = &url
        {
            println!("To log in, visit:\n\n\t{url}\n");
        }
        if state == BackendState::NeedsMachineAuth && !approval_told {
            approval_told = true;
            eprintln!("Waiting for an administrator to approve this device.");
        }
        shown = url.or(shown);
    }
}

/// What to tell after waiting in vain: what the daemon itself complains about, if it does.
async fn timed_out(
    client: &Client,
    state: BackendState,
    timeout: Duration,
) -> Result<CliError, CliError> {
    let status: Status = client
        .json(Method::GET, "status?peers=false", Bytes::new())
        .await?;
    let cause = if status.health.is_empty() {
        format!("the node is still in state {}", state.as_str())
    } else {
        status.health.join("; ")
    };
    Ok(CliError::Other(format!(
        "the tunnel is not up after {timeout:?}: {cause}; the daemon goes on trying, see `tailrace status`"
    )))
}

fn summary(status: &Status) -> String {
    let addresses = status.tailscale_ips.clone().unwrap_or_default().join(", ");
    let name = status.self_node.dns_name.trim_end_matches('.');
    let stale = if status.tailrace.map_stale {
        "; the coordination server does not answer, this is the network as last known"
    } else {
        ""
    };
    format!(
        "Up as {name} ({addresses}), {} WireGuard{stale}",
        status.tailrace.engine
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, ClientCommand, Command};
    use super::*;

    fn up(line: &str) -> UpArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Client(ClientCommand::Up(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    fn wanted(stored: Prefs, args: &UpArgs) -> Result<Prefs, CliError> {
        super::wanted(stored, args, &Status::default())
    }

    #[tokio::test]
    async fn the_time_limit_is_for_all_steps_together() {
        let limit = Duration::from_millis(100);
        let step = || tokio::time::sleep(limit * 3 / 5);
        let mut budget = Budget::new(limit);
        assert_eq!(budget.spend(step()).await, Some(()));
        assert_eq!(budget.spend(step()).await, None);
        assert!(budget.left < limit / 10, "{budget:?}");
    }

    #[test]
    fn the_first_up_must_name_the_server() {
        let error = wanted(Prefs::default(), &up("tailrace up")).unwrap_err();
        assert!(error.to_string().contains("--login-server"), "{error}");
    }

    #[test]
    fn a_later_up_remembers_what_was_said() {
        let first = up("tailrace up --login-server http://c:1/ --hostname n --shields-up");
        let stored = wanted(Prefs::default(), &first).unwrap();
        let down = Prefs {
            want_running: false,
            ..stored.clone()
        };
        assert_eq!(wanted(down, &up("tailrace up")).unwrap(), stored);
        assert_eq!(stored.control_url, "http://c:1");
        assert!(stored.shields_up);
    }
}
