//! `tailrace daemon` on a host of the lab: [`Node`].

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testnet::{Folder, Host, Process, run, wait_until};

/// Longest that a change may take to show.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon, its state and its names.
pub(crate) struct Node<'a> {
    host: &'a Host,
    device: &'static str,
    port: u16,
    environment: Vec<(&'static str, PathBuf)>,
    state: Folder,
    process: Process,
}

impl<'a> Node<'a> {
    /// Starts a daemon with the default names.
    pub(crate) fn start(host: &'a Host) -> Result<Self> {
        Self::start_as(host, "tailrace0", 41641, Vec::new())
    }

    /// Starts a daemon with names of its own, and with variables in its environment.
    pub(crate) fn start_as(
        host: &'a Host,
        device: &'static str,
        port: u16,
        environment: Vec<(&'static str, PathBuf)>,
    ) -> Result<Self> {
        let state = Folder::new("daemon")?;
        let process = spawn(host, device, port, &environment, state.path())?;
        let mut node = Self {
            host,
            device,
            port,
            environment,
            state,
            process,
        };
        node.wait_answering()?;
        Ok(node)
    }

    /// Ends the daemon with SIGTERM and starts it again on the same state.
    pub(crate) fn restart(&mut self) -> Result<()> {
        ensure!(self.process.terminate(PATIENCE)?.success());
        self.start_again()
    }

    /// Kills the daemon with SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again after [`Node::kill`], on the same state.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.process = spawn(
            self.host,
            self.device,
            self.port,
            &self.environment,
            self.state.path(),
        )?;
        self.wait_answering()
    }

    /// Runs `tailrace <words>` whatever its status.
    pub(crate) fn try_cli(&self, words: &str) -> Result<Output> {
        let mut command = self.host.namespace().command(tailrace());
        command.arg("--socket").arg(self.socket());
        Ok(command.args(words.split_whitespace()).output()?)
    }

    /// Runs `tailrace <words>` and returns what it printed.
    pub(crate) fn cli(&self, words: &str) -> Result<String> {
        let mut command = self.host.namespace().command(tailrace());
        command.arg("--socket").arg(self.socket());
        run(command.args(words.split_whitespace())).with_context(|| self.log())
    }

    /// Starts `tailrace <words>`.
    pub(crate) fn spawn_cli(&self, words: &str) -> Result<Process> {
        let mut command = self.host.namespace().command(tailrace());
        command.arg("--socket").arg(self.socket());
        command.args(words.split_whitespace());
        Process::spawn("tailrace", command)
    }

    /// Runs a command that has to fail with one line on standard error, and returns that line.
    pub(crate) fn refused(&self, words: &str) -> Result<String> {
        let output = self.try_cli(words)?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(
            !output.status.success(),
            "{words} succeeded\n{}",
            self.log()
        );
        ensure!(text.trim().lines().count() == 1, "not one line: {text}");
        Ok(text)
    }

    /// `tailrace status --json`.
    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.cli("status --json")?)?)
    }

    /// Waits for a state.
    pub(crate) fn wait_state(&self, wanted: &str) -> Result<Value> {
        wait_until(PATIENCE, &format!("the state is {wanted}"), || {
            let status = self.status()?;
            let state = &status["BackendState"];
            ensure!(state == wanted, "{state}, {}", status["Health"]);
            Ok(status)
        })
        .with_context(|| self.log())
    }

    /// Whether the overlay device exists.
    pub(crate) fn has_device(&self) -> Result<bool> {
        let links = self.host.namespace().ip("-o link show")?;
        Ok(links.contains(&format!(": {}:", self.device)))
    }

    /// The daemon's process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Its state folder.
    pub(crate) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    fn socket(&self) -> PathBuf {
        self.state.path().join("daemon.sock")
    }

    fn log(&self) -> String {
        format!("the daemon printed:\n{}", self.process.log().join("\n"))
    }

    fn wait_answering(&mut self) -> Result<()> {
        let socket = self.socket();
        let process = &mut self.process;
        wait_until(PATIENCE, "the local API answers", || {
            if let Some(status) = process.ended()? {
                bail!("it ended: {status}");
            }
            Ok(std::os::unix::net::UnixStream::connect(&socket).map(drop)?)
        })
        .with_context(|| self.log())
    }
}

fn tailrace() -> &'static str {
    env!("CARGO_BIN_EXE_tailrace")
}

fn spawn(
    host: &Host,
    device: &str,
    port: u16,
    environment: &[(&'static str, PathBuf)],
    state: &Path,
) -> Result<Process> {
    let mut command = host.namespace().command(tailrace());
    command
        .arg("--socket")
        .arg(state.join("daemon.sock"))
        .args(["daemon", "--device", device, "--port", &port.to_string()])
        .arg("--state-dir")
        .arg(state.join("state"))
        .envs(environment.iter().map(|(name, value)| (name, value)));
    Process::spawn("tailrace daemon", command)
}
