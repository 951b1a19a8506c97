//! Work that goes on when the one who asked for it has gone, and work that takes long.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Runs `work` to its end even if the caller is dropped, as it is when a client hangs up: between
/// what is committed and what the engine hears of it nobody may leave.
pub(crate) async fn complete<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    joined(tokio::spawn(work)).await
}

/// Work of up to seconds for a large tailnet, away from the threads that serve nodes.
pub(super) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

/// Long questions, which wait for one another: each takes a processor and a copy of the tailnet.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Semaphore>);

impl Default for Queue {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Queue {
    /// Like [`off_thread`], one at a time; its turn lasts as long as the work, whoever waits.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        // It is never closed, so there always is a turn.
        let turn = Arc::clone(&self.0).acquire_owned().await.ok();
        off_thread(move || {
            let done = work();
            drop(turn);
            done
        })
        .await
    }
}

async fn joined<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_is_completed_for_nobody() {
        let (go, gone) = oneshot::channel::<()>();
        let (done, end) = oneshot::channel();
        let work = complete(async move {
            gone.await.unwrap();
            done.send(7).unwrap();
        });
        tokio::select! {
            biased;
            () = work => panic!("it waits"),
            () = tokio::task::yield_now() => {}
        }
        go.send(()).unwrap();
        assert_eq!(end.await, Ok(7));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn long_questions_wait_for_one_another() {
        let queue = Queue::default();
        let running = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let running = Arc::clone(&running);
            queue.run(move || {
                let others = running.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                others
            })
        };
        let all = futures_util::future::join_all((0..64).map(|_| ask())).await;
        assert_eq!(all, [0; 64]);
    }
}
