//! Parts of the object that are loaded by themselves, for they are attached elsewhere than to the
//! overlay device and live as long as something else does.

use crate::{
    MapSpec, PIN_SOURCES, PROGRAM_PIN, PROGRAM_SHIELD_TCX, PROGRAM_SHIELD_XDP, PROGRAM_STEER,
    SHIELD_COUNTS, SHIELD_STATE, SHIELD_TRUST, STEER_SOCKETS, STEER_TO,
};

/// What the kernel takes a program for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProgramKind {
    /// Traffic control: tcx or clsact.
    Classifier,
    /// XDP.
    Xdp,
    /// Choice of a socket for what is to be delivered here.
    SkLookup,
}

/// Programs and the maps that they share with the loader.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Names, as for [`PROGRAMS`](crate::PROGRAMS).
    pub programs: &'static [(&'static str, ProgramKind)],
    /// Maps; they are in no other part and not in [`MAPS`](crate::MAPS).
    pub maps: &'static [MapSpec],
}

impl Part {
    /// Guards WireGuard's port on an underlay device.
    pub const SHIELD: Self = Self {
        programs: &[
            (PROGRAM_SHIELD_TCX, ProgramKind::Classifier),
            (PROGRAM_SHIELD_XDP, ProgramKind::Xdp),
        ],
        maps: &[SHIELD_TRUST, SHIELD_STATE, SHIELD_COUNTS],
    };
    /// Steers what is for tailnet addresses to the agent's sockets.
    pub const STEER: Self = Self {
        programs: &[(PROGRAM_STEER, ProgramKind::SkLookup)],
        maps: &[STEER_TO, STEER_SOCKETS],
    };
    /// Gives relayed packets the source that the agent has chosen for their peer.
    pub const PIN: Self = Self {
        programs: &[(PROGRAM_PIN, ProgramKind::Classifier)],
        maps: &[PIN_SOURCES],
    };
}

/// Every part.
pub const PARTS: [Part; 3] = [Part::SHIELD, Part::STEER, Part::PIN];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAPS, PROGRAMS};

    #[test]
    fn names_of_parts_are_short_and_nobody_elses() {
        let programs = || PARTS.iter().flat_map(|part| part.programs).map(|it| it.0);
        let maps = || PARTS.iter().flat_map(|part| part.maps).map(|map| map.name);
        for name in programs().chain(maps()) {
            assert!(name.len() <= 15, "{name} is longer than 15 bytes");
            let same = |other: &str| other == name;
            let taken = PROGRAMS.into_iter().chain(MAPS.map(|map| map.name));
            assert_eq!(taken.filter(|other| same(other)).count(), 0, "{name}");
            let own = programs().chain(maps()).filter(|other| same(other));
            assert_eq!(own.count(), 1, "{name}");
        }
    }
}
