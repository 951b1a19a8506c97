//! `users`.

use policy::tailnet::Role;

use super::print::{day_and_time, json, table};
use super::{ClientError, Output};
use crate::admin::api::{NewRole, NewUser, UserJson};
use crate::admin::client::{Client, segment};

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
    /// Give a user a role: policies speak of it as autogroup:ROLE
    Role {
        /// As listed
        name: String,
        /// owner, admin, it-admin, network-admin, billing-admin, auditor or member; a new owner
        /// makes the former one an admin
        role: Role,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Delete a user without nodes, and its auth keys
    Delete {
        /// As listed
        name: String,
    },
}

impl UsersCommand {
    /// How it prints.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::List(output) | Self::Create { output, .. } | Self::Role { output, .. } => *output,
            Self::Delete { .. } => Output::default(),
        }
    }
}

pub(super) async fn run(client: &Client, command: UsersCommand) -> Result<(), ClientError> {
    match command {
        UsersCommand::Create { name, output } => {
            let user: UserJson = client.post("/v1/users", &NewUser { name }).await?;
            if output.json {
                return json(&user);
            }
            println!("created user {} ({})", user.name, user.role);
        }
        UsersCommand::List(output) => {
            let users: Vec<UserJson> = client.get("/v1/users").await?;
            if output.json {
                return json(&users);
            }
            let rows = users.into_iter();
            let rows = rows.map(|u| {
                let created = day_and_time(Some(u.created));
                [u.id.to_string(), u.name, u.role, created]
            });
            table(["ID", "NAME", "ROLE", "CREATED"], rows);
        }
        UsersCommand::Role { name, role, output } => {
            let path = format!("/v1/users/{}/role", segment(&name));
            let ask = NewRole {
                role: role.to_string(),
            };
            let changed: Vec<UserJson> = client.post(&path, &ask).await?;
            if output.json {
                return json(&changed);
            }
            if changed.is_empty() {
                println!("role of {name}: {role}, as before");
            }
            for user in changed {
                println!("role of {}: {}", user.name, user.role);
            }
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
