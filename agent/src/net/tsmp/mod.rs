//! TSMP: what agents say to each other through the tunnel (protocol/disco.md §14).
//!
//! ```text
//! overlay device ──► [Sockets] ──► [run] ─┬─ ping ──────► pong, back into the tunnel
//!   (IP protocol 99)                      ├─ pong ──────► whoever asked ([Tsmp::ping])
//!                                         └─ disco key ─► the engine, which knows the network map
//! ```
//!
//! What is sent goes straight to the device's driver: nobody else on this host may speak TSMP.

mod adverts;
mod rates;
mod sockets;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataplane::Direct;
use disco_proto::tsmp::{Message, PingData};
use keys::DiscoPublic;
use packet::build::Ip;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::peers::Peers;
use super::{NetError, NetEvent, Reports};

pub(super) use adverts::Adverts;
pub(super) use rates::Rates;
use sockets::{Received, Sockets};

/// Pings that may be under way, before those that nobody waits for are forgotten.
const MAX_PINGS: usize = 256;
/// Messages that one address is heard for in a second.
const HEARD: u32 = 16;
/// Disco keys that one peer may tell in a second, if they are news: the engine goes through the network
/// map for each.
const NEWS: u32 = 1;

/// A pong that came through the tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TunnelPong {
    /// Round trip.
    pub latency: Duration,
    /// Port of the peer's PeerAPI; 0 if it serves none.
    pub peer_api_port: u16,
}

/// Speaks TSMP on the overlay device; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tsmp(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: String,
    disco: DiscoPublic,
    /// Where the embedded tunnel's filter hears which packets are ours.
    reports: Reports,
    out: Mutex<Option<Direct>>,
    sockets: watch::Sender<Option<Arc<Sockets>>>,
    pings: Mutex<HashMap<PingData, Asked>>,
}

/// A ping under way.
#[derive(Debug)]
struct Asked {
    target: IpAddr,
    answer: oneshot::Sender<u16>,
}

impl Tsmp {
    /// Speaks on `device` for the owner of `disco`; it hears nothing yet.
    pub(super) fn new(device: String, disco: DiscoPublic, reports: Reports) -> Self {
        Self(Arc::new(Shared {
            device,
            disco,
            reports,
            out: Mutex::default(),
            sockets: watch::Sender::new(None),
            pings: Mutex::default(),
        }))
    }

    /// Hears what comes out of the device of this number, which bears our name; `None`: nothing.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; the next call tries again.
    pub(super) fn listen_on(&self, device: Option<u32>) -> io::Result<()> {
        let present = self.0.sockets.borrow().as_ref().map(|open| open.device());
        if present == device {
            return Ok(());
        }
        self.0.sockets.send_replace(None);
        if let Some(index) = device {
            let sockets = Sockets::open(&self.0.device, index)?;
            self.0.sockets.send_replace(Some(Arc::new(sockets)));
        }
        Ok(())
    }

    /// Sends a message from one of our addresses to one of a peer's.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; InvalidInput if the addresses are not of one family.
    pub(super) fn send(&self, from: IpAddr, to: IpAddr, message: &Message) -> io::Result<()> {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let packet = Ip::new(from, to).tsmp(&message.encode());
        self.0.reports.will_answer(&packet);
        let mut out = locked(&self.0.out);
        if let Some(open) = &*out
            && open.send(&packet).is_ok()
        {
            return Ok(());
        }
        // The device may have been made anew.
        out.insert(Direct::open(&self.0.device)?).send(&packet)
    }

