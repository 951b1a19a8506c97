//! Which of a router's services is asked for a mapping, and which is next.

use std::net::Ipv4Addr;

use super::Caller;
use super::igd::Service;
use super::web::Http;

/// What a service tells of its connection, best first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    Public,
    Private,
    Connected,
    /// Some that map know nothing of connections, or tell nonsense.
    Other,
}

/// Puts services in order: connected and with a public address, with a private one, merely connected, and then
/// the others; the addresses are those that they told. A lone one is not asked, and nobody is asked once the
/// best is found.
pub(super) async fn order<H: Http>(
    caller: &Caller<'_, H>,
    services: Vec<Service>,
) -> Vec<(Service, Option<Ipv4Addr>)> {
    let mut ended = services.len() < 2;
    let mut ranked = Vec::new();
    for service in services {
        let (rank, address) = if ended {
            (Rank::Other, None)
        } else {
            rank(caller, &service).await
        };
        ended |= rank == Rank::Public;
        ranked.push((rank, service, address));
    }
    ranked.sort_by_key(|(rank, ..)| *rank);
    let all = ranked.into_iter();
    all.map(|(_, service, address)| (service, address))
        .collect()
}

async fn rank<H: Http>(caller: &Caller<'_, H>, service: &Service) -> (Rank, Option<Ipv4Addr>) {
    if !caller.is_connected(service).await {
        return (Rank::Other, None);
    }
    match caller.external_address(service).await {
        Ok(address) if is_public(address) => (Rank::Public, Some(address)),
        Ok(address) => (Rank::Private, Some(address)),
        Err(_) => (Rank::Connected, None),
    }
}

/// True unless it is one of the ranges behind a NAT.
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    !address.is_private() && !address.is_link_local() && !is_shared
}
