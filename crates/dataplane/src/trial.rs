//! Runs of single frames through the programs (`BPF_PROG_TEST_RUN`), for tests and benches.

use std::{collections::BTreeMap, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
    programs::{TestRun as _, TestRunOptions},
};
use ebpf_abi::{
    CLOCK, Count, Direction, DropReason, FRAGMENTS_V4, FRAGMENTS_V6, Forwarded, KEY_V4, KEY_V6,
    Known, MapSpec, Nanos, OPENED_V4, OPENED_V6, Origin, PROGRAM_BARE, PROGRAM_FORWARD_IN,
    PROGRAM_FORWARD_OUT, PROGRAM_NEXT_FLOW, PROGRAM_NIC_IN, PROGRAM_NIC_IN_IP, PeerCounters,
    PeerIndex, Reason,
};
use ipnet::IpNet;

use crate::{
    DataplaneError, Drops, Layer, Offload, Peer, RuleHits, Rules,
    census::InnerMaps,
    filter::{Enforced, RuleTables},
    forward::Forwarder,
    object::{self, Features, missing},
    tables::{Tables, reading, typed, writing},
};

/// `__sk_buff` in `linux/bpf.h`: its size and the fields a run may set.
const SK_BUFF_SIZE: usize = 192;
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF_GSO_SEGS: usize = 164;
const SK_BUFF_GSO_SIZE: usize = 176;

/// Bytes by which a program may lengthen a frame.
const GROWTH: usize = 64;

/// A program of the object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Program {
    /// The program that counts this direction.
    Overlay(Direction),
    /// The program that forwards packets from peers (`In`), and the one that tells TCP the size of
    /// packets to them (`Out`).
    Forward(Direction),
    /// The program on other devices, which forwards packets to peers.
    Nic(Layer),
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
            Self::Forward(Direction::In) => PROGRAM_FORWARD_IN,
            Self::Forward(Direction::Out) => PROGRAM_FORWARD_OUT,
            Self::Nic(Layer::Ethernet) => PROGRAM_NIC_IN,
            Self::Nic(Layer::Ip) => PROGRAM_NIC_IN_IP,
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
}

/// The programs, loaded and attached to nothing, with maps of their own.
pub struct Trial {
    ebpf: Ebpf,
    tables: Tables,
    enforced: Enforced,
    forwarder: Forwarder,
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
        };
        let mut ebpf = object::load(None, features)?;
        for name in ebpf_abi::PROGRAMS {
            object::program(&mut ebpf, name)?;
        }
        let tables = Tables::take(&mut ebpf)?;
        let enforced = Enforced::new(RuleTables::take(&mut ebpf, InnerMaps::default())?);
        let forwarder = Forwarder::take(&mut ebpf)?;
        let clock = typed(&mut ebpf, &CLOCK)?;
        Ok(Self {
            ebpf,
            tables,
            enforced,
            forwarder,
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
        let (outcome, _) = self.run_on(program, frame, gso, repeat, None)?;
        Ok(outcome)
    }

    /// Runs `frame` once through `program`, as if it had come in on the device of this number, and
    /// returns what became of it. A frame for [`Program::Nic`] begins with the link layer's header; one
    /// to be redirected to an Ethernet device gains room for it.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn transform(
        &mut self,
        program: Program,
        frame: &[u8],
        gso: Gso,
        device: u32,
    ) -> Result<(Outcome, Vec<u8>), DataplaneError> {
        self.run_on(program, frame, gso, 1, Some(device))
    }

    fn run_on(
        &mut self,
        program: Program,
        frame: &[u8],
        gso: Gso,
        repeat: u32,
        device: Option<u32>,
    ) -> Result<(Outcome, Vec<u8>), DataplaneError> {
        let name = program.name();
        let mut context = [0; SK_BUFF_SIZE];
        context[SK_BUFF_IFINDEX..][..4].copy_from_slice(&device.unwrap_or(0).to_ne_bytes());
        context[SK_BUFF_GSO_SEGS..][..4].copy_from_slice(&gso.segments.to_ne_bytes());
        context[SK_BUFF_GSO_SIZE..][..4].copy_from_slice(&gso.size.to_ne_bytes());
        let mut frame_out = vec![0; frame.len() + GROWTH];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: device.is_some().then_some(frame_out.as_mut_slice()),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = object::program(&mut self.ebpf, name)?
            .test_run(options)
            .map_err(|error| DataplaneError::new(format!("test run of {name}"), error))?;
        let outcome = Outcome {
            verdict: result.return_value as i32,
            duration: result.duration,
        };
        frame_out.truncate(result.data_size_out as usize);
        Ok((outcome, frame_out))
    }

    /// As [`Forward::enable`](crate::Forward::enable), with no device.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn enable_forwarding(&mut self, mtu: u16) -> Result<(), DataplaneError> {
        self.forwarder.join(&mut self.ebpf, mtu)
    }

    /// As [`Forward::offload`](crate::Forward::offload), of a flow whose last packet took the stack at
    /// this time since boot.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn offload(&mut self, offload: &Offload, stacked: Duration) -> Result<(), DataplaneError> {
        let stacked = Nanos::try_from(stacked.as_nanos()).unwrap_or(Nanos::MAX);
        self.forwarder.table().insert_at(offload, stacked)
    }

    /// As [`Forward::dump`](crate::Forward::dump).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn offloaded(&mut self) -> Result<Vec<Offload>, DataplaneError> {
        self.forwarder.table().dump()
    }

    /// As [`Forward::counts`](crate::Forward::counts).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn forwarded(&self) -> Result<BTreeMap<(Origin, Forwarded), Count>, DataplaneError> {
        self.forwarder.counts()
    }

    /// Counts what the programs remember of packets in tables that grow: by table, how many entries it
    /// has and may have.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to read a map.
    pub fn remembered(&self) -> Result<Vec<(&'static str, usize, u32)>, DataplaneError> {
        let tables = [(OPENED_V4, OPENED_V6), (FRAGMENTS_V4, FRAGMENTS_V6)];
        let mut remembered = Vec::new();
        for (v4, v6) in tables {
            remembered.push((v4.name, self.entries::<KEY_V4>(&v4)?, v4.max_entries));
            remembered.push((v6.name, self.entries::<KEY_V6>(&v6)?, v6.max_entries));
        }
        Ok(remembered)
    }

    fn entries<const KEY: usize>(&self, spec: &MapSpec) -> Result<usize, DataplaneError> {
        let map = self.ebpf.map(spec.name).ok_or_else(|| missing(spec.name))?;
        let table: HashMap<&MapData, [u8; KEY], [u8; size_of::<Known>()]> =
            HashMap::try_from(map).map_err(reading(spec))?;
        let mut entries = 0;
        for key in table.keys() {
            key.map_err(reading(spec))?;
            entries += 1;
        }
        Ok(entries)
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
