//! The programs on a TUN device in a network namespace of its own: real packets, pins, restarts.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    Attachment, Counters, Dataplane, DataplaneError, Direction, DropReason, Layer, Nic, Offload,
    OffloadKey, Origin, Peer, PeerCounters, PeerIndex, PortRange, Rule, Rules, pin_folder,
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use testnet::{Namespace, wait_until};

use common::{PEER4, PEER6, TCP, UDP, US4, US6, ipv4, ipv6, tcp, udp};

const DEVICE: &str = "overlay0";
const PEER: PeerIndex = PeerIndex(0x7f40_0001);
const DEADLINE: Duration = Duration::from_secs(5);

/// Each way of attaching that this kernel knows.
fn kinds() -> Vec<Attachment> {
    match Attachment::of_this_kernel() {
        Attachment::Tcx => vec![Attachment::Tcx, Attachment::Clsact],
        Attachment::Clsact => vec![Attachment::Clsact],
    }
}

/// Runs `test` once per kind, on a thread inside a new namespace with a TUN device in it.
fn on_overlay(test: impl Fn(Attachment, &Overlay) -> Result<()> + Sync) -> Result<()> {
    for kind in kinds() {
        let namespace = Namespace::new("counters")?;
        let overlay = Overlay::new(&namespace)?;
        namespace
            .enter(|| test(kind, &overlay))?
            .with_context(|| format!("attached by {kind}"))?;
    }
    Ok(())
}

/// The far end of an overlay device: what the tunnel would be.
struct Overlay<'a> {
    namespace: &'a Namespace,
    tun: File,
}

impl<'a> Overlay<'a> {
    fn new(namespace: &'a Namespace) -> Result<Self> {
        let tun = namespace.enter(open_tun)??;
        for command in [
            "addr add 100.64.0.1/10 dev overlay0",
            "addr add fd7a:11::1/48 dev overlay0 nodad",
            "link set overlay0 up",
        ] {
            namespace.ip(command)?;
        }
        Ok(Self { namespace, tun })
    }

    /// The peer sends one packet.
    fn arrive(&self, packet: &[u8]) -> Result<()> {
        self.arrive_merged(packet, [0; 10])
    }

    /// The peer's packets arrive as one buffer; `header` is a `virtio_net_hdr`.
    fn arrive_merged(&self, packet: &[u8], header: [u8; 10]) -> Result<()> {
        let frame = [header.as_slice(), packet].concat();
        let written = (&self.tun).write(&frame)?;
        ensure!(written == frame.len(), "short write to the TUN");
        Ok(())
    }

    /// Returns the IP packets for the peer that the device has sent since the last call.
    fn sent(&self) -> Result<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; 70_000];
        loop {
            match (&self.tun).read(&mut buffer) {
                Ok(len) => packets.push(buffer[10..len].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        // The kernel's own multicast (router solicitations) is not the tests' concern.
        packets.retain(|packet| packet[0] >> 4 == 4 || packet[24] != 0xff);
        Ok(packets)
    }

    /// Removes the device and makes another of its name.
    fn replace(self) -> Result<Overlay<'a>> {
        let namespace = self.namespace;
        drop(self);
        // A command that another test starts holds its copy of the device until it executes.
        wait_until(DEADLINE, "the device goes", || Overlay::new(namespace))
    }
}

/// Opens a TUN device in the calling thread's network namespace.
#[expect(unsafe_code, reason = "ioctl")]
fn open_tun() -> Result<File> {
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: u16,
        padding: [u8; 22],
    }
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    const IFF_VNET_HDR: u16 = 0x4000;
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, 4),
        InterfaceRequest
    );

    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR,
        padding: [0; 22],
    };
    request.name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    // SAFETY: the request is as large as `struct ifreq` and lives through the call.
    unsafe { tunsetiff(tun.as_raw_fd(), &raw const request)? };
    Ok(tun)
}

fn attached(kind: Attachment, pins: Option<&Path>) -> Result<Counters> {
    let mut counters = Counters::attach_as(DEVICE, pins, kind)?;
    assert_eq!(counters.kind(), kind);
    counters.set_peers(&[
        ("100.64.0.2/32".parse()?, PEER),
        ("fd7a:11::2/128".parse()?, PEER),
    ])?;
    Ok(counters)
}