    /// Pings the agent behind a peer's address through the tunnel, from one of `ours`.
    ///
    /// # Errors
    ///
    /// [`NetError::Unreachable`] without an address of the same family, [`NetError::Socket`],
    /// [`NetError::PingTimeout`].
    pub(super) async fn ping(
        &self,
        ours: &[IpAddr],
        target: IpAddr,
        wait: Duration,
    ) -> Result<TunnelPong, NetError> {
        let from = of_family(ours, target).ok_or(NetError::Unreachable(
            "this node has no overlay address of that family",
        ))?;
        let data: PingData = rand::random();
        let (answer, answered) = oneshot::channel();
        {
            let mut pings = locked(&self.0.pings);
            if pings.len() >= MAX_PINGS {
                pings.retain(|_, asked| !asked.answer.is_closed());
            }
            pings.insert(data, Asked { target, answer });
        }
        let begin = Instant::now();
        let sent = self.send(from, target, &Message::Ping(data));
        let pong = match sent {
            Ok(()) => timeout(wait, answered).await,
            Err(source) => {
                locked(&self.0.pings).remove(&data);
                return Err(NetError::Socket {
                    operation: "sending a ping through the tunnel",
                    source,
                });
            }
        };
        locked(&self.0.pings).remove(&data);
        match pong {
            Ok(Ok(peer_api_port)) => Ok(TunnelPong {
                latency: begin.elapsed(),
                peer_api_port,
            }),
            _ => Err(NetError::PingTimeout(wait)),
        }
    }

    fn pong(&self, from: IpAddr, data: &PingData, peer_api_port: u16) {
        let mut pings = locked(&self.0.pings);
        if pings.get(data).is_none_or(|asked| asked.target != from) {
            tracing::debug!(%from, "a TSMP pong that nobody waits for");
        } else if let Some(asked) = pings.remove(data) {
            // Whoever asked may have given up.
            let _ = asked.answer.send(peer_api_port);
        }
    }
}

/// The one of `ours` with which an address can be spoken to.
pub(super) fn of_family(ours: &[IpAddr], with: IpAddr) -> Option<IpAddr> {
    let mut ours = ours.iter().copied();
    ours.find(|ip| ip.is_ipv4() == with.is_ipv4())
}

/// Hears TSMP until nobody speaks it any more.
pub(super) async fn run(tsmp: Tsmp, peers: Peers, events: mpsc::Sender<NetEvent>) {
    let mut ears = Ears {
        tsmp,
        peers,
        events,
        heard: Rates::new(HEARD),
        news: Rates::new(NEWS),
    };
    let mut changes = ears.tsmp.0.sockets.subscribe();
    loop {
        let sockets = changes.borrow_and_update().clone();
        let received = async {
            match &sockets {
                Some(sockets) => sockets.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            received = received => match received {
                Ok(packet) => ears.hear(&packet).await,
                Err(error) => tracing::debug!(%error, "a TSMP socket reports"),
            },
        }
    }
}

/// What a received message is judged by.
struct Ears {
    tsmp: Tsmp,
    peers: Peers,
    events: mpsc::Sender<NetEvent>,
    heard: Rates<IpAddr>,
    news: Rates<keys::NodePublic>,
}

impl Ears {
    async fn hear(&mut self, packet: &Received) {
        let (from, now) = (packet.from, Instant::now());
        if !self.heard.allows(from, now) {
            return;
        }
        match Message::parse(&packet.payload) {
            Ok(Message::Ping(data)) => {
                let pong = Message::Pong {
                    data,
                    peer_api_port: 0,
                };
                if let Err(error) = self.tsmp.send(packet.to, from, &pong) {
                    tracing::debug!(%from, %error, "a TSMP ping is not answered");
                }
            }
            Ok(Message::Pong {
                data,
                peer_api_port,
            }) => self.tsmp.pong(from, &data, peer_api_port),
            Ok(Message::DiscoKey(key)) => self.told(from, key, now).await,
            Ok(Message::Reject(reject)) => {
                tracing::debug!(%from, ?reject, "a peer refused a connection");
            }
            Err(error) => tracing::debug!(%from, %error, "TSMP not understood"),
        }
    }

    /// A peer tells its disco key, most often one that the network map knows.
    async fn told(&mut self, from: IpAddr, key: DiscoPublic, now: Instant) {
        let peers = self.peers.snapshot();
        let Some(peer) = peers.by_overlay(from) else {
            tracing::debug!(%from, "a disco key from an address that no peer has");
            return;
        };
        if key.is_zero() || peer.disco == Some(key) || !self.news.allows(peer.key, now) {
            return;
        }
        let told = NetEvent::DiscoKey {
            peer: peer.key,
            key,
        };
        if self.events.send(told).await.is_err() {
            tracing::trace!("nobody listens to network events");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
