//! Text forms, clamping, redaction and boxes, seen from outside.

use keys::{
    DiscoPrivate, DiscoPublic, KeyTextError, MachinePrivate, MachinePublic, NodePrivate,
    NodePublic, OpenError, SEAL_OVERHEAD,
};
use proptest::prelude::*;

/// RFC 7748 section 6.1, Alice.
const ALICE: [u8; 32] = [
    0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
    0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
];
const ALICE_PUBLIC: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

#[test]
fn the_public_half_is_that_of_rfc_7748() {
    let public = NodePrivate::from_bytes(ALICE).public();

    assert_eq!(public.to_string(), format!("nodekey:{ALICE_PUBLIC}"));
}

#[test]
fn private_keys_are_clamped() {
    let key = MachinePrivate::from_bytes([0xff; 32]);

    assert_eq!(key.as_bytes()[0], 0xf8);
    assert_eq!(key.as_bytes()[31], 0x7f);
}

#[test]
fn private_keys_never_print() {
    let key = MachinePrivate::from_bytes(ALICE);

    assert_eq!(format!("{key:?}"), "MachinePrivate(redacted)");
    assert_eq!(format!("{:?}", key.clone().public().is_zero()), "false");
}

#[test]
fn private_text_round_trips_and_refuses_other_prefixes() {
    let key = NodePrivate::from_bytes(ALICE);
    let text = key.to_text();

    assert!(
        text.starts_with("privkey:70076d0a"),
        "the first byte is clamped"
    );
    assert_eq!(
        text.parse::<NodePrivate>().unwrap().as_bytes(),
        key.as_bytes()
    );
    assert_eq!(
        "nodekey:00".parse::<NodePrivate>().unwrap_err(),
        KeyTextError::Prefix("privkey:")
    );
}

#[test]
fn upper_case_hex_is_accepted_and_written_in_lower_case() {
    let text = format!("mkey:{}", ALICE_PUBLIC.to_uppercase());

    let key: MachinePublic = text.parse().unwrap();

    assert_eq!(key.to_string(), format!("mkey:{ALICE_PUBLIC}"));
}

#[test]
fn wrong_lengths_prefixes_and_digits_are_refused() {
    for text in [
        "",
        "nodekey:",
        "nodekey:00",
        &format!("nodekey:{ALICE_PUBLIC}0"),
    ] {
        assert!(text.parse::<NodePublic>().is_err(), "{text}");
    }
    assert!(
        format!("mkey:{ALICE_PUBLIC}")
            .parse::<NodePublic>()
            .is_err()
    );
    assert!(
        format!("nodekey:{}", "zz".repeat(32))
            .parse::<NodePublic>()
            .is_err()
    );
}

#[test]
fn null_is_the_zero_key_and_the_empty_string_an_error() {
    let key: NodePublic = serde_json::from_str("null").unwrap();

    assert!(key.is_zero());
    assert_eq!(
        serde_json::to_string(&key).unwrap(),
        format!("\"nodekey:{}\"", "0".repeat(64))
    );
    assert!(serde_json::from_str::<NodePublic>("\"\"").is_err());
}

#[test]
fn public_keys_work_as_map_keys() {
    let key = NodePrivate::from_bytes(ALICE).public();
    let map = std::collections::BTreeMap::from([(key, 1)]);

    let text = serde_json::to_string(&map).unwrap();

    assert_eq!(text, format!("{{\"nodekey:{ALICE_PUBLIC}\":1}}"));
    assert_eq!(
        serde_json::from_str::<std::collections::BTreeMap<NodePublic, i32>>(&text).unwrap(),
        map
    );
}

#[test]
fn short_forms_are_those_of_the_official_tools() {
    // base64("\x85\x20\xf0...") starts "hSDwC".
    let bytes: [u8; 32] = hex::decode(ALICE_PUBLIC).unwrap().try_into().unwrap();

    assert_eq!(format!("{:?}", NodePublic::from_bytes(bytes)), "[hSDwC]");
    assert_eq!(
        format!("{:?}", DiscoPublic::from_bytes(bytes)),
        "d:8520f0098930a754"
    );
}

#[test]
fn low_order_points_are_recognised() {
    let one = {
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes
    };
    let order_eight = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
    let order_eight: [u8; 32] = hex::decode(order_eight).unwrap().try_into().unwrap();
    let minus_one = {
        let mut bytes = [0xff; 32];
        bytes[0] = 0xec;
        bytes[31] = 0x7f;
        bytes
    };
    for point in [[0; 32], one, order_eight, minus_one] {
        assert!(
            MachinePublic::from_bytes(point).is_low_order(),
            "{point:02x?}"
        );
    }
    assert!(!MachinePrivate::generate().public().is_low_order());
}

#[test]
fn a_box_opens_for_its_addressee_only() {
    let (alice, bob, eve) = (
        NodePrivate::generate(),
        NodePrivate::generate(),
        NodePrivate::generate(),
    );

    let sealed = alice.seal_to(&bob.public(), b"hello");

    assert_eq!(sealed.len(), 5 + SEAL_OVERHEAD);
    assert_eq!(bob.open_from(&alice.public(), &sealed).unwrap(), b"hello");
    assert_eq!(
        eve.open_from(&alice.public(), &sealed),
        Err(OpenError::Forged)
    );
    assert_eq!(
        bob.open_from(&alice.public(), &sealed[..39]),
        Err(OpenError::TooShort)
    );
}

#[test]
fn the_box_of_the_nacl_paper_opens() {
    // D. J. Bernstein, "Cryptography in NaCl", sections 8 and 9; also NaCl's own test box.c.
    let alice = DiscoPrivate::from_bytes(ALICE);
    let bob_public: DiscoPublic =
        "discokey:de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
            .parse()
            .unwrap();
    let nonce = "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37";
    let boxed = "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4\
                 476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738\
                 b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de\
                 56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5";
    let sealed = hex::decode(format!("{nonce}{boxed}")).unwrap();

    let plain = alice.shared(&bob_public).open(&sealed).unwrap();

    assert_eq!(plain.len(), 131);
    assert_eq!(&plain[..4], &[0xbe, 0x07, 0x5f, 0xc5]);
}

#[test]
fn state_files_hold_private_keys_as_text() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct State {
        #[serde(with = "keys::private_text")]
        machine: MachinePrivate,
    }
    let state = State {
        machine: MachinePrivate::from_bytes(ALICE),
    };

    let text = serde_json::to_string(&state).unwrap();
    let back: State = serde_json::from_str(&text).unwrap();

    assert_eq!(back.machine.as_bytes(), state.machine.as_bytes());
    let error = serde_json::from_str::<State>(r#"{"machine":"privkey:secret"}"#)
        .err()
        .unwrap();
    assert!(!error.to_string().contains("secret"));
}

proptest! {
    #[test]
    fn public_text_round_trips(bytes: [u8; 32]) {
        let key = MachinePublic::from_bytes(bytes);
        prop_assert_eq!(key.to_string().parse::<MachinePublic>().unwrap(), key);
        let json = serde_json::to_string(&key).unwrap();
        prop_assert_eq!(serde_json::from_str::<MachinePublic>(&json).unwrap(), key);
    }

    #[test]
    fn boxes_round_trip(plain: Vec<u8>) {
        let (alice, bob) = (DiscoPrivate::generate(), DiscoPrivate::generate());
        let sealed = alice.shared(&bob.public()).seal(&plain);
        prop_assert_eq!(bob.shared(&alice.public()).open(&sealed).unwrap(), plain);
    }
}
