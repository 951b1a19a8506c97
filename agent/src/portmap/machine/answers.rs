//! What answers mean: those by NAT-PMP and PCP, and those to a search for UPnP.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::{CHECK_EVERY, MAX_DEVICES, Machine, NEWS_GAP, Protocol};
use crate::portmap::upnp::Found;
use crate::portmap::{pcp, pmp};

impl Machine {
    /// Notes that a service is there.
    pub(super) fn note(&mut self, now: Instant, protocol: Protocol) {
        self.heard[protocol as usize] = Some(now);
        if let Some(probe) = &mut self.probe {
            probe.answered.insert(protocol);
        }
        if let Some(services) = &mut self.services {
            services.set(protocol, true);
        }
    }

    /// Takes what the router announced to all: most likely it has restarted (RFC 6886 §3.2.1, RFC 6887 §14.1.3).
    /// Whoever says so in its name has it asked, and no more; where there is nothing to ask of it but what it speaks,
    /// which has the network searched, seldom.
    pub(in crate::portmap) fn handle_news(&mut self, now: Instant, datagram: &[u8]) {
        if pmp::parse(datagram).is_none() && pcp::parse(datagram).is_none() {
            self.ignore("announcement");
            return;
        }
        if now < self.next_news {
            return;
        }
        match self.mapping.as_ref().map(|mapping| mapping.protocol) {
            Some(Protocol::NatPmp | Protocol::Pcp) => {
                self.next_news = now + NEWS_GAP;
                self.next_check = now;
            }
            Some(Protocol::Upnp) | None => {
                self.next_news = now + CHECK_EVERY;
                self.start_probe(now);
            }
        }
    }

    /// Takes an answer to a search; `None` is one that made no sense.
    pub(in crate::portmap) fn handle_found(&mut self, now: Instant, found: Option<Found>) {
        let gateway = self.site.map(|site| site.gateway);
        // Only the router itself may be asked to map, and nobody else be made to hear from us.
        let Some(found) = found.filter(|found| Some(*found.location.address.ip()) == gateway)
        else {
            self.ignore("answer to a search");
            return;
        };
        self.note(now, Protocol::Upnp);
        if std::mem::take(&mut self.devices_are_old) {
            self.devices.clear();
        }
        let mut restarted = false;
        if let Some(mapping) = &mut self.mapping
            && mapping.device.as_ref() == Some(&found.device)
            && mapping
                .boot
                .is_some_and(|old| found.boot.is_some_and(|boot| boot != old))
        {
            restarted = true;
            // It may listen on another port now.
            (mapping.boot, mapping.service) = (found.boot, None);
            self.devices.retain(|known| known.device != found.device);
        }
        if !self.devices.contains(&found) && self.devices.len() < MAX_DEVICES {
            self.devices.push(found);
        }
        if restarted {
            self.renew_lost(now);
        }
        self.advance(now);
    }

    /// Returns false for an answer that makes no sense now.
    pub(super) fn handle_pmp(&mut self, now: Instant, answer: pmp::Answer) -> bool {
        match answer {
            pmp::Answer::NotPcp => true,
            pmp::Answer::PublicAddress {
                epoch,
                address: Some(address),
            } => {
                self.public = Some(address);
                self.note(now, Protocol::NatPmp);
                self.watch_epoch(now, Protocol::NatPmp, epoch);
                if let Some(mapping) = &mut self.mapping
                    && mapping.protocol == Protocol::NatPmp
                {
                    mapping.external.set_ip(address);
                }
                self.advance(now);
                true
            }
            pmp::Answer::PublicAddress { address: None, .. } => false,
            pmp::Answer::Mapped {
                epoch,
                internal,
                external,
                lifetime,
            } => {
                if internal != self.port {
                    return false;
                }
                // The end of a mapping is confirmed.
                if lifetime == 0 {
                    return true;
                }
                let Some(address) = self.public.filter(|_| self.asks(Protocol::NatPmp)) else {
                    return false;
                };
                self.clocks[Protocol::NatPmp as usize].set(now, epoch);
                let external = SocketAddrV4::new(address, external);
                let lifetime = Duration::from_secs(lifetime.into());
                self.hold(now, Protocol::NatPmp, external, lifetime);
                true
            }
            pmp::Answer::Refused { mapping: true, .. } => {
                self.handle_refusal(now, Protocol::NatPmp)
            }
            pmp::Answer::Refused { mapping: false, .. } => {
                self.public = None;
                self.heard[Protocol::NatPmp as usize] = None;
                true
            }
        }
    }

    /// As [`handle_pmp`](Self::handle_pmp).
    pub(super) fn handle_pcp(&mut self, now: Instant, answer: pcp::Answer) -> bool {
        match answer {
            pcp::Answer::Here { epoch } => {
                self.note(now, Protocol::Pcp);
                self.watch_epoch(now, Protocol::Pcp, epoch);
                self.advance(now);
                true
            }
            pcp::Answer::Mapped {
                epoch,
                nonce,
                internal,
                external,
                address,
                lifetime,
            } => {
                if nonce != self.nonce || internal != self.port {
                    return false;
                }
                if lifetime == 0 {
                    return true;
                }
                let Some(address) = address.filter(|_| self.asks(Protocol::Pcp)) else {
                    return false;
                };
                self.clocks[Protocol::Pcp as usize].set(now, epoch);
                let external = SocketAddrV4::new(address, external);
                let lifetime = Duration::from_secs(lifetime.into());
                self.hold(now, Protocol::Pcp, external, lifetime);
                true
            }
            pcp::Answer::Refused { mapping: true, .. } => self.handle_refusal(now, Protocol::Pcp),
            pcp::Answer::Refused { mapping: false, .. } => true,
        }
    }

    fn handle_refusal(&mut self, now: Instant, protocol: Protocol) -> bool {
        let expected = self.asks(protocol);
        if expected {
            tracing::debug!(?protocol, "the router refuses a port mapping");
            self.fail(now, true);
        }
        expected
    }

    /// A mapping is being asked for by that protocol.
    pub(super) fn asks(&self, protocol: Protocol) -> bool {
        self.attempt
            .as_ref()
            .is_some_and(|attempt| attempt.protocol == protocol)
    }
}
