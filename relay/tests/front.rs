//! The relay from the outside: TCP, TLS, HTTP, and the program.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod client;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use client::{Got, connect_tls};
use keys::NodePrivate;
use relay::tls::Identity;
use relay::{Server, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server behind TLS on loopback; returns its address and pin.
async fn tls_server() -> (SocketAddr, String, Server) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::self_signed(folder.path(), "127.0.0.1").unwrap();
    let server = Server::new(NodePrivate::generate(), ServerConfig::default());
    let config = identity.server_config(&server.public_key()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(relay::http::listen(listener, Some(config), server.clone()));
    (address, identity.pin(), server)
}

/// What a plain-HTTP server answers to `request`.
async fn ask(request: &[u8]) -> String {
    let server = Server::new(NodePrivate::generate(), ServerConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(relay::http::listen(listener, None, server));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    // The server closes with our bytes unread where it refuses: a reset after the answer is fine.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn tls_13_starts_fast_and_tls_12_starts_normally() {
    let (address, pin, server) = tls_server().await;
    let (mut fast, was_fast) = connect_tls(address, &pin, false).await;
    let (mut normal, was_slow) = connect_tls(address, &pin, true).await;
    assert!(was_fast);
    assert!(!was_slow);

    fast.send(normal.public(), b"there").await;
    normal.send(fast.public(), b"back").await;

    assert_eq!(
        normal.next().await,
        Some(Got::Packet(fast.public(), b"there".to_vec()))
    );
    assert_eq!(
        fast.next().await,
        Some(Got::Packet(normal.public(), b"back".to_vec()))
    );
    assert_eq!(server.len(), 2);
}

#[tokio::test]
async fn much_data_passes_through_tls_unharmed() {
    let (address, pin, _server) = tls_server().await;
    let (mut sender, _) = connect_tls(address, &pin, false).await;
    let (mut receiver, _) = connect_tls(address, &pin, false).await;
    let source = sender.public();
    let destination = receiver.public();
    // No more in flight than the queue holds, so nothing may be lost.
    for round in 0..40_u32 {
        for number in 0..100_u32 {
            let len = (round as usize * 977 + number as usize * 131) % 3000;
            let mut packet = vec![number as u8; len + 8];
            packet[..8]
                .copy_from_slice(&(u64::from(round) << 32 | u64::from(number)).to_be_bytes());
            sender.send(destination, &packet).await;
        }
        for number in 0..100_u32 {
            let Some(Got::Packet(from, packet)) = receiver.next().await else {
                panic!("no packet")
            };
            let expected = (u64::from(round) << 32 | u64::from(number)).to_be_bytes();
            assert_eq!(from, source);
            assert_eq!(packet[..8], expected);
            assert!(packet[8..].iter().all(|&byte| byte == number as u8));
        }
    }
}

#[tokio::test]
async fn http_requests_get_their_answers() {
    let upgrade = ask(b"GET /derp HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(upgrade.starts_with("HTTP/1.1 426 "), "{upgrade}");
    let probe = ask(b"GET /derp/probe HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(probe.contains("Access-Control-Allow-Origin: *"), "{probe}");
    let page = ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(page.contains("Tailrace relay"), "{page}");
    let absent = ask(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(absent.starts_with("HTTP/1.1 404 "), "{absent}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let garbage = ask(b"\x00\x01\x02\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
    long.resize(17 << 10, b'a');
    let long = ask(&long).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
}

struct Relay(std::process::Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailrace-relay"));
    command.arg("serve").args(flags).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn the_program_prints_a_map_that_works_and_stops_on_sigterm() {
    use std::io::{BufRead as _, BufReader};

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let any = "127.0.0.1:0";
    let flags = [
        "--listen",
        any,
        "--stun-listen",
        any,
        "--state-dir",
        state,
        "--metrics",
        any,
    ];
    let child = program(&flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut relay = Relay(child);
    let mut lines = BufReader::new(relay.0.stdout.take().unwrap()).lines();
    let mut metrics = String::new();
    let mut map = String::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        if let Some(url) = line.strip_prefix("metrics on http://") {
            metrics = url.trim_end_matches("/metrics").to_owned();
        }
        if line.starts_with(['{', ' ', '}']) {
            map.push_str(&line);
        }
        if line == "}" {
            break;
        }
    }
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let node = &map["Regions"]["900"]["Nodes"][0];
    let address = format!("127.0.0.1:{}", node["DERPPort"]).parse().unwrap();
    let (mut client, _) = connect_tls(address, node["CertName"].as_str().unwrap(), false).await;
    assert_eq!(client.sync().await, []);
    let mut stream = TcpStream::connect(metrics).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("tailrace_relay_connections 1"), "{text}");

    let pid = rustix::process::Pid::from_child(&relay.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();

    assert_eq!(client.next().await, None);
    let status = tokio::task::spawn_blocking(move || relay.0.wait().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(10), status)
        .await
        .unwrap()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn mistakes_are_told_in_one_line_that_names_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let any = "127.0.0.1:0";
    let base = |listen| {
        vec![
            "--listen",
            listen,
            "--stun-listen",
            any,
            "--state-dir",
            state,
        ]
    };
    let no_folder = vec![
        "--listen",
        any,
        "--stun-listen",
        any,
        "--state-dir",
        "/proc/none",
    ];
    for (flags, words) in [
        (base(&busy), vec![busy.as_str(), "busy", "--listen"]),
        (
            [base(any), vec!["--cert", "/none.crt", "--key", "/none.key"]].concat(),
            vec!["/none.crt"],
        ),
        (
            [base(any), vec!["--verify-url", "ftp://x"]].concat(),
            vec!["ftp://x"],
        ),
        (
            [base(any), vec!["--config", "/none.toml"]].concat(),
            vec!["/none.toml"],
        ),
        (no_folder, vec!["/proc/none"]),
    ] {
        let output = program(&flags).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{flags:?}");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "{text} lacks {word}");
        }
    }
}
