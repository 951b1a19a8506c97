//! Records: vectors, limits, damage. In here because record numbers cannot be set from outside.

use super::*;

const KEY: [u8; 32] = {
    let mut key = [0; 32];
    let mut i = 0;
    while i < 32 {
        key[i] = i as u8;
        i += 1;
    }
    key
};

/// Computed with pyca/cryptography, nonce = 4 zero bytes and the number big-endian. Record 0 looks
/// the same in either byte order, 1 and 256 do not.
const VECTORS: [(u64, &str); 3] = [
    (0, "6add215edf8286e11ac17023c712a6a733e6b73d6801de36"),
    (1, "1b391fb6436e984b1bbe5721fc05a90c4338c5a1019b3f6a"),
    (256, "c902a24cdc490881311b1751e22351bca45e57df2b0e8cb248f7"),
];

#[test]
fn nonces_are_big_endian() {
    for (number, sealed) in VECTORS {
        let plain = format!("record {number}");
        let sealed = hex::decode(sealed).unwrap();
        let len = u16::try_from(sealed.len()).unwrap().to_be_bytes();
        let record = [&[4], &len[..], &sealed].concat();

        let mut sealer = Sealer::new(&KEY);
        sealer.0.next = Some(number);
        let mut out = BytesMut::new();
        sealer.seal(plain.as_bytes(), &mut out).unwrap();
        assert_eq!(out[..], record, "record {number}");

        let mut opener = Opener::new(&KEY);
        opener.0.next = Some(number);
        let opened = opener
            .open(&mut BytesMut::from(&record[..]))
            .unwrap()
            .unwrap();
        assert_eq!(opened[..], *plain.as_bytes());
    }
}

#[test]
fn the_last_number_is_never_used() {
    let mut sealer = Sealer::new(&KEY);
    sealer.0.next = Some(u64::MAX - 1);
    let mut out = BytesMut::new();

    sealer.seal(b"last", &mut out).unwrap();

    assert_eq!(sealer.seal(b"beyond", &mut out), Err(RecordError::UsedUp));
    assert_eq!(out.len(), HEADER_LEN + 4 + TAG_LEN);
}

#[test]
fn large_writes_become_full_records() {
    let plain = vec![7; 2 * MAX_PLAIN_LEN + 1];
    let mut out = BytesMut::new();
    Sealer::new(&KEY).seal(&plain, &mut out).unwrap();

    let mut opener = Opener::new(&KEY);
    let mut lengths = Vec::new();
    let mut opened = Vec::new();
    while let Some(len) = record_len(&out).unwrap() {
        lengths.push(len);
        opened.extend_from_slice(&opener.open(&mut out).unwrap().unwrap());
    }

    assert_eq!(
        lengths,
        [MAX_RECORD_LEN, MAX_RECORD_LEN, HEADER_LEN + 1 + TAG_LEN]
    );
    assert_eq!(opened, plain);
}

#[test]
fn parts_share_records() {
    let parts = [b"head".as_slice(), b"", b"body"].map(IoSlice::new);
    let mut out = BytesMut::new();

    let taken = Sealer::new(&KEY).seal_vectored(&parts, &mut out).unwrap();

    assert_eq!(taken, 8);
    let opened = Opener::new(&KEY).open(&mut out).unwrap().unwrap();
    assert_eq!(opened[..], *b"headbody");
    assert!(out.is_empty());
}

#[test]
fn a_record_shorter_than_a_tag_is_an_error() {
    for len in 0..TAG_LEN {
        let mut record = BytesMut::from(&[4, 0, len as u8][..]);
        record.resize(HEADER_LEN + len, 0);
        assert_eq!(
            Opener::new(&KEY).open(&mut record),
            Err(RecordError::Length(len))
        );
    }
}

#[test]
fn an_empty_record_is_legal_and_a_longer_one_than_4096_is_not() {
    let mut opener = Opener::new(&KEY);
    let mut out = BytesMut::new();
    Sealer::new(&KEY).seal_record(0, &mut out, |_| ()).unwrap();
    assert_eq!(opener.open(&mut out).unwrap().unwrap().len(), 0);

    let mut long = BytesMut::from(&[4, 0x0f, 0xfe][..]);
    assert_eq!(opener.open(&mut long), Err(RecordError::Length(4094)));
}

#[test]
fn other_types_are_refused_at_their_first_byte() {
    assert_eq!(
        Opener::new(&KEY).open(&mut BytesMut::from(&[3][..])),
        Err(RecordError::Type(3))
    );
}

#[test]
fn an_opener_that_failed_stays_failed() {
    let mut good = BytesMut::new();
    Sealer::new(&KEY).seal(b"hello", &mut good).unwrap();
    let mut bad = good.clone();
    bad[5] ^= 1;
    let mut opener = Opener::new(&KEY);

    assert_eq!(opener.open(&mut bad), Err(RecordError::Forged));
    assert_eq!(opener.open(&mut good), Err(RecordError::Forged));
}

#[test]
fn records_cannot_be_swapped() {
    let mut sealer = Sealer::new(&KEY);
    let (mut first, mut second) = (BytesMut::new(), BytesMut::new());
    sealer.seal(b"first", &mut first).unwrap();
    sealer.seal(b"second", &mut second).unwrap();

    assert_eq!(
        Opener::new(&KEY).open(&mut second),
        Err(RecordError::Forged)
    );
}

proptest::proptest! {
    #[test]
    fn any_bytes_in_any_pieces_come_out_again(
        plain in proptest::collection::vec(proptest::num::u8::ANY, 1..20_000),
        writes in 1..9_usize,
        piece in 1..5000_usize,
    ) {
        let mut sealer = Sealer::new(&KEY);
        let mut wire = BytesMut::new();
        for part in plain.chunks(plain.len().div_ceil(writes)) {
            sealer.seal(part, &mut wire).unwrap();
        }
        let mut opener = Opener::new(&KEY);
        let (mut input, mut opened) = (BytesMut::new(), Vec::new());
        for part in wire.chunks(piece) {
            input.extend_from_slice(part);
            while let Some(plain) = opener.open(&mut input).unwrap() {
                opened.extend_from_slice(&plain);
            }
        }
        proptest::prop_assert_eq!(opened, plain);
        proptest::prop_assert!(input.is_empty());
    }
}
