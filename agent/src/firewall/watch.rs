//! The task that puts the rules back when others flush or reload the host's ruleset.

use std::sync::Weak;
use std::time::Duration;

use netlink::nft::{Touched, Watcher};
use netlink::{Error, nft};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use crate::error_text::error_text;

use super::{State, table_name};

/// Between looks where nothing was heard.
const INSPECT_EVERY: Duration = Duration::from_secs(60);
/// Between attempts where the last one failed.
const RETRY: Duration = Duration::from_secs(1);
/// A tool that reloads makes several transactions; also bounds how often we answer another program
/// that insists.
const SETTLE: Duration = Duration::from_millis(300);

pub(super) async fn run(
    state: Weak<Mutex<State>>,
    mut watcher: Watcher,
    trouble: watch::Sender<Option<String>>,
) {
    let mut broken = false;
    loop {
        let mut others = true;
        let pause = if broken { RETRY } else { INSPECT_EVERY };
        match timeout(pause, watcher.next()).await {
            Ok(Ok(touched)) => {
                let Some(state) = state.upgrade() else { return };
                let mut concern = concern(&touched, &*state.lock().await);
                if concern.is_none() {
                    continue;
                }
                sleep(SETTLE).await;
                // A reload tells of every rule; they are all answered by one look.
                while let Ok(heard) = timeout(Duration::ZERO, watcher.next()).await {
                    let told = match &heard {
                        Ok(touched) => self::concern(touched, &*state.lock().await),
                        Err(_) => Some(Concern::Others),
                    };
                    concern = concern.max(told);
                    if heard.is_err() {
                        break;
                    }
                }
                others = concern == Some(Concern::Others);
            }
            // What was lost may have been about us.
            Ok(Err(Error::Overrun { .. })) => sleep(SETTLE).await,
            // No socket to hear by: look as often as after a failure.
            Ok(Err(_)) => sleep(RETRY).await,
            Err(_elapsed) => {}
        }
        let Some(state) = state.upgrade() else { return };
        let result = state.lock().await.repair(others).await;
        broken = result.is_err();
        let text = result.err().map(|error| {
            let causes = error_text(&error);
            format!("The firewall rules cannot be put back: {causes}")
        });
        trouble.send_if_modified(|before| {
            let changed = *before != text;
            *before = text;
            changed
        });
    }
}

/// Whose chains a change may be about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Concern {
    /// Our table only.
    Ours,
    /// Those of the host's other firewalls.
    Others,
}

fn concern(touched: &Touched, state: &State) -> Option<Concern> {
    let wanted = state.wanted.as_ref()?;
    let ours =
        touched.layer == nft::Layer::Inet && touched.table == table_name(&wanted.config.device);
    match ours {
        true => Some(Concern::Ours),
        // What sets hold is seldom which interfaces pass, and changes often.
        false => (!touched.elements).then_some(Concern::Others),
    }
}
