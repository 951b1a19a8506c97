//! What strangers may send at every layer: the relay stays up, and panics nowhere.
//!
//! The bytes are random from fixed seeds, so that a failure can be had again.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod client;

use std::net::SocketAddr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::{Got, connect, connect_tls};
use derp_proto::{MAX_PACKET_LEN, put_frame};
use keys::NodePrivate;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use relay::tls::Identity;
use relay::{Server, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Panics of the relay's tasks end only these tasks: count them.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            report(panic);
        }));
    });
}

/// Serves on loopback, with TLS or without; returns the address and the pin.
async fn serve(server: &Server, tls: bool) -> (SocketAddr, String) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::self_signed(folder.path(), "127.0.0.1").unwrap();
    let config = identity.server_config(&server.public_key()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls.then_some(config);
    tokio::spawn(relay::http::listen(listener, config, server.clone()));
    (address, identity.pin())
}

/// Once all who came are gone: two newcomers reach each other, and no task panicked on the way.
async fn works(server: &Server) {
    let gone = async {
        while !server.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    let (mut a, mut b) = (connect(server).await, connect(server).await);
    a.send(b.public(), b"hello").await;
    let got = timeout(PATIENCE, b.next()).await.unwrap();
    assert_eq!(got, Some(Got::Packet(a.public(), b"hello".to_vec())));
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

fn bytes(rng: &mut StdRng, longest: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=longest)];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Sends `bytes` and nothing after it, and waits until the relay has hung up.
async fn send(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // It may hang up before it has all of it, and with a reset.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let _ = timeout(PATIENCE, socket.read_to_end(&mut Vec::new()))
        .await
        .expect("in time");
}

fn server() -> Server {
    count_panics();
    Server::new(NodePrivate::generate(), ServerConfig::default())
}

#[tokio::test]
async fn bytes_that_are_no_tls_end_their_connection_only() {
    let server = server();
    let (address, pin) = serve(&server, true).await;
    let mut rng = StdRng::seed_from_u64(1);
    for case in 0..200 {
        let mut wire = bytes(&mut rng, 20_000);
        // Half of it looks like the start of a handshake.
        if case % 2 == 0 && wire.len() > 6 {
            wire[..3].copy_from_slice(&[0x16, 3, rng.random_range(0..5)]);
            wire[5] = 1;
        }
        send(address, &wire).await;
    }
    drop(connect_tls(address, &pin, false).await);
    works(&server).await;
}

#[tokio::test]
async fn odd_heads_and_handshakes_end_their_connection_only() {
    let server = server();
    let (address, _) = serve(&server, false).await;
    let mut rng = StdRng::seed_from_u64(2);
    let derp = "GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n";
    let long = "x".repeat(40_000);
    for case in 0..300 {
        let head = match case % 6 {
            0 => String::new(),
            1 => format!("GET /{long} HTTP/1.1\r\n\r\n"),
            2 => format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200)),
            3 => "GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: ".to_owned(),
            4 => format!("{derp}\r\n"),
            _ => format!("{derp}Derp-Fast-Start: 1\r\n\r\n"),
        };
        let mut wire = head.into_bytes();
        match case % 4 {
            // A ClientInfo of no one, and one without end.
            0 => put_frame(&mut wire, 2, &[&bytes(&mut rng, 2000)]),
            1 => wire.extend_from_slice(&[2, 0xff, 0xff, 0xff, 0xff]),
            _ => wire.extend_from_slice(&bytes(&mut rng, 2000)),
        }
        send(address, &wire).await;
    }
    works(&server).await;
}

#[tokio::test]
async fn odd_frames_end_their_connection_only() {
    let server = server();
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..300 {
        let mut client = connect(&server).await;
        let mut wire = Vec::new();
        for _ in 0..rng.random_range(1..40) {
            let longest = [0, 40, 1100, MAX_PACKET_LEN + 40][rng.random_range(0..4)];
            let mut body = bytes(&mut rng, longest);
            // Some packets find a receiver: the sender.
            if let Some(key) = body.first_chunk_mut::<32>()
                && rng.random_bool(0.3)
            {
                *key = *client.public().as_bytes();
            }
            put_frame(&mut wire, rng.random_range(0..0x18), &[&body]);
        }
        // The last length is wrong.
        wire.extend_from_slice(&[rng.random_range(0..0x18)]);
        wire.extend_from_slice(&rng.random::<u32>().to_be_bytes());
        wire.extend_from_slice(&bytes(&mut rng, 100));
        client.raw(&wire).await;
    }
    works(&server).await;
}
