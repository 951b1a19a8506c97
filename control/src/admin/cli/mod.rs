//! The admin commands: what they take, what they print.

use std::path::Path;

use super::api::policy::StandingJson;
use super::api::{ErrorJson, StatusJson};
use super::client::Client;
pub use super::client::{ClientError, Refusal};
pub use keys::KeysCommand;
pub use nodes::NodesCommand;
pub use policy::PolicyCommand;
use print::{day_and_time, json};
pub use routes::RoutesCommand;
pub use users::UsersCommand;

mod keys;
mod nodes;
mod policy;
mod print;
mod routes;
mod users;

/// What an administrator can ask of a running server.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum AdminCommand {
    /// People that own nodes
    #[command(subcommand)]
    Users(UsersCommand),
    /// Auth keys, which let nodes in without an approval
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Nodes
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Who may reach what
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// The server at a glance
    Status(Output),
}

/// What a command came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It was done, or the answer is yes.
    Yes,
    /// The answer is no; it was printed.
    No,
}

impl Answer {
    fn of(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl AdminCommand {
    /// Exit status when it fails: one that no answer has.
    #[must_use]
    pub fn failure_status(&self) -> u8 {
        match self {
            Self::Policy(command) if command.is_question() => 2,
            _ => 1,
        }
    }

    /// How it prints.
    fn output(&self) -> Output {
        match self {
            Self::Users(command) => command.output(),
            Self::Keys(command) => command.output(),
            Self::Nodes(command) => command.output(),
            Self::Policy(command) => command.output(),
            Self::Status(output) => *output,
        }
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one command against the server whose state is in `state_dir`, and prints the outcome; with
/// `--json` also that it failed, as `{"error": …}`.
///
/// # Errors
///
/// See [`ClientError`].
pub async fn run(command: AdminCommand, state_dir: &Path) -> Result<Answer, ClientError> {
    let client = Client::new(state_dir);
    let wants_json = command.output().json;
    let outcome = dispatch(&client, command).await;
    if let Err(error) = &outcome
        && wants_json
    {
        json(&ErrorJson {
            error: error.to_string(),
            diagnostics: None,
        })?;
    }
    outcome
}

async fn dispatch(client: &Client, command: AdminCommand) -> Result<Answer, ClientError> {
    match command {
        AdminCommand::Users(command) => users::run(client, command).await?,
        AdminCommand::Keys(command) => keys::run(client, command).await?,
        AdminCommand::Nodes(command) => nodes::run(client, command).await?,
        AdminCommand::Policy(command) => return policy::run(client, command).await,
        AdminCommand::Status(output) => {
            let status: StatusJson = client.get("/v1/status").await?;
            if output.json {
                json(&status)?;
            } else {
                print_status(&status);
            }
        }
    }
    Ok(Answer::Yes)
}

fn print_status(status: &StatusJson) {
    println!(
        "tailrace-control {} at {}",
        status.version, status.server_url
    );
    println!("up since   {}", day_and_time(Some(status.started)));
    println!("domain     {}", status.base_domain);
    println!(
        "nodes      {} ({} online, {} map streams), {} waiting for approval",
        status.nodes, status.online, status.map_streams, status.waiting
    );
    println!("users      {}", status.users);
    println!("change     {}", status.change_number);
    print_standing(&status.policy);
}

fn print_standing(policy: &StandingJson) {
    match (policy.version, &policy.author) {
        (Some(version), Some(author)) => println!(
            "policy     version {version}, set by {author} at {}",
            day_and_time(policy.since)
        ),
        _ => println!("policy     none was ever set: every node may reach every node"),
    }
    for warning in &policy.warnings {
        println!("           line {}: {}", warning.line, warning.message);
    }
    if let Some(failure) = &policy.failure {
        println!(
            "           NOT THE FILE since {}: {}",
            day_and_time(Some(failure.since)),
            failure.reason
        );
        for wrong in &failure.diagnostics {
            println!("           line {}: {}", wrong.line, wrong.message);
        }
    }
}
