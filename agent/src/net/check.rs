//! A look at the network for whoever asks: [`Checker`].

use std::sync::Arc;
use std::time::SystemTime;

use node_core::{DerpMap, RegionId};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{NetcheckReport, PortMapping};
use crate::derp::Manager;
use crate::derp::home::{HomeSelector, Measured};
use crate::netcheck::{self, Plan};
use crate::paths::Wire;
use crate::portmap;

/// What a check of the network found.
#[derive(Clone, Debug)]
pub struct Netcheck {
    /// When it was done.
    pub now: SystemTime,
    /// The relays that were measured.
    pub map: DerpMap,
    /// The home relay that follows from what was found; the present one if nothing was.
    pub home: Option<RegionId>,
    /// What was found.
    pub report: NetcheckReport,
    /// What the router can do and does for us.
    pub port_mapping: PortMapping,
}

/// Checks the network. It holds no lock: the data plane may change or go meanwhile.
#[derive(Debug)]
pub struct Checker {
    pub(super) map: DerpMap,
    pub(super) relays: Manager,
    pub(super) wire: Arc<Wire>,
    pub(super) portmap: portmap::Handle,
    pub(super) last: Arc<Shared<Netcheck>>,
}

impl Checker {
    /// Measures every relay region and how this host looks from there. Whoever asks while that is under way
    /// gets the same answer: every user of this host may ask.
    pub async fn run(self) -> Netcheck {
        let last = self.last.clone();
        last.get(self.measure()).await
    }

    async fn measure(self) -> Netcheck {
        let began = std::time::Instant::now();
        let measuring = netcheck::run(&self.map, Plan::Full, &self.wire);
        let (report, port_mapping) = tokio::join!(measuring, self.portmap.probe());
        let home = self.relays.home().map(|(region, _)| region);
        let latencies = report.latencies();
        let home = if latencies.is_empty() {
            home
        } else {
            let measured = Measured {
                began,
                latencies: &latencies,
                home_heard: home.and_then(|home| self.relays.last_heard(home)),
                // Something answered: nothing is left to chance.
                seed: 0,
                can_tell: true,
            };
            let now = std::time::Instant::now();
            HomeSelector::at(home).handle_report(now, &self.map, &measured)
        };
        Netcheck {
            now: SystemTime::now(),
            map: self.map,
            home,
            report,
            port_mapping,
        }
    }
}

/// The last outcome of something costly, for those who waited for it.
#[derive(Debug)]
pub(super) struct Shared<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Shared<T> {
    /// Runs `make`, or returns what another caller's was done with since this one asked.
    async fn get(&self, make: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((done, outcome)) = &*last
            && *done >= asked
        {
            return outcome.clone();
        }
        // A caller that goes away leaves the work to the next.
        let outcome = make.await;
        *last = Some((Instant::now(), outcome.clone()));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_meanwhile_gets_the_same_answer_and_who_asks_later_a_new_one() {
        let (shared, count) = (Shared::default(), Cell::new(0));
        let make = async || {
            sleep(Duration::from_secs(5)).await;
            count.set(count.get() + 1);
            count.get()
        };
        let later = async {
            sleep(Duration::from_secs(3)).await;
            shared.get(make()).await
        };
        let (first, second, third) = tokio::join!(shared.get(make()), shared.get(make()), later);
        assert_eq!([first, second, third], [1, 1, 1]);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(shared.get(make()).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_the_work_to_the_next() {
        let shared = Shared::default();
        let hangs = tokio::time::timeout(
            Duration::from_secs(1),
            shared.get(std::future::pending::<u8>()),
        );
        let (gone, next) = tokio::join!(hangs, shared.get(async { 2 }));
        assert!(gone.is_err());
        assert_eq!(next, 2);
    }
}
