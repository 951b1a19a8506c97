//! The command line: parses it, runs one command, prints one clear line if that fails.

pub mod args;
mod debug;
mod netcheck;
mod ping;
mod routes;
mod show;
mod top;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::Method;
use serde_json::json;

use crate::VERSION;
use crate::bench::{self, BenchError};
use crate::config::{DEFAULT_DEVICE, default_socket};
use crate::error_text::error_text;
use crate::localapi::{Client, ClientError, Status};
use crate::prefs::{Prefs, PrefsError};
use args::{BenchCommand, Cli, ClientCommand, Command, DaemonArgs, HostArgs, JsonArgs, SetArgs};
use tokio::runtime::{Builder, Runtime};

/// Threads of the daemon's tasks, few for a small footprint; an embedded tunnel has its own.
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
    /// The host could not be measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// Runs `tailrace` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { socket, command } = Cli::parse();
    let result = match command {
        Command::Daemon(args) => daemon(args, socket),
        // Before there are threads: its parts go into namespaces of their own.
        Command::Bench(command) => bench(command),
        Command::Client(command) => runtime(&mut Builder::new_current_thread())
            .and_then(|runtime| runtime.block_on(run(command, socket))),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tailrace: {}", error_text(&error));
            ExitCode::FAILURE
        }
    }
}

/// Privileges are dropped before there are threads.
fn daemon(args: DaemonArgs, socket: Option<PathBuf>) -> Result<ExitCode, CliError> {
    let daemon = crate::daemon::prepare(args, socket)?;
    let runtime = runtime(Builder::new_multi_thread().worker_threads(DAEMON_THREADS))?;
    runtime.block_on(crate::daemon::run(daemon))?;
    Ok(ExitCode::SUCCESS)
}

fn bench(command: BenchCommand) -> Result<ExitCode, CliError> {
    match command {
        BenchCommand::Host(HostArgs { seconds, json }) => {
            let tell = |what: &str| eprintln!("{what}");
            let report = bench::host(Duration::from_secs(seconds), tell)?;
            if json {
                let text = serde_json::to_string_pretty(&report)
                    .map_err(|error| CliError::Other(error.to_string()))?;
                println!("{text}");
            } else {
                print!("{report}");
            }
        }
        BenchCommand::End => bench::end::run().map_err(BenchError::from)?,
        BenchCommand::Load(args) => bench::load::run(&args).map_err(BenchError::from)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime(builder: &mut Builder) -> Result<Runtime, CliError> {
    let runtime = builder.enable_all().build();
    runtime.map_err(|error| CliError::Other(format!("cannot start: {error}")))
}

async fn run(command: ClientCommand, socket: Option<PathBuf>) -> Result<ExitCode, CliError> {
    let client = || {
        let path: PathBuf = socket
            .clone()
            .unwrap_or_else(|| default_socket(DEFAULT_DEVICE));
        Client::new(&path)
    };
    match command {
        ClientCommand::Up(args) => up::run(&client(), args).await?,
        ClientCommand::Set(args) => set(&client(), args).await?,
        ClientCommand::Down => {
            let patch = json!({"WantRunning": false, "WantRunningSet": true});
            edit(&client(), &patch).await?;
        }
        ClientCommand::Logout => {
            client()
                .request(Method::POST, "logout", Bytes::new())
                .await?;
        }
        ClientCommand::Status(JsonArgs { json }) => return show::status(&client(), json).await,
        ClientCommand::Top(args) => return top::run(&client(), &args).await,
        ClientCommand::Ip(args) => show::ip(&client(), &args).await?,
        ClientCommand::Ping(args) => return ping::run(&client(), &args).await,
        ClientCommand::Netcheck(args) => netcheck::run(&client(), args).await?,
        ClientCommand::Debug(command) => debug::run(&client(), command).await?,
        ClientCommand::Version(JsonArgs { json }) => {
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
    if let Some(shields_up) = args.shields_up {
        put("ShieldsUp", shields_up.into());
    }
    if let Some(user) = args.operator {
        if !user.is_empty() && !matches!(nix::unistd::User::from_name(&user), Ok(Some(_))) {
            return Err(CliError::Other(format!(
                "this host has no user named {user}"
            )));
        }
        put("OperatorUser", user.into());
    }
    if let Some(engine) = args.wireguard {
        let chosen = (engine != "default").then_some(engine);
        put("WireGuard", chosen.into());
    }
    let status: Status = client.json(Method::GET, "status", Bytes::new()).await?;
    let mut prefs: Prefs = client.json(Method::GET, "prefs", Bytes::new()).await?;
    let fields = args.routes.apply(&mut prefs, &status)?;
    let wanted = serde_json::to_value(&prefs.checked()?)
        .map_err(|error| CliError::Other(error.to_string()))?;
    for name in fields {
        patch.insert(
            name.to_owned(),
            wanted.get(name).cloned().unwrap_or_default(),
        );
        patch.insert(format!("{name}Set"), true.into());
    }
    if patch.is_empty() {
        return Err(CliError::Other(
            "nothing to set: `tailrace set --help` lists the flags".to_owned(),
        ));
    }
    edit(client, &serde_json::Value::Object(patch)).await
}

async fn edit(client: &Client, patch: &serde_json::Value) -> Result<(), CliError> {
    client
        .request(Method::PATCH, "prefs", Bytes::from(patch.to_string()))
        .await?;
    Ok(())
}
