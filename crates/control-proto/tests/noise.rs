//! Both ends of the handshake against an independent implementation, and against forgers.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod oracle;

use bytes::BytesMut;
use control_proto::noise::{
    self, INITIATION_LEN, Initiator, NoiseError, RESPONSE_LEN, Responder, Session,
};
use keys::{MachinePrivate, MachinePublic};
use oracle::Symmetric;

const SERVER: [u8; 32] = [0x48; 32];
const MACHINE: [u8; 32] = [0x58; 32];
const EPHEMERAL: [u8; 32] = [0x68; 32];
const VERSION: u16 = 117;
const PROLOGUE: &[u8] = b"Tailscale Control Protocol v117";

#[test]
fn the_oracle_agrees_with_a_published_vector() {
    // cacophony's vectors, Noise_IK_25519_ChaChaPoly_BLAKE2s.
    let key = |text: &str| -> [u8; 32] { hex::decode(text).unwrap().try_into().unwrap() };
    let server = key("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
    let server_public = oracle::public(&server);
    let prologue = b"John Galt";
    let mut initiator = oracle::Initiator {
        symmetric: Symmetric::new(prologue, &server_public),
        private_static: key("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"),
        private_ephemeral: key("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"),
    };

    let message = initiator.write(&server_public, b"Ludwig von Mises");
    let mut responder =
        oracle::Responder::read(Symmetric::new(prologue, &server_public), server, &message);
    let answer = responder.write(
        &key("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"),
        b"Murray Rothbard",
    );

    assert_eq!(
        hex::encode(message),
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
         0b03ddc7aac5123d06a1b23b71670e32e76c28239a7ca4ac8f784de7e44c1adb\
         fc6e83fef7352a58d9d56157400c0a737b1d171ce368229c7b752ac25b8faf4e\
         ca690f6d896f543be02c996ab2b86b76"
    );
    assert_eq!(initiator.read(&answer), b"Murray Rothbard");
    assert_eq!(
        hex::encode(responder.symmetric.hash),
        "48f3cb8bc9319da4ba1e9933991b1c4ed4034f1f126a76d3a1fbcfd7f94248d4"
    );
}

#[test]
fn our_server_understands_an_independent_client() {
    let mut client = independent_client();
    let initiation = framed_initiation(&client.write(&server_public(), b""));

    let responder = Responder::new(&server(), &initiation).unwrap();
    assert_eq!(responder.version(), VERSION);
    assert_eq!(responder.machine().as_bytes(), &oracle::public(&MACHINE));
    let (response, session) = responder.respond().unwrap();

    assert_eq!(response[..3], [2, 0, 48]);
    client.read(&response[3..]);
    assert_eq!(session.handshake_hash, client.symmetric.hash);
    let (to_server, to_client) = client.symmetric.split();
    assert_records(session, &to_client, &to_server);
}

#[test]
fn our_client_understands_an_independent_server() {
    let (initiator, initiation) = Initiator::new(&machine(), &server().public(), VERSION).unwrap();
    assert_eq!(initiation[..5], [0, 117, 1, 0, 96]);

    let mut responder = independent_server(&initiation);
    assert_eq!(responder.initiator_static, oracle::public(&MACHINE));
    let answer = responder.write(&EPHEMERAL, b"");
    let session = initiator
        .finish(&[&[2, 0, 48], &answer[..]].concat())
        .unwrap();

    assert_eq!(session.handshake_hash, responder.symmetric.hash);
    let (to_server, to_client) = responder.symmetric.split();
    assert_records(session, &to_server, &to_client);
}

#[test]
fn both_our_ends_meet() {
    let (initiator, initiation) = Initiator::new(&machine(), &server().public(), 99).unwrap();
    let (response, mut at_server) = Responder::new(&server(), &initiation)
        .unwrap()
        .respond()
        .unwrap();
    let mut at_client = initiator.finish(&response).unwrap();

    let mut wire = BytesMut::new();
    for number in 0..300_u32 {
        at_client
            .sealer
            .seal(&number.to_be_bytes(), &mut wire)
            .unwrap();
    }
    for number in 0..300_u32 {
        let plain = at_server.opener.open(&mut wire).unwrap().unwrap();
        assert_eq!(plain[..], number.to_be_bytes());
    }
    assert_eq!(at_server.version, 99);
    assert_eq!(at_server.remote, machine().public());
    assert_eq!(at_client.remote, server().public());
}

#[test]
fn an_initiation_forged_without_any_private_key_is_refused() {
    // Zero points make every shared secret zero, so a forger knows all keys.
    let zero = [0; 32];
    let mut symmetric = Symmetric::new(PROLOGUE, &server_public());
    symmetric.mix_hash(&zero);
    symmetric.mix_key(&zero);
    let sealed_static = symmetric.encrypt_and_hash(&zero);
    symmetric.mix_key(&zero);
    let tag = symmetric.encrypt_and_hash(b"");
    let forged = framed_initiation(&[&zero[..], &sealed_static, &tag].concat());

    assert_eq!(
        Responder::new(&server(), &forged).unwrap_err(),
        NoiseError::LowOrderKey
    );
}

#[test]
fn a_zero_static_key_behind_an_honest_ephemeral_one_is_refused() {
    let zero = [0; 32];
    let mut symmetric = Symmetric::new(PROLOGUE, &server_public());
    symmetric.mix_hash(&oracle::public(&EPHEMERAL));
    symmetric.mix_key(&oracle::dh(&EPHEMERAL, &server_public()));
    let sealed_static = symmetric.encrypt_and_hash(&zero);
    symmetric.mix_key(&zero);
    let tag = symmetric.encrypt_and_hash(b"");
    let ephemeral = oracle::public(&EPHEMERAL);
    let forged = framed_initiation(&[&ephemeral[..], &sealed_static, &tag].concat());

    assert_eq!(
        Responder::new(&server(), &forged).unwrap_err(),
        NoiseError::LowOrderKey
    );
}

#[test]
fn a_response_with_a_zero_ephemeral_key_is_refused() {
    let (initiator, initiation) = Initiator::new(&machine(), &server().public(), VERSION).unwrap();
    let zero = [0; 32];
    // Made to decrypt: only the check of the key can refuse it.
    let answer = independent_server(&initiation).write_with(&zero, &zero, &zero, b"");

    let refused = initiator.finish(&[&[2, 0, 48], &answer[..]].concat());

    assert_eq!(refused.unwrap_err(), NoiseError::LowOrderKey);
}

#[test]
fn a_server_key_of_low_order_is_refused() {
    let mut order_one = [0; 32];
    order_one[0] = 1;
    for key in [[0; 32], order_one] {
        let refused = Initiator::new(&machine(), &MachinePublic::from_bytes(key), VERSION);
        assert_eq!(refused.unwrap_err(), NoiseError::LowOrderKey);
    }
}

#[test]
fn another_server_key_version_or_damage_fails_the_handshake() {
    let (_, initiation) = Initiator::new(&machine(), &server().public(), VERSION).unwrap();
    let other = MachinePrivate::from_bytes([1; 32]);
    assert_eq!(
        Responder::new(&other, &initiation).unwrap_err(),
        NoiseError::Handshake
    );

    for at in 0..INITIATION_LEN {
        let mut damaged = initiation;
        damaged[at] ^= 0x10;
        assert!(Responder::new(&server(), &damaged).is_err(), "byte {at}");
    }
}

#[test]
fn damaged_and_short_responses_fail() {
    for at in 0..RESPONSE_LEN {
        let (initiator, initiation) =
            Initiator::new(&machine(), &server().public(), VERSION).unwrap();
        let (mut response, _) = Responder::new(&server(), &initiation)
            .unwrap()
            .respond()
            .unwrap();
        if at % 2 == 0 {
            response[at] ^= 0x10;
            assert!(initiator.finish(&response).is_err(), "byte {at}");
        } else {
            assert!(initiator.finish(&response[..at]).is_err(), "length {at}");
        }
    }
}

#[test]
fn an_error_message_is_bounded_and_made_printable() {
    let message = noise::error_message(&format!("too old\u{1b}[31m{}", "é".repeat(1000)));
    let header = *message.first_chunk().unwrap();
    assert_eq!(noise::server_message_len(header).unwrap(), message.len());
    assert!(message.len() <= noise::HEADER_LEN + noise::MAX_ERROR_LEN);

    let (initiator, _) = Initiator::new(&machine(), &server().public(), VERSION).unwrap();
    let NoiseError::Refused(text) = initiator.finish(&message).unwrap_err() else {
        panic!("an error message is a refusal");
    };

    assert!(text.starts_with("too old\u{fffd}[31mé"));
    assert!(text.chars().all(|c| !c.is_control()));
}

#[test]
fn error_messages_of_absurd_length_and_other_types_are_malformed() {
    for header in [
        [3, 0xff, 0xff],
        [3, 2, 1],
        [2, 0, 49],
        [1, 0, 96],
        [4, 0, 48],
        [0x48; 3],
    ] {
        assert!(noise::server_message_len(header).is_err(), "{header:?}");
    }
}

/// Both directions of `session` against the given keys, beyond the first record.
fn assert_records(mut session: Session, sending: &[u8; 32], receiving: &[u8; 32]) {
    for number in 0..3 {
        let plain = format!("record {number}");
        let mut wire = BytesMut::new();
        session.sealer.seal(plain.as_bytes(), &mut wire).unwrap();
        assert_eq!(
            wire[..],
            oracle::seal_record(sending, number, plain.as_bytes())
        );

        let mut wire = BytesMut::from(&oracle::seal_record(receiving, number, b"back")[..]);
        assert_eq!(
            session.opener.open(&mut wire).unwrap().unwrap()[..],
            *b"back"
        );
    }
}

fn server() -> MachinePrivate {
    MachinePrivate::from_bytes(SERVER)
}

fn server_public() -> [u8; 32] {
    oracle::public(&SERVER)
}

fn machine() -> MachinePrivate {
    MachinePrivate::from_bytes(MACHINE)
}

fn independent_client() -> oracle::Initiator {
    oracle::Initiator {
        symmetric: Symmetric::new(PROLOGUE, &server_public()),
        private_static: MACHINE,
        private_ephemeral: EPHEMERAL,
    }
}

fn independent_server(initiation: &[u8; INITIATION_LEN]) -> oracle::Responder {
    let symmetric = Symmetric::new(PROLOGUE, &server_public());
    oracle::Responder::read(symmetric, SERVER, &initiation[5..])
}

fn framed_initiation(body: &[u8]) -> [u8; INITIATION_LEN] {
    [&VERSION.to_be_bytes()[..], &[1, 0, 96], body]
        .concat()
        .try_into()
        .unwrap()
}
