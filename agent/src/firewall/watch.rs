//! The task that puts the rules back when others flush or reload the host's ruleset.

use std::sync::Weak;
use std::time::Duration;

use netlink::nft::{Touched, Watcher};
use netlink::{Error, nft};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use crate::error_text::error_text;

use super::rules::{FOREIGN_LAYERS, FOREIGN_TABLE};
use super::{State, table_name};

/// Between looks where nothing was heard.
const INSPECT_EVERY: Duration = Duration::from_secs(60);
/// Between attempts where the last one failed.
const RETRY: Duration = Duration::from_secs(1);
/// A tool that reloads makes several transactions; also bounds how often we answer another program
/// that insists.
const SETTLE: Duration = Duration::from_millis(200);

pub(super) async fn run(
    state: Weak<Mutex<State>>,
    mut watcher: Watcher,
    trouble: watch::Sender<Option<String>>,
) {
    let mut broken = false;
    loop {
        let pause = if broken { RETRY } else { INSPECT_EVERY };
        match timeout(pause, watcher.next()).await {
            Ok(Ok(touched)) => {
                let Some(state) = state.upgrade() else { return };
                if !concerns(&touched, &*state.lock().await) {
                    continue;
                }
                sleep(SETTLE).await;
            }
            // What was lost may have been about us.
            Ok(Err(Error::Overrun { .. })) => sleep(SETTLE).await,
            // No socket to hear by: look as often as after a failure.
            Ok(Err(_)) => sleep(RETRY).await,
            Err(_elapsed) => {}
        }
        let Some(state) = state.upgrade() else { return };
        let result = state.lock().await.repair().await;
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

fn concerns(touched: &Touched, state: &State) -> bool {
    let Some(wanted) = &state.wanted else {
        return false;
    };
    match touched.layer {
        nft::Layer::Inet => touched.table == table_name(&wanted.config.device),
        layer => FOREIGN_LAYERS.contains(&layer) && touched.table == FOREIGN_TABLE,
    }
}
