//! Work that may hold up a thread: [`in_place`], [`joined`].

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, block_in_place};

/// Does what may take long, as a write that has to reach a slow disk, without holding up the other tasks of this
/// thread: there are few threads, and packets from relays are carried by tasks.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // One thread has nobody to hand its tasks to, and without a runtime there are none.
        _ => work(),
    }
}

/// What a blocking task came to; a panic in it is one here.
pub(crate) fn joined<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn other_tasks_of_the_thread_go_on() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (sender, receiver) = mpsc::channel();
        let waited = runtime.block_on(async {
            let slow = tokio::spawn(async move {
                // It runs on this thread, the only one, or nowhere.
                tokio::spawn(async move { sender.send(()).unwrap() });
                in_place(|| receiver.recv_timeout(Duration::from_secs(10)))
            });
            slow.await.unwrap()
        });
        assert_eq!(waited, Ok(()));
        assert_eq!(in_place(|| 7), 7);
    }
}
