//! The agent's own datagrams on WireGuard's port: discovery and STUN.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use disco_proto::{disco, stun};
use keys::DiscoPublic;
use netlink::rules::UNDERLAY_MARK;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::detours::Detours;
use super::junk::Tally;
use super::{Event, Handle};
use crate::firewall::demux::{Demux, Raw};
use crate::relayed::{self, Inbound};
use crate::underlay;

/// Longest datagram that is read whole: what a path of MTU 9000 carries.
const MAX_DATAGRAM_LEN: usize = 9000;
/// STUN requests under way, before those that nobody waits for are forgotten.
const MAX_ASKED: usize = 512;
/// Free ports that are tried until one is free in both families.
const PORT_TRIES: usize = 16;

/// A STUN server's answer, and when it came.
pub(crate) type StunAnswer = (stun::TxId, SocketAddr, Instant);

/// WireGuard's port as the agent uses it.
#[derive(Debug)]
pub(crate) struct Wire {
    demux: watch::Sender<Arc<Demux>>,
    /// The port behind WireGuard's that the host's netfilter is told of.
    port: u16,
    wireguard: u16,
    /// Who asked STUN servers, by the request.
    asked: Mutex<HashMap<stun::TxId, mpsc::Sender<StunAnswer>>>,
    /// Disco keys of peers: anybody else is not worth opening a box for.
    known: RwLock<HashSet<DiscoPublic>>,
    /// Peers' addresses without proof: what WireGuard there sends is for the synthetic address beside.
    detours: RwLock<Detours>,
    /// What led to nothing.
    pub(crate) junk: Tally,
}

impl Wire {
    /// Opens sockets on a free port, to share WireGuard's port `wireguard` by rewriting.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; EPERM without CAP_NET_ADMIN.
    pub(crate) fn open(wireguard: u16) -> io::Result<Self> {
        let (demux, port) = rewritten()?;
        Ok(Self {
            demux: watch::Sender::new(Arc::new(demux)),
            port,
            wireguard,
            asked: Mutex::default(),
            known: RwLock::default(),
            detours: RwLock::default(),
            junk: Tally::default(),
        })
    }

    /// The port of the sockets, for the rules that rewrite.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// True if the host has IPv6 sockets.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.demux.borrow().has_ipv6()
    }

    /// Goes by raw sockets from now on, or by rewritten ports again: as the host's netfilter may be used.
    ///
    /// # Errors
    ///
    /// Whatever the system answered; EPERM without CAP_NET_RAW.
    pub(crate) fn set_raw(&self, raw: bool) -> io::Result<()> {
        if matches!(**self.demux.borrow(), Demux::Raw(_)) == raw {
            return Ok(());
        }
        let demux = if raw {
            Demux::Raw(Raw::open(self.wireguard, UNDERLAY_MARK)?)
        } else {
            Demux::Rewritten {
                v4: underlay::open_udp_on(false, self.port)?,
                v6: underlay::open_udp_v6(self.port)?,
            }
        };
        self.demux.send_replace(Arc::new(demux));
        Ok(())
    }

    /// Sends a datagram from WireGuard's port.
    ///
    /// # Errors
    ///
    /// Whatever the system answered.
    pub(crate) async fn send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        let demux = self.demux.borrow().clone();
        demux.send(payload, to).await
    }

    /// Asks a STUN server how it sees us; its answer goes to `asker`.
    ///
    /// # Errors
    ///
    /// Whatever the system answered: most often that there is no route.
    pub(crate) async fn ask(
        &self,
        server: SocketAddr,
        asker: &mpsc::Sender<StunAnswer>,
    ) -> io::Result<stun::TxId> {
        let id = stun::TxId(rand::random());
        {
            let mut asked = self.asked();
            if asked.len() >= MAX_ASKED {
                asked.retain(|_, asker| !asker.is_closed());
            }
            asked.insert(id, asker.clone());
        }
        let sent = self.send(&stun::request(id), server).await;
        if sent.is_err() {
            self.asked().remove(&id);
        }
        sent.map(|()| id)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<stun::TxId, mpsc::Sender<StunAnswer>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets whose disco messages are handed on.
    pub(super) fn set_known(&self, known: HashSet<DiscoPublic>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Sets whose WireGuard packets take the detour: through us, as if a relay had brought them. Call it
    /// before the firewall's rules change: what they brought here until then is handed over all the same, in the
    /// name of the `owner` of its source, if that has one by now.
    pub(crate) fn set_detours(
        &self,
        detours: impl Iterator<Item = (SocketAddr, Ipv4Addr)>,
        owner: impl Fn(SocketAddr) -> Option<Ipv4Addr>,
    ) {
        let mut table = self.detours.write().unwrap_or_else(PoisonError::into_inner);
        table.set(detours, owner, Instant::now());
    }

    fn detour(&self, from: SocketAddr, datagram: &[u8]) -> Option<Ipv4Addr> {
        if !relayed::is_wireguard(datagram) {
            return None;
        }
        let detours = self.detours.read().unwrap_or_else(PoisonError::into_inner);
        detours.of(from)
    }

    /// Reads until nobody listens any more.
    pub(crate) async fn listen(&self, to: Inbound) {
        let mut demuxes = self.demux.subscribe();
        let mut buffer = vec![0; MAX_DATAGRAM_LEN];
        loop {
            let demux = demuxes.borrow_and_update().clone();
            tokio::select! {
                changed = demuxes.changed() => if changed.is_err() {
                    return;
                },
                received = demux.receive(&mut buffer) => match received {
                    Ok((len, from)) => {
                        let datagram = &buffer[..len];
                        match self.detour(from, datagram) {
                            Some(peer) => to.hand_over(peer, datagram).await,
                            None => self.sort(&to.paths, datagram, from),
                        }
                    }
                    // An ICMP answer to something that was sent; nothing has come.
                    Err(error) => tracing::trace!(%error, "an underlay socket reports"),
                },
            }
        }
    }

    fn sort(&self, handle: &Handle, datagram: &[u8], from: SocketAddr) {
        if stun::is_stun(datagram) {
            let answer = stun::parse_response(datagram).ok();
            let told = answer.is_some_and(|(id, mapped)| {
                let asker = self.asked().remove(&id);
                let answer = (id, mapped, Instant::now());
                asker.is_some_and(|to| to.try_send(answer).is_ok())
            });
            if !told {
                self.junk.stun();
            }
            return;
        }
        let Some(envelope) = disco::parse_envelope(datagram) else {
            self.junk.foreign();
            return;
        };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&envelope.sender) {
            self.junk.unknown_sender();
            return;
        }
        drop(known);
        let event = Event::Datagram {
            from,
            datagram: datagram.to_vec(),
        };
        if !handle.try_tell(event) {
            self.junk.overrun();
        }
    }
}

/// Sockets of both families on one free port.
fn rewritten() -> io::Result<(Demux, u16)> {
    let mut last = None;
    for _ in 0..PORT_TRIES {
        let v4 = underlay::open_udp_on(false, 0)?;
        let port = v4.local_addr()?.port();
        match underlay::open_udp_v6(port) {
            Ok(v6) => return Ok((Demux::Rewritten { v4, v6 }, port)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}
