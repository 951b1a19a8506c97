//! Requests, responses, and what is left unanswered.

use proptest::prelude::*;

use super::*;

const ID: TxId = TxId(*b"abcdefghijkl");

proptest! {
    #[test]
    fn a_request_gives_its_id_back(id in any::<[u8; 12]>()) {
        let datagram = request(TxId(id));
        prop_assert!(is_stun(&datagram));
        prop_assert_eq!(parse_request(&datagram), Ok(TxId(id)));
    }

    #[test]
    fn a_response_gives_the_address_back(
        id in any::<[u8; 12]>(),
        ip in prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|ip| IpAddr::from(ip).to_canonical()),
        ],
        port in any::<u16>(),
    ) {
        let source = SocketAddr::new(ip, port);
        let datagram = response(TxId(id), source);
        prop_assert!(is_stun(&datagram));
        prop_assert_eq!(parse_response(&datagram), Ok((TxId(id), source)));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
        let _ = parse_request(&bytes);
        let _ = parse_response(&bytes);
    }

    #[test]
    fn a_damaged_request_is_not_answered(at in 0..REQUEST_LEN, bit in 0..8u8) {
        let mut datagram = request(ID);
        datagram[at] ^= 1 << bit;
        prop_assert!(parse_request(&datagram).is_err());
    }
}

#[test]
fn a_request_looks_as_official_servers_want_it() {
    let datagram = request(ID);
    assert_eq!(datagram[..8], [0, 1, 0, 20, 0x21, 0x12, 0xA4, 0x42]);
    assert_eq!(datagram[8..20], ID.0);
    assert_eq!(datagram[20..32], *b"\x80\x22\x00\x08tailnode");
    assert_eq!(datagram[32..36], [0x80, 0x28, 0, 4]);
}

#[test]
fn strangers_get_no_answer() {
    let bare = &mut request(ID)[..HEADER_LEN];
    bare[3] = 0;
    assert_eq!(parse_request(bare), Err(StunError::Fingerprint));

    let mut other = request(ID);
    other[24..32].copy_from_slice(b"libjingl");
    assert_eq!(parse_request(&other), Err(StunError::Software));

    let mut only_fingerprint = [0; 28];
    put_header(&mut only_fingerprint, BINDING_REQUEST, ID);
    let crc = fingerprint(&only_fingerprint[..20]);
    put_attribute(&mut only_fingerprint[20..], FINGERPRINT, &crc.to_be_bytes());
    assert_eq!(parse_request(&only_fingerprint), Err(StunError::Software));
}

#[test]
fn the_vector_of_rfc_5769_is_understood() {
    // RFC 5769 section 2.2: 192.0.2.1:32853, with attributes before and after the address.
    let datagram = [
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6,
        0x86, 0xfa, 0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76,
        0x65, 0x63, 0x74, 0x6f, 0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1,
        0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91, 0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3,
        0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b, 0xe7, 0xd7, 0x80, 0x28, 0x00,
        0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];
    let (_, address) = parse_response(&datagram).unwrap();
    assert_eq!(address, "192.0.2.1:32853".parse().unwrap());
}

#[test]
fn a_plain_mapped_address_serves_where_no_other_comes() {
    let mut datagram = vec![0; 32];
    put_header(&mut datagram, BINDING_RESPONSE, ID);
    put_attribute(
        &mut datagram[20..],
        MAPPED_ADDRESS,
        &[0, 1, 0x30, 0x39, 192, 0, 2, 7],
    );
    let expected = "192.0.2.7:12345".parse().unwrap();
    assert_eq!(parse_response(&datagram), Ok((ID, expected)));
}

#[test]
fn an_ipv4_address_in_the_clothes_of_ipv6_is_an_ipv4_address() {
    let id = TxId([7; 12]);
    let mask = xor_mask(id);
    let address: Ipv6Addr = "::ffff:203.0.113.100".parse().unwrap();
    let mut ip = address.octets();
    ip.iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
    let mut value = vec![0, FAMILY_V6, 0xa2 ^ mask[0], 0xa9 ^ mask[1]];
    value.extend(ip);
    let mut out = vec![0; HEADER_LEN + 4 + value.len()];
    put_header(&mut out, BINDING_RESPONSE, id);
    put_attribute(&mut out[HEADER_LEN..], XOR_MAPPED_ADDRESS, &value);
    let told = "203.0.113.100:41641".parse().unwrap();
    assert_eq!(parse_response(&out), Ok((id, told)));
}
