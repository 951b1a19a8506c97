//! Which super-packets are in use: [`Offload`], what is known of each before ([`Verdicts`]) and now ([`Switches`]).

use std::fmt;
use std::sync::OnceLock;

/// A way to hand several packets to the kernel at once, or to be handed them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Offload {
    /// TCP on the TUN device, both ways (TSO).
    TunTcp,
    /// Datagrams on the TUN device, both ways (USO): Linux 6.2.
    TunUdp,
    /// Outer datagrams that are sent.
    UdpSegment,
    /// Outer datagrams that are received.
    UdpGro,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 4] = [
        Offload::TunTcp,
        Offload::TunUdp,
        Offload::UdpSegment,
        Offload::UdpGro,
    ];

    /// Its name in `status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Offload::TunTcp => "TCP",
            Offload::TunUdp => "UDP",
            Offload::UdpSegment => "UDP_SEGMENT",
            Offload::UdpGro => "UDP_GRO",
        }
    }

    /// Its name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Offload::TunTcp => "tun_tcp",
            Offload::TunUdp => "tun_udp",
            Offload::UdpSegment => "udp_segment",
            Offload::UdpGro => "udp_gro",
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a trial of an offload has shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// What went in came out.
    Works,
    /// It did not, or the kernel refused what it offers: in a few words, what went wrong.
    Fails(String),
    /// There was no trial, and why. It is used where the kernel offers it, until something fails.
    Untested(String),
    /// The kernel does not offer it.
    Missing(String),
}

/// What is known of every offload before it is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdicts([Verdict; Offload::ALL.len()]);

impl Verdicts {
    /// One for each.
    pub(crate) fn each(verdict: impl FnMut(Offload) -> Verdict) -> Verdicts {
        Verdicts(Offload::ALL.map(verdict))
    }

    /// Nothing is known.
    #[must_use]
    pub fn untested(why: &str) -> Verdicts {
        Verdicts::each(|_| Verdict::Untested(why.to_owned()))
    }

    /// The same, but for one of them.
    #[must_use]
    pub fn with(mut self, offload: Offload, verdict: Verdict) -> Verdicts {
        self.0[offload as usize] = verdict;
        self
    }

    /// What is known of one.
    #[must_use]
    pub fn of(&self, offload: Offload) -> &Verdict {
        &self.0[offload as usize]
    }
}

/// Whether a device uses an offload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OffloadState {
    /// Which.
    pub offload: Offload,
    /// Why it is not used, in a few words; `None` if it is.
    pub off: Option<String>,
    /// Why nobody tried it before it was used; `None` if somebody did, or it is not used.
    pub untried: Option<String>,
}

/// The offloads of one device. What was switched off stays off as long as the device lives.
#[derive(Debug, Default)]
pub(crate) struct Switches([Switch; Offload::ALL.len()]);

#[derive(Debug, Default)]
struct Switch {
    off: OnceLock<String>,
    untried: Option<String>,
}

impl Switches {
    /// All on but for those that fail, or that there are not.
    pub(crate) fn new(verdicts: &Verdicts) -> Switches {
        let mut switches = Switches::default();
        for offload in Offload::ALL {
            match verdicts.of(offload) {
                Verdict::Works => {}
                Verdict::Untested(why) => switches.0[offload as usize].untried = Some(why.clone()),
                Verdict::Fails(why) | Verdict::Missing(why) => {
                    switches.turn_off(offload, why.clone());
                }
            }
        }
        switches
    }

    pub(crate) fn is_on(&self, offload: Offload) -> bool {
        self.0[offload as usize].off.get().is_none()
    }

    /// True if it was on.
    pub(crate) fn turn_off(&self, offload: Offload, why: impl Into<String>) -> bool {
        self.0[offload as usize].off.set(why.into()).is_ok()
    }

    pub(crate) fn states(&self) -> [OffloadState; Offload::ALL.len()] {
        Offload::ALL.map(|offload| {
            let Switch { off, untried } = &self.0[offload as usize];
            let off = off.get().cloned();
            let untried = untried.clone().filter(|_| off.is_none());
            OffloadState {
                offload,
                off,
                untried,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_off_and_the_first_reason_stays() {
        let verdicts = Verdicts::untested("nobody tried")
            .with(Offload::TunUdp, Verdict::Fails("it lies".to_owned()))
            .with(Offload::UdpGro, Verdict::Works);
        let switches = Switches::new(&verdicts);
        assert!(!switches.turn_off(Offload::TunUdp, "again"));
        assert!(switches.turn_off(Offload::UdpSegment, "refused"));
        let states = switches.states();
        let told = states.each_ref().map(|state| {
            let OffloadState { off, untried, .. } = state;
            (state.offload.name(), off.as_deref(), untried.as_deref())
        });
        assert_eq!(
            told,
            [
                ("TCP", None, Some("nobody tried")),
                ("UDP", Some("it lies"), None),
                ("UDP_SEGMENT", Some("refused"), None),
                ("UDP_GRO", None, None)
            ]
        );
    }
}
