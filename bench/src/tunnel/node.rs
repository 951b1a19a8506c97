//! One end of a tunnel as a process of its own: ours, or stock gotatun.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use serde::{Deserialize, Serialize};
use tunnel::{Config, Direction, Filter};

/// Which WireGuard carries the packets.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Engine {
    /// `crates/tunnel`.
    Ours,
    /// gotatun's own device.
    Gotatun,
}

impl Engine {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Gotatun => "gotatun",
        }
    }
}

/// Which engine, and its devices.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    engine: Engine,
    /// A file with a list of devices, as JSON.
    specs: PathBuf,
}

/// One device.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// 64 hex digits.
    pub(crate) key: String,
    pub(crate) port: u16,
    pub(crate) mtu: u16,
    pub(crate) peers: Vec<PeerSpec>,
}

/// One of its peers.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PeerSpec {
    /// 64 hex digits.
    pub(crate) key: String,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) allowed_ips: Vec<IpNet>,
}

/// Carries packets until killed; says `ready` once the devices are there.
///
/// # Errors
///
/// When a device cannot be made.
pub(crate) fn run(args: &Args) -> Result<()> {
    let specs: Vec<Spec> = serde_json::from_reader(File::open(&args.specs)?)?;
    match args.engine {
        Engine::Ours => {
            let devices: Vec<_> = specs.iter().map(ours).collect::<Result<_>>()?;
            println!("ready");
            // Killed, it takes the devices with it.
            std::thread::park();
            drop(devices);
            Ok(())
        }
        Engine::Gotatun => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let mut devices = Vec::new();
                for spec in &specs {
                    devices.push(gotatun(spec).await?);
                }
                println!("ready");
                std::future::pending::<()>().await;
                Ok(())
            }),
    }
}

struct Open;

impl Filter for Open {
    fn admits(&self, _: Direction, _: &[u8]) -> bool {
        true
    }
}

fn key(text: &str) -> Result<[u8; 32]> {
    let bytes = hex::decode(text).context("a key is no hex")?;
    bytes.try_into().ok().context("a key has 32 bytes")
}

fn ours(spec: &Spec) -> Result<tunnel::Device> {
    let mut device = tunnel::Device::create(
        Config::new(&spec.name, spec.mtu, tunnel::verdicts()),
        Arc::new(Open),
    )
    .with_context(|| format!("creating {}", spec.name))?;
    let mut update = device.update();
    update.set_key(&NodePrivate::from_bytes(key(&spec.key)?));
    for peer in &spec.peers {
        let key = NodePublic::from_bytes(key(&peer.key)?);
        update.add_peer(key, peer.endpoint);
        update.add_allowed_ips(&key, peer.allowed_ips.iter().copied());
    }
    drop(update);
    device.bind(spec.port, 0)?;
    Ok(device)
}

async fn gotatun(spec: &Spec) -> Result<impl Sized> {
    let peers = spec.peers.iter().map(|peer| {
        let mut new = gotatun::device::Peer::new(key(&peer.key)?.into());
        new.endpoint = peer.endpoint;
        for net in &peer.allowed_ips {
            let net = ipnetwork::IpNetwork::new(net.addr(), net.prefix_len())?;
            new = new.with_allowed_ips([net]);
        }
        anyhow::Ok(new)
    });
    let device = gotatun::device::build()
        .with_default_udp()
        .create_tun(&spec.name)?
        .with_private_key(key(&spec.key)?.into())
        .with_listen_port(spec.port)
        .with_peers(peers.collect::<Result<Vec<_>>>()?)
        .build()
        .await?;
    Ok(device)
}
