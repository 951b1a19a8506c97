//! Lite updates: what the server should know of this node, sent again whenever it changes.

use std::sync::Arc;
use std::time::Duration;

use control_proto::capver;
use control_proto::tailcfg::{Compress, MapRequest};
use keys::NodePrivate;
use tokio::sync::watch;

use super::HostState;
use super::connection::Connection;
use crate::backoff::Backoff;

/// Changes this close together leave as one update.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends the present state at once and every later one; one request in flight, the newest state wins.
/// Ends when the owner of `host` does.
pub(super) async fn run(
    connection: Connection,
    node_key: Arc<NodePrivate>,
    mut host: watch::Receiver<HostState>,
) {
    let mut backoff = Backoff::default();
    loop {
        let state = host.borrow_and_update().clone();
        let request = request(&node_key, state);
        let sent = tokio::time::timeout(TIMEOUT, connection.update(&request)).await;
        match sent {
            Ok(Ok(())) => backoff.reset(),
            failed => {
                match failed {
                    Ok(Err(error)) => tracing::debug!(%error, "lite update failed"),
                    _ => tracing::debug!("lite update was not answered"),
                }
                tokio::time::sleep(backoff.next(rand::random())).await;
                continue;
            }
        }
        if host.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

fn request(node_key: &NodePrivate, state: HostState) -> MapRequest {
    MapRequest {
        version: capver::CURRENT,
        node_key: node_key.public(),
        disco_key: state.disco,
        compress: Compress::Zstd,
        hostinfo: Some(state.hostinfo),
        endpoint_types: state
            .endpoints
            .iter()
            .map(|(_, kind)| kind.number())
            .collect(),
        endpoints: state.endpoints.into_iter().map(|(at, _)| at).collect(),
        omit_peers: true,
        ..MapRequest::default()
    }
}