/// Waits until the peer's counters are `expected`: what arrives is counted by a soft interrupt.
fn wait_for(counters: &Counters, expected: PeerCounters) -> Result<()> {
    wait_until(DEADLINE, "the peer's packets are counted", || {
        let found = counters.read()?;
        ensure!(
            found.get(&PEER) == Some(&expected),
            "{found:?} instead of {expected:?}"
        );
        Ok(())
    })
}

fn received(packets: u64, bytes: u64) -> PeerCounters {
    PeerCounters {
        rx_packets: packets,
        rx_bytes: bytes,
        ..PeerCounters::default()
    }
}

fn pins() -> Result<PathBuf> {
    Ok(pin_folder(DEVICE, Path::new("/nonexistent"))?)
}

/// One packet of 30 bytes from the peer.
fn hello() -> Vec<u8> {
    ipv4(PEER4, US4, UDP, &udp(2))
}

#[test]
fn real_packets_are_counted_in_both_directions() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let counters = attached(kind, None)?;

        overlay.arrive(&ipv4(PEER4, US4, UDP, &udp(72)))?;
        overlay.arrive(&ipv6(PEER6, US6, UDP, &udp(52)))?;
        let v4 = UdpSocket::bind((Ipv4Addr::from(US4), 0))?;
        v4.send_to(&[0; 172], (Ipv4Addr::from(PEER4), 9))?;
        let v6 = UdpSocket::bind((Ipv6Addr::from(US6), 0))?;
        v6.send_to(&[0; 252], (Ipv6Addr::from(PEER6), 9))?;

        let replies = overlay.sent()?;
        // Port 9 is closed: the kernel answers what arrived with ICMP errors, and counts them.
        let errors: Vec<_> = replies
            .iter()
            .filter(|packet| ![200, 300].contains(&packet.len()))
            .collect();
        let expected = PeerCounters {
            rx_packets: 2,
            rx_bytes: 100 + 100,
            tx_packets: replies.len() as u64,
            tx_bytes: 200 + 300 + errors.iter().map(|packet| packet.len() as u64).sum::<u64>(),
        };
        ensure!(replies.len() - errors.len() == 2, "{replies:?}");
        wait_for(&counters, expected)
    })
}

#[test]
fn what_leaves_in_one_buffer_counts_as_the_packets_on_the_wire() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let counters = attached(kind, None)?;
        let peers: [(SocketAddr, SocketAddr); 2] = [
            ((US4, 0).into(), (PEER4, 9).into()),
            ((US6, 0).into(), (PEER6, 9).into()),
        ];
        for (us, peer) in peers {
            let socket = UdpSocket::bind(us)?;
            setsockopt(&socket, UdpGsoSegment, &1000)?;
            match socket.send_to(&[0; 8400], peer) {
                Ok(_) => {}
                // Before 6.11, devices without checksum offload take no segmentation.
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => {
                    println!(
                        "\nSKIP attachment::what_leaves_in_one_buffer_counts_as_the_packets_on_the_wire: this kernel segments no UDP for a plain TUN"
                    );
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }

        // The device segments nothing by itself: what is read from it is what a peer would get.
        let wire = overlay.sent()?;
        ensure!(wire.len() == 18, "{} packets instead of 18", wire.len());
        let expected = PeerCounters {
            tx_packets: 18,
            tx_bytes: wire.iter().map(|packet| packet.len() as u64).sum(),
            ..PeerCounters::default()
        };
        wait_for(&counters, expected)
    })
}

#[test]
fn what_arrives_in_one_buffer_counts_as_the_packets_it_was() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let counters = attached(kind, None)?;
        // virtio_net_hdr: NEEDS_CSUM, TCPV4, header length, gso_size 1000, checksum start, offset.
        let header = [1, 1, 52, 0, 0xe8, 3, 20, 0, 16, 0];
        let payload = 30_500;
        overlay.arrive_merged(&ipv4(PEER4, US4, TCP, &tcp(payload)), header)?;

        wait_until(DEADLINE, "the packets are counted", || {
            let found = counters.read()?[&PEER];
            let found = (found.rx_packets, found.rx_bytes);
            let expected = (31, payload as u64 + 31 * 52);
            ensure!(found == expected, "{found:?} instead of {expected:?}");
            Ok(())
        })
    })
}

