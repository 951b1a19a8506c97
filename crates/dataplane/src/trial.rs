//! Runs of single frames through the programs (`BPF_PROG_TEST_RUN`), for tests and benches.

use std::{collections::BTreeMap, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{TestRun as _, TestRunOptions},
};
use ebpf_abi::{
    CLOCK, Count, Direction, DropReason, Nanos, PROGRAM_BARE, PROGRAM_NEXT_FLOW, PeerCounters,
    PeerIndex, Reason,
};
use ipnet::IpNet;

use crate::{
    DataplaneError, Drops, Peer, RuleHits, Rules,
    filter::{Enforced, RuleTables},
    object::{self, Features},
    tables::{Tables, typed, writing},
};

/// `__sk_buff` in `linux/bpf.h`: its size and the fields a run may set.
const SK_BUFF_SIZE: usize = 192;
const SK_BUFF_GSO_SEGS: usize = 164;
const SK_BUFF_GSO_SIZE: usize = 176;

/// A program of the object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Program {
    /// The program that counts this direction.
    Overlay(Direction),
    /// The program that does nothing: the cost of a run by itself.
    Bare,
    /// The inbound program, which finds an IPv4 packet with the next source port in each run: the first
    /// packets of 65 536 flows.
    NextFlow,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Overlay(direction) => direction.program(),
            Self::Bare => PROGRAM_BARE,
            Self::NextFlow => PROGRAM_NEXT_FLOW,
        }
    }
}

/// What the kernel says of a buffer that stands for several packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Gso {
    /// Payload bytes of each packet, 0 for a buffer that is one packet.
    pub size: u32,
    /// Number of packets, 0 where the kernel has not counted them (frames from a TUN).
    pub segments: u32,
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The program's `TC_ACT_*`.
    pub verdict: i32,
    /// Mean time of one run, in whole nanoseconds.
    pub duration: Duration,
}

/// What the programs of a trial do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrialKind {
    /// Count only, as for [`Counters`](crate::Counters).
    Count,
    /// Count and filter, as for [`Dataplane`](crate::Dataplane).
    Filter,
    /// The same, and the time is what [`Trial::set_time`] says; 0 at first.
    FilterInVirtualTime,
    /// As [`Filter`](Self::Filter), but no flow that is admitted is remembered: what it costs to judge
    /// the first packet of one, without the costs of remembering it.
    FilterForgetful,
}

/// The programs, loaded and attached to nothing, with maps of their own.
pub struct Trial {
    ebpf: Ebpf,
    tables: Tables,
    enforced: Enforced,
    clock: Array<MapData, Nanos>,
}

impl Trial {
    /// Loads every program, to count only.
    ///
    /// # Errors
    ///
    /// As [`Counters::attach`](crate::Counters::attach).
    pub fn load() -> Result<Self, DataplaneError> {
        Self::load_as(TrialKind::Count)
    }

    /// Loads every program.
    ///
    /// # Errors
    ///
    /// As [`Counters::attach`](crate::Counters::attach).
    pub fn load_as(kind: TrialKind) -> Result<Self, DataplaneError> {
        let features = Features {
            filter: kind != TrialKind::Count,
            virtual_time: kind == TrialKind::FilterInVirtualTime,
            forgets: kind == TrialKind::FilterForgetful,
        };
        let mut ebpf = object::load(None, features)?;
        for name in ebpf_abi::PROGRAMS {
            object::program(&mut ebpf, name)?;
        }
        let tables = Tables::take(&mut ebpf)?;
        let enforced = Enforced::new(RuleTables::take(&mut ebpf)?);
        let clock = typed(&mut ebpf, &CLOCK)?;
        Ok(Self {
            ebpf,
            tables,
            enforced,
            clock,
        })
    }

