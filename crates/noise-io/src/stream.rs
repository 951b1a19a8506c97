//! A byte stream in records.
//!
//! Idle streams hold no buffers: what is read passes through the stack, and what is queued is freed
//! once it has left.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use control_proto::{
    early::{self, Early, EarlyPayload},
    noise::Session,
    record::{MAX_RECORD_LEN, Opener, Sealer},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at once: four full records.
const READ_LEN: usize = 4 * MAX_RECORD_LEN;
/// How much sealed data may wait before writers do; a whole HTTP/2 write fits below it.
const HIGH_WATER: usize = 64 << 10;
/// How much plaintext one call takes, so that the queue stays within twice [`HIGH_WATER`].
const MAX_WRITE_LEN: usize = 60 << 10;

/// The Noise channel as a byte stream.
///
/// Writes are sealed at once and leave on flush, or when 64 KiB wait: several records go out in one
/// system call. After any error the stream is dead. The protocol has no closing message, so a
/// connection that ends between records is a normal end.
#[derive(Debug)]
pub struct NoiseStream<T> {
    io: T,
    sealer: Sealer,
    opener: Opener,
    /// Ciphertext that arrived and is not decrypted yet.
    incoming: BytesMut,
    /// Plaintext that is not read yet.
    plain: BytesMut,
    /// Records that are not written yet.
    outgoing: BytesMut,
    start: Start,
    failed: bool,
}

/// What is known about the start of the stream of plaintext.
#[derive(Debug)]
enum Start {
    /// An early payload may come.
    Open,
    /// The stream is past its start.
    Past(Option<EarlyPayload>),
}

impl<T> NoiseStream<T> {
    /// A client's stream: an early payload in front is taken off. `buffered` arrived already.
    pub(crate) fn client(io: T, session: Session, buffered: BytesMut) -> Self {
        Self::new(io, session, buffered, Start::Open)
    }

    /// A server's stream, with records that leave first.
    pub(crate) fn server(io: T, session: Session, outgoing: BytesMut) -> Self {
        let mut stream = Self::new(io, session, BytesMut::new(), Start::Past(None));
        stream.outgoing = outgoing;
        stream
    }

    pub(crate) fn sealer(&mut self) -> (&mut Sealer, &mut BytesMut) {
        (&mut self.sealer, &mut self.outgoing)
    }

    fn new(io: T, session: Session, incoming: BytesMut, start: Start) -> Self {
        let Session { sealer, opener, .. } = session;
        Self {
            io,
            sealer,
            opener,
            incoming,
            plain: BytesMut::new(),
            outgoing: BytesMut::new(),
            start,
            failed: false,
        }
    }

    /// What the server said before HTTP/2; known once the first byte was read.
    pub fn early_payload(&self) -> Option<&EarlyPayload> {
        match &self.start {
            Start::Past(payload) => payload.as_ref(),
            Start::Open => None,
        }
    }

    /// The connection below.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    fn fail<E: Into<Box<dyn std::error::Error + Send + Sync>>>(&mut self, error: E) -> io::Error {
        self.failed = true;
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Decrypts what arrived until there is something to read; false if more must arrive.
    fn decrypt(&mut self) -> io::Result<bool> {
        loop {
            if !self.plain.is_empty() {
                match self.start {
                    Start::Past(_) => return Ok(true),
                    Start::Open => match early::split(&mut self.plain) {
                        Ok(Early::NeedMore) => {}
                        Ok(Early::None) => self.start = Start::Past(None),
                        Ok(Early::Payload(payload)) => self.start = Start::Past(Some(payload)),
                        Err(error) => return Err(self.fail(error)),
                    },
                }
                if matches!(self.start, Start::Past(_)) {
                    continue;
                }
            }
            match self.opener.open(&mut self.incoming) {
                Ok(Some(plain)) if self.plain.is_empty() => self.plain = plain,
                Ok(Some(plain)) => self.plain.extend_from_slice(&plain),
                Ok(None) => return Ok(false),
                Err(error) => return Err(self.fail(error)),
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for NoiseStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.failed {
            return Poll::Ready(Err(broken()));
        }
        while !this.decrypt()? {
            let mut scratch = [const { MaybeUninit::uninit() }; READ_LEN];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            if let Err(error) = ready!(Pin::new(&mut this.io).poll_read(cx, &mut scratch)) {
                this.failed = true;
                return Poll::Ready(Err(error));
            }
            if scratch.filled().is_empty() {
                if !this.incoming.is_empty() {
                    this.failed = true;
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                if this.plain.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                // It ends with the first bytes of what might have been an early payload.
                this.start = Start::Past(None);
                break;
            }
            this.incoming.extend_from_slice(scratch.filled());
        }
        let len = this.plain.len().min(buf.remaining());
        buf.put_slice(&this.plain[..len]);
        this.plain.advance(len);
        if this.plain.is_empty() {
            // The plaintext lies in the same allocation as the ciphertext behind it: both must go.
            this.plain = BytesMut::new();
            if this.incoming.is_empty() {
                this.incoming = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> NoiseStream<T> {
    /// Writes what is queued until none is left.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed {
            return Poll::Ready(Err(broken()));
        }
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing)) {
                Ok(0) => {
                    self.failed = true;
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                Ok(written) => self.outgoing.advance(written),
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.outgoing = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NoiseStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.outgoing.len() >= HIGH_WATER {
            ready!(this.poll_drain(cx))?;
        }
        if this.failed {
            return Poll::Ready(Err(broken()));
        }
        let mut taken = 0;
        let mut whole = 0;
        for part in parts {
            if taken + part.len() > MAX_WRITE_LEN {
                break;
            }
            taken += part.len();
            whole += 1;
        }
        let sealed = match parts.get(whole) {
            // The first part alone is too long: take its beginning.
            Some(part) if taken == 0 => {
                let start = &part[..part.len().min(MAX_WRITE_LEN)];
                this.sealer
                    .seal_vectored(&[IoSlice::new(start)], &mut this.outgoing)
            }
            _ => this
                .sealer
                .seal_vectored(&parts[..whole], &mut this.outgoing),
        };
        Poll::Ready(sealed.map_err(|error| this.fail(error)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the Noise channel failed earlier",
    )
}
