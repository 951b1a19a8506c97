//! `POST /machine/map`: the endless answer, frame by frame.

use std::sync::Arc;
use std::time::Duration;

use control_proto::capver;
use control_proto::frame::Decoder;
use control_proto::tailcfg::{Compress, Hostinfo, MapRequest, MapResponse};
use http_body_util::BodyExt;
use keys::{DiscoPublic, NodePrivate};
use tokio::sync::mpsc;

use super::ControlError;
use super::connection::Connection;

/// Longest silence: the server sends something at least every minute (protocol/control.md §4.3).
const WATCHDOG: Duration = Duration::from_secs(120);

/// Opens the stream and hands on every frame; the last message is why it ended.
pub(super) async fn run(
    connection: Connection,
    node_key: Arc<NodePrivate>,
    disco: DiscoPublic,
    hostinfo: Hostinfo,
    frames: mpsc::Sender<Result<Box<MapResponse>, ControlError>>,
) {
    let request = MapRequest {
        version: capver::CURRENT,
        node_key: node_key.public(),
        disco_key: disco,
        compress: Compress::Zstd,
        keep_alive: true,
        stream: true,
        hostinfo: Some(hostinfo),
        ..MapRequest::default()
    };
    let Err(error) = read(&connection, &request, &frames).await;
    // Nobody listens any more: then nobody wants to know.
    let _ = frames.send(Err(error)).await;
}

async fn read(
    connection: &Connection,
    request: &MapRequest,
    frames: &mpsc::Sender<Result<Box<MapResponse>, ControlError>>,
) -> Result<std::convert::Infallible, ControlError> {
    let mut deadline = tokio::time::Instant::now() + WATCHDOG;
    let silent = |_| ControlError::Silent(WATCHDOG);
    let mut body = tokio::time::timeout_at(deadline, connection.map(request))
        .await
        .map_err(silent)??;
    let mut decoder = Decoder::new(Compress::Zstd);
    loop {
        let chunk = tokio::time::timeout_at(deadline, body.frame())
            .await
            .map_err(silent)?;
        let Some(chunk) = chunk else {
            return Err(ControlError::broken("the server ended the map stream"));
        };
        let Ok(data) = chunk.map_err(ControlError::broken)?.into_data() else {
            continue;
        };
        decoder.push(&data);
        drop(data);
        while let Some(response) = decoder.next().map_err(|source| ControlError::Answer {
            request: "the map stream",
            source: source.into(),
        })? {
            deadline = tokio::time::Instant::now() + WATCHDOG;
            if frames.send(Ok(Box::new(response))).await.is_err() {
                return Err(ControlError::broken("nobody reads the map stream"));
            }
        }
    }
}
