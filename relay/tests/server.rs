//! The DERP server as its clients see it.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod client;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Client, Got, REMOTE, connect, connect_as, connect_with_room, disco, mesh_frames};
use derp_proto::{ClientInfo, Frame, MAX_PACKET_LEN, PeerGoneReason, kind};
use keys::NodePrivate;
use relay::server::{Ended, ServeError};
use relay::{Admission, Server, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;

fn server() -> Server {
    Server::new(NodePrivate::generate(), ServerConfig::default())
}

fn server_with(config: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut settings = ServerConfig::default();
    config(&mut settings);
    Server::new(NodePrivate::generate(), settings)
}

#[tokio::test]
async fn packets_travel_both_ways_and_in_order() {
    let server = server();
    let (mut a, mut b) = (connect(&server).await, connect(&server).await);

    for number in 0..100_u8 {
        a.send(b.public(), &[number; 1300]).await;
    }
    b.send(a.public(), b"answer").await;

    for number in 0..100 {
        assert_eq!(
            b.next().await,
            Some(Got::Packet(a.public(), vec![number; 1300]))
        );
    }
    assert_eq!(
        a.next().await,
        Some(Got::Packet(b.public(), b"answer".to_vec()))
    );
    assert_eq!(server.metrics().packets_received.get(), 101);
    assert_eq!(server.metrics().bytes_received.get(), 130_000 + 6);
}

#[tokio::test]
async fn packets_for_several_peers_in_one_write_are_told_apart() {
    let server = server();
    let (mut a, mut b, mut c) = (
        connect(&server).await,
        connect(&server).await,
        connect(&server).await,
    );
    let mut write = Vec::new();
    for (destination, packet) in [
        (&b, &b"1"[..]),
        (&b, b""),
        (&c, b"3"),
        (&b, &disco()),
        (&b, b"5"),
    ] {
        let destination = destination.public();
        Frame::SendPacket {
            destination,
            packet,
        }
        .encode(&mut write);
    }

    a.raw(&write).await;

    assert_eq!(c.next().await, Some(Got::Packet(a.public(), b"3".to_vec())));
    let mut got = Vec::new();
    for _ in 0..4 {
        let Some(Got::Packet(_, packet)) = b.next().await else {
            panic!("no packet")
        };
        got.push(packet);
    }
    // Disco may pass data.
    got.sort();
    assert_eq!(got, [vec![], b"1".to_vec(), b"5".to_vec(), disco()]);
}

#[tokio::test]
async fn the_largest_packet_passes_and_a_larger_one_closes() {
    let server = server();
    let (mut a, mut b) = (connect(&server).await, connect(&server).await);
    let packet = vec![3; MAX_PACKET_LEN];
    a.send(b.public(), &packet).await;
    assert_eq!(b.next().await, Some(Got::Packet(a.public(), packet)));

    let too_long = u32::try_from(32 + MAX_PACKET_LEN + 1).unwrap();
    a.announce(kind::SEND_PACKET, too_long).await;

    assert_eq!(a.next().await, None);
    assert_eq!(
        b.next().await,
        Some(Got::Gone(a.public(), PeerGoneReason::Disconnected))
    );
}

#[tokio::test]
async fn frames_of_impossible_size_close_the_connection() {
    let server = server();
    for (kind, len) in [
        (kind::NOTE_PREFERRED, 2),
        (kind::NOTE_PREFERRED, 0),
        (kind::PING, 7),
        (kind::PING, 1001),
        (kind::SEND_PACKET, 31),
        (kind::SEND_PACKET, u32::MAX),
        (0x77, (1 << 20) + 1),
        (0x77, u32::MAX),
    ] {
        let mut client = connect(&server).await;
        client.announce(kind, len).await;
        assert_eq!(client.next().await, None, "type {kind} of {len} bytes");
    }
}

#[tokio::test]
async fn unknown_frames_are_passed_over() {
    let server = server();
    let mut client = connect(&server).await;
    client.put_raw(0x77, &vec![0; 1 << 20]).await;
    client.put_raw(0x78, &[]).await;
    client.put(Frame::Health("a server's frame")).await;
    assert_eq!(client.sync().await, []);
}

#[tokio::test]
async fn a_ping_with_more_than_eight_bytes_is_answered_with_eight() {
    let server = server();
    let mut client = connect(&server).await;
    client.put_raw(kind::PING, b"12345678 and more").await;
    assert_eq!(client.next().await, Some(Got::Pong(*b"12345678")));
}

#[tokio::test]
async fn only_those_who_got_packets_hear_that_a_peer_is_gone() {
    let server = server();
    let (mut a, mut b, mut c) = (
        connect(&server).await,
        connect(&server).await,
        connect(&server).await,
    );
    a.send(b.public(), b"x").await;
    assert_eq!(b.next().await, Some(Got::Packet(a.public(), b"x".to_vec())));
    let gone = a.public();

    drop(a);

    assert_eq!(
        b.next().await,
        Some(Got::Gone(gone, PeerGoneReason::Disconnected))
    );
    assert_eq!(c.sync().await, []);
}

#[tokio::test]
async fn an_absent_peer_is_told_for_disco_only_and_not_too_often() {
    let server = server();
    let mut a = connect(&server).await;
    let absent = NodePrivate::generate().public();

    for _ in 0..5 {
        a.send(absent, &[0; 200]).await;
    }
    assert_eq!(a.sync().await, []);
    // One at a time, or they are one run.
    let mut told = Vec::new();
    for _ in 0..10 {
        a.send(absent, &disco()).await;
        told.extend(a.sync().await);
    }

    assert_eq!(told, vec![Got::Gone(absent, PeerGoneReason::NotHere); 3]);
    assert_eq!(server.metrics().packets_received.get(), 15);
}

#[tokio::test]
async fn packets_go_to_the_connection_of_a_key_that_spoke_last() {
    let server = server();
    let key = NodePrivate::generate();
    let mut sender = connect(&server).await;
    let mut old = connect_as(&server, &key).await;
    let mut new = connect_as(&server, &key).await;
    let packet = |sender: &Client<DuplexStream>, text: &[u8]| {
        Some(Got::Packet(sender.public(), text.to_vec()))
    };

    sender.send(key.public(), b"to the newest").await;
    assert_eq!(new.next().await, packet(&sender, b"to the newest"));

    old.send(sender.public(), b"I am here").await;
    old.sync().await;
    sender.send(key.public(), b"to the speaker").await;
    assert_eq!(old.next().await, packet(&sender, b"to the speaker"));

    drop(old);
    // The other connection stays, so the key is not gone; wait until the server noticed.
    while server.metrics().connections.get() > 2 {
        tokio::task::yield_now().await;
    }
    sender.send(key.public(), b"to who is left").await;
    assert_eq!(new.next().await, packet(&sender, b"to who is left"));
    assert_eq!(
        sender.sync().await,
        [Got::Packet(key.public(), b"I am here".to_vec())]
    );

    drop(new);
    let gone = Got::Gone(key.public(), PeerGoneReason::Disconnected);
    assert_eq!(sender.next().await, Some(gone));
}

#[tokio::test]
async fn a_slow_client_loses_the_oldest_packets_and_holds_nobody_up() {
    let server = server_with(|config| config.queue_bytes = 128 << 10);
    let (slow, _) =
        connect_with_room(&server, &NodePrivate::generate(), ClientInfo::node(), 4096).await;
    let mut slow = slow.unwrap();
    let mut sender = connect(&server).await;

    for number in 0..1000_u32 {
        let mut packet = [0; 1000];
        packet[..4].copy_from_slice(&number.to_be_bytes());
        sender.send(slow.public(), &packet).await;
    }
    sender.sync().await;
    let mut last = None;
    let mut count = 0;
    while last != Some(999) {
        let Some(Got::Packet(_, packet)) = slow.next().await else {
            panic!("no packet")
        };
        let number = u32::from_be_bytes(*packet.first_chunk().unwrap());
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
        count += 1;
    }

    assert!((100..500).contains(&count), "{count} packets arrived");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_client_is_disconnected() {
    let server = server();
    let (stuck, served) =
        connect_with_room(&server, &NodePrivate::generate(), ClientInfo::node(), 4096).await;
    let stuck = stuck.unwrap();
    let mut sender = connect(&server).await;
    for _ in 0..20 {
        sender.send(stuck.public(), &[0; 1000]).await;
    }
    sender.sync().await;

    let before = tokio::time::Instant::now();
    let ended = served.await.unwrap().unwrap();

    assert!(matches!(ended, Ended::Stuck), "{ended}");
    assert_eq!(before.elapsed().as_secs(), 2);
    assert_eq!(server.metrics().write_timeouts.get(), 1);
    assert_eq!(server.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_hears_a_keepalive_every_minute() {
    let server = server();
    let mut client = connect(&server).await;
    for _ in 0..3 {
        let before = tokio::time::Instant::now();
        assert_eq!(client.next().await, Some(Got::KeepAlive));
        let waited = before.elapsed();
        let expected = Duration::from_millis(59_990)..Duration::from_millis(65_010);
        assert!(expected.contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_not_waited_for() {
    let server = server();
    let (near, far) = tokio::io::duplex(4096);
    let served = server.serve(far, REMOTE, bytes::Bytes::new()).await;
    assert!(matches!(served, Err(ServeError::Timeout)));
    drop(near);
}

#[tokio::test]
async fn a_kicked_client_is_closed_and_may_come_back() {
    let server = server();
    let mut client = connect(&server).await;
    assert_eq!(server.kick(&client.public()), 1);
    assert_eq!(client.next().await, None);
    assert_eq!(server.kick(&client.public()), 0);

    let mut again = connect_as(&server, &client.key).await;
    assert_eq!(again.sync().await, []);
}

#[tokio::test]
async fn a_key_that_is_not_allowed_stays_out_and_a_sweep_puts_it_out() {
    let open = Arc::new(AtomicBool::new(true));
    let gate = Arc::clone(&open);
    let admission = Admission::Callback(Arc::new(move |_| gate.load(Ordering::Relaxed)));
    let server = server_with(|config| config.admission = admission);
    let mut client = connect(&server).await;
    assert_eq!(server.sweep().await, 0);

    open.store(false, Ordering::Relaxed);

    let (refused, served) =
        connect_with_room(&server, &NodePrivate::generate(), ClientInfo::node(), 4096).await;
    assert!(refused.is_none());
    assert!(matches!(served.await.unwrap(), Err(ServeError::Refused(_))));
    assert_eq!(server.metrics().refused.get(), 1);
    assert_eq!(server.sweep().await, 1);
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn a_key_removed_between_admission_and_entry_is_put_out() {
    // Control removes the node, and kicks in vain, right after it was asked.
    let asked = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&asked);
    let admission = Admission::Callback(Arc::new(move |_| !gate.swap(true, Ordering::Relaxed)));
    let server = server_with(|config| config.admission = admission);

    let (_client, served) =
        connect_with_room(&server, &NodePrivate::generate(), ClientInfo::node(), 4096).await;

    assert!(matches!(served.await.unwrap(), Err(ServeError::Refused(_))));
    assert!(server.is_empty());
    assert_eq!(server.metrics().accepted.get(), 0);
    assert_eq!(server.metrics().refused.get(), 1);
}

/// Answers every verification with `status` and `body`; tells what was asked.
async fn verifier(
    status: &'static str,
    body: &'static str,
) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/verify", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let len = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    (url, asked)
}

async fn is_admitted(url: &str) -> (bool, NodePrivate) {
    let admission = Admission::VerifyUrl(relay::admission::VerifyUrl::new(url).unwrap());
    let server = server_with(|config| config.admission = admission);
    let key = NodePrivate::generate();
    let (client, _) = connect_with_room(&server, &key, ClientInfo::node(), 4096).await;
    (client.is_some(), key)
}

#[tokio::test]
async fn a_verification_service_decides() {
    let (url, asked) = verifier("200 OK", r#"{"Allow":true}"#).await;
    let (admitted, key) = is_admitted(&url).await;
    assert!(admitted);
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("POST /verify HTTP/1.1\r\n"), "{asked}");
    let question = format!(
        r#"{{"NodePublic":"{}","Source":"192.0.2.7"}}"#,
        key.public()
    );
    assert!(asked.ends_with(&question), "{asked}");

    for (status, body) in [
        ("200 OK", r#"{"Allow":false}"#),
        ("200 OK", "{}"),
        ("200 OK", "yes"),
        ("403 Forbidden", r#"{"Allow":true}"#),
    ] {
        let (url, _) = verifier(status, body).await;
        assert!(!is_admitted(&url).await.0, "{status} {body}");
    }
}

#[tokio::test]
async fn nobody_comes_in_while_the_verification_service_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/verify", listener.local_addr().unwrap());
    drop(listener);
    assert!(!is_admitted(&url).await.0);
}

#[tokio::test]
async fn a_mesh_server_sees_who_comes_and_goes() {
    let mesh_key = "ab".repeat(32);
    let server = server_with(|config| config.mesh_key = Some(mesh_key.parse().unwrap()));
    let mut present = connect(&server).await;
    let info = ClientInfo {
        mesh_key,
        ..ClientInfo::node()
    };
    let (watcher, _) = connect_with_room(&server, &NodePrivate::generate(), info, 1 << 20).await;
    let mut watcher = watcher.unwrap();

    watcher.put(Frame::WatchConns).await;
    assert_eq!(
        watcher.next().await,
        Some(Got::Present(present.public(), Some(REMOTE), 1))
    );

    let late = connect(&server).await;
    let key = late.public();
    assert_eq!(
        watcher.next().await,
        Some(Got::Present(key, Some(REMOTE), 1))
    );
    drop(late);
    let gone = Got::Gone(key, PeerGoneReason::Disconnected);
    assert_eq!(watcher.next().await, Some(gone));

    watcher
        .put(Frame::ForwardPacket {
            source: key,
            destination: present.public(),
            packet: b"from afar",
        })
        .await;
    assert_eq!(
        present.next().await,
        Some(Got::Packet(key, b"from afar".to_vec()))
    );
    assert_eq!(server.metrics().forwarded.get(), 1);
    assert_eq!(server.metrics().packets_sent.get(), 1);
    assert_eq!(server.metrics().bytes_sent.get(), 9);

    watcher.put(Frame::ClosePeer(present.public())).await;
    assert_eq!(present.next().await, None);
}

#[tokio::test]
async fn a_forwarded_disco_packet_that_is_dropped_counts_as_disco() {
    let mesh_key = "ab".repeat(32);
    let server = server_with(|config| config.mesh_key = Some(mesh_key.parse().unwrap()));
    let (stuck, _served) =
        connect_with_room(&server, &NodePrivate::generate(), ClientInfo::node(), 1024).await;
    let stuck = stuck.unwrap();
    let info = ClientInfo {
        mesh_key,
        ..ClientInfo::node()
    };
    let (mesh, _) = connect_with_room(&server, &NodePrivate::generate(), info, 1 << 20).await;
    let mut mesh = mesh.unwrap();

    let mut packet = disco();
    packet.resize(MAX_PACKET_LEN, 0);
    for _ in 0..100 {
        mesh.put(Frame::ForwardPacket {
            source: mesh.public(),
            destination: stuck.public(),
            packet: &packet,
        })
        .await;
    }
    mesh.sync().await;

    let text = String::from_utf8(server.metrics().encode().unwrap()).unwrap();
    let dropped = |kind: &str| {
        let line = text
            .lines()
            .find(|line| line.contains("queue_full") && line.contains(&format!("\"{kind}\"")));
        let count = line.and_then(|line| line.rsplit(' ').next()).unwrap();
        count.parse::<u64>().unwrap()
    };
    assert!(dropped("disco") > 0, "{text}");
    assert_eq!(dropped("data"), 0, "{text}");
    assert_eq!(server.metrics().packets_sent.get(), 100);
}

#[tokio::test]
async fn the_meshs_frames_are_for_holders_of_its_key() {
    let server = server_with(|config| config.mesh_key = Some("ab".repeat(32).parse().unwrap()));
    for frame in mesh_frames() {
        let info = ClientInfo {
            mesh_key: "cd".repeat(32),
            ..ClientInfo::node()
        };
        let (client, _) = connect_with_room(&server, &NodePrivate::generate(), info, 1 << 16).await;
        let mut client = client.unwrap();
        client.raw(&frame).await;
        assert_eq!(client.next().await, None, "{frame:?}");
    }
}

#[tokio::test]
async fn the_home_gauge_follows_what_clients_note() {
    let server = server();
    let mut client = connect(&server).await;
    client.put(Frame::NotePreferred(true)).await;
    client.put(Frame::NotePreferred(true)).await;
    client.sync().await;
    assert_eq!(server.metrics().home.get(), 1);
    drop(client);
    while !server.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.metrics().home.get(), 0);
}
