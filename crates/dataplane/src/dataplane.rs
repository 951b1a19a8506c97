//! The eBPF data plane of one overlay device: filter, counters, forwarding.

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use ebpf_abi::{Count, Direction, DropReason, Forwarded, Origin};
use ipnet::IpNet;

use crate::{
    Attachment, Census, Counters, DataplaneError, Drops, Forward, Peer, RuleHits, Rules,
    filter::Enforced, forward::Forwarder, object::Features,
};

/// The filtering programs on one overlay device, and their maps.
///
/// Until [`set_rules`](Self::set_rules) is called for the first time on a device nothing passes. With
/// a pin folder, rules stay in force and flows stay known when the process ends, and another
/// `attach` goes on with both. Everything else is as with [`Counters`].
pub struct Dataplane {
    counters: Counters,
    enforced: Enforced,
    forwarder: Forwarder,
}

impl Dataplane {
    /// As [`Counters::attach`], with programs that filter. Counters in the same pin folder are taken
    /// over, and the other way round.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach(ifname: &str, pin_dir: Option<&Path>) -> Result<Self, DataplaneError> {
        Self::attach_as(ifname, pin_dir, Attachment::of_this_kernel())
    }

    /// As [`Counters::attach_as`], with programs that filter.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach_as(
        ifname: &str,
        pin_dir: Option<&Path>,
        kind: Attachment,
    ) -> Result<Self, DataplaneError> {
        let features = Features {
            filter: true,
            ..Features::default()
        };
        let (mut counters, tables) = Counters::attach_with(ifname, pin_dir, kind, features)?;
        let (ebpf, ..) = counters.parts();
        Ok(Self {
            forwarder: Forwarder::take(ebpf)?,
            counters,
            enforced: Enforced::new(tables),
        })
    }

    /// What the programs count. Peers are set here, so that the filter learns of them.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// As [`Counters::set_peers`]. A peer that is jailed or released is treated so from the next
    /// packet on.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_peers(&mut self, peers: &[(IpNet, Peer)]) -> Result<(), DataplaneError> {
        let set = self.counters.replace_peers(peers);
        self.enforced.renew_after(set)
    }

    /// Puts `rules` in force, from the next packet of every flow on, those that are known included.
    /// The same rules again change nothing.
    ///
    /// Takes tens of milliseconds, for 10 000 rules less than 2 s; until then the old rules hold.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Filter`] if they are too large: then no rule at all is in force. After any
    /// other error the old rules are.
    pub fn set_rules(&mut self, rules: &Rules) -> Result<(), DataplaneError> {
        self.enforced.set_rules(rules)
    }

    /// Says when our own key expires, since boot (see [`since_boot`](crate::since_boot)): from then on
    /// nothing passes in either direction. `None` for never.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn set_expiry(&mut self, expires: Option<Duration>) -> Result<(), DataplaneError> {
        self.enforced.set_expiry(expires)
    }

    /// Reads what each rule in force has admitted since [`set_rules`](Self::set_rules) put it there, in
    /// their order; nothing before that. A packet counts for the first rule that admits it; packets of
    /// flows that our side opened, TSMP and PeerAPI count for none.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn rule_hits(&self) -> Result<Vec<RuleHits>, DataplaneError> {
        self.enforced.rule_hits()
    }

    /// Reads what was dropped, by direction and reason.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn drops(&self) -> Result<BTreeMap<(Direction, DropReason), Count>, DataplaneError> {
        self.counters.drops()
    }

    /// Hands out the reports of dropped packets, one by one; `None` if somebody has them already. Without
    /// a reader they are lost, and counted as such.
    pub fn drops_stream(&mut self) -> Option<Drops> {
        self.enforced.take_drops()
    }

    /// As [`Forward::counts`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn forwarded(&self) -> Result<BTreeMap<(Origin, Forwarded), Count>, DataplaneError> {
        self.forwarder.counts()
    }

    /// Reads what was counted of known flows for each served route (see [`Forward::count_routes`]): packets
    /// from peers, then packets from behind this host, past the stack or not.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn route_counts(&self) -> Result<BTreeMap<IpNet, [Count; 2]>, DataplaneError> {
        self.forwarder.route_counts()
    }

    /// What tells how full the maps are and what memory they take. It outlives this, and asks the kernel
    /// without it.
    #[must_use]
    pub fn census(&self) -> Census {
        self.counters.census()
    }

    /// The side that forwards. What an earlier process left goes on until it is told otherwise.
    pub fn forward(&mut self) -> Forward<'_> {
        let (ebpf, ifname, kind, pin_dir) = self.counters.parts();
        Forward {
            forwarder: &mut self.forwarder,
            ebpf,
            ifname,
            kind,
            pin_dir,
        }
    }

    /// As [`Counters::remove`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn remove(self) -> Result<(), DataplaneError> {
        drop(self.forwarder);
        self.counters.remove()
    }
}

impl Dataplane {
    /// As [`Counters::remove_leftovers`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn remove_leftovers(ifname: &str, pin_dir: Option<&Path>) -> Result<(), DataplaneError> {
        Counters::remove_leftovers(ifname, pin_dir)
    }
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dataplane").field(&self.counters).finish()
    }
}
