//! The coordination server as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{START, program};
use crate::folder::Folder;
use crate::lab::Host;
use crate::process::{Process, run};
use crate::wait::wait_until;

/// Port of ts2021 and health.
const PORT: u16 = 8080;
/// The user that nodes join as.
const USER: &str = "lab";

/// How control runs.
#[derive(Clone, Debug, Default)]
pub struct ControlOptions {
    /// A DERP map file in place of the embedded relay.
    pub derp_map: Option<PathBuf>,
    /// The file that its policy comes from.
    pub policy: Option<PathBuf>,
}

/// `tailrace-control serve` on a public host, plain HTTP.
#[derive(Debug)]
pub struct Control {
    process: Process,
    options: ControlOptions,
    host: Host,
    state: Folder,
}

impl Control {
    /// Starts it, waits until it is healthy and makes a user.
    ///
    /// # Errors
    ///
    /// When it does not become healthy.
    pub fn start(host: Host, options: ControlOptions) -> Result<Control> {
        let state = Folder::new("control")?;
        let process = serve(&host, state.path(), &options)?;
        let mut control = Control {
            process,
            options,
            host,
            state,
        };
        control.wait_healthy()?;
        control.admin(&["users", "create", USER])?;
        Ok(control)
    }

    /// Starts it again after [`kill`](Self::kill), with the same state, and waits for its health.
    ///
    /// # Errors
    ///
    /// When it does not become healthy.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = serve(&self.host, self.state.path(), &self.options)?;
        self.wait_healthy()
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// The URL that nodes are given.
    #[must_use]
    pub fn url(&self) -> String {
        url(&self.host)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.host.reached_at(PORT)
    }

    /// The machine it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its state folder.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Runs an administrator's command and returns what it printed.
    ///
    /// # Errors
    ///
    /// When the command exits non-zero.
    pub fn admin(&self, words: &[&str]) -> Result<String> {
        run(self.admin_command()?.args(words))
    }

    /// `tailrace-control --state-dir DIR`, to which a command is yet to be added.
    ///
    /// # Errors
    ///
    /// When the program is not built.
    pub fn admin_command(&self) -> Result<Command> {
        let mut command = self.host.namespace().command(program("tailrace-control")?);
        command.arg("--state-dir").arg(self.state.path());
        Ok(command)
    }

    /// Makes an auth key, with further options as on the command line.
    ///
    /// # Errors
    ///
    /// When the command fails or prints more than a key.
    pub fn auth_key(&self, options: &[&str]) -> Result<String> {
        let mut words = vec!["keys", "create", "--user", USER];
        words.extend(options);
        let printed = self.admin(&words)?;
        let key = printed.trim();
        ensure!(
            !key.is_empty() && !key.contains(char::is_whitespace),
            "not a key: {printed:?}"
        );
        Ok(key.to_owned())
    }

    /// Approves the node that waits with `code`.
    ///
    /// # Errors
    ///
    /// When no node waits with it.
    pub fn approve(&self, code: &str) -> Result<()> {
        self.admin(&["nodes", "approve", code, "--user", USER])
            .map(drop)
    }

    fn wait_healthy(&mut self) -> Result<()> {
        let Control { process, host, .. } = self;
        let address = host.reached_at(PORT);
        wait_until(START, "control is healthy", || {
            if let Some(status) = process.ended()? {
                anyhow::bail!("it ended: {status}");
            }
            let (status, body) = host.namespace().http_get(address, "/health")?;
            ensure!(status == 200, "/health says {status}: {body}");
            Ok(())
        })
        .with_context(|| format!("control printed:\n{}", process.log().join("\n")))
    }
}

fn url(host: &Host) -> String {
    format!("http://{}", host.reached_at(PORT))
}

fn serve(host: &Host, state: &Path, options: &ControlOptions) -> Result<Process> {
    let mut command = host.namespace().command(program("tailrace-control")?);
    command
        .args(["serve", "--state-dir"])
        .arg(state)
        .args(["--listen", &host.reached_at(PORT).to_string()])
        .args(["--server-url", &url(host)]);
    if let Some(map) = &options.derp_map {
        command.arg("--no-derp").arg("--derp-map").arg(map);
    }
    if let Some(policy) = &options.policy {
        command.arg("--policy").arg(policy);
    }
    Process::spawn("tailrace-control", command)
}
