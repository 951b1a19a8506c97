//! The admin commands: what they take, what they print.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use super::api::{
    Approve, AuthKeyJson, NewKey, NewUser, NodeJson, NodesJson, Rename, StatusJson, Tag, UserJson,
};
pub use super::client::ClientError;
use super::client::{Client, segment};
use settings::parse_duration;

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
    /// The server at a glance
    Status(Output),
}

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `users`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum UsersCommand {
    /// Add a user
    Create {
        /// Letters, digits and . _ - + @
        name: String,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// List all users
    List(Output),
    /// Delete a user without nodes, and its auth keys
    Delete {
        /// As listed
        name: String,
    },
}

/// `keys`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// Make an auth key and print it, once
    Create {
        /// Who owns the nodes that it lets in
        #[arg(long, value_name = "NAME")]
        user: String,
        /// Lets any number of nodes in
        #[arg(long)]
        reusable: bool,
        /// Its nodes are deleted after 30 minutes offline
        #[arg(long)]
        ephemeral: bool,
        /// Its nodes carry these tags instead of an owner
        #[arg(long, value_name = "TAGS", value_delimiter = ',')]
        tags: Vec<String>,
        /// How long it lets nodes in
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
        expiry: Duration,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// List all auth keys, without their secrets
    List(Output),
    /// Withdraw an auth key; nodes that it let in stay
    Revoke {
        /// As listed
        #[arg(value_parser = number)]
        id: i64,
    },
}

/// `nodes`. NODE is a name, an address or an id.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum NodesCommand {
    /// List all nodes, and the machines that wait for approval
    List(Output),
    /// Let in the machine that shows this code
    Approve {
        /// The last part of its login URL
        code: String,
        /// Who owns the node
        #[arg(long, value_name = "NAME")]
        user: String,
    },
    /// Make a node log in again
    Expire {
        /// Name, address or id
        node: String,
    },
    /// Delete a node
    Delete {
        /// Name, address or id
        node: String,
    },
    /// Name a node, whatever its host name
    Rename {
        /// Name, address or id
        node: String,
        /// Lower-case letters, digits and -
        name: String,
    },
    /// Replace a node's tags; "" takes them away
    Tag {
        /// Name, address or id
        node: String,
        /// Separated by commas
        #[arg(value_delimiter = ',')]
        tags: Vec<String>,
    },
}

/// Runs one command against the server whose state is in `state_dir`, and prints the outcome.
///
/// # Errors
///
/// See [`ClientError`].
pub async fn run(command: AdminCommand, state_dir: &Path) -> Result<(), ClientError> {
    let client = Client::new(state_dir);
    match command {
        AdminCommand::Users(command) => users(&client, command).await,
        AdminCommand::Keys(command) => keys(&client, command).await,
        AdminCommand::Nodes(command) => nodes(&client, command).await,
        AdminCommand::Status(output) => {
            let status: StatusJson = client.get("/v1/status").await?;
            if output.json {
                return json(&status);
            }
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
            Ok(())
        }
    }
}

async fn users(client: &Client, command: UsersCommand) -> Result<(), ClientError> {
    match command {
        UsersCommand::Create { name, output } => {
            let user: UserJson = client.post("/v1/users", &NewUser { name }).await?;
            if output.json {
                return json(&user);
            }
            println!("created user {}", user.name);
        }
        UsersCommand::List(output) => {
            let users: Vec<UserJson> = client.get("/v1/users").await?;
            if output.json {
                return json(&users);
            }
            let rows = users.into_iter();
            let rows = rows.map(|u| [u.id.to_string(), u.name, day_and_time(Some(u.created))]);
            table(["ID", "NAME", "CREATED"], rows);
        }
        UsersCommand::Delete { name } => {
            client
                .delete::<()>(&format!("/v1/users/{}", segment(&name)))
                .await?;
            println!("deleted user {name}");
        }
    }
    Ok(())
}

