//! `tailrace-control`: the coordination server, and the commands for its administrators.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use control::admin::cli::{self, AdminCommand};
use control::config::{DEFAULT_STATE_DIR, ServeFlags};
use tracing_subscriber::EnvFilter;

/// Coordination server of a tailnet
#[derive(Debug, clap::Parser)]
#[command(name = "tailrace-control", version)]
struct Cli {
    /// Folder of the server's database, keys and admin socket; `serve` makes it if it is not there
    /// [default: /var/lib/tailrace-control]
    #[arg(
        long,
        value_name = "DIR",
        env = "TAILRACE_CONTROL_STATE_DIR",
        global = true
    )]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<ServeFlags>),
    #[command(flatten)]
    Admin(AdminCommand),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The messages of this program name their causes themselves.
            eprintln!("tailrace-control: {}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(flags) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr)
                .init();
            let config = ServeFlags {
                state_dir: cli.state_dir,
                ..*flags
            }
            .resolve()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(control::run(config))?)
        }
        Command::Admin(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let state_dir = cli
                .state_dir
                .unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR));
            Ok(runtime.block_on(cli::run(command, &state_dir))?)
        }
    }
}