#[test]
fn pinned_counters_outlive_their_process_and_go_on_counting() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let pins = pins()?;
        let counters = attached(kind, Some(&pins))?;
        overlay.arrive(&hello())?;
        wait_for_rx(&counters, 1)?;

        drop(counters);
        overlay.arrive(&hello())?;
        let mut counters = Counters::attach_as(DEVICE, Some(&pins), kind)?;
        wait_for_rx(&counters, 2)?;

        // The same peers again change nothing; one program counts, not two.
        counters.set_peers(&[
            ("100.64.0.2/32".parse()?, PEER),
            ("fd7a:11::2/128".parse()?, PEER),
        ])?;
        overlay.arrive(&hello())?;
        wait_for_rx(&counters, 3)?;
        assert_eq!(programs(kind, Direction::In)?, 1);
        assert_eq!(programs(kind, Direction::Out)?, 1);
        counters.remove()?;
        Ok(())
    })
}

#[test]
fn removing_leaves_nothing_behind() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let pins = pins()?;
        let counters = attached(kind, Some(&pins))?;
        overlay.arrive(&hello())?;
        wait_for_rx(&counters, 1)?;
        assert!(pins.exists());

        counters.remove()?;
        wait_until_bare(kind, &pins)?;

        // A process that never attached can tidy up after one that did.
        drop(attached(kind, Some(&pins))?);
        assert_eq!(programs(kind, Direction::In)?, 1);
        Counters::remove_leftovers(DEVICE, Some(&pins))?;
        wait_until_bare(kind, &pins)?;
        Counters::remove_leftovers(DEVICE, Some(&pins))?;
        Counters::remove_leftovers("absent0", Some(&pins))?;
        Ok(())
    })
}

#[test]
fn without_pins_the_programs_go_with_their_owner() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, _| {
        let counters = attached(kind, None)?;
        assert_eq!(programs(kind, Direction::Out)?, 1);
        drop(counters);
        assert_eq!(programs(kind, Direction::In)?, 0);
        assert_eq!(programs(kind, Direction::Out)?, 0);
        Ok(())
    })
}

#[test]
fn a_device_made_anew_is_counted_again() -> Result<()> {
    skip_without_bpf!();
    for kind in kinds() {
        let namespace = Namespace::new("counters")?;
        let overlay = Overlay::new(&namespace)?;
        let pins = namespace.enter(pins)??;
        let first = namespace.enter(|| attached(kind, Some(&pins)))??;
        drop(first);

        let overlay = overlay.replace()?;
        namespace.enter(|| -> Result<()> {
            let counters = Counters::attach_as(DEVICE, Some(&pins), kind)?;
            overlay.arrive(&hello())?;
            wait_for_rx(&counters, 1)?;
            counters.remove()?;
            wait_until_bare(kind, &pins)
        })??;
    }
    Ok(())
}

#[test]
fn maps_of_another_version_or_layout_are_replaced() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let pins = pins()?;
        let maps = pins.join(format!("abi-{}", dataplane::ABI_VERSION));
        let other = pins.join("abi-0");
        let counters = attached(kind, Some(&pins))?;
        overlay.arrive(&hello())?;
        wait_for_rx(&counters, 1)?;
        drop(counters);

        fs::rename(&maps, &other)?;
        let counters = attached(kind, Some(&pins))?;
        assert!(!other.exists());
        assert_eq!(counters.read()?[&PEER], PeerCounters::default());
        overlay.arrive(&hello())?;
        wait_for_rx(&counters, 1)?;
        drop(counters);

        fs::remove_file(maps.join("TOTALS"))?;
        fs::rename(maps.join("PEERS_V6"), maps.join("TOTALS"))?;
        let counters = attached(kind, Some(&pins))?;
        overlay.arrive(&hello())?;
        wait_for_rx(&counters, 2)?;
        assert_eq!(programs(kind, Direction::In)?, 1);
        counters.remove()?;
        wait_until_bare(kind, &pins)
    })
}

