//! Two hosts on one cable, and tunnels between them.

use std::time::Duration;

use agent::bench::load::Sent;
use agent::bench::process::{cpu_time, resident_kib};
use anyhow::{Context as _, Result, ensure};
use keys::NodePrivate;
use testnet::{Namespace, Process, veth, wait_until};

use super::load;
use super::node::{Engine, PeerSpec, Spec};

/// As in a tailnet.
const MTU: u16 = 1280;
/// Bytes of IPv4's and UDP's headers.
const UDP_HEADERS: u64 = 28;
const PATIENCE: Duration = Duration::from_secs(20);

/// What is between the two hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Tunnels that carry traffic. On the far host each has a device of its own.
    pub(crate) busy: usize,
    /// Peers of the near host's device that nobody is behind.
    pub(crate) idle: usize,
    /// On the near host, too, each tunnel has a device of its own: so many pairs of nodes.
    pub(crate) apart: bool,
    /// The near node goes before all else, as if the far hosts had processors of their own: beside a hundred threads
    /// of theirs the one that sends for all would get its share of a processor, and no more.
    pub(crate) first: bool,
}

impl Shape {
    /// Two nodes.
    pub(crate) const PAIR: Shape = Shape {
        busy: 1,
        idle: 0,
        apart: false,
        first: false,
    };
}

/// Two hosts, each with one process that has all its devices.
///
/// ```text
/// near: wg0 10.9.0.0, 10.9.0.1, … ── veth 10.8.0.1 ═══ 10.8.0.2 ── far: wg0 10.9.1.0, wg1 10.9.1.1, …
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
    /// Starts the tunnels on `engine`.
    ///
    /// # Errors
    ///
    /// When a device cannot be made, or nothing passes a tunnel.
    pub(crate) fn start(engine: Engine, shape: Shape) -> Result<Lab> {
        let Shape {
            busy,
            idle,
            apart,
            first,
        } = shape;
        let (near, far) = (Namespace::new("near")?, Namespace::new("far")?);
        veth((&near, "cable"), (&far, "cable"))?;
        near.ip("address add 10.8.0.1/24 dev cable")?;
        far.ip("address add 10.8.0.2/24 dev cable")?;
        // One for each tunnel if they are apart, else one for all.
        let near_keys: Vec<_> = (0..if apart { busy } else { 1 })
            .map(|_| NodePrivate::generate())
            .collect();
        let device_of = |number: usize| if apart { number } else { 0 };
        let mut near_specs: Vec<_> = near_keys.iter().enumerate().map(spec).collect();
        let mut far_specs = Vec::new();
        for number in 0..busy + idle {
            let theirs = NodePrivate::generate();
            near_specs[device_of(number.min(busy - 1))].peers.push(peer(
                &theirs,
                ([10, 8, 0, 2], port(number)),
                far_address(number),
            )?);
            if number < busy {
                let at = device_of(number);
                let mut spec = spec((number, &theirs));
                let outer = ([10, 8, 0, 1], port(at));
                let us = peer(&near_keys[at], outer, near_address(number))?;
                spec.peers.push(us);
                far_specs.push(spec);
            }
        }
        let near_node = node(&near, engine, &near_specs, first)?;
        let far_node = node(&far, engine, &far_specs, false)?;
        for number in 0..busy {
            let (ours, theirs) = (near_address(number), far_address(number));
            for (space, device, from, to) in [
                (&near, device(device_of(number)), &ours, &theirs),
                (&far, device(number), &theirs, &ours),
            ] {
                space.ip(&format!("address add {from}/32 dev {device}"))?;
                space.ip(&format!("link set {device} up mtu {MTU}"))?;
                space.ip(&format!("route add {to}/32 dev {device} src {from}"))?;
            }
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
                let to = far_address(number);
                lab.near
                    .exec(&["ping", "-c", "1", "-W", "1", &to])
                    .map(drop)
            })?;
        }
        Ok(lab)
    }

    /// Sends TCP in so many streams, dealt out to all tunnels.
    ///
    /// # Errors
    ///
    /// When a stream fails.
    pub(crate) fn tcp(&self, streams: usize, seconds: f64) -> Result<Sent> {
        let addresses: Vec<String> = (0..self.busy).map(far_address).collect();
        let streams = streams.to_string();
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
        let (words, to) = ([size.to_string(), seconds.to_string()], far_address(0));
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
        let seconds = |node: &Process| Ok::<_, anyhow::Error>(cpu_time(node.pid())?.as_secs_f64());
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
        let mib =
            |node: &Process| Ok::<_, anyhow::Error>(resident_kib(node.pid())? as f64 / 1024.0);
        Ok([mib(&self.near_node)?, mib(&self.far_node)?])
    }
}

fn device(number: usize) -> String {
    format!("wg{number}")
}

fn near_address(number: usize) -> String {
    format!("10.9.0.{number}")
}

fn far_address(number: usize) -> String {
    format!("10.9.1.{number}")
}

/// A device without peers.
fn spec((number, key): (usize, &NodePrivate)) -> Spec {
    Spec {
        name: device(number),
        key: hex::encode(key.as_bytes()),
        port: port(number),
        mtu: MTU,
        peers: Vec::new(),
    }
}

fn peer(key: &NodePrivate, outer: ([u8; 4], u16), address: String) -> Result<PeerSpec> {
    Ok(PeerSpec {
        key: hex::encode(key.public().as_bytes()),
        endpoint: Some(outer.into()),
        allowed_ips: vec![format!("{address}/32").parse()?],
    })
}

fn port(number: usize) -> u16 {
    51820 + number as u16
}

/// Starts a node with these devices; what it is told stays in a file as long as it starts.
fn node(space: &Namespace, engine: Engine, specs: &[Spec], first: bool) -> Result<Process> {
    ensure!(specs.len() < 250, "too many devices");
    let mut file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&mut file, specs)?;
    let path = file.path().to_string_lossy().into_owned();
    let mut command = space.command(std::env::current_exe()?);
    command.args(["tunnel-node", engine.name(), &path]);
    let mut node = Process::spawn("node", command)?;
    node.wait_for_line("ready", PATIENCE)?;
    if first {
        for thread in std::fs::read_dir(format!("/proc/{}/task", node.pid()))? {
            let thread = thread?.file_name().to_string_lossy().into_owned();
            space.exec(&["renice", "-n", "-20", "-p", &thread])?;
        }
    }
    Ok(node)
}
