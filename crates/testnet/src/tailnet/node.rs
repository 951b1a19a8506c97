//! The agent as a process, and its command line.

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{START, program};
use crate::folder::Folder;
use crate::lab::Host;
use crate::process::{Process, finish, run};
use crate::wait::{scaled, wait_until};

/// Port of the agent's metrics, on loopback.
const METRICS: u16 = 9641;

/// Which WireGuard a node runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Whichever the agent chooses.
    Auto,
    /// The kernel's.
    Kernel,
    /// The embedded one on a TUN device.
    Embedded,
}

/// A peer as `tailrace status --json` shows it.
#[derive(Clone, Debug)]
pub struct Peer(Value);

/// `tailrace daemon` on a host.
#[derive(Debug)]
pub struct Node {
    process: Process,
    engine: Engine,
    flags: &'static [&'static str],
    host: Host,
    state: Folder,
}

impl Node {
    /// Starts the daemon on the engine under test and waits until its local API answers.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn start(host: Host) -> Result<Node> {
        Node::start_on(host, Engine::under_test())
    }

    /// As [`start`](Self::start), on a given engine.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn start_on(host: Host, engine: Engine) -> Result<Node> {
        Node::start_with(host, engine, &[])
    }

    /// As [`start`](Self::start), but peers are reached through relays only.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn start_relayed(host: Host) -> Result<Node> {
        Node::start_with(host, Engine::under_test(), &["--direct=false"])
    }

    /// As [`start`](Self::start), but the router is not asked for a port.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn start_unmapped(host: Host) -> Result<Node> {
        Node::start_with(host, Engine::under_test(), &["--port-mapping=false"])
    }

    fn start_with(host: Host, engine: Engine, flags: &'static [&'static str]) -> Result<Node> {
        let state = Folder::new("node")?;
        let process = daemon(&host, state.path(), engine, flags)?;
        let mut node = Node {
            process,
            engine,
            flags,
            host,
            state,
        };
        node.wait_answering()?;
        Ok(node)
    }

    /// Starts the daemon again after [`kill`](Self::kill), with the same state.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = daemon(&self.host, self.state.path(), self.engine, self.flags)?;
        self.wait_answering()
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Ends the daemon with SIGTERM.
    ///
    /// # Errors
    ///
    /// When it has not ended after 20 s (scaled), or not with 0.
    pub fn terminate(&mut self) -> Result<()> {
        let status = self.process.terminate(START)?;
        ensure!(
            status.success(),
            "the daemon ended with {status} after SIGTERM"
        );
        Ok(())
    }

    /// Joins with an auth key; the node's name is its host's.
    ///
    /// # Errors
    ///
    /// When `tailrace up` exits non-zero.
    pub fn join(&self, url: &str, key: &str) -> Result<()> {
        let timeout = format!("{}s", scaled(Duration::from_secs(60)).as_secs());
        self.cli(&[
            "up",
            "--login-server",
            url,
            "--auth-key",
            key,
            "--timeout",
            &timeout,
        ])
        .with_context(|| format!("the daemon printed:\n{}", self.process.log().join("\n")))?;
        Ok(())
    }

    /// Runs `tailrace <words>` and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it exits non-zero.
    pub fn cli(&self, words: &[&str]) -> Result<String> {
        run(self.command()?.args(words))
    }

    /// Runs `tailrace <words>` whatever its status.
    ///
    /// # Errors
    ///
    /// When it cannot start.
    pub fn try_cli(&self, words: &[&str]) -> Result<Output> {
        finish(self.command()?.args(words))
    }

    /// `tailrace --socket PATH`, to which a command is yet to be added.
    ///
    /// # Errors
    ///
    /// When the program is not built.
    pub fn command(&self) -> Result<Command> {
        let mut command = self.host.namespace().command(program("tailrace")?);
        command.arg("--socket").arg(self.socket());
        Ok(command)
    }

    /// Path of the local API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(self.state.path())
    }

    /// `tailrace status --json`.
    ///
    /// # Errors
    ///
    /// When it fails or is no JSON.
    pub fn status(&self) -> Result<Value> {
        let text = self.cli(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Its address of the tailnet, `-4` or `-6`.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn ip(&self, family: &str) -> Result<IpAddr> {
        let text = self.cli(&["ip", family])?;
        text.trim()
            .parse()
            .with_context(|| format!("not an address: {text:?}"))
    }

    /// The peer called `name`, as status shows it.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn peer(&self, name: &str) -> Result<Peer> {
        let status = self.status()?;
        let peers = status
            .get("Peer")
            .and_then(Value::as_object)
            .context("no Peer")?;
        peers
            .values()
            .find(|peer| peer.get("HostName").and_then(Value::as_str) == Some(name))
            .map(|peer| Peer(peer.clone()))
            .with_context(|| format!("no peer {name} in {status}"))
    }

    /// One ICMP echo to `address` through the tunnel.
    ///
    /// # Errors
    ///
    /// When no answer comes within 1 s (scaled, whole seconds).
    pub fn ping(&self, address: IpAddr) -> Result<()> {
        let patience = scaled(Duration::from_secs(1)).as_secs().max(1).to_string();
        let address = address.to_string();
        self.host
            .namespace()
            .exec(&["ping", "-n", "-c", "1", "-W", &patience, &address])?;
        Ok(())
    }

    /// Pings until an answer comes.
    ///
    /// # Errors
    ///
    /// When none came by `deadline` (scaled).
    pub fn reach(&self, address: IpAddr, deadline: Duration) -> Result<()> {
        wait_until(deadline, &format!("{address} answers"), || {
            self.ping(address)
        })
        .with_context(|| {
            let log = self.process.log().join("\n");
            let status = self.cli(&["status", "--json"]).unwrap_or_default();
            format!("the daemon printed:\n{log}\nits status: {status}")
        })
    }

    /// The text of its metrics endpoint.
    ///
    /// # Errors
    ///
    /// When it does not answer with 200.
    pub fn metrics(&self) -> Result<String> {
        let address = self.metrics_address();
        let (status, body) = self.host.namespace().http_get(address, "/metrics")?;
        ensure!(status == 200, "/metrics says {status}");
        Ok(body)
    }

    /// Where its metrics are, seen from its host.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], METRICS))
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

    /// Its process, to end or wait for.
    #[must_use]
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its state folder.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    fn wait_answering(&mut self) -> Result<()> {
        let process = &mut self.process;
        let socket = socket(self.state.path());
        wait_until(START, "the agent's local API answers", || {
            if let Some(status) = process.ended()? {
                bail!("it ended: {status}");
            }
            std::os::unix::net::UnixStream::connect(&socket)
                .map(drop)
                .map_err(Into::into)
        })
        .with_context(|| format!("the daemon printed:\n{}", process.log().join("\n")))
    }
}

