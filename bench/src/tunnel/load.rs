//! The agent's load, run by processes of this program in the lab's namespaces.

use std::time::Duration;

use agent::bench::load::Sent;
use anyhow::{Context as _, Result};
use testnet::{Namespace, Process};

/// Until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes what comes in a namespace, while this lives.
///
/// # Errors
///
/// When it does not listen.
pub(crate) fn serving(space: &Namespace) -> Result<Process> {
    let mut command = space.command(std::env::current_exe()?);
    command.args(["tunnel-load", "serve"]);
    let mut serving = Process::spawn("load", command)?;
    serving.wait_for_line("ready", PATIENCE)?;
    Ok(serving)
}

/// Sends from a namespace, as the words of [`agent::bench::load::Args`] say.
///
/// # Errors
///
/// When it fails.
pub(crate) fn send(space: &Namespace, words: &[&str]) -> Result<Sent> {
    let program = std::env::current_exe()?;
    let program = program.to_string_lossy().into_owned();
    let said = space.exec(&[&[program.as_str(), "tunnel-load"], words].concat())?;
    serde_json::from_str(said.trim()).with_context(|| said.clone())
}
