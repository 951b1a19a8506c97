//! The task that watches over what was applied: another program may remove the device, a route, a rule.

use std::sync::Weak;
use std::time::Duration;

use netlink::links;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::NetEvent;
use super::host::Host;
use super::inner::Inner;
use crate::error_text::error_text;

/// Between looks at what others may have changed on the host, and between attempts to repair it.
const INSPECT_EVERY: Duration = Duration::from_secs(5);
/// After so long everything is compared, rules and routes too.
const FULL_INSPECTION: Duration = Duration::from_secs(60);
/// Or after so many times what the last comparison took, if that is longer: of a thousand peers it takes long.
const SPARINGLY: u32 = 3000;
/// But never later than this.
const AT_LEAST: Duration = Duration::from_secs(300);
/// What is told all the time, as by a host whose containers come and go, has everything compared no sooner than
/// after so many times what the last comparison took, or by the next look.
const BREATH: u32 = 10;
const DEVICE_BROKEN: &str = "overlay-device";

/// Until everything is compared again, after a comparison that took so long.
fn pause(took: Duration) -> Duration {
    (took * SPARINGLY).clamp(FULL_INSPECTION, AT_LEAST)
}

/// Puts back what vanished, and follows the host's own networks: what the kernel tells of at once, the rest
/// within a minute, or five where there is very much of it.
pub(super) async fn run(
    inner: Weak<Mutex<Inner>>,
    mut watcher: links::Watcher,
    events: mpsc::Sender<NetEvent>,
    host: watch::Sender<Host>,
) {
    let mut looks = interval(INSPECT_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_full = Instant::now() + FULL_INSPECTION;
    // Changes that were told are looked into from then on.
    let mut earliest = Instant::now();
    let mut changed = false;
    // What is wrong, as it was told.
    let mut told: Option<String> = None;
    let mut watching = true;
    loop {
        let heard = tokio::select! {
            _ = looks.tick() => false,
            heard = watcher.changed(), if watching => {
                watching = heard;
                true
            }
            () = sleep_until(earliest), if changed => false,
        };
        changed |= heard;
        let Some(inner) = inner.upgrade() else { return };
        let mut inner = inner.lock().await;
        let now = Instant::now();
        let full = now >= next_full;
        // That packets leave another way is told before anything else is compared.
        let looked = match heard || full {
            true => inner.look_at_host(&host).await,
            false => Ok(()),
        };
        let due = full || now >= earliest && (changed || told.is_some());
        let wired = !due && inner.is_wired().await.unwrap_or(false);
        let result = if wired {
            match looked {
                // What was wrong is so until everything has been compared again.
                Ok(()) if told.is_some() => continue,
                looked => looked,
            }
        } else {
            let result = inner.reapply().await;
            let took = now.elapsed();
            changed = false;
            next_full = Instant::now() + pause(took);
            earliest = Instant::now() + (took * BREATH).min(INSPECT_EVERY);
            result.and(looked)
        };
        drop(inner);
        let text = result.as_ref().err().map(|error| error_text(error));
        if text != told {
            if let Some(problem) = &text {
                tracing::warn!(problem, "the data plane is not as it should be");
            }
            told.clone_from(&text);
            let key = DEVICE_BROKEN;
            if events.send(NetEvent::Health { key, text }).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_comparison_is_made_each_minute_and_a_slow_one_less_often_but_within_five() {
        let seconds = |took| pause(Duration::from_millis(took)).as_secs();
        assert_eq!([1, 20, 40, 80, 900].map(seconds), [60, 60, 120, 240, 300]);
    }
}