    /// As [`Dataplane::set_rules`](crate::Dataplane::set_rules).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_rules(&mut self, rules: &Rules) -> Result<(), DataplaneError> {
        self.enforced.set_rules(rules)
    }

    /// Has the next rules compiled to no more than so many pairs of classes: with few, to lists of rule
    /// ends that are tried one after the other, which is what too many pairs fall back to.
    pub fn limit_pairs(&mut self, pairs: usize) {
        self.enforced.limit_pairs(pairs);
    }

    /// Whether the rules in force are tried one after the other: pairs of classes would have been too many.
    #[must_use]
    pub fn is_linear(&self) -> bool {
        self.enforced.is_linear()
    }

    /// As [`Dataplane::drops_stream`](crate::Dataplane::drops_stream).
    pub fn drops_stream(&mut self) -> Option<Drops> {
        self.enforced.take_drops()
    }

    /// As [`Dataplane::rule_hits`](crate::Dataplane::rule_hits).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn rule_hits(&self) -> Result<Vec<RuleHits>, DataplaneError> {
        self.enforced.rule_hits()
    }

    /// As [`Dataplane::set_expiry`](crate::Dataplane::set_expiry).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_expiry(&mut self, expires: Option<Duration>) -> Result<(), DataplaneError> {
        self.enforced.set_expiry(expires)
    }

    /// Sets the time, since boot, of [`TrialKind::FilterInVirtualTime`].
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn set_time(&mut self, now: Duration) -> Result<(), DataplaneError> {
        let now = Nanos::try_from(now.as_nanos()).unwrap_or(Nanos::MAX);
        self.clock.set(0, now, 0).map_err(writing(&CLOCK))
    }

    /// As [`Dataplane::drops`](crate::Dataplane::drops).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn drops(&self) -> Result<BTreeMap<(Direction, DropReason), Count>, DataplaneError> {
        self.tables.drops()
    }

    /// As [`Counters::set_peers`](crate::Counters::set_peers).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_peers<P: Copy + Into<Peer>>(
        &mut self,
        peers: &[(IpNet, P)],
    ) -> Result<(), DataplaneError> {
        let set = self.tables.set_peers(peers);
        self.enforced.renew_after(set)
    }

    /// Runs `frame`, which begins with its IP header, `repeat` times through `program`. The kernel
    /// takes frames of 14 bytes and more, up to a little less than a page.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel does not take the frame.
    pub fn run(
        &mut self,
        program: Program,
        frame: &[u8],
        gso: Gso,
        repeat: u32,
    ) -> Result<Outcome, DataplaneError> {
        let name = program.name();
        let mut context = [0; SK_BUFF_SIZE];
        context[SK_BUFF_GSO_SEGS..][..4].copy_from_slice(&gso.segments.to_ne_bytes());
        context[SK_BUFF_GSO_SIZE..][..4].copy_from_slice(&gso.size.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = object::program(&mut self.ebpf, name)?
            .test_run(options)
            .map_err(|error| DataplaneError::new(format!("test run of {name}"), error))?;
        Ok(Outcome {
            verdict: result.return_value as i32,
            duration: result.duration,
        })
    }

    /// Reads how many packets of `direction` were dropped for `reason`.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn dropped(&self, direction: Direction, reason: DropReason) -> Result<u64, DataplaneError> {
        let count = self.tables.sum(direction, reason as u32)?;
        Ok(count.packets)
    }

    /// How many instructions the kernel's verifier walked for `program`; it gives up at a million.
    /// `None` where the kernel does not say.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to tell of its programs.
    pub fn verified_instructions(
        &mut self,
        program: Program,
    ) -> Result<Option<u32>, DataplaneError> {
        let name = program.name();
        let info = object::program(&mut self.ebpf, name)?
            .info()
            .map_err(|error| DataplaneError::new(format!("asking about {name}"), error))?;
        Ok(info.verified_instruction_count())
    }

    /// As [`Counters::read`](crate::Counters::read).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read(&self) -> Result<BTreeMap<PeerIndex, PeerCounters>, DataplaneError> {
        self.tables.read()
    }

    /// As [`Counters::totals`](crate::Counters::totals).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn totals(&self) -> Result<BTreeMap<(Direction, Reason), Count>, DataplaneError> {
        self.tables.totals()
    }
}
