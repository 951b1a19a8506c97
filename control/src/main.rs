//! `tailrace-control`: the coordination server, and the commands for its administrators.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use clap::error::ErrorKind;
use control::admin::cli::{self, AdminCommand, Answer};
use control::config::{DEFAULT_STATE_DIR, ServeFlags};
use tracing_subscriber::EnvFilter;

/// Exit code of a command that was spelt wrong.
const USAGE: u8 = 2;
/// Exit code of a command that failed, or whose answer is no.
const FAILURE: u8 = 1;
/// What work gets that is still under way when the server has stopped.
const LAST_WORK: Duration = Duration::from_millis(500);

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
    match cli.command {
        Command::Serve(flags) => serve(*flags, cli.state_dir),
        Command::Admin(command) => administer(command, cli.state_dir),
    }
}

/// What is wrong in one line, below the marked places of a policy if it is that.
fn fail(excerpts: Option<&str>, error: &dyn std::error::Error, status: u8) -> ExitCode {
    eprint!("{}", excerpts.unwrap_or_default());
    // The messages of this program name their causes themselves.
    eprintln!("tailrace-control: {}", error.to_string().replace('\n', " "));
    ExitCode::from(status)
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

fn serve(flags: ServeFlags, state_dir: Option<PathBuf>) -> ExitCode {
    let filter = EnvFilter::try_from_env("TAILRACE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let config = match (ServeFlags { state_dir, ..flags }).resolve() {
        Ok(config) => config,
        Err(error) => return fail(None, &error, FAILURE),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(None, &error, FAILURE),
    };
    let outcome = runtime.block_on(control::run(config));
    // Long questions of administrators are not waited for.
    runtime.shutdown_timeout(LAST_WORK);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let excerpts = error.diagnostics().map(policy::Diagnostics::render);
            fail(excerpts.as_deref(), &error, FAILURE)
        }
    }
}

fn administer(command: AdminCommand, state_dir: Option<PathBuf>) -> ExitCode {
    let status = command.failure_status();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(None, &error, status),
    };
    let state_dir = state_dir.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR));
    match runtime.block_on(cli::run(command, &state_dir)) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(FAILURE),
        Err(error) => fail(error.excerpts(), &error, status),
    }
}
