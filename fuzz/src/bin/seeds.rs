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
    filter_model()
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

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}
