//! Writes the generated part of the corpora: `cargo run -p fuzz --bin seeds`.
//!
//! Only what needs keys or compression is generated; JSON and texts are written by hand.
#![forbid(unsafe_code)]

use std::{fs, net::IpAddr, path::PathBuf};

use anyhow::Result;
use bytes::BytesMut;
use control_proto::{
    early::EarlyPayload,
    frame::{Encoder, keep_alive},
    noise::{self, Initiator, Responder},
    record::Sealer,
    tailcfg::{Compress, MapResponse},
};
use fuzz::control::{RECORD_KEY, server_key};
use keys::{ChallengePublic, MachinePrivate};
use packet::build::{ACK, Ip, SYN, fragments};
use tunnel::testing::{Pair, V4, V6, tcp, udp};

fn main() -> Result<()> {
    let server = server_key();
    let machine = MachinePrivate::from_bytes([5; 32]);
    let (_, initiation) = Initiator::new(&machine, &server.public(), 117)?;
    write("noise_initiation", "valid", &initiation)?;
    let mut old = initiation;
    old[1] = 1;
    write("noise_initiation", "other-version", &old)?;
    write(
        "noise_initiation",
        "zero-ephemeral",
        &[&initiation[..5], &[0; 96]].concat(),
    )?;

    let (response, _) = Responder::new(&server, &initiation)?.respond()?;
    write("noise_response", "valid-shape", &response)?;
    write(
        "noise_response",
        "error",
        &noise::error_message("client too old"),
    )?;
    write(
        "noise_response",
        "zero-ephemeral",
        &[&response[..3], &[0; 48]].concat(),
    )?;

    let mut sealer = Sealer::new(&RECORD_KEY);
    let mut records = BytesMut::new();
    sealer.seal(b"hello", &mut records)?;
    sealer.seal(&[b'x'; 100], &mut records)?;
    write("noise_record", "two", &records)?;
    records.clear();
    Sealer::new(&RECORD_KEY).seal(&[0; 4077], &mut records)?;
    write("noise_record", "largest", &records)?;
    write(
        "noise_record",
        "shorter-than-a-tag",
        &[4, 0, 15, 1, 2, 3, 4, 5],
    )?;
    write("noise_record", "longer-than-allowed", &[4, 0x0f, 0xfe, 1])?;

    let challenge = ChallengePublic::from_bytes([1; 32]);
    let payload = EarlyPayload {
        node_key_challenge: challenge,
    }
    .encode()?;
    write("early_payload", "valid", &payload)?;
    write("early_payload", "huge", b"\xff\xff\xffTS\xff\xff\xff\xff")?;
    write("early_payload", "http2", b"\0\0\x06\x04\0\0\0\0\0")?;

    let response = MapResponse {
        domain: "example".to_owned(),
        ..MapResponse::default()
    };
    let mut encoder = Encoder::new()?;
    for (compress, name, flags) in [(Compress::None, "json", 0_u8), (Compress::Zstd, "zstd", 1)] {
        let frames = [keep_alive(compress), &encoder.encode(&response, compress)?].concat();
        write("map_frame", name, &[&[flags | 62], &frames[..]].concat())?;
    }
    let bomb = encoder.encode_json(&vec![b' '; 1 << 20], Compress::Zstd)?;
    write(
        "map_frame",
        "one-mebibyte-of-spaces",
        &[&[255], &bomb[..]].concat(),
    )?;
    write("map_frame", "zero-length", &[0, 0, 0, 0, 0])?;
    write(
        "map_frame",
        "longest-length",
        &[0, 255, 255, 255, 255, b'{'],
    )?;
    filter_model()?;
    outer_datagrams()?;
    super_packets()
}

