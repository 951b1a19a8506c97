//! One end of the measured tunnel: a process in a network namespace of its own.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use netlink::wireguard::{Device, Peer};
use netlink::{Error, Netlink, addresses, links};
use nix::sched::{CloneFlags, unshare};
use node_core::DEFAULT_MTU;
use serde::{Deserialize, Serialize};

use super::BenchError;
use crate::config::{DEFAULT_DEVICE, EngineName};
use crate::error_text::error_text;
use crate::net::{NetError, Reports};
use crate::tunnel::{Embedded, Gate, Kernel, Tunnel};

/// The ends of the cable; both begin in the namespace of who lays it.
const CABLE: [&str; 2] = ["near", "far"];
/// Bytes of its MTU, as of most links.
const CABLE_MTU: u32 = 1500;

/// What an end is told.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Spec {
    pub(super) engine: EngineName,
    /// The process in whose namespace the cable's other end is to be; `None`: it has been laid.
    pub(super) lay_to: Option<u32>,
    pub(super) cable: IpNet,
    pub(super) overlay: IpNet,
    /// 64 hex digits.
    pub(super) key: String,
    pub(super) port: u16,
    pub(super) peer: NodePublic,
    pub(super) peer_endpoint: SocketAddr,
    pub(super) peer_overlay: IpNet,
}

/// What it answers.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Answer {
    /// It has a namespace.
    Alone,
    /// It carries packets.
    Ready,
    /// The kernel cannot, for this reason.
    NoWireGuard(String),
    /// It cannot, for this reason.
    Failed(String),
}

/// Takes a namespace, then its part from standard input; ends with that.
///
/// # Errors
///
/// When standard input or output fails; all else is an answer.
pub fn run() -> io::Result<()> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        return say(&Answer::Failed(format!("no network namespace: {error}")));
    }
    say(&Answer::Alone)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let spec: Spec = serde_json::from_str(&line)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let started = runtime.block_on(start(&spec));
    let answer = match &started {
        Ok(_) => Answer::Ready,
        Err(NetError::Netlink(error @ Error::NoWireGuard { .. })) => {
            Answer::NoWireGuard(error.to_string())
        }
        Err(error) => Answer::Failed(error_text(error)),
    };
    say(&answer)?;
    // Nothing more comes: this ends with whoever started it.
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    drop(started);
    Ok(())
}

fn say(answer: &Answer) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Has the cable and a tunnel over it.
async fn start(spec: &Spec) -> Result<Box<dyn Tunnel>, NetError> {
    let netlink = Arc::new(Netlink::open()?);
    let [near, far] = CABLE;
    let ours = match spec.lay_to {
        Some(pid) => {
            links::create_veth(&netlink, near, far, pid).await?;
            near
        }
        None => far,
    };
    bring_up(&netlink, ours, CABLE_MTU, spec.cable).await?;
    let mut tunnel: Box<dyn Tunnel> = match spec.engine {
        EngineName::Kernel => Box::new(Kernel::new(netlink.clone(), DEFAULT_DEVICE)),
        EngineName::Auto | EngineName::Embedded => {
            let gate = Gate::new(Reports::default());
            let tunnel = Embedded::new(netlink.clone(), DEFAULT_DEVICE, DEFAULT_MTU, gate.clone());
            Box::new(tunnel)
        }
    };
    let peer = Peer {
        endpoint: Some(spec.peer_endpoint),
        allowed_ips: [spec.peer_overlay].into(),
    };
    let device = Device {
        private_key: Some(key(&spec.key)?),
        listen_port: spec.port,
        fwmark: 0,
        peers: [(spec.peer, peer)].into(),
    };
    tunnel.apply(&device).await?;
    if let Some(gate) = tunnel.gate() {
        // Programs judge what passes a node's device; here nothing has to be judged.
        gate.open();
    }
    bring_up(&netlink, DEFAULT_DEVICE, DEFAULT_MTU.into(), spec.overlay).await?;
    Ok(tunnel)
}

async fn bring_up(netlink: &Netlink, name: &str, mtu: u32, address: IpNet) -> Result<(), Error> {
    if let Some(link) = links::get(netlink, name).await? {
        addresses::apply(netlink, link.index, addresses::Change::Add(address)).await?;
        links::ensure_up(netlink, &link, mtu).await?;
    }
    Ok(())
}

fn key(text: &str) -> Result<NodePrivate, NetError> {
    let bytes = hex::decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(NodePrivate::from_bytes)
        .ok_or_else(|| NetError::Socket {
            operation: "reading the key",
            source: io::ErrorKind::InvalidData.into(),
        })
}

impl Answer {
    /// Whether it did what it was asked.
    ///
    /// # Errors
    ///
    /// What it says otherwise.
    pub(super) fn check(self) -> Result<(), BenchError> {
        match self {
            Self::Alone | Self::Ready => Ok(()),
            Self::NoWireGuard(reason) => Err(BenchError::NoWireGuard(reason)),
            Self::Failed(said) => Err(BenchError::Part {
                part: "an end",
                said,
            }),
        }
    }
}
