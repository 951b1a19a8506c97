//! Privileges: of root's capabilities the daemon keeps what it works with, and drops the rest for good.

use std::fmt;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What the daemon works with.
const KEPT: [Capability; 4] = [
    // Devices, addresses, routes, rules, marks on sockets; attaching eBPF programs.
    Capability::CAP_NET_ADMIN,
    // Maps and programs.
    Capability::CAP_BPF,
    // Without it the verifier refuses programs that compute with packet pointers.
    Capability::CAP_PERFMON,
    // `tailrace ping --icmp`.
    Capability::CAP_NET_RAW,
];
/// Kept only where the daemon cannot work without it: a UDP port below this.
const LOW_PORT: (u16, Capability) = (1024, Capability::CAP_NET_BIND_SERVICE);
/// Kept only where the daemon cannot work without it: a state folder inside somebody else's private folder.
const LAST_RESORT: Capability = Capability::CAP_DAC_OVERRIDE;

/// The capabilities that a process has left.
#[derive(Debug)]
pub struct Kept(CapsHashSet);

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        f.write_str(&names.join(" "))
    }
}

/// Drops all other capabilities, also for whatever this process may execute.
///
/// Capabilities belong to threads: call it before others are started, which inherit what is left.
/// `port` is the UDP port that is opened later, each time the overlay comes up. `works` tells whether the daemon can do its work without privileges over files.
///
/// # Errors
///
/// [`CapsError`]; the effective capabilities may be reduced already.
pub fn reduce(port: u16, works: impl Fn() -> bool) -> Result<Kept, CapsError> {
    let had = caps::read(None, CapSet::Permitted)?;
    let (first_free, low_port) = LOW_PORT;
    let low_port = (port < first_free).then_some(low_port);
    let mut keep: CapsHashSet = KEPT
        .into_iter()
        .chain(low_port)
        .filter(|cap| had.contains(cap))
        .collect();
    // Dropping from the bounding set takes a capability that is about to go.
    if had.contains(&Capability::CAP_SETPCAP) {
        let bounding = caps::read(None, CapSet::Bounding)?;
        for cap in bounding.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *cap)?;
        }
    }
    caps::set(None, CapSet::Effective, &keep)?;
    if had.contains(&LAST_RESORT) && !works() {
        keep.insert(LAST_RESORT);
        caps::set(None, CapSet::Effective, &keep)?;
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    Ok(Kept(keep))
}

/// Whether the calling thread may configure the network.
#[must_use]
pub fn may_configure_network() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}
