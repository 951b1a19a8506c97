//! Runs of single frames through the programs (`BPF_PROG_TEST_RUN`), for tests and benches.

use std::{collections::BTreeMap, time::Duration};

use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions},
};
use ebpf_abi::{Count, Direction, PROGRAM_BARE, PeerCounters, PeerIndex, Reason};
use ipnet::IpNet;

use crate::{DataplaneError, object, tables::Tables};

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

/// The programs, loaded and attached to nothing, with maps of their own.
pub struct Trial {
    ebpf: Ebpf,
    tables: Tables,
}

impl Trial {
    /// Loads every program.
    ///
    /// # Errors
    ///
    /// As [`Counters::attach`](crate::Counters::attach).
    pub fn load() -> Result<Self, DataplaneError> {
        let mut ebpf = object::load(None)?;
        for name in ebpf_abi::PROGRAMS {
            object::program(&mut ebpf, name)?;
        }
        let tables = Tables::take(&mut ebpf)?;
        Ok(Self { ebpf, tables })
    }

    /// As [`Counters::set_peers`](crate::Counters::set_peers).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_peers(&mut self, peers: &[(IpNet, PeerIndex)]) -> Result<(), DataplaneError> {
        self.tables.set_peers(peers)
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
        let name = match program {
            Program::Overlay(direction) => direction.program(),
            Program::Bare => PROGRAM_BARE,
        };
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
