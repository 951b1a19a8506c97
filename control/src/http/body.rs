//! Request bodies inside the Noise channel: bounded each, per connection, and in all.
//!
//! A machine key costs nothing, so anybody can send them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::Semaphore;

/// Longest body, bytes (protocol digest 2.5).
const MAX_LEN: usize = 1 << 20;
/// For the whole of a body.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bodies of one connection that are read at a time; the others wait in the windows of HTTP/2.
const PER_CONNECTION: usize = 8;
/// Up to here, bytes, a body is short: those of nodes are a few KiB.
const SHORT_LEN: usize = 64 << 10;
/// Longer bodies that are read at a time, of all connections.
const MAX_LONG: usize = 32;

/// A body that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError<E> {
    #[error("request body exceeds {MAX_LEN} bytes")]
    TooLong,
    #[error("request body too slow")]
    TooSlow,
    #[error("request body: {0}")]
    Broken(E),
}

/// Room for the long bodies of all connections. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(super) struct LongBodies(Arc<Semaphore>);

impl LongBodies {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LONG)))
    }
}

/// Reads the bodies of one connection.
#[derive(Debug)]
pub(super) struct Bodies {
    places: Semaphore,
    long: LongBodies,
}

impl Bodies {
    pub(super) fn new(long: LongBodies) -> Self {
        Self {
            places: Semaphore::new(PER_CONNECTION),
            long,
        }
    }

    /// Waits for room and reads the whole of `body`.
    pub(super) async fn read<B: Body<Data = Bytes>>(
        &self,
        body: B,
    ) -> Result<Bytes, BodyError<B::Error>> {
        let reading = async {
            // Never closed: what is held is the permit.
            let _place = self.places.acquire().await;
            let mut long = None;
            let mut whole = BytesMut::new();
            let mut body = pin!(body);
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else {
                    continue;
                };
                let len = whole.len() + data.len();
                if len > MAX_LEN {
                    return Err(BodyError::TooLong);
                }
                if len > SHORT_LEN && long.is_none() {
                    long = Some(self.long.0.acquire().await);
                }
                whole.extend_from_slice(&data);
            }
            Ok(whole.freeze())
        };
        let read = tokio::time::timeout(TIMEOUT, reading).await;
        read.unwrap_or(Err(BodyError::TooSlow))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// A body of two short parts that never ends; counts what is taken of it.
    fn unfinished(taken: &AtomicUsize) -> impl Body<Data = Bytes, Error = Infallible> {
        let part = Bytes::from_static(&[b' '; SHORT_LEN]);
        let parts = stream::iter([part.clone(), part, Bytes::new()]).map(|part| {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok(Frame::data(part))
        });
        StreamBody::new(Box::pin(parts.chain(stream::pending())))
    }

    #[tokio::test]
    async fn long_bodies_wait_for_each_other_and_short_ones_do_not() {
        let long = LongBodies::new();
        let connections: Vec<_> = (0..MAX_LONG + 5)
            .map(|_| Bodies::new(long.clone()))
            .collect();
        let taken = AtomicUsize::new(0);
        let mut held: Vec<_> = connections
            .iter()
            .map(|bodies| Box::pin(bodies.read(unfinished(&taken))))
            .collect();
        assert!(futures_util::poll!(join_all(&mut held)).is_pending());
        // Three parts of those that have room, two of those that wait with the second in hand.
        assert_eq!(taken.load(Ordering::Relaxed), 3 * MAX_LONG + 2 * 5);

        let short = http_body_util::Full::new(Bytes::from_static(b"{}"));
        let read = Bodies::new(long).read(short).await.unwrap();
        assert_eq!(&read[..], b"{}");

        held.drain(..5);
        assert!(futures_util::poll!(join_all(&mut held)).is_pending());
        assert_eq!(taken.load(Ordering::Relaxed), 3 * (MAX_LONG + 5));
    }

    #[tokio::test]
    async fn a_connection_has_few_bodies_read_at_a_time() {
        let bodies = Bodies::new(LongBodies::new());
        let taken = AtomicUsize::new(0);
        let mut held: Vec<_> = (0..256)
            .map(|_| Box::pin(bodies.read(unfinished(&taken))))
            .collect();
        assert!(futures_util::poll!(join_all(&mut held)).is_pending());
        assert_eq!(taken.load(Ordering::Relaxed), 3 * PER_CONNECTION);
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_refused() {
        let bodies = Bodies::new(LongBodies::new());
        let fits = http_body_util::Full::new(Bytes::from(vec![b' '; MAX_LEN]));
        assert_eq!(bodies.read(fits).await.unwrap().len(), MAX_LEN);
        let longer = http_body_util::Full::new(Bytes::from(vec![b' '; MAX_LEN + 1]));
        let refused = bodies.read(longer).await;
        assert!(matches!(refused, Err(BodyError::TooLong)), "{refused:?}");
    }
}
