//! Both ends over in-memory pipes: handshake, bytes, ends, and HTTP/2 inside.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{io, time::Duration};

use control_proto::{
    early::EarlyPayload,
    noise::{self, INITIATION_LEN, Initiator, NoiseError, Responder},
};
use keys::{ChallengePublic, MachinePrivate};
use noise_io::{
    Accepted, HandshakeError, NoiseStream, UpgradeError, decode_handshake_header, server_accept,
    upgrade_client,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const VERSION: u16 = 117;

fn server_key() -> MachinePrivate {
    MachinePrivate::from_bytes([1; 32])
}

fn machine_key() -> MachinePrivate {
    MachinePrivate::from_bytes([2; 32])
}

fn early() -> EarlyPayload {
    EarlyPayload {
        node_key_challenge: ChallengePublic::from_bytes([3; 32]),
    }
}

/// Two ends of a channel over a pipe that holds `pipe` bytes.
async fn channel(
    pipe: usize,
    version: u16,
    early: Option<EarlyPayload>,
) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
    let (near, mut far) = duplex(pipe);
    let accept = async {
        let initiation = switch_protocols(&mut far).await;
        server_accept(far, &server_key(), &initiation, early.as_ref())
            .await
            .unwrap()
    };
    let server_public = server_key().public();
    let machine = machine_key();
    let client = upgrade_client(near, "control.example", &machine, &server_public, version);
    let (
        client,
        Accepted {
            stream,
            machine,
            version: seen,
        },
    ) = tokio::join!(client, accept);
    assert_eq!((machine, seen), (machine_key().public(), version));
    (client.unwrap(), stream)
}

#[tokio::test]
async fn bytes_pass_both_ways_through_a_narrow_pipe() {
    let (mut client, mut server) = channel(250, VERSION, Some(early())).await;
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();

    let upload = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        back
    };
    let echo = async {
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        server.write_all(&received[..1000]).await.unwrap();
        server.shutdown().await.unwrap();
        received
    };
    let (back, received) = tokio::join!(upload, echo);

    assert!(received == sent);
    assert!(back == sent[..1000]);
    assert_eq!(client.early_payload(), Some(&early()));
}

#[tokio::test]
async fn a_client_does_without_an_early_payload() {
    let (mut client, mut server) = channel(1 << 16, VERSION, None).await;

    server.write_all(b"\0\0\x06\x04").await.unwrap();
    server.flush().await.unwrap();

    let mut first = [0; 4];
    client.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"\0\0\x06\x04");
    assert_eq!(client.early_payload(), None);
}

#[tokio::test]
async fn clients_before_version_49_get_no_early_payload() {
    let (mut client, mut server) = channel(1 << 16, 48, Some(early())).await;

    server.write_all(b"x").await.unwrap();
    server.shutdown().await.unwrap();

    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"x");
    assert_eq!(client.early_payload(), None);
}

#[tokio::test]
async fn a_stream_may_end_like_the_start_of_an_early_payload() {
    let (mut client, mut server) = channel(1 << 16, VERSION, None).await;

    server.write_all(b"\xff\xff").await.unwrap();
    server.shutdown().await.unwrap();

    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"\xff\xff");
}

#[tokio::test]
async fn response_and_early_payload_leave_in_one_write() {
    let (_, initiation) = Initiator::new(&machine_key(), &server_key().public(), VERSION).unwrap();
    let io = CountedWrites::default();

    let accepted = server_accept(io, &server_key(), &initiation, Some(&early()))
        .await
        .unwrap();

    let io = accepted.stream.get_ref();
    assert!(io.written > noise::RESPONSE_LEN);
    assert_eq!(io.writes, 1);
}

#[tokio::test]
async fn several_records_leave_in_one_write() {
    let (_, initiation) = Initiator::new(&machine_key(), &server_key().public(), VERSION).unwrap();
    let accepted = server_accept(CountedWrites::default(), &server_key(), &initiation, None)
        .await
        .unwrap();
    let mut stream = accepted.stream;
    let before = stream.get_ref().writes;

    stream.write_all(&[0; 20_000]).await.unwrap();
    stream.write_all(b"more").await.unwrap();
    stream.flush().await.unwrap();

    assert_eq!(stream.get_ref().writes, before + 1);
}

