//! STUN on UDP: tells nodes under which address they are seen.

use std::io;

use disco_proto::stun;
use tokio::net::UdpSocket;

use crate::metrics::Metrics;

/// Longer datagrams are no binding requests; what exceeds this is cut off and refused.
const MAX_DATAGRAM: usize = 512;

/// Answers binding requests of nodes on `socket`, and nothing else, until it fails.
///
/// # Errors
///
/// The system's, if the socket cannot be read any more.
///
/// # Source
///
/// disco.md section 8.
pub async fn serve(socket: UdpSocket, metrics: &Metrics) -> io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let (len, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an earlier answer; the socket is fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let Ok(id) = stun::parse_request(&buffer[..len]) else {
            metrics.stun_ignored.inc();
            continue;
        };
        match socket.send_to(&stun::response(id, source), source).await {
            Ok(_) if source.ip().to_canonical().is_ipv4() => metrics.stun_answered_v4.inc(),
            Ok(_) => metrics.stun_answered_v6.inc(),
            Err(_) => metrics.stun_failed.inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use disco_proto::stun::TxId;

    use super::*;

    #[tokio::test]
    async fn a_node_learns_its_address_and_a_stranger_nothing() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let metrics = Metrics::new();
        let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let exchange = async {
            // Were the stranger's bare request answered, that answer would come first.
            let bare = &mut stun::request(TxId([1; 12]))[..20];
            bare[3] = 0;
            node.send_to(bare, address).await.unwrap();
            let request = stun::request(TxId([2; 12]));
            node.send_to(&request, address).await.unwrap();
            let mut answer = [0; 128];
            let len = node.recv(&mut answer).await.unwrap();
            stun::parse_response(&answer[..len]).unwrap()
        };

        let told = tokio::select! {
            told = exchange => told,
            end = serve(server, &metrics) => panic!("server ended: {end:?}"),
        };

        assert_eq!(told, (TxId([2; 12]), node.local_addr().unwrap()));
        assert_eq!(metrics.stun_ignored.get(), 1);
    }
}
