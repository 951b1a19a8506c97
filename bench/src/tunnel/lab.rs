//! Two hosts on one cable, and tunnels between them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use keys::NodePrivate;
use testnet::{Namespace, Process, veth, wait_until};

use super::load::{self, Sent};
use super::node::{Engine, PeerSpec, Spec};

/// As in a tailnet.
const MTU: u16 = 1280;
/// Bytes of IPv4's and UDP's headers.
const UDP_HEADERS: u64 = 28;
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with one device, and so many nodes on another host that it talks to, each with a device of its own.
///
/// ```text
/// near: wg0 10.9.0.1 ── veth 10.8.0.1 ═══ 10.8.0.2 ── far: wg0 10.9.1.0, wg1 10.9.1.1, …
/// ```
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) near: Namespace,
    pub(crate) far: Namespace,
    near_node: Process,
    far_node: Process,
    _serving: Process,
    busy: usize,
}

/// CPU seconds of both nodes' processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub(crate) near: f64,
    pub(crate) far: f64,
}

impl Lab {
    /// Starts `busy` tunnels on `engine`; the near node knows `idle` peers beside that nobody is behind.
    ///
    /// # Errors
    ///
    /// When a device cannot be made, or nothing passes a tunnel.
    pub(crate) fn start(engine: Engine, busy: usize, idle: usize) -> Result<Lab> {
        let (near, far) = (Namespace::new("near")?, Namespace::new("far")?);
        veth((&near, "cable"), (&far, "cable"))?;
        near.ip("address add 10.8.0.1/24 dev cable")?;
        far.ip("address add 10.8.0.2/24 dev cable")?;
        let secret = NodePrivate::generate();
        let mut peers = Vec::new();
        let mut specs = Vec::new();
        for number in 0..busy + idle {
            let theirs = NodePrivate::generate();
            peers.push(PeerSpec {
                key: hex::encode(theirs.public().as_bytes()),
                endpoint: Some(([10, 8, 0, 2], port(number)).into()),
                allowed_ips: vec![format!("{}/32", address(number)).parse()?],
            });
            if number < busy {
                specs.push(Spec {
                    name: device(number),
                    key: hex::encode(theirs.as_bytes()),
                    port: port(number),
                    mtu: MTU,
                    peers: vec![PeerSpec {
                        key: hex::encode(secret.public().as_bytes()),
                        endpoint: Some(([10, 8, 0, 1], port(0)).into()),
                        allowed_ips: vec!["10.9.0.1/32".parse()?],
                    }],
                });
            }
        }
        let one = Spec {
            name: device(0),
            key: hex::encode(secret.as_bytes()),
            port: port(0),
            mtu: MTU,
            peers,
        };
        let near_node = node(&near, engine, &[one])?;
        let far_node = node(&far, engine, &specs)?;
        near.ip("address add 10.9.0.1/32 dev wg0")?;
        near.ip(&format!("link set wg0 up mtu {MTU}"))?;
        near.ip("route add 10.9.1.0/24 dev wg0")?;
        for number in 0..busy {
            let (device, table) = (device(number), 100 + number);
            far.ip(&format!("address add {}/32 dev {device}", address(number)))?;
            far.ip(&format!("link set {device} up mtu {MTU}"))?;
            // Answers go out by the device that they belong to.
            far.ip(&format!("route add 10.9.0.1 dev {device} table {table}"))?;
            far.ip(&format!(
                "rule add from {} lookup {table} priority {table}",
                address(number)
            ))?;
        }
        // Asymmetric as it looks, no route back is by the main table.
        for name in ["all", "default"] {
            far.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
        let serving = load::serving(&far)?;
        let lab = Lab {
            near,
            far,
            near_node,
            far_node,
            _serving: serving,
            busy,
        };
        for number in 0..busy {
            wait_until(PATIENCE, "a tunnel carries packets", || {
                let to = address(number);
                lab.near
                    .exec(&["ping", "-c", "1", "-W", "1", &to])
                    .map(drop)
            })?;
        }
        Ok(lab)
    }

    /// Sends TCP through all tunnels, in `streams` for each.
    ///
    /// # Errors
    ///
    /// When a stream fails.
    pub(crate) fn tcp(&self, streams: usize, seconds: f64) -> Result<Sent> {
        let addresses: Vec<String> = (0..self.busy).map(address).collect();
        let streams = (streams * self.busy).to_string();
        let seconds = seconds.to_string();
        let mut words = vec!["tcp", "--streams", &streams, "--seconds", &seconds];
        words.extend(addresses.iter().map(String::as_str));
        load::send(&self.near, &words)
    }

    /// Floods the first tunnel with packets of `size` bytes; returns what left and how many came out of it.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    pub(crate) fn udp(&self, size: usize, seconds: f64) -> Result<(Sent, u64)> {
        let before = self.arrived()?;
        let (words, to) = ([size.to_string(), seconds.to_string()], address(0));
        let [size_word, seconds] = &words;
        let words = ["udp", &to, "--size", size_word, "--seconds", seconds];
        let sent = load::send(&self.near, &words)?;
        let after = self.arrived()?;
        // Joined packets count as one, with the headers of one.
        let payload = (after[0] - before[0]) - (after[1] - before[1]) * UDP_HEADERS;
        Ok((sent, payload / (size as u64 - UDP_HEADERS)))
    }

    /// Bytes and packets that the far end's first device has handed to its host.
    fn arrived(&self) -> Result<[u64; 2]> {
        let text = self.far.exec(&["cat", "/proc/net/dev"])?;
        let prefix = format!("{}:", device(0));
        let mut lines = text.lines().map(str::trim_start);
        let line = lines.find_map(|line| line.strip_prefix(&prefix));
        let mut words = line.context("no such device")?.split_whitespace();
        let mut word = || -> Result<u64> { Ok(words.next().context("a short line")?.parse()?) };
        Ok([word()?, word()?])
    }

    /// What both nodes have used so far.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        let seconds = |node: &Process| {
            Ok::<_, anyhow::Error>(crate::process::cpu_time(node.pid())?.as_secs_f64())
        };
        Ok(Cpu {
            near: seconds(&self.near_node)?,
            far: seconds(&self.far_node)?,
        })
    }

    /// Resident memory of both nodes, in MiB.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub(crate) fn resident_mib(&self) -> Result<[f64; 2]> {
        let mib = |node: &Process| {
            Ok::<_, anyhow::Error>(crate::process::resident_kib(node.pid())? as f64 / 1024.0)
        };
        Ok([mib(&self.near_node)?, mib(&self.far_node)?])
    }
}

fn device(number: usize) -> String {
    format!("wg{number}")
}

fn address(number: usize) -> String {
    format!("10.9.1.{number}")
}

fn port(number: usize) -> u16 {
    51820 + number as u16
}

/// Starts a node with these devices; what it is told stays in a file as long as it starts.
fn node(space: &Namespace, engine: Engine, specs: &[Spec]) -> Result<Process> {
    ensure!(specs.len() < 250, "too many devices");
    let mut file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&mut file, specs)?;
    let path = file.path().to_string_lossy().into_owned();
    let mut command = space.command(std::env::current_exe()?);
    command.args(["tunnel-node", engine.name(), &path]);
    let mut node = Process::spawn("node", command)?;
    node.wait_for_line("ready", PATIENCE)?;
    Ok(node)
}
