//! Writes the generated part of the corpora: `cargo run -p fuzz --bin seeds`.
//!
//! Only what needs keys or compression is generated; JSON and texts are written by hand.
#![forbid(unsafe_code)]

use std::{fs, path::PathBuf};

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
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}
