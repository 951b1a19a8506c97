//! A spawned task that speaks through a channel and ends when it is forgotten: [`Running`].

use std::future::Future;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A task and what it says. Receiving is safe to cancel, which the task's own work need not be.
#[derive(Debug)]
pub(super) struct Running<T> {
    messages: mpsc::Receiver<T>,
    task: JoinHandle<()>,
}

impl<T: Send + 'static> Running<T> {
    /// Spawns `work`, which speaks through the sender it is given.
    pub(super) fn spawn<F>(work: impl FnOnce(mpsc::Sender<T>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // One message ahead is enough: a slow reader slows the task down.
        let (sender, messages) = mpsc::channel(1);
        Self {
            messages,
            task: tokio::spawn(work(sender)),
        }
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for the next message of a task; for ever if there is none or it ended.
pub(super) async fn next<T>(running: &mut Option<Running<T>>) -> T {
    if let Some(running) = running
        && let Some(message) = running.messages.recv().await
    {
        return message;
    }
    std::future::pending().await
}
