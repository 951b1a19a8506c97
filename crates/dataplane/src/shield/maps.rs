//! What the shield trusts and counts, in its maps.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray},
};
use ebpf_abi::{
    SHIELD_COUNTS, SHIELD_STATE, SHIELD_TRUST, ShieldReason, ShieldSource, ShieldState,
};

use super::Trusted;
use crate::{
    DataplaneError,
    peer::boot_clock,
    tables::{gone, reading, typed, write},
};

pub(super) struct ShieldMaps {
    trust: HashMap<MapData, ShieldSource, u8>,
    state: Array<MapData, ShieldState>,
    counts: PerCpuArray<MapData, u64>,
    trusted: BTreeSet<ShieldSource>,
}

impl ShieldMaps {
    /// Takes the maps out of `ebpf`, whose programs are loaded, and dumps what is trusted already.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let trust: HashMap<MapData, ShieldSource, u8> = typed(ebpf, &SHIELD_TRUST)?;
        let trusted = trust
            .keys()
            .collect::<Result<_, _>>()
            .map_err(reading(&SHIELD_TRUST))?;
        Ok(Self {
            trust,
            state: typed(ebpf, &SHIELD_STATE)?,
            counts: typed(ebpf, &SHIELD_COUNTS)?,
            trusted,
        })
    }

    pub(super) fn set_trusted(&mut self, trusted: &[Trusted]) -> Result<(), DataplaneError> {
        let wanted: BTreeSet<ShieldSource> = trusted.iter().map(|it| (*it).into()).collect();
        // What goes makes room for what comes.
        let gone_now: Vec<_> = self.trusted.difference(&wanted).copied().collect();
        for source in gone_now {
            gone(self.trust.remove(&source), &SHIELD_TRUST)?;
            self.trusted.remove(&source);
        }
        for source in wanted {
            if !self.trusted.contains(&source) {
                write(&SHIELD_TRUST, || self.trust.insert(source, 0, 0))?;
                self.trusted.insert(source);
            }
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> Result<BTreeMap<ShieldReason, u64>, DataplaneError> {
        let count = |reason: ShieldReason| {
            let per_cpu = self.counts.get(&(reason as u32), 0);
            let per_cpu = per_cpu.map_err(reading(&SHIELD_COUNTS))?;
            Ok((reason, per_cpu.iter().sum()))
        };
        ShieldReason::ALL.into_iter().map(count).collect()
    }

    pub(super) fn is_flooded(&self) -> Result<bool, DataplaneError> {
        let state = self.state.get(&0, 0).map_err(reading(&SHIELD_STATE))?;
        Ok(boot_clock().as_nanos() < state.flood_until.into())
    }
}