#[test]
fn a_failed_attachment_names_its_cause_and_leaves_nothing() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, _| {
        let pins = pins()?;
        let error = Counters::attach_as("absent0", Some(&pins), kind)
            .map(drop)
            .unwrap_err();
        ensure!(matches!(error, DataplaneError::NoInterface(_)), "{error:?}");
        assert!(!pins.exists());

        let elsewhere = Path::new("/tmp/no-bpffs/pins");
        let error = Counters::attach_as(DEVICE, Some(elsewhere), kind)
            .map(drop)
            .unwrap_err();
        ensure!(matches!(error, DataplaneError::NoBpffs { .. }), "{error:?}");
        assert!(!elsewhere.exists());
        Ok(())
    })
}

#[test]
fn where_the_host_has_no_bpf_file_system_we_mount_our_own() -> Result<()> {
    skip_without_bpf!();
    let namespace = Namespace::new("counters")?;
    let overlay = Overlay::new(&namespace)?;
    let folder = testnet::Folder::new("bpffs")?;
    namespace.enter(|| -> Result<()> {
        nix::mount::umount("/sys/fs/bpf")?;
        let pins = pin_folder(DEVICE, folder.path())?;
        assert!(pins.starts_with(folder.path().join("bpf")), "{pins:?}");
        let counters = Counters::attach(DEVICE, Some(&pins))?;
        assert_eq!(pin_folder(DEVICE, folder.path())?, pins);
        counters.remove()?;
        drop(overlay);
        nix::mount::umount(&folder.path().join("bpf"))?;
        Ok(())
    })?
}

fn wait_for_rx(counters: &Counters, packets: u64) -> Result<()> {
    wait_until(DEADLINE, "the peer's packets are counted", || {
        let found = counters.read()?;
        let found = found.get(&PEER).context("the peer is not counted")?;
        let found = received(found.rx_packets, found.rx_bytes);
        let expected = received(packets, packets * 30);
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    })
}

/// Number of programs of ours on the device, by the kernel's own account.
fn programs(kind: Attachment, direction: Direction) -> Result<usize> {
    use aya::programs::{SchedClassifier, TcAttachType};
    match kind {
        Attachment::Tcx => {
            let attach_type = match direction {
                Direction::In => TcAttachType::Ingress,
                Direction::Out => TcAttachType::Egress,
            };
            Ok(SchedClassifier::query_tcx(DEVICE, attach_type)?.1.len())
        }
        Attachment::Clsact => {
            let hook = match direction {
                Direction::In => "ingress",
                Direction::Out => "egress",
            };
            let mut tc = std::process::Command::new("tc");
            let filters = testnet::run(tc.args(["filter", "show", "dev", DEVICE, hook]))?;
            Ok(filters
                .matches(&format!(" name {}", direction.program()))
                .count())
        }
    }
}

/// Waits until nothing of ours is left: the kernel lets go of an unpinned link a moment later.
fn wait_until_bare(kind: Attachment, pins: &Path) -> Result<()> {
    assert!(!pins.exists());
    assert!(!Path::new("/sys/fs/bpf/tailrace").exists());
    wait_until(DEADLINE, "the programs are detached", || {
        for direction in Direction::ALL {
            let found = programs(kind, direction)?;
            ensure!(found == 0, "{found} of {}", direction.program());
        }
        Ok(())
    })
}

#[test]
fn the_agents_four_capabilities_suffice_to_take_over_and_to_remove() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let pins = pins()?;
        keep_the_agents_capabilities()?;
        drop(attached(kind, Some(&pins))?);
        let link = || Ok::<_, std::io::Error>(fs::metadata(pins.join("link_in"))?.ino());
        let before = (kind == Attachment::Tcx).then(link).transpose()?;
        overlay.arrive(&hello())?;

        let counters = attached(kind, Some(&pins))?;

        let after = (kind == Attachment::Tcx).then(link).transpose()?;
        ensure!(after == before, "the attachment was made anew");
        // The host may answer that nobody listens there: only what arrived is certain.
        wait_until(DEADLINE, "what arrived is still counted", || {
            let found = counters.read()?.get(&PEER).copied().unwrap_or_default();
            ensure!((found.rx_packets, found.rx_bytes) == (1, 30), "{found:?}");
            Ok(())
        })?;
        counters.remove()?;
        ensure!(!pins.exists(), "pins stay behind");
        Ok(())
    })
}

