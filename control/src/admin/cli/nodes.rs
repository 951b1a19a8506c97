//! `nodes`.

use super::print::{day_and_time, json, table};
use super::routes::{self, RoutesCommand};
use super::{ClientError, Output};
use crate::admin::api::{Approve, NodeJson, NodesJson, Rename, Tag};
use crate::admin::client::{Client, segment};

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
    /// Routes that nodes offer to carry for others
    #[command(subcommand)]
    Routes(RoutesCommand),
}

impl NodesCommand {
    /// How it prints.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::List(output) => *output,
            Self::Routes(command) => command.output(),
            Self::Approve { .. }
            | Self::Expire { .. }
            | Self::Delete { .. }
            | Self::Rename { .. }
            | Self::Tag { .. } => Output::default(),
        }
    }
}

pub(super) async fn run(client: &Client, command: NodesCommand) -> Result<(), ClientError> {
    let path = |node: &str, verb: &str| format!("/v1/nodes/{}{verb}", segment(node));
    match command {
        NodesCommand::List(output) => {
            let list: NodesJson = client.get("/v1/nodes").await?;
            if output.json {
                return json(&list);
            }
            print_nodes(list);
        }
        NodesCommand::Routes(command) => routes::run(client, command).await?,
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
