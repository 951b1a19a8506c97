//! A socket of `NETLINK_NETFILTER`: requests with their answers, and multicast notifications.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::net::sockopt;

use super::wire::{DONE, DUMP_INTERRUPTED, ERROR, Frame, Writer};
use crate::Error;

const ENOBUFS: i32 = 105;
/// Longer than any message or batch of notifications that the kernel sends.
const DATAGRAM_LEN: usize = 64 * 1024;
/// Longest transaction: some 10 000 rules.
const SEND_BUFFER_LEN: usize = 8 << 20;
/// A table that changes during every one of so many dumps is an error.
const DUMP_ATTEMPTS: u32 = 20;

/// An open socket, in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    socket: TokioSocket,
    address: SocketAddr,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Socket")
            .field("port", &self.port())
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens a socket that hears `groups`, with at least `buffer_len` bytes to queue what arrives.
    pub(crate) fn open(groups: &[u32], buffer_len: usize) -> Result<Self, Error> {
        let open = || -> io::Result<Self> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            // Beyond the sysctl's limit where we may; what the limit allows where we may not.
            let file = socket.socket_ref();
            sockopt::set_socket_recv_buffer_size_force(file, buffer_len)
                .or_else(|_| sockopt::set_socket_recv_buffer_size(file, buffer_len))?;
            // Only a limit: a transaction must fit as a whole.
            sockopt::set_socket_send_buffer_size_force(file, SEND_BUFFER_LEN)
                .or_else(|_| sockopt::set_socket_send_buffer_size(file, SEND_BUFFER_LEN))?;
            let address = socket.socket_mut().bind_auto()?;
            for &group in groups {
                socket.socket_mut().add_membership(group)?;
            }
            Ok(Self {
                socket,
                address,
                sequence: 0,
                buffer: Vec::with_capacity(DATAGRAM_LEN),
            })
        };
        open().map_err(|source| Error::from_io("socket(NETLINK_NETFILTER)", "", source))
    }

    /// The netlink port: what the kernel names this socket by.
    pub(crate) fn port(&self) -> u32 {
        self.address.port_number()
    }

    /// A number that no earlier request of this socket had.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        // 0 is what notifications carry.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Waits for the next datagram.
    pub(crate) async fn receive(&mut self, operation: &'static str) -> Result<&[u8], Error> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => Ok(&self.buffer),
            Err(source) if source.raw_os_error() == Some(ENOBUFS) => {
                Err(Error::Overrun { operation, source })
            }
            Err(source) => Err(Error::from_io(operation, "", source)),
        }
    }

    /// Sends `request` and waits until the messages numbered `last` (the first failure, if one
    /// comes) are answered.
    pub(crate) async fn execute(
        &mut self,
        operation: &'static str,
        subject: &str,
        request: &Writer,
        sequences: std::ops::RangeInclusive<u32>,
    ) -> Result<(), Error> {
        self.send(operation, subject, request).await?;
        loop {
            let datagram = self.receive(operation).await?;
            for frame in Frame::all(datagram) {
                if frame.kind != ERROR || !sequences.contains(&frame.sequence) {
                    continue;
                }
                if frame.errno() != 0 {
                    let source = io::Error::from_raw_os_error(frame.errno());
                    return Err(Error::from_io(operation, subject, source));
                }
                if frame.sequence == *sequences.end() {
                    return Ok(());
                }
            }
        }
    }

    /// Dumps: sends what `request` writes for a sequence number and hands every answer to `take`.
    pub(crate) async fn dump<T>(
        &mut self,
        operation: &'static str,
        subject: &str,
        request: impl Fn(&mut Writer, u32),
        take: impl Fn(Frame<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            let mut writer = Writer::default();
            request(&mut writer, sequence);
            self.send(operation, subject, &writer).await?;
            if let Some(found) = self.collect(operation, subject, sequence, &take).await? {
                return Ok(found);
            }
        }
        let source = io::Error::from(io::ErrorKind::Interrupted);
        Err(Error::from_io(operation, subject, source))
    }

    /// Collects one dump; `None` if it was interrupted.
    async fn collect<T>(
        &mut self,
        operation: &'static str,
        subject: &str,
        sequence: u32,
        take: &impl Fn(Frame<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = self.receive(operation).await?;
            for frame in Frame::all(datagram).filter(|frame| frame.sequence == sequence) {
                interrupted |= frame.flags & DUMP_INTERRUPTED != 0;
                match frame.kind {
                    DONE | ERROR if frame.errno() != 0 => {
                        let source = io::Error::from_raw_os_error(frame.errno());
                        return Err(Error::from_io(operation, subject, source));
                    }
                    DONE => return Ok((!interrupted).then_some(found)),
                    ERROR => {}
                    _ => found.extend(take(frame)),
                }
            }
        }
    }

    async fn send(
        &self,
        operation: &'static str,
        subject: &str,
        request: &Writer,
    ) -> Result<(), Error> {
        self.socket
            .send_to(request.as_bytes(), &SocketAddr::new(0, 0))
            .await
            .map(drop)
            .map_err(|source| Error::from_io(operation, subject, source))
    }
}
