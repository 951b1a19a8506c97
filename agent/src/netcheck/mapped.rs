//! Our own address as STUN servers saw it: [`Mapped`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Our addresses of one family, as its STUN servers saw them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mapped {
    /// What the quickest server saw.
    first: Option<SocketAddr>,
    by_server: BTreeMap<SocketAddr, SocketAddr>,
}

impl Mapped {
    /// Notes what a server saw; answers come in order of time.
    pub(crate) fn note(&mut self, server: SocketAddr, seen: SocketAddr) {
        self.first.get_or_insert(seen);
        self.by_server.insert(server, seen);
    }

    /// The address that the quickest server saw.
    #[must_use]
    pub fn first(&self) -> Option<SocketAddr> {
        self.first
    }

    /// How many servers saw us under each address.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<SocketAddr, u32> {
        let mut counts = BTreeMap::new();
        for address in self.by_server.values() {
            *counts.entry(*address).or_default() += 1;
        }
        counts
    }

    /// What to offer: what the quickest server saw, then what more than one did. Where only one saw us is no more than
    /// a NAT's mapping for that one, as a rule.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let counts = self.counts().into_iter();
        let others = counts.filter(|(address, count)| *count > 1 && Some(*address) != self.first);
        let others = others.map(|(address, _)| address);
        self.first.into_iter().chain(others).collect()
    }

    /// True if two servers saw us under different addresses; unknown with less than two answers.
    #[must_use]
    pub fn varies(&self) -> Option<bool> {
        (self.by_server.len() > 1).then(|| {
            self.by_server
                .values()
                .any(|seen| Some(*seen) != self.first)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What servers in turn saw.
    fn mapped(seen: &[&str]) -> Mapped {
        let mut mapped = Mapped::default();
        for (number, seen) in seen.iter().enumerate() {
            mapped.note(at(&format!("192.0.2.{number}:3478")), at(seen));
        }
        mapped
    }

    #[test]
    fn a_nat_that_varies_takes_two_servers_to_see() {
        let (one, other) = ("198.51.100.1:1000", "198.51.100.1:1001");
        assert_eq!(mapped(&[]).varies(), None);
        assert_eq!(mapped(&[one]).varies(), None);
        assert_eq!(mapped(&[one, one]).varies(), Some(false));
        assert_eq!(mapped(&[one, one, other]).varies(), Some(true));
    }

    #[test]
    fn what_only_one_server_saw_is_offered_if_it_was_the_quickest() {
        let seen = [
            "198.51.100.1:9",
            "198.51.100.1:3",
            "198.51.100.1:7",
            "198.51.100.1:5",
            "198.51.100.1:5",
            "198.51.100.1:3",
        ];
        let expected = ["198.51.100.1:9", "198.51.100.1:3", "198.51.100.1:5"].map(at);
        assert_eq!(mapped(&seen).addresses(), expected);
    }
}