#[test]
fn rules_and_flows_stay_when_the_agent_goes_and_comes_back() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, overlay| {
        let pins = pins()?;
        let peer = Peer::from(PEER);
        let rules = Rules {
            rules: vec![Rule {
                sources: ["100.64.0.2/32".parse()?].into(),
                destinations: vec![("100.64.0.1/32".parse()?, PortRange { first: 9, last: 9 })],
                protocols: vec![17],
                ..Rule::default()
            }],
            addresses: vec![US4.into()],
            ..Rules::default()
        };
        let mut filter = Dataplane::attach_as(DEVICE, Some(&pins), kind)?;
        filter.set_peers(&[("100.64.0.2/32".parse()?, peer)])?;
        filter.set_rules(&rules)?;
        overlay.arrive(&hello())?;
        wait_for_rx(filter.counters(), 1)?;
        // We ask the peer from port 5000; it may answer to there, and nobody else may come.
        let socket = UdpSocket::bind((Ipv4Addr::from(US4), 5000))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.send_to(b"?", (Ipv4Addr::from(PEER4), 53))?;
        drop(filter);

        overlay.arrive(&hello())?;
        let answer = packet::build::Ip::new(PEER4, US4).udp(53, 5000, b"!");
        overlay.arrive(&answer)?;
        socket
            .recv_from(&mut [0; 8])
            .context("no answer without the agent")?;

        let mut filter = Dataplane::attach_as(DEVICE, Some(&pins), kind)?;
        overlay.arrive(&answer)?;
        socket
            .recv_from(&mut [0; 8])
            .context("no answer after its return")?;
        overlay.arrive(&hello())?;
        wait_until(DEADLINE, "the packets have passed", || {
            let found = filter.counters().read()?[&PEER].rx_packets;
            ensure!(found == 5, "{found}");
            Ok(())
        })?;
        let none = Rules {
            rules: Vec::new(),
            ..rules
        };
        filter.set_rules(&none)?;
        overlay.arrive(&hello())?;
        wait_until(DEADLINE, "the packet is dropped", || {
            let drops = filter.drops()?[&(Direction::In, DropReason::NoRule)];
            ensure!(drops.packets == 1, "{drops:?}");
            Ok(())
        })?;
        overlay.arrive(&answer)?;
        socket
            .recv_from(&mut [0; 8])
            .context("our own flow is cut")?;
        filter.remove()?;
        wait_until_bare(kind, &pins)
    })
}