/// A conversation for the filter: rules, then packets both ways.
fn filter_model() -> Result<()> {
    let rules = |us: &str, peer: &str| {
        format!(
            r#"[{{"SrcIPs":["{peer}"],"DstPorts":[{{"IP":"{us}","Ports":{{"First":22,"Last":53}}}}]}},{{"SrcIPs":["cap:x","10.0.0.0-10.0.0.9"],"DstPorts":[{{"IP":"*","Ports":{{"First":0,"Last":65535}}}}],"IPProto":[6,47]}}]"#
        )
    };
    let hosts: [[IpAddr; 3]; 2] = [
        [
            [100, 64, 0, 1].into(),
            [100, 64, 0, 2].into(),
            [100, 64, 0, 3].into(),
        ],
        [
            "fd7a:115c:a1e0::1".parse()?,
            "fd7a:115c:a1e0::2".parse()?,
            "fd7a:115c:a1e0::3".parse()?,
        ],
    ];
    for (name, [us, peer, other]) in ["ipv4", "ipv6"].into_iter().zip(hosts) {
        let (from, to, stranger) = (Ip::new(peer, us), Ip::new(us, peer), Ip::new(other, us));
        let query = to.udp(40_000, 53, b"query");
        let parts = fragments(&from.udp(40_000, 53, &[0; 160]), 88, 7);
        let conversations = [
            (
                "flows",
                vec![
                    (0, from.tcp(40_000, 22, SYN, b"")),
                    (1, to.tcp(22, 40_000, SYN | ACK, b"")),
                    (0, from.tcp(40_000, 22, ACK, b"data")),
                    (0, from.udp(53, 40_000, b"early")),
                    (1, query.clone()),
                    (0x40, from.udp(53, 40_000, b"reply")),
                    (0xc0, from.udp(53, 40_000, b"late")),
                    (0, stranger.tcp(1, 2, SYN, b"")),
                    (0, stranger.raw(47, b"gre")),
                ],
            ),
            (
                "icmp",
                vec![
                    (1, query.clone()),
                    (0, stranger.too_big(&query, 1280)),
                    (0, from.unreachable(&query, 64)),
                    (0, from.echo_request(7, 1, b"ping")),
                    (1, to.echo_reply(7, 1, b"ping")),
                    (0, from.echo_reply(8, 1, b"pong")),
                    (0, stranger.tsmp(&[0; 7])),
                ],
            ),
            (
                "fragments",
                vec![
                    (0, parts[1].clone()),
                    (0, parts[0].clone()),
                    (0, parts[1].clone()),
                    (0x80, parts[1].clone()),
                ],
            ),
        ];
        for (what, packets) in conversations {
            let mut input = rules(&us.to_string(), &peer.to_string()).into_bytes();
            input.push(0);
            for (head, packet) in packets {
                input.extend([head, u8::try_from(packet.len())?]);
                input.extend(packet);
            }
            write("filter_model", &format!("{name}-{what}"), &input)?;
        }
    }
    Ok(())
}

