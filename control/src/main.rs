//! `tailrace-control`: the coordination server, and the commands for its administrators.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use control::admin::cli::{self, AdminCommand};
use control::config::{DEFAULT_STATE_DIR, ServeFlags};
use tracing_subscriber::EnvFilter;

/// Exit code of a command that was spelt wrong.
const USAGE: u8 = 2;

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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The messages of this program name their causes themselves.
            eprintln!("tailrace-control: {}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Help and version as they are; a mistake in one line, like all others of this program.
fn explain(error: &clap::Error) -> ExitCode {
    let help = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == help {
        // A closed terminal is nobody to tell about.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
    }
    let text = error.to_string();
    let told = text.split("\n\n").filter(|part| {
        let part = part.trim_start();
        !part.starts_with("Usage:") && !part.starts_with("For more information")
    });
    let words: Vec<_> = told.flat_map(str::split_whitespace).collect();
    let line = words.join(" ");
    let line = line.trim_start_matches("error: ");
    eprintln!("tailrace-control: {line}; see `tailrace-control --help`");
    ExitCode::from(USAGE)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(flags) => {
            let filter = EnvFilter::try_from_env("TAILRACE_LOG").unwrap_or_else(|_| "info".into());
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
