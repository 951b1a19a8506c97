//! The command line: parses it, runs one command, prints one clear line if that fails.

pub mod args;
mod ping;
mod show;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Parser;
use http::Method;
use serde_json::json;

use crate::config::{DEFAULT_DEVICE, default_socket};
use crate::localapi::{Client, ClientError};
use crate::prefs::PrefsError;
use args::{Cli, Command, JsonArgs, SetArgs};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Threads of the daemon: one for the tunnel, one for everything else, and a small footprint.
const DAEMON_THREADS: usize = 2;

/// Why a command failed: cause and fix in one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The daemon could not be asked, or refused.
    #[error(transparent)]
    Daemon(#[from] ClientError),
    /// The daemon itself could not run.
    #[error(transparent)]
    Run(#[from] crate::daemon::DaemonError),
    /// A preference is not usable.
    #[error(transparent)]
    Prefs(#[from] PrefsError),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// Runs `tailrace` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match &cli.command {
        Command::Daemon(_) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(DAEMON_THREADS)
            .enable_all()
            .build(),
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
    };
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(CliError::Other(format!("cannot start: {error}"))),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tailrace: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let socket = cli.socket;
    let client = || {
        let path: PathBuf = socket
            .clone()
            .unwrap_or_else(|| default_socket(DEFAULT_DEVICE));
        Client::new(&path)
    };
    match cli.command {
        Command::Daemon(args) => crate::daemon::run(args, socket.clone()).await?,
        Command::Up(args) => up::run(&client(), args).await?,
        Command::Set(args) => set(&client(), args).await?,
        Command::Down => {
            let patch = json!({"WantRunning": false, "WantRunningSet": true});
            edit(&client(), &patch).await?;
        }
        Command::Logout => {
            client()
                .request(Method::POST, "logout", Bytes::new())
                .await?;
        }
        Command::Status(JsonArgs { json }) => return show::status(&client(), json).await,
        Command::Ip(args) => show::ip(&client(), &args).await?,
        Command::Ping(args) => return ping::run(&client(), &args).await,
        Command::Version(JsonArgs { json }) => {
            if json {
                println!("{}", json!({"version": VERSION}));
            } else {
                println!("{VERSION}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(client: &Client, args: SetArgs) -> Result<(), CliError> {
    let mut patch = serde_json::Map::new();
    let mut put = |name: &str, value: serde_json::Value| {
        patch.insert(name.to_owned(), value);
        patch.insert(format!("{name}Set"), true.into());
    };
    if let Some(url) = args.login_server {
        put("ControlURL", url.into());
    }
    if let Some(hostname) = args.hostname {
        put("Hostname", hostname.into());
    }
    if let Some(risk) = args.accept_risk {
        let risks = if risk.is_empty() {
            json!([])
        } else {
            json!([risk])
        };
        put("AcceptedRisks", risks);
    }
    if let Some(user) = args.operator {
        put("OperatorUser", user.into());
    }
    edit(client, &serde_json::Value::Object(patch)).await
}

async fn edit(client: &Client, patch: &serde_json::Value) -> Result<(), CliError> {
    client
        .request(Method::PATCH, "prefs", Bytes::from(patch.to_string()))
        .await?;
    Ok(())
}

/// An error with its causes, in one line; a cause that the message already tells is left out.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