#[test]
fn two_agents_forward_through_one_device_and_leave_it_one_by_one() -> Result<()> {
    skip_without_bpf!();
    for kind in kinds() {
        let namespace = Namespace::new("counters")?;
        let overlay = Overlay::new(&namespace)?;
        let second = namespace.enter(|| testnet::tun("overlay1"))??;
        namespace.ip("link set overlay1 up")?;
        for nic in ["lan0", "lan1"] {
            namespace.ip(&format!("link add {nic} type veth peer name {nic}far"))?;
            namespace.ip(&format!("link set {nic} up"))?;
        }
        namespace.enter(|| -> Result<()> {
            let nic = |name: &str| Nic {
                name: name.to_owned(),
                layer: Layer::Ethernet,
            };
            let pins = [pins()?, pin_folder("overlay1", Path::new("/nonexistent"))?];
            let mut first = Dataplane::attach_as(DEVICE, Some(&pins[0]), kind)?;
            let mut other = Dataplane::attach_as("overlay1", Some(&pins[1]), kind)?;
            let both = [nic("lan0"), nic("lan1"), nic("absent0")];
            first.forward().enable(1280, &both)?;
            other.forward().enable(1280, &both[..1])?;
            wait_for_programs(kind, "lan0", 2)?;
            wait_for_programs(kind, "lan1", 1)?;
            // Again changes nothing; what is not named any more is let go.
            first.forward().enable(1280, &both)?;
            wait_for_programs(kind, "lan0", 2)?;
            first.forward().enable(1280, &both[..1])?;
            wait_for_programs(kind, "lan1", 0)?;

            // They outlive the agents, and the next one takes them over.
            drop(first);
            drop(other);
            wait_for_programs(kind, "lan0", 2)?;
            let mut first = Dataplane::attach_as(DEVICE, Some(&pins[0]), kind)?;
            first.forward().enable(1280, &both[..1])?;
            wait_for_programs(kind, "lan0", 2)?;
            first.forward().disable()?;
            wait_for_programs(kind, "lan0", 1)?;
            first.forward().enable(1280, &both)?;
            drop(first);

            Dataplane::remove_leftovers(DEVICE, Some(&pins[0]))?;
            wait_for_programs(kind, "lan0", 1)?;
            wait_for_programs(kind, "lan1", 0)?;
            Dataplane::remove_leftovers("overlay1", Some(&pins[1]))?;
            wait_for_programs(kind, "lan0", 0)?;
            Ok(())
        })??;
        drop((overlay, second));
    }
    Ok(())
}

/// Waits until so many of our programs are on the device: the kernel lets go of a link a moment later.
fn wait_for_programs(kind: Attachment, nic: &str, programs: usize) -> Result<()> {
    wait_until(DEADLINE, "the programs are as many", || {
        let found = nic_programs(kind, nic)?;
        ensure!(found == programs, "{found} on {nic} instead of {programs}");
        Ok(())
    })
}

/// Number of our programs on the ingress of another device.
fn nic_programs(kind: Attachment, nic: &str) -> Result<usize> {
    use aya::programs::{SchedClassifier, TcAttachType};
    match kind {
        Attachment::Tcx => Ok(SchedClassifier::query_tcx(nic, TcAttachType::Ingress)?
            .1
            .len()),
        Attachment::Clsact => {
            let mut tc = std::process::Command::new("tc");
            let filters = testnet::run(tc.args(["filter", "show", "dev", nic, "ingress"]))?;
            Ok(filters.matches(" name nic_in").count())
        }
    }
}

#[test]
fn flows_stay_past_the_stack_when_the_agent_goes_and_comes_back() -> Result<()> {
    skip_without_bpf!();
    on_overlay(|kind, _| {
        let pins = pins()?;
        let entry = Offload {
            key: OffloadKey {
                origin: Origin::Overlay,
                protocol: UDP,
                src: (PEER4, 1000).into(),
                dst: ([10, 77, 0, 2], 53).into(),
            },
            src: (US4, 2000).into(),
            dst: ([10, 77, 0, 2], 53).into(),
            out: 7,
            mtu: 0,
            idle: Duration::from_secs(100),
        };
        let mut plane = Dataplane::attach_as(DEVICE, Some(&pins), kind)?;
        plane.forward().enable(1280, &[])?;
        plane.forward().offload(&entry)?;
        drop(plane);
        let mut plane = Dataplane::attach_as(DEVICE, Some(&pins), kind)?;
        assert_eq!(plane.forward().dump()?, [entry]);
        plane.forward().remove(&entry.key)?;
        plane.forward().remove(&entry.key)?;
        assert_eq!(plane.forward().dump()?, []);
        plane.forward().offload(&entry)?;
        plane.forward().disable()?;
        assert_eq!(plane.forward().dump()?, []);
        let mixed = Offload {
            dst: (US6, 53).into(),
            ..entry
        };
        let error = plane.forward().offload(&mixed).unwrap_err();
        ensure!(matches!(error, DataplaneError::MixedFamilies), "{error:?}");
        plane.remove()?;
        wait_until_bare(kind, &pins)
    })
}

/// What the daemon has left after its start, for the calling thread.
fn keep_the_agents_capabilities() -> Result<()> {
    let kept = CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_RAW
        | CapabilitySet::PERFMON
        | CapabilitySet::BPF;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}
