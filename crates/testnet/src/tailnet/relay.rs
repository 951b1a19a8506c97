//! The standalone relay as a process.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::program;
use crate::folder::Folder;
use crate::lab::Host;
use crate::process::Process;
use crate::wait::wait_until;

/// Port of DERP over TLS.
const PORT: u16 = 3340;

/// `tailrace-relay serve` on a public host, with a certificate of its own making.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    host: Host,
    state: Folder,
}

impl Relay {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn start(host: Host) -> Result<Relay> {
        let state = Folder::new("relay")?;
        let process = serve(&host, &state)?;
        let relay = Relay {
            process,
            host,
            state,
        };
        relay.wait_listening()?;
        Ok(relay)
    }

    /// Starts it again after [`kill`](Self::kill), with the same state.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = serve(&self.host, &self.state)?;
        self.wait_listening()
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Writes the DERP map that the relay printed to a file, for `--derp-map`.
    ///
    /// # Errors
    ///
    /// When it printed none or the file cannot be written.
    pub fn derp_map(&self) -> Result<PathBuf> {
        let what = "the relay prints its DERP map";
        let map = wait_until(Duration::from_secs(5), what, || {
            let log = self.process.log().join("\n");
            first_object(&log).with_context(|| format!("it printed:\n{log}"))
        })?;
        let path = self.state.path().join("derp-map.json");
        fs::write(&path, map.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    fn wait_listening(&self) -> Result<()> {
        let what = "the relay listens";
        wait_until(Duration::from_secs(20), what, || {
            let listening =
                self.host
                    .namespace()
                    .exec(&["ss", "-Hltn", &format!("sport = :{PORT}")])?;
            anyhow::ensure!(!listening.trim().is_empty(), "port {PORT} is closed");
            Ok(())
        })
        .with_context(|| format!("the relay printed:\n{}", self.process.log().join("\n")))
    }
}

/// The JSON object that begins on a line of its own, whatever follows it.
fn first_object(text: &str) -> Result<Value> {
    let start = text.find("\n{").context("no JSON")?;
    let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter();
    Ok(values.next().context("no JSON")??)
}

fn serve(host: &Host, state: &Folder) -> Result<Process> {
    let mut command = host.namespace().command(program("tailrace-relay")?);
    command
        .args(["serve", "--state-dir"])
        .arg(state.path())
        .args(["--listen", &format!("{}:{PORT}", host.address())])
        .args(["--stun-listen", &format!("{}:3478", host.address())]);
    Process::spawn("tailrace-relay", command)
}
