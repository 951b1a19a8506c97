//! `keys`.

use std::time::Duration;

use settings::parse_duration;

use super::print::{day_and_time, json, table};
use super::{ClientError, Output};
use crate::admin::api::{AuthKeyJson, NewKey};
use crate::admin::client::Client;

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

impl KeysCommand {
    /// How it prints.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::List(output) | Self::Create { output, .. } => *output,
            Self::Revoke { .. } => Output::default(),
        }
    }
}

pub(super) async fn run(client: &Client, command: KeysCommand) -> Result<(), ClientError> {
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

fn number(text: &str) -> Result<i64, String> {
    let number = text.parse();
    number.map_err(|_| "not a number: see `tailrace-control keys list`".to_owned())
}
