//! An order to map that is under way.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::web::{Http, Web};
use super::{Lease, Map, Mapped, UpnpError, map};

/// For the answer to what is being asked for, when we leave: a part of the second that there is to stop.
const LAST_WAIT: Duration = Duration::from_millis(400);

/// [`Order::Map`](super::Order::Map), under way.
#[derive(Debug)]
pub(in crate::portmap) struct Running {
    task: JoinHandle<Result<Mapped, UpnpError>>,
    begun: watch::Receiver<Vec<Lease>>,
}

impl Running {
    /// Begins it.
    pub(in crate::portmap) fn start(order: Map) -> Self {
        Self::start_over(Web, order)
    }

    /// As [`start`](Self::start), with routers of one's own.
    pub(super) fn start_over(http: impl Http + Send + 'static, order: Map) -> Self {
        let (sender, begun) = watch::channel(Vec::new());
        let task = tokio::spawn(async move { map(&http, &order, &sender).await });
        Self { task, begun }
    }

    /// Waits for its end.
    pub(in crate::portmap) async fn ended(&mut self) -> Result<Mapped, UpnpError> {
        let ended = (&mut self.task).await;
        ended.unwrap_or(Err(UpnpError::Silent))
    }

    /// Drops it for another.
    pub(in crate::portmap) fn abort(&self) {
        self.task.abort();
    }

    /// What it has been asked for and was not refused: it may be mapped, however the order ends.
    pub(in crate::portmap) fn begun(&self) -> Vec<Lease> {
        self.begun.borrow().clone()
    }

    /// Ends it soon, and returns what it has mapped, or may have.
    pub(in crate::portmap) async fn stop(mut self) -> Vec<Lease> {
        // What has not been asked for yet need not be.
        if !self.begun().is_empty() {
            match timeout(LAST_WAIT, self.ended()).await {
                Ok(Ok(mapped)) => {
                    let mut begun = self.begun();
                    let lease = mapped.lease();
                    begun.retain(|known| *known != lease);
                    begun.push(lease);
                    return begun;
                }
                Ok(Err(_)) => return self.begun(),
                Err(_) => {}
            }
        }
        self.task.abort();
        let _aborted = (&mut self.task).await;
        self.begun()
    }
}