/// What a peer, and who pretends to be it, may send.
fn outer_datagrams() -> Result<()> {
    const RAW: u8 = 0;
    const SESSION: u8 = 1;
    const SEALED: u8 = 2;
    const ANSWER: u8 = 3;
    let train = |flow| (0..4u32).map(move |number| tcp(flow, 0x10, number * 40, &[7; 40]));
    let sealed = |packet| (SEALED, packet);
    let mut damaged: Vec<_> = train(V4).map(sealed).collect();
    damaged[1].1[50] ^= 1;
    let mut lying = udp(V4, b"shorter than it says");
    lying[2] = 1;
    let mut padded = udp(V6, b"padded");
    padded.extend([0; 24]);
    let mut strange = udp(V4, b"not mine");
    strange[15] = 77;
    let conversations = [
        ("handshake", vec![(RAW, Pair::initiation())]),
        (
            "answers",
            vec![
                (ANSWER, [&[2, 0, 0, 0][..], &[9; 88]].concat()),
                (ANSWER, [&[3, 0, 0, 0][..], &[9; 60]].concat()),
                (RAW, [&[1, 0, 0, 0][..], &[9; 144]].concat()),
            ],
        ),
        (
            "forged",
            vec![
                (SESSION, [&[0; 8][..], &[5; 16]].concat()),
                (SESSION, [&[0xff; 8][..], &[5; 48]].concat()),
                (SESSION, vec![0; 3]),
                (RAW, vec![4, 0, 0, 0]),
            ],
        ),
        (
            "trains",
            train(V4)
                .zip(train(V6))
                .flat_map(|(a, b)| [sealed(a), sealed(b)])
                .collect(),
        ),
        ("damaged", damaged),
        (
            "datagrams",
            (0..5u8).map(|_| sealed(udp(V6, b"datagram"))).collect(),
        ),
        (
            "odd",
            vec![
                sealed(lying),
                sealed(padded),
                sealed(strange),
                sealed(Vec::new()),
                sealed(vec![0x45]),
                sealed(vec![0x60; 40]),
            ],
        ),
    ];
    for (name, datagrams) in conversations {
        let mut input = Vec::new();
        for (kind, datagram) in datagrams {
            input.push(kind);
            input.extend(u16::try_from(datagram.len())?.to_be_bytes());
            input.extend(datagram);
        }
        write("outer_datagrams", name, &input)?;
    }
    Ok(())
}

/// What a kernel hands over, and what none should.
fn super_packets() -> Result<()> {
    // Flags, kind, and the words of a `virtio_net_hdr`, as a little-endian machine has them.
    let frame = |kind: u8, words: [u16; 4], packet: Vec<u8>| {
        let flags = u8::from(words[2] != 0);
        let words = words.into_iter().flat_map(u16::to_le_bytes);
        let mut frame = vec![flags, kind];
        frame.extend(words);
        frame.extend(packet);
        frame
    };
    let payload = [7; 250];
    let (tcp4, tcp6) = (tcp(V4, 0x19, 5, &payload), tcp(V6, 0x18, 5, &payload));
    let (udp4, udp6) = (udp(V4, &payload), udp(V6, &payload));
    let mut options = tcp4.clone();
    options[32] = 15 << 4;
    let mut extended = tcp4.clone();
    extended[0] = 0x4f;
    let frames = [
        ("plain", vec![frame(0, [0; 4], udp4.clone())]),
        ("checksum", vec![frame(0, [0, 0, 40, 6], udp6.clone())]),
        ("tso4", vec![frame(1, [40, 60, 20, 16], tcp4.clone())]),
        ("tso6", vec![frame(4, [60, 60, 40, 16], tcp6.clone())]),
        (
            "uso",
            vec![
                frame(5, [28, 100, 20, 6], udp4.clone()),
                frame(5, [48, 100, 40, 6], udp6.clone()),
            ],
        ),
        (
            "trains",
            vec![
                frame(1, [40, 60, 20, 16], tcp(V4, 0x10, 5, &payload)),
                frame(1, [40, 60, 20, 16], tcp(V4, 0x10, 255, &payload)),
            ],
        ),
        ("segments-of-nothing", vec![frame(4, [60, 0, 40, 16], tcp6)]),
        (
            "segments-of-a-byte",
            vec![frame(5, [28, 1, 20, 6], udp4.clone())],
        ),
        ("options", vec![frame(1, [80, 60, 20, 16], options)]),
        ("ip-options", vec![frame(1, [40, 60, 20, 16], extended)]),
        ("out-of-bounds", vec![frame(0, [0, 0, 900, 900], udp4)]),
        ("start-in-ip", vec![frame(1, [40, 60, 10, 16], tcp4)]),
        ("header-only", vec![vec![0; 10], vec![1]]),
    ];
    for (name, frames) in frames {
        let mut input = Vec::new();
        for frame in frames {
            input.extend(u16::try_from(frame.len())?.to_be_bytes());
            input.extend(frame);
        }
        write("super_packets", name, &input)?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}