async fn keys(client: &Client, command: KeysCommand) -> Result<(), ClientError> {
    match command {
        KeysCommand::Create {
            user,
            reusable,
            ephemeral,
            tags,
            expiry,
            output,
        } => {
            let expiry_seconds = expiry.as_secs();
            let new = NewKey {
                user,
                reusable,
                ephemeral,
                tags,
                expiry_seconds,
            };
            let key: AuthKeyJson = client.post("/v1/keys", &new).await?;
            if output.json {
                return json(&key);
            }
            // Alone on standard output, for scripts.
            println!("{}", key.key.unwrap_or_default());
        }
        KeysCommand::List(output) => {
            let keys: Vec<AuthKeyJson> = client.get("/v1/keys").await?;
            if output.json {
                return json(&keys);
            }
            let rows = keys.into_iter().map(|key| {
                let mut kind = vec![if key.reusable { "reusable" } else { "one-shot" }];
                kind.extend(key.ephemeral.then_some("ephemeral"));
                [
                    key.id.to_string(),
                    key.user,
                    key.prefix,
                    key.state,
                    kind.join(","),
                    key.tags.join(","),
                    day_and_time(key.expires),
                ]
            });
            table(
                ["ID", "USER", "KEY", "STATE", "KIND", "TAGS", "EXPIRES"],
                rows,
            );
        }
        KeysCommand::Revoke { id } => {
            client.delete::<()>(&format!("/v1/keys/{id}")).await?;
            println!("revoked auth key {id}");
        }
    }
    Ok(())
}

async fn nodes(client: &Client, command: NodesCommand) -> Result<(), ClientError> {
    let path = |node: &str, verb: &str| format!("/v1/nodes/{}{verb}", segment(node));
    match command {
        NodesCommand::List(output) => {
            let list: NodesJson = client.get("/v1/nodes").await?;
            if output.json {
                return json(&list);
            }
            print_nodes(list);
        }
        NodesCommand::Approve { code, user } => {
            let ask = Approve { code, user };
            let node: NodeJson = client.post("/v1/nodes/approve", &ask).await?;
            println!("approved {} ({})", node.name, node.ipv4);
        }
        NodesCommand::Expire { node } => {
            let node: NodeJson = client.post(&path(&node, "/expire"), &()).await?;
            println!("expired {}: it has to log in again", node.name);
        }
        NodesCommand::Delete { node } => {
            let node: NodeJson = client.delete(&path(&node, "")).await?;
            println!("deleted {}", node.name);
        }
        NodesCommand::Rename { node, name } => {
            let node: NodeJson = client
                .post(&path(&node, "/rename"), &Rename { name })
                .await?;
            println!("renamed to {}", node.name);
        }
        NodesCommand::Tag { node, tags } => {
            let node: NodeJson = client.post(&path(&node, "/tag"), &Tag { tags }).await?;
            let tags = if node.tags.is_empty() {
                "none".to_owned()
            } else {
                node.tags.join(",")
            };
            println!("tags of {}: {tags}", node.name);
        }
    }
    Ok(())
}

fn print_nodes(list: NodesJson) {
    let rows = list.nodes.into_iter().map(|node| {
        let state = match (node.expired, node.online) {
            (true, _) => "expired".to_owned(),
            (false, true) => "online".to_owned(),
            (false, false) => format!("last seen {}", day_and_time(node.last_seen)),
        };
        [
            node.id.to_string(),
            node.name,
            node.ipv4.to_string(),
            node.user.unwrap_or_else(|| node.tags.join(",")),
            state,
            node.os,
            day_and_time(node.expires),
        ]
    });
    table(
        [
            "ID",
            "NAME",
            "ADDRESS",
            "OWNER",
            "STATE",
            "OS",
            "KEY EXPIRES",
        ],
        rows,
    );
    if !list.waiting.is_empty() {
        println!("\nwaiting for `tailrace-control nodes approve CODE --user NAME`:");
        let rows = list.waiting.into_iter();
        table(
            ["CODE", "HOST", "NODE KEY"],
            rows.map(|l| [l.code, l.hostname, l.node_key]),
        );
    }
}

fn json(value: &impl Serialize) -> Result<(), ClientError> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Aligned columns under a header.
fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let header = header.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(header).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn number(text: &str) -> Result<i64, String> {
    let number = text.parse();
    number.map_err(|_| "not a number: see `tailrace-control keys list`".to_owned())
}

fn day_and_time(at: Option<OffsetDateTime>) -> String {
    let Some(at) = at else {
        return "never".to_owned();
    };
    let (date, hour, minute) = (at.date(), at.hour(), at.minute());
    format!("{date} {hour:02}:{minute:02}Z")
}
