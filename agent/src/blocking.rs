//! Tasks that may hold up a thread: [`joined`].

use tokio::task::JoinError;

/// What a blocking task came to; a panic in it is one here.
pub(crate) fn joined<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
