//! Runs a test in a fresh network namespace, on a thread of its own that takes it along when it ends.

use nix::sched::{CloneFlags, unshare};

/// Runs `test`; prints a skip line where no namespace can be made.
pub(crate) fn in_namespace(name: &str, test: impl AsyncFnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                println!("\nSKIP {name}: no network namespace ({error})");
                return;
            }
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
