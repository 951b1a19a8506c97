//! The TUN device as gotatun wants it: packets in, packets out.

use std::io;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

/// A device that is down gives EIO until it is up again; it is looked at this often.
const DOWN_PAUSE: Duration = Duration::from_millis(100);

/// A TUN device; it goes when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Tun {
    device: Arc<AsyncDevice>,
    mtu: u16,
}

impl Tun {
    /// Creates the device, down and without addresses.
    ///
    /// # Errors
    ///
    /// EBUSY if another process holds it, EPERM without CAP_NET_ADMIN, ENOENT without /dev/net/tun.
    pub(super) fn create(name: &str, mtu: u16) -> io::Result<Self> {
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L3)
            .mtu(mtu)
            .enable(false)
            .build_async()?;
        Ok(Self {
            device: Arc::new(device),
            mtu,
        })
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        match self.device.send(&packet.into_bytes()).await {
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
