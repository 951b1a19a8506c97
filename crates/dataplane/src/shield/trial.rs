//! Runs of single frames through the shield (`BPF_PROG_TEST_RUN`), for tests and benches.

use std::{collections::BTreeMap, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use ebpf_abi::{CLOCK, Nanos, PROGRAM_SHIELD_TCX, PROGRAM_SHIELD_XDP, ShieldReason};

use super::{ShieldLimits, Trusted, load, maps::ShieldMaps, native};
use crate::{
    DataplaneError, memory,
    object::{self, close_maps},
    tables::{typed, writing},
};

/// A program of the shield.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ShieldProgram {
    /// Behind the driver.
    Tcx,
    /// In the driver.
    Xdp,
}

/// The shield's programs, loaded and attached to nothing, with maps of their own. The time is what
/// [`set_time`](Self::set_time) says.
pub struct ShieldTrial {
    ebpf: Ebpf,
    maps: ShieldMaps,
    clock: Array<MapData, Nanos>,
}

impl ShieldTrial {
    /// Loads the programs for frames with `link_header` bytes before the IP header, 14 or 0.
    ///
    /// # Errors
    ///
    /// As [`Counters::attach`](crate::Counters::attach).
    pub fn load(port: u16, link_header: u32, limits: ShieldLimits) -> Result<Self, DataplaneError> {
        memory::contained(|| {
            let mut ebpf = load(limits.config(port, link_header), None, true)?;
            object::program(&mut ebpf, PROGRAM_SHIELD_TCX)?;
            native::program(&mut ebpf)?;
            let maps = ShieldMaps::take(&mut ebpf)?;
            let clock = typed(&mut ebpf, &CLOCK)?;
            close_maps(&mut ebpf);
            Ok(Self { ebpf, maps, clock })
        })
    }

    /// Sets the time, since boot.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to write a map.
    pub fn set_time(&mut self, now: Duration) -> Result<(), DataplaneError> {
        let now = Nanos::try_from(now.as_nanos()).unwrap_or(Nanos::MAX);
        self.clock.set(0, now, 0).map_err(writing(&CLOCK))
    }

    /// As [`Shield::set_trusted`](super::Shield::set_trusted).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_trusted(&mut self, trusted: &[Trusted]) -> Result<(), DataplaneError> {
        self.maps.set_trusted(trusted)
    }

    /// As [`Shield::counts`](super::Shield::counts).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn counts(&self) -> Result<BTreeMap<ShieldReason, u64>, DataplaneError> {
        self.maps.counts()
    }

    /// Runs `frame` `repeat` times through `program`, as if it had come in on `lo` of the calling
    /// thread's network namespace. Returns whether it passes in the last run, and the mean time of one.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel does not take the frame.
    pub fn run(
        &mut self,
        program: ShieldProgram,
        frame: &[u8],
        repeat: u32,
    ) -> Result<(bool, Duration), DataplaneError> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::new()
        };
        /// `TC_ACT_SHOT` and `XDP_DROP`.
        const SHOT: u32 = 2;
        const DROP: u32 = 1;
        let (name, drop, result) = match program {
            ShieldProgram::Tcx => {
                let program: &mut SchedClassifier =
                    object::unloaded(&mut self.ebpf, PROGRAM_SHIELD_TCX)?;
                (PROGRAM_SHIELD_TCX, SHOT, program.test_run(options))
            }
            ShieldProgram::Xdp => {
                let program = native::program(&mut self.ebpf)?;
                (PROGRAM_SHIELD_XDP, DROP, program.test_run(options))
            }
        };
        let result =
            result.map_err(|error| DataplaneError::new(format!("test run of {name}"), error))?;
        Ok((result.return_value != drop, result.duration))
    }

    /// How many instructions the kernel's verifier walked for `program`; it gives up at a million. `None`
    /// where the kernel does not say.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Kernel`] if the kernel refuses to tell of its programs.
    pub fn verified_instructions(
        &mut self,
        program: ShieldProgram,
    ) -> Result<Option<u32>, DataplaneError> {
        let info = match program {
            ShieldProgram::Tcx => object::program(&mut self.ebpf, PROGRAM_SHIELD_TCX)?.info(),
            ShieldProgram::Xdp => native::program(&mut self.ebpf)?.info(),
        };
        let info = info.map_err(|error| DataplaneError::new("asking about the shield", error))?;
        Ok(info.verified_instruction_count())
    }
}
