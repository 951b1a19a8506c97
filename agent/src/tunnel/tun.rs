//! The TUN device as gotatun wants it: packets in, packets out.

use std::io;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use dataplane::Direction;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

use super::Gate;

/// A device that is down gives EIO until it is up again; it is looked at this often.
const DOWN_PAUSE: Duration = Duration::from_millis(100);

/// A TUN device; it goes when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Tun {
    device: Arc<AsyncDevice>,
    mtu: u16,
    gate: Gate,
}

impl Tun {
    /// Creates the device, down and without addresses; its packets pass `gate`.
    ///
    /// # Errors
    ///
    /// EBUSY if another process holds it, EPERM without CAP_NET_ADMIN, ENOENT without /dev/net/tun.
    pub(super) fn create(name: &str, mtu: u16, gate: Gate) -> io::Result<Self> {
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L3)
            .mtu(mtu)
            .enable(false)
            .build_async()?;
        Ok(Self {
            device: Arc::new(device),
            mtu,
            gate,
        })
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let packet = packet.into_bytes();
        if !self.gate.admits(Direction::In, &packet) {
            return Ok(());
        }
        match self.device.send(&packet).await {
            Ok(_) => Ok(()),
            // Down: the packet is lost, the device is not.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        loop {
            let mut packet = pool.get();
            match self.device.recv(&mut packet).await {
                Ok(len) => {
                    packet.truncate(len);
                    if !self.gate.admits(Direction::Out, &packet) {
                        continue;
                    }
                    // What is no IP packet is not for a tunnel.
                    if let Ok(packet) = packet.try_into_ip() {
                        return Ok(iter::once(packet));
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    tokio::time::sleep(DOWN_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}
