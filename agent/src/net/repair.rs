//! The task that watches over what was applied: another program may remove the device, a route, a rule.

use std::sync::{Arc, Weak};
use std::time::Duration;

use netlink::links;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::interval;

use super::NetEvent;
use super::inner::Inner;

/// Between looks at what others may have changed on the host, and between attempts to repair it.
const INSPECT_EVERY: Duration = Duration::from_secs(5);
/// Every so many looks everything is compared, rules and routes too.
const FULL_INSPECTION: u32 = 12;
const DEVICE_BROKEN: &str = "overlay-device";

/// Puts back what vanished, and follows the host's own networks: what the kernel tells of at once, the rest
/// within a minute.
pub(super) async fn run(
    inner: Weak<Mutex<Inner>>,
    mut watcher: links::Watcher,
    events: mpsc::Sender<NetEvent>,
    restun: Arc<Notify>,
) {
    let mut looks = interval(INSPECT_EVERY);
    let mut count: u32 = 0;
    let mut broken = false;
    let mut watching = true;
    loop {
        let changed = tokio::select! {
            _ = looks.tick() => false,
            heard = watcher.changed(), if watching => {
                watching = heard;
                true
            }
        };
        let Some(inner) = inner.upgrade() else { return };
        let mut inner = inner.lock().await;
        count = count.wrapping_add(1);
        let due = changed || broken || count.is_multiple_of(FULL_INSPECTION);
        let wired = !due && inner.is_wired().await.unwrap_or(false);
        let result = if wired { Ok(()) } else { inner.reapply().await };
        drop(inner);
        if changed {
            // Others may have to reach us elsewhere now.
            restun.notify_one();
        }
        if result.is_ok() == broken {
            let text = result.as_ref().err().map(ToString::to_string);
            let key = DEVICE_BROKEN;
            if events.send(NetEvent::Health { key, text }).await.is_err() {
                return;
            }
        }
        broken = result.is_err();
    }
}
