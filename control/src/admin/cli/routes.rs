//! `nodes routes`.

use super::print::{json, table};
use super::{ClientError, Output};
use crate::admin::api::routes::{NodeRoutesJson, PrefixJson, RouteJson};
use crate::admin::client::{Client, segment};

/// `nodes routes`. 0.0.0.0/0 and ::/0 stand for each other: an exit node.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum RoutesCommand {
    /// List the routes of all nodes, or of one
    List {
        /// Name, address or id
        node: Option<String>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Let a node serve a route
    Approve {
        /// Name, address or id
        node: String,
        /// Such as 192.0.2.0/24; 0.0.0.0/0 makes it an exit node
        prefix: String,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Take a route from a node
    Remove {
        /// Name, address or id
        node: String,
        /// As listed
        prefix: String,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
}

impl RoutesCommand {
    /// How it prints.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::List { output, .. }
            | Self::Approve { output, .. }
            | Self::Remove { output, .. } => *output,
        }
    }
}

pub(super) async fn run(client: &Client, command: RoutesCommand) -> Result<(), ClientError> {
    let path = |node: &str, verb: &str| format!("/v1/nodes/{}/routes/{verb}", segment(node));
    match command {
        RoutesCommand::List { node, output } => {
            let of = node.map_or_else(String::new, |node| format!("?node={}", segment(&node)));
            let nodes: Vec<NodeRoutesJson> = client.get(&format!("/v1/routes{of}")).await?;
            if output.json {
                return json(&nodes);
            }
            let rows = nodes.iter().flat_map(|node| {
                node.routes.iter().map(|route| {
                    [
                        node.name.clone(),
                        route.prefix.to_string(),
                        state(node, route).to_owned(),
                    ]
                })
            });
            table(["NODE", "ROUTE", "STATE"], rows);
        }
        RoutesCommand::Approve {
            node,
            prefix,
            output,
        } => {
            let ask = PrefixJson {
                prefix: prefix.clone(),
            };
            let node: NodeRoutesJson = client.post(&path(&node, "approve"), &ask).await?;
            if output.json {
                return json(&node);
            }
            let waits = node.routes.iter().any(|route| {
                route.approved && !route.advertised && route.prefix.to_string() == prefix
            });
            let note = if waits {
                ", which does not advertise it yet"
            } else {
                ""
            };
            println!("approved {prefix} on {}{note}", node.name);
        }
        RoutesCommand::Remove {
            node,
            prefix,
            output,
        } => {
            let ask = PrefixJson {
                prefix: prefix.clone(),
            };
            let node: NodeRoutesJson = client.post(&path(&node, "remove"), &ask).await?;
            if output.json {
                return json(&node);
            }
            println!("removed {prefix} from {}", node.name);
        }
    }
    Ok(())
}

fn state(node: &NodeRoutesJson, route: &RouteJson) -> &'static str {
    match (route.advertised, route.approved, route.serving) {
        (true, false, _) => "waits for approval",
        (false, _, _) => "approved, not advertised",
        (true, true, false) => "standby",
        (true, true, true) if node.online => "serving",
        (true, true, true) => "serving, offline",
    }
}