impl Peer {
    /// A number, as `RxBytes`, or by path, as `/Tailrace/OverlayRxBytes`.
    ///
    /// # Errors
    ///
    /// When the field is missing.
    pub fn number(&self, field: &str) -> Result<u64> {
        let value = self.0.get(field).or_else(|| self.0.pointer(field));
        let value = value.and_then(Value::as_u64);
        value.with_context(|| format!("no number {field} in {}", self.0))
    }

    /// A text, as `Relay`.
    ///
    /// # Errors
    ///
    /// When the field is missing.
    pub fn text(&self, field: &str) -> Result<&str> {
        let value = self.0.get(field).and_then(Value::as_str);
        value.with_context(|| format!("no text {field} in {}", self.0))
    }

    /// A list, as `Addrs`.
    ///
    /// # Errors
    ///
    /// When the field is missing.
    pub fn list(&self, field: &str) -> Result<&[Value]> {
        let value = self.0.get(field).and_then(Value::as_array);
        let value = value.with_context(|| format!("no list {field} in {}", self.0))?;
        Ok(value)
    }

    /// A truth value, as `Online`.
    ///
    /// # Errors
    ///
    /// When the field is missing.
    pub fn flag(&self, field: &str) -> Result<bool> {
        let value = self.0.get(field).and_then(Value::as_bool);
        value.with_context(|| format!("no flag {field} in {}", self.0))
    }

    /// The first address of the family.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn ip(&self, v6: bool) -> Result<IpAddr> {
        let texts = self
            .0
            .get("TailscaleIPs")
            .and_then(Value::as_array)
            .context("no TailscaleIPs")?;
        let mut addresses = texts
            .iter()
            .filter_map(|text| text.as_str()?.parse::<IpAddr>().ok());
        addresses
            .find(|address| address.is_ipv6() == v6)
            .with_context(|| format!("no such address in {}", self.0))
    }
}

impl Engine {
    /// The engine that `TAILRACE_WIREGUARD` asks for; embedded where it does not say.
    #[must_use]
    pub fn under_test() -> Engine {
        match env::var("TAILRACE_WIREGUARD").as_deref() {
            Ok("kernel") => Engine::Kernel,
            _ => Engine::Embedded,
        }
    }

    /// Its word on the agent's command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Engine::Auto => "auto",
            Engine::Kernel => "kernel",
            Engine::Embedded => "embedded",
        }
    }
}

fn socket(state: &Path) -> PathBuf {
    state.join("tailrace.sock")
}

/// The daemon's command line, as [`Node::start`] uses it.
fn daemon(host: &Host, state: &Path, engine: Engine, flags: &[&str]) -> Result<Process> {
    let mut command = host.namespace().command(program("tailrace")?);
    command
        .arg("daemon")
        .arg("--state-dir")
        .arg(state)
        .arg("--socket")
        .arg(socket(state))
        .args(["--wireguard", engine.word()])
        .args(flags)
        .args(["--metrics", &format!("127.0.0.1:{METRICS}")]);
    Process::spawn("tailrace daemon", command)
}
