//! Which peer an address belongs to: [`AllowedIps`].

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Networks and whom each belongs to; of several that hold an address the longest prefix decides.
#[derive(Debug)]
pub(crate) struct AllowedIps<T> {
    v4: Vec<Length<T>>,
    v6: Vec<Length<T>>,
}

/// All networks of one prefix length, by their first bits. Few lengths are in use, so each is asked in turn.
#[derive(Debug)]
struct Length<T> {
    len: u8,
    owners: HashMap<u128, T>,
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        AllowedIps {
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}

impl<T> AllowedIps<T> {
    /// Gives a network to `owner`.
    pub(crate) fn insert(&mut self, net: IpNet, owner: T) {
        let (lengths, bits) = match net {
            IpNet::V4(_) => (&mut self.v4, 32),
            IpNet::V6(_) => (&mut self.v6, 128),
        };
        let len = net.prefix_len();
        let at = lengths.partition_point(|length| length.len > len);
        if lengths.get(at).is_none_or(|length| length.len != len) {
            let owners = HashMap::new();
            lengths.insert(at, Length { len, owners });
        }
        let first = first_bits(number(net.addr()), len, bits);
        lengths[at].owners.insert(first, owner);
    }

    /// Whose `address` is.
    pub(crate) fn find(&self, address: IpAddr) -> Option<&T> {
        let (lengths, bits) = match address {
            IpAddr::V4(_) => (&self.v4, 32),
            IpAddr::V6(_) => (&self.v6, 128),
        };
        let number = number(address);
        lengths
            .iter()
            .find_map(|length| length.owners.get(&first_bits(number, length.len, bits)))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn first_bits(number: u128, len: u8, bits: u32) -> u128 {
    number.checked_shr(bits - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let mut table = AllowedIps::default();
        for (net, owner) in [
            ("0.0.0.0/0", "exit"),
            ("100.64.0.1/32", "alice"),
            ("10.0.0.0/8", "router"),
            ("10.1.0.0/16", "branch"),
            ("::/0", "exit6"),
            ("fd00::1/128", "alice6"),
        ] {
            table.insert(net.parse().unwrap(), owner);
        }
        for (address, owner) in [
            ("100.64.0.1", "alice"),
            ("100.64.0.2", "exit"),
            ("10.2.3.4", "router"),
            ("10.1.255.255", "branch"),
            ("fd00::1", "alice6"),
            ("fd00::2", "exit6"),
            // No IPv4 network holds it.
            ("::1", "exit6"),
        ] {
            assert_eq!(
                table.find(address.parse().unwrap()),
                Some(&owner),
                "{address}"
            );
        }
        let none = AllowedIps::<()>::default();
        assert_eq!(none.find("10.0.0.1".parse().unwrap()), None);
    }
}
