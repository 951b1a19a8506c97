//! TLS over a byte stream, for many connections that are idle and some that are busy.
//!
//! rustls does the protocol; what is done here is where bytes lie. Records are read and written in
//! large batches through a scratch buffer of the thread, and a connection keeps only what is left
//! over: a record that is not whole yet, plaintext that the reader had no room for, ciphertext that
//! the socket did not take. So an idle connection holds no buffer at all, and a busy one makes one
//! system call for many packets. (tokio-rustls reads 4 KiB at a time: measured in `bench relay`.)

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most ciphertext of one read, and most plaintext of one write.
const BATCH: usize = 64 << 10;

/// Most plaintext of one record (RFC 8446 section 5.1).
const RECORD: usize = 16 << 10;

/// More than a record adds to its plaintext: header, padding byte and tag, with room to spare.
const RECORD_OVERHEAD: usize = 256;

/// The server's end of a TLS connection.
pub(crate) struct TlsStream<T> {
    io: T,
    session: UnbufferedServerConnection,
    /// Ciphertext of a record of which more must come.
    partial: Vec<u8>,
    plain: Leftover,
    unsent: Leftover,
    /// No plaintext will come any more.
    ended: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Performs the handshake as the server.
    pub(crate) async fn accept(config: Arc<ServerConfig>, io: T) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut stream = Self {
            io,
            session,
            partial: Vec::new(),
            plain: Leftover::default(),
            unsent: Leftover::default(),
            ended: false,
        };
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_drain(cx))?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_fill(cx, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// Reads ciphertext once and opens what is whole of it: into `out`, the rest into `plain`.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let kept = self.partial.len();
        let mut scratch = Scratch::take(&INCOMING, kept.max(RECORD) + BATCH);
        let mut input = ReadBuf::new(&mut scratch.bytes[kept..]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut input))?;
        let read = input.filled().len();
        if read == 0 {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        scratch.bytes[..kept].copy_from_slice(&self.partial);
        Poll::Ready(self.open(&mut scratch.bytes[..kept + read], out))
    }

    /// Opens the records in `input`; an incomplete one at its end is kept.
    fn open(&mut self, input: &mut [u8], out: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut at = 0;
        loop {
            let UnbufferedStatus { discard, state } =
                self.session.process_tls_records(&mut input[at..]);
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let payload = record.map_err(invalid)?.payload;
                        let now = payload.len().min(out.remaining());
                        out.put_slice(&payload[..now]);
                        self.plain.push(&payload[now..]);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.unsent, |out| data.encode(out))?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => false,
                Ok(ConnectionState::PeerClosed) => {
                    self.ended = true;
                    true
                }
                // Closed; early data is not enabled.
                Ok(_) => {
                    self.ended = true;
                    false
                }
                Err(error) => {
                    self.queue_alert()?;
                    return Err(invalid(error));
                }
            };
            at += discard;
            if !more {
                break;
            }
        }
        let rest = &input[at..];
        if rest.is_empty() {
            self.partial = Vec::new();
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(rest);
        }
        Ok(())
    }

    /// After an error there may be an alert that tells the client why.
    fn queue_alert(&mut self) -> io::Result<()> {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) =
            self.session.process_tls_records(&mut []).state
        {
            encode(&mut self.unsent, |out| data.encode(out))?;
        }
        Ok(())
    }

    /// Seals up to [`BATCH`] bytes of `slices` into records and writes what the socket takes.
    fn seal(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let records = BATCH / RECORD;
        let mut sealed = Scratch::take(&OUTGOING, records * (RECORD + RECORD_OVERHEAD));
        let mut gathered = Scratch::take(&GATHERED, RECORD);
        let mut slices = slices.iter().map(|slice| &slice[..]);
        let mut slice = slices.next().unwrap_or_default();
        let (mut taken, mut end) = (0, 0);
        for _ in 0..records {
            let mut len = 0;
            while len < RECORD {
                if slice.is_empty() {
                    let Some(next) = slices.next() else { break };
                    slice = next;
                }
                let (now, later) = slice.split_at(slice.len().min(RECORD - len));
                gathered.bytes[len..len + now.len()].copy_from_slice(now);
                len += now.len();
                slice = later;
            }
            if len == 0 {
                break;
            }
            let plain = &gathered.bytes[..len];
            end += self.with_traffic(|traffic| {
                traffic.encrypt(plain, &mut sealed.bytes[end..]).map_err(invalid)
            })?;
            taken += len;
        }
        let sealed = &sealed.bytes[..end];
        let written = match Pin::new(&mut self.io).poll_write(cx, sealed) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.unsent.push(&sealed[written..]);
        Ok(taken)
    }

    /// Gets at the state in which rustls encrypts, sending what it wants to say first.
    fn with_traffic<R>(
        &mut self,
        use_it: impl FnOnce(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
        ) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match self.session.process_tls_records(&mut []).state.map_err(invalid)? {
                ConnectionState::WriteTraffic(mut traffic) => return use_it(&mut traffic),
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut self.unsent, |out| data.encode(out))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.ended = true,
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Ready when the socket has taken everything sealed so far.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.unsent.rest()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.unsent.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            if !self.plain.is_empty() {
                let now = self.plain.rest().len().min(out.remaining());
                out.put_slice(&self.plain.rest()[..now]);
                self.plain.advance(now);
            }
            if out.filled().len() > before || self.ended || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let filled = self.poll_fill(cx, out);
            // What reading made rustls want to say (alerts, key updates) goes out as far as it can.
            if !self.unsent.is_empty()
                && let Poll::Ready(Err(error)) = self.poll_drain(cx)
            {
                return Poll::Ready(Err(error));
            }
            ready!(filled)?;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        Poll::Ready(self.seal(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            let mut alert = [0; RECORD_OVERHEAD];
            let len = self.with_traffic(|traffic| {
                traffic.queue_close_notify(&mut alert).map_err(invalid)
            })?;
            self.unsent.push(&alert[..len]);
            self.ended = true;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Bytes that wait to be taken from the front; holds no memory when empty.
#[derive(Default)]
struct Leftover {
    bytes: Vec<u8>,
    start: usize,
}

impl Leftover {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
        if self.start == self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// Appends what `encode` writes, which tells how much room it needs.
fn encode(
    unsent: &mut Leftover,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let needed = match encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
        Err(error) => return Err(invalid(error)),
    };
    let start = unsent.bytes.len();
    unsent.bytes.resize(start + needed, 0);
    let written = encode(&mut unsent.bytes[start..]).map_err(invalid)?;
    unsent.bytes.truncate(start + written);
    Ok(())
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

thread_local! {
    static INCOMING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static OUTGOING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static GATHERED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer of this thread, lent for one call.
struct Scratch {
    bytes: Vec<u8>,
    home: &'static std::thread::LocalKey<Cell<Vec<u8>>>,
}

impl Scratch {
    /// At least `len` bytes of any content.
    fn take(home: &'static std::thread::LocalKey<Cell<Vec<u8>>>, len: usize) -> Self {
        let mut bytes = home.take();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Self { bytes, home }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.bytes));
    }
}
