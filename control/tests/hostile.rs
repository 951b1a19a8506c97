//! What strangers may send at every layer: the server stays up, and panics nowhere.
//!
//! The bytes are random from fixed seeds, so that a failure can be had again.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use control_proto::json;
use control_proto::noise::{INITIATION_LEN, Initiator};
use http::StatusCode;
use keys::MachinePrivate;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

mod common;

use common::client::{Identity, finish};
use common::{Server, soon};

/// Panics of the server's tasks end only these tasks: count them.
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

/// A newcomer gets in, and no task panicked on the way.
async fn works(server: &Server) {
    server.join("newcomer").await;
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

fn bytes(rng: &mut StdRng, longest: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=longest)];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Sends `bytes` and nothing after it, and waits until the server has hung up.
async fn send(server: &Server, bytes: &[u8]) {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    // It may hang up before it has all of it, and with a reset.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let _ = soon(socket.read_to_end(&mut Vec::new())).await;
}

fn upgrade(initiation: &[u8]) -> Vec<u8> {
    let initiation = base64::engine::general_purpose::STANDARD.encode(initiation);
    format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nUpgrade: {}\r\nConnection: upgrade\r\n{}: {initiation}\r\n\r\n",
        noise_io::PATH,
        noise_io::UPGRADE_PROTOCOL,
        noise_io::HANDSHAKE_HEADER,
    )
    .into_bytes()
}

#[tokio::test]
async fn bytes_that_are_no_http_end_their_connection_only() {
    count_panics();
    let server = Server::start(|_| {}).await;
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..100 {
        send(&server, &bytes(&mut rng, 4096)).await;
    }
    let long = "x".repeat(100 << 10);
    for head in [
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500)),
        "GET /register/%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "GET /key?v=%ff&v=99999999999999999999 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /verify HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n{".to_owned(),
        "POST /verify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n"
            .to_owned(),
        format!(
            "POST /verify HTTP/1.1\r\nContent-Length: 60000\r\n\r\n{}",
            "[".repeat(60_000)
        ),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        send(&server, head.as_bytes()).await;
    }
    works(&server).await;
}

#[tokio::test]
async fn damaged_initiations_end_their_connection_only() {
    count_panics();
    let server = Server::start(|_| {}).await;
    let mut rng = StdRng::seed_from_u64(2);
    for case in 0..200 {
        let machine = MachinePrivate::generate();
        let (_, initiation) = Initiator::new(&machine, &server.key, 117).unwrap();
        let mut initiation = initiation.to_vec();
        match case % 5 {
            0 => rng.fill_bytes(&mut initiation),
            1 => initiation[rng.random_range(0..INITIATION_LEN)] ^= 1 << rng.random_range(0..8),
            2 => initiation.truncate(rng.random_range(0..INITIATION_LEN)),
            3 => initiation[5..37].fill(0),
            _ => initiation[5..37].fill(0xff),
        }
        let wire = [upgrade(&initiation), bytes(&mut rng, 500)].concat();
        send(&server, &wire).await;
    }
    works(&server).await;
}

#[tokio::test]
async fn damaged_records_and_http2_end_their_connection_only() {
    count_panics();
    let server = Server::start(|_| {}).await;
    let mut rng = StdRng::seed_from_u64(3);
    for case in 0..100 {
        let socket = TcpStream::connect(server.address).await.unwrap();
        let socket = socket.into_std().unwrap();
        // The same connection below the channel.
        let mut below = TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
        let socket = TcpStream::from_std(socket).unwrap();
        let machine = MachinePrivate::generate();
        let mut channel = noise_io::upgrade_client(socket, "x", &machine, &server.key, 117)
            .await
            .unwrap();
        if case % 2 == 0 {
            // Whole records that hold a start of HTTP/2 and then anything.
            let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            let plain = [&start[..], &bytes(&mut rng, 4096)].concat();
            let _ = channel.write_all(&plain).await;
            let _ = channel.flush().await;
        }
        let record: &[u8] = match case % 4 {
            0 => &[],
            1 => &[4, 0xff, 0xff, 0],
            2 => &[4, 0, 0],
            _ => &[4, 0, 16],
        };
        let wire = [record, &bytes(&mut rng, 4096)].concat();
        let _ = below.write_all(&wire).await;
        let _ = channel.shutdown().await;
        let _ = soon(below.read_to_end(&mut Vec::new())).await;
    }
    works(&server).await;
}

fn body_of(request: &impl serde::Serialize) -> Vec<u8> {
    json::to_vec(request).unwrap()
}

#[tokio::test]
async fn damaged_requests_get_an_answer_and_the_connection_goes_on() {
    count_panics();
    let server = Server::start(|_| {}).await;
    let mut rng = StdRng::seed_from_u64(4);
    let member = server.join("member").await;
    let stranger = Identity::new("stranger");
    let client = server.connect(&stranger).await;
    let endpoints = vec!["192.0.2.1:7".parse().unwrap()];
    let requests = [
        (&client, body_of(&stranger.register(Some("tskey-none")))),
        (&client, body_of(&stranger.lite(endpoints.clone()))),
        (&member.client, body_of(&member.identity.register(None))),
        (&member.client, body_of(&member.identity.lite(endpoints))),
    ];
    let odd: [&[u8]; 10] = [
        b"null",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"\"\\ud800\"",
        b"\"-0001-01-01T99:99:99Z\"",
        b"\xff\0",
        b"{\"a\":{}}",
        b"[[[[]]]]",
        &[b'['; 3000],
    ];
    for case in 0..1200 {
        let (client, mut body) = requests[case % 4].clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..body.len());
            let end = rng.random_range(at..body.len()).min(at + 20);
            let odd = odd[rng.random_range(0..odd.len())];
            match rng.random_range(0..4) {
                0 => body[at] ^= 1 << rng.random_range(0..8),
                1 => body.truncate(at + 1),
                2 => drop(body.splice(at..end, odd.iter().copied())),
                // The next value is another one.
                _ => match body[at..].iter().position(|byte| *byte == b':') {
                    Some(colon) => {
                        let value = at + colon + 1;
                        let len = body[value..]
                            .iter()
                            .position(|byte| matches!(byte, b',' | b'}'));
                        let end = len.map_or(body.len(), |len| value + len);
                        body.splice(value..end, odd.iter().copied());
                    }
                    None => body.extend_from_slice(odd),
                },
            }
        }
        let path = ["/machine/register", "/machine/map"][case % 2];
        let shown = String::from_utf8_lossy(&body).into_owned();
        let response = soon(client.post(path, body)).await.unwrap();
        let (status, text) = soon(finish(response)).await.unwrap();
        assert!(
            !status.is_server_error() && text.len() < 4096,
            "{status} for {shown}"
        );
    }
    works(&server).await;
}

#[tokio::test]
async fn a_refusal_repeats_little_of_what_was_asked() {
    count_panics();
    let server = Server::start(|_| {}).await;
    let stranger = Identity::new("stranger");
    let client = server.connect(&stranger).await;
    let mut request = stranger.register(None);
    let hostinfo = request.hostinfo.as_mut().unwrap();
    hostinfo.request_tags = vec!["tag:x".to_owned(); 100_000];
    let body = json::to_vec(&request).unwrap();
    let response = client.post("/machine/register", body).await.unwrap();
    let (status, text) = finish(response).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(text.len() < 4096, "{} bytes", text.len());
    assert!(String::from_utf8_lossy(&text).contains("tag:x"));
    works(&server).await;
}
