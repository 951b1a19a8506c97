//! What a peer hears of a connection that the packet filter refused.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, connected_pair, pair, set_policy};
use testnet::{scaled, skip_unless_available, wait_until};

/// Pings pass, and one port.
const POLICY: &str = r#"{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:80"]}]}"#;
const REFUSED: u16 = 2222;

#[test]
fn a_peer_is_told_that_its_connection_was_refused() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = connected_pair()?;
    let [alice, bob] = pair(&tailnet.nodes)?;
    set_policy(&tailnet.control, POLICY)?;
    let node = alice.host().namespace();
    let (from, to) = (bob.ip("-4")?, alice.ip("-4")?);
    // '!', TCP, 'A'; the source's port; the destination's.
    let reject = format!(
        "meta l4proto 99 @th,0,24 0x210641 @th,40,16 {REFUSED} ip saddr {from} ip daddr {to}"
    );
    node.nft(&format!(
        "table inet probe {{ chain c {{
            type filter hook prerouting priority raw; {reject} counter comment \"rejects\";
        }}; }}"
    ))?;
    let rejects = || -> Result<u32> {
        let listed = node.exec(&["nft", "list", "table", "inet", "probe"])?;
        let words = listed.split("counter packets ").nth(1);
        let number = words.and_then(|text| text.split(' ').next());
        Ok(number.context("no counter")?.parse()?)
    };
    let call = |address: IpAddr, port| {
        let limit = scaled(Duration::from_millis(500));
        let to = SocketAddr::new(address, port);
        node.enter(|| TcpStream::connect_timeout(&to, limit).is_ok())
    };
    wait_until(CONNECT, "a refusal is told", || {
        ensure!(!call(from, REFUSED)?, "the policy is not in force yet");
        ensure!(rejects()? > 0, "no reject came");
        Ok(())
    })?;
    // Nobody listens, but the policy admits it: the host's own answer says so, and no reject.
    let before = rejects()?;
    ensure!(!call(from, 80)?, "somebody listens on port 80");
    ensure!(rejects()? == before, "an admitted connection was refused");
    Ok(())
}