#[tokio::test]
async fn a_connection_cut_inside_a_record_is_an_error() {
    let (near, mut far) = duplex(1 << 16);
    let (near, response) = handshake_by_hand(near, &mut far).await;
    let (mut sealer, mut wire) = (response.sealer, bytes::BytesMut::new());
    sealer.seal(b"hello", &mut wire).unwrap();
    far.write_all(&wire[..10]).await.unwrap();
    drop(far);

    let mut near = near;
    let error = near.read_u8().await.unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_forged_record_kills_the_stream_in_both_directions() {
    let (near, mut far) = duplex(1 << 16);
    let (mut near, _) = handshake_by_hand(near, &mut far).await;
    far.write_all(&[&[4, 0, 20][..], &[0; 20]].concat())
        .await
        .unwrap();

    assert_eq!(
        near.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    assert_eq!(
        near.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    assert_eq!(
        near.write(b"x").await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

#[tokio::test]
async fn a_server_with_another_key_tells_the_client() {
    let (near, mut far) = duplex(1 << 16);
    let other = MachinePrivate::from_bytes([9; 32]);
    let accept = async {
        let initiation = switch_protocols(&mut far).await;
        server_accept(far, &other, &initiation, None).await
    };
    let server_public = server_key().public();
    let machine = machine_key();
    let client = upgrade_client(near, "control.example", &machine, &server_public, VERSION);

    let (client, accepted) = tokio::join!(client, accept);

    assert!(matches!(
        accepted,
        Err(HandshakeError::Noise(NoiseError::Handshake))
    ));
    assert!(matches!(
        client,
        Err(UpgradeError::Handshake(HandshakeError::Noise(
            NoiseError::Refused(_)
        )))
    ));
}

#[tokio::test]
async fn the_http_upgrade_hands_on_what_came_with_the_head() {
    let (near, mut far) = duplex(1 << 16);
    let server_public = server_key().public();
    let machine = machine_key();
    let client = upgrade_client(
        near,
        "control.example:8080",
        &machine,
        &server_public,
        VERSION,
    );
    let serve = async {
        let initiation = read_request(&mut far).await;
        let (response, mut session) = Responder::new(&server_key(), &initiation)
            .unwrap()
            .respond()
            .unwrap();
        let mut records = bytes::BytesMut::new();
        session
            .sealer
            .seal(&early().encode().unwrap(), &mut records)
            .unwrap();
        session.sealer.seal(b"h2 bytes", &mut records).unwrap();
        // Head, response, payload and data in one segment.
        let head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: tailscale-control-protocol\r\n\
                     Connection: upgrade\r\n\r\n";
        far.write_all(&[&head[..], &response, &records].concat())
            .await
            .unwrap();
        far
    };

    let (client, _far) = tokio::join!(client, serve);
    let mut client = client.unwrap();

    let mut data = [0; 8];
    client.read_exact(&mut data).await.unwrap();
    assert_eq!(&data, b"h2 bytes");
    assert_eq!(client.early_payload(), Some(&early()));
}

#[tokio::test]
async fn the_http_upgrade_reports_what_else_may_come() {
    type Expected = fn(&UpgradeError) -> bool;
    let answers: [(&[u8], Expected); 5] = [
        (
            b"HTTP/1.1 404 Not Found\r\n\r\nno \x1b[31mhere",
            |e| matches!(e, UpgradeError::Status { status: 404, text } if text == "no \u{fffd}[31mhere"),
        ),
        (b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n", |e| {
            matches!(e, UpgradeError::OtherProtocol)
        }),
        (b"SSH-2.0-OpenSSH\r\n", |e| {
            matches!(e, UpgradeError::NotHttp)
        }),
        (b"HTTP/1.1 101", |e| matches!(e, UpgradeError::Io(_))),
        (
            b"HTTP/1.1 101 S\r\nUpgrade: tailscale-control-protocol\r\n\r\n\x03\x00\x02no",
            |e| {
                matches!(e, UpgradeError::Handshake(HandshakeError::Noise(NoiseError::Refused(text)))
                    if text == "no")
            },
        ),
    ];
    for (answer, expected) in answers {
        let (near, mut far) = duplex(1 << 16);
        let server_public = server_key().public();
        let machine = machine_key();
        let client = upgrade_client(near, "control.example", &machine, &server_public, VERSION);
        let serve = async {
            read_request(&mut far).await;
            far.write_all(answer).await.unwrap();
            drop(far);
        };
        let (client, ()) = tokio::join!(client, serve);
        let error = client.unwrap_err();
        assert!(expected(&error), "{error:?}");
    }
}

#[tokio::test]
async fn an_endless_head_is_given_up() {
    let (near, far) = duplex(1 << 16);
    let server_public = server_key().public();
    let machine = machine_key();
    let client = upgrade_client(near, "control.example", &machine, &server_public, VERSION);
    let serve = async {
        let (mut read, mut write) = tokio::io::split(far);
        let mut request = [0; 16];
        read.read_exact(&mut request).await.unwrap();
        let _ = write.write_all(b"HTTP/1.1 101 S\r\nX: ").await;
        while write.write_all(&[b'x'; 4096]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };

    let error = tokio::select! {
        client = client => client.unwrap_err(),
        () = serve => panic!("the client must give up first"),
    };

    assert!(matches!(error, UpgradeError::NotHttp));
}

#[tokio::test]
async fn hosts_cannot_smuggle_headers() {
    for host in ["", "a b", "a\r\nX: y"] {
        let (near, _far) = duplex(1 << 16);
        let server_public = server_key().public();
        let error = upgrade_client(near, host, &machine_key(), &server_public, VERSION)
            .await
            .unwrap_err();
        assert!(matches!(error, UpgradeError::Host));
    }
}

#[tokio::test]
async fn http2_runs_inside_with_many_streams() {
    let (client, server) = channel(4096, VERSION, Some(early())).await;
    let serve = tokio::spawn(async move {
        let mut connection = h2::server::handshake(server).await.unwrap();
        let mut held = Vec::new();
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.unwrap();
            let mut body = respond
                .send_response(http::Response::new(()), false)
                .unwrap();
            body.send_data(vec![b'x'; 5000].into(), true).unwrap();
            held.push(request);
        }
        held.len()
    });

    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..50 {
        requests = requests.ready().await.unwrap();
        let request = http::Request::get("https://unused/machine/map")
            .body(())
            .unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut len = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            len += data.len();
        }
        assert_eq!(len, 5000);
    }
    drop(requests);

    tokio::time::timeout(Duration::from_secs(10), connection)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(serve.await.unwrap(), 50);
}

#[test]
fn the_handshake_header_is_padded_base64_of_the_exact_length() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    assert_eq!(
        decode_handshake_header(STANDARD.encode([5; 101]).as_bytes()),
        Some([5; 101])
    );
    for value in [
        STANDARD.encode([5; 100]),
        STANDARD.encode([5; 102]),
        "%".into(),
        String::new(),
    ] {
        assert_eq!(decode_handshake_header(value.as_bytes()), None);
    }
}

/// A client's stream whose other end is in the test's hands.
async fn handshake_by_hand(
    near: DuplexStream,
    far: &mut DuplexStream,
) -> (NoiseStream<DuplexStream>, noise::Session) {
    let server_public = server_key().public();
    let machine = machine_key();
    let answer = async {
        let initiation = switch_protocols(far).await;
        let (response, session) = Responder::new(&server_key(), &initiation)
            .unwrap()
            .respond()
            .unwrap();
        far.write_all(&response).await.unwrap();
        session
    };
    let client = upgrade_client(near, "control.example", &machine, &server_public, VERSION);
    let (client, session) = tokio::join!(client, answer);
    (client.unwrap(), session)
}

/// Reads the client's upgrade request; returns the initiation in it.
async fn read_request(far: &mut DuplexStream) -> [u8; INITIATION_LEN] {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(far.read_u8().await.unwrap());
    }
    let request = String::from_utf8(request).unwrap();
    assert!(request.starts_with("POST /ts2021 HTTP/1.1\r\nHost: control.example"));
    assert!(request.contains("\r\nUpgrade: tailscale-control-protocol\r\n"));
    assert!(request.contains("\r\nConnection: upgrade\r\n"));
    let value = request.split_once("X-Tailscale-Handshake: ").unwrap().1;
    let value = value.split_once("\r\n").unwrap().0;
    decode_handshake_header(value.as_bytes()).unwrap()
}

/// Answers the client's upgrade request with 101; returns the initiation in it.
async fn switch_protocols(far: &mut DuplexStream) -> [u8; INITIATION_LEN] {
    let initiation = read_request(far).await;
    let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\n\r\n";
    far.write_all(head).await.unwrap();
    initiation
}

/// Counts writes; reads never end.
#[derive(Debug, Default)]
struct CountedWrites {
    writes: usize,
    written: usize,
}

impl tokio::io::AsyncRead for CountedWrites {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Pending
    }
}

impl tokio::io::AsyncWrite for CountedWrites {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        self.writes += 1;
        self.written += buf.len();
        std::task::Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}
