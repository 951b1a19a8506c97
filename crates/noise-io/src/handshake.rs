//! The handshake over a connection.

use std::io;

use bytes::BytesMut;
use control_proto::{
    capver,
    early::EarlyPayload,
    json::JsonError,
    noise::{self, INITIATION_LEN, Initiator, NoiseError, Responder},
    record::RecordError,
};
use keys::{MachinePrivate, MachinePublic};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::NoiseStream;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The connection failed or ended.
    #[error("connection failed during the Noise handshake")]
    Io(#[from] io::Error),
    /// The other side is not who it should be, or speaks something else.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The early payload could not be written.
    #[error("cannot write the early payload")]
    Json(#[from] JsonError),
    /// The early payload could not be sealed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A client that completed the handshake.
#[derive(Debug)]
pub struct Accepted<T> {
    /// The channel.
    pub stream: NoiseStream<T>,
    /// Who the client is.
    pub machine: MachinePublic,
    /// Its protocol version, equal to its capability version.
    pub version: u16,
}

/// Client: reads the server's answer, of which `buffered` arrived already.
pub(crate) async fn finish<T: AsyncRead + Unpin>(
    mut io: T,
    initiator: Initiator,
    mut buffered: BytesMut,
) -> Result<NoiseStream<T>, HandshakeError> {
    let header = loop {
        if let Some(header) = buffered.first_chunk() {
            break *header;
        }
        read_some(&mut io, &mut buffered).await?;
    };
    let len = noise::server_message_len(header)?;
    while buffered.len() < len {
        read_some(&mut io, &mut buffered).await?;
    }
    let response = buffered.split_to(len);
    let session = initiator.finish(&response)?;
    // Copied, so that the idle stream does not hold on to the handshake's buffer.
    Ok(NoiseStream::client(
        io,
        session,
        BytesMut::from(&buffered[..]),
    ))
}

async fn read_some(io: &mut (impl AsyncRead + Unpin), into: &mut BytesMut) -> io::Result<()> {
    match io.read_buf(into).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Server: completes the handshake that `initiation` began.
///
/// Response and early payload leave in one write; clients too old for a payload get none.
/// Give it a time limit.
///
/// # Errors
///
/// [`HandshakeError`]; for those of Noise the client was sent an error message.
pub async fn server_accept<T: AsyncRead + AsyncWrite + Unpin>(
    mut io: T,
    server: &MachinePrivate,
    initiation: &[u8; INITIATION_LEN],
    early: Option<&EarlyPayload>,
) -> Result<Accepted<T>, HandshakeError> {
    let responder = match Responder::new(server, initiation) {
        Ok(responder) => responder,
        Err(error) => {
            io.write_all(&noise::error_message(&error.to_string()))
                .await?;
            io.shutdown().await?;
            return Err(error.into());
        }
    };
    let (machine, version) = (responder.machine(), responder.version());
    let (response, session) = responder.respond()?;
    let mut stream = NoiseStream::server(io, session, BytesMut::from(&response[..]));
    if let Some(early) = early
        && version >= capver::EARLY_PAYLOAD.0
    {
        let (sealer, outgoing) = stream.sealer();
        sealer.seal(&early.encode()?, outgoing)?;
    }
    stream.flush().await?;
    Ok(Accepted {
        stream,
        machine,
        version,
    })
}
