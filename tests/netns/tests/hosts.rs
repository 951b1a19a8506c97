//! Gateways on hosts whose own firewall drops by default: ufw, Docker, firewalld, and tables of the operator's.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, Echo, Gateway, transfer};
use testnet::tailnet::Node;
use testnet::{Firewalld, Namespace, Ufw, scaled, skip_unless_available, wait_until};

const FLAGS: &[&str] = &[
    "--advertise-routes=10.77.1.0/24,fd77:1::/64",
    "--advertise-exit-node",
    "--enable-ip-forward",
];
/// Port of the echo service.
const PORT: u16 = 7;
/// Time within which forwarding heals after somebody broke it (issue's promise).
const HEAL: Duration = Duration::from_secs(2);
const BULK: usize = 64 << 10;

/// What Docker writes for its default bridge, in either family.
const DOCKER: &str = "\
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d @LOOPBACK -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s @BRIDGE ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
";

/// As an operator would write it: answers, loopback and neighbour discovery; all else is dropped.
const NATIVE: &str = "
table inet guard {
    chain incoming {
        type filter hook input priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname \"lo\" accept
        meta l4proto { icmp, ipv6-icmp } accept
    }
    chain through {
        type filter hook forward priority filter; policy drop;
        ct state { established, related } accept
    }
}";

/// A gateway that serves its LAN and the outside, and is down: the host's firewall comes first.
struct Site {
    gateway: Gateway,
    echo: Echo,
}

impl Site {
    fn prepare() -> Result<Site> {
        let gateway = Gateway::start(FLAGS)?;
        let echo = Echo::serve(gateway.lan.host(), PORT)?;
        wait_until(CONNECT, "the exit node is offered", || {
            let peer = gateway.alice.peer("gate")?;
            ensure!(peer.flag("ExitNodeOption")?, "not yet");
            Ok(())
        })?;
        gateway.alice.cli(&["set", "--exit-node=gate"])?;
        gateway.gate.cli(&["down"])?;
        Ok(Site { gateway, echo })
    }

    fn gate(&self) -> &Node {
        &self.gateway.gate
    }

    fn router(&self) -> &Namespace {
        self.gateway.router()
    }

    /// New flows of both families reach the LAN and the outside.
    fn carries(&self) -> Result<()> {
        let Gateway { lan, .. } = &self.gateway;
        for address in lan.addresses().into_iter().chain(lan.outside()) {
            self.echo.call(self.gateway.node(), address, 64)?;
        }
        Ok(())
    }

    /// All that a gateway is for, with what it answers itself.
    fn works(&self) -> Result<()> {
        let Gateway { lan, .. } = &self.gateway;
        let node = self.gateway.node();
        wait_until(CONNECT, "the gateway carries", || self.carries()).with_context(|| {
            let rules = self.router().exec(&["nft", "list", "ruleset"]);
            let status = self.gate().cli(&["status"]);
            format!("{status:?}\n{}", rules.unwrap_or_default())
        })?;
        for address in lan.addresses().into_iter().chain(lan.outside()) {
            transfer(node, lan.host(), address, BULK).context("to the LAN or the outside")?;
        }
        for family in ["-4", "-6"] {
            let own = self.gate().ip(family)?;
            transfer(node, self.router(), own, BULK).context("to the gateway")?;
        }
        Ok(())
    }

    /// Waits until new flows pass again.
    fn heals(&self, after: &str) -> Result<()> {
        let start = Instant::now();
        wait_until(HEAL, "forwarding is back", || self.carries())?;
        println!(
            "healed in {:.2} s after {after}",
            start.elapsed().as_secs_f64()
        );
        ensure!(start.elapsed() < scaled(HEAL), "it took too long");
        Ok(())
    }

    /// The health warning about the host's firewall, if there is one.
    fn warning(&self) -> Result<Option<String>> {
        let status = self.gate().cli(&["status"])?;
        let warning = status.lines().find(|line| line.contains("own firewall"));
        Ok(warning.map(str::to_owned))
    }

    fn is_warned(&self, words: &[&str]) -> Result<String> {
        wait_until(CONNECT, "a warning", || {
            let warning = self.warning()?.context("no warning")?;
            for word in words {
                ensure!(warning.contains(word), "{word:?} is not in {warning}");
            }
            Ok(warning)
        })
    }

    fn is_not_warned(&self) -> Result<()> {
        wait_until(CONNECT, "the warning goes", || {
            let warning = self.warning()?;
            ensure!(warning.is_none(), "{warning:?}");
            Ok(())
        })
    }

    /// Runs the commands that a warning gives, as an operator would.
    fn obey(&self, warning: &str) -> Result<()> {
        for command in warning.split('`').skip(1).step_by(2) {
            self.router().exec(&["sh", "-c", command])?;
        }
        Ok(())
    }

    /// The rules of iptables, without counters, and without tables that do nothing: ufw makes some when it
    /// flushes them.
    fn saved(&self) -> Result<String> {
        let mut text = String::new();
        for tool in ["iptables-nft-save", "ip6tables-nft-save"] {
            let saved = self.router().exec(&[tool])?;
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            let lines: Vec<&str> = lines
                .map(|line| line.split(" [").next().unwrap_or_default())
                .collect();
            let mut tables: Vec<&[&str]> = lines.split(|line| *line == "COMMIT").collect();
            tables.retain(|table| {
                let does = |line: &&str| line.starts_with("-A") || line.ends_with(" DROP");
                table.iter().any(does)
            });
            tables.sort_unstable();
            text += &tables.concat().join("\n");
            text.push('\n');
        }
        Ok(text)
    }
}

fn docker(router: &Namespace) -> Result<()> {
    for (tool, bridge, loopback) in [
        ("iptables-nft-restore", "172.17.0.0/16", "127.0.0.0/8"),
        ("ip6tables-nft-restore", "fd00:d0c::/64", "::1/128"),
    ] {
        let rules = DOCKER
            .replace("@BRIDGE", bridge)
            .replace("@LOOPBACK", loopback);
        router.exec(&["sh", "-c", &format!("{tool} <<'X'\n{rules}X\n")])?;
    }
    Ok(())
}

#[test]
fn a_host_with_ufw_is_a_gateway_and_is_left_as_it_was() -> Result<()> {
    skip_unless_available!("ping", "ufw", "iptables-nft");
    let site = Site::prepare()?;
    let ufw = Ufw::enable(site.router())?;
    let status = ufw.run(&["status", "verbose"])?;
    ensure!(status.contains("Default: deny (incoming)"), "{status}");
    // What it starts with lacks some rules of a reload.
    ufw.run(&["reload"])?;
    let before = site.saved()?;
    ensure!(before.contains(":FORWARD DROP"), "{before}");

    site.gate().cli(&["up"])?;
    site.works()?;
    ufw.run(&["reload"])?;
    site.heals("ufw reload")?;
    // As it may be told to: its reload flushes the chains of all.
    let builtins = "s/^MANAGE_BUILTINS=no/MANAGE_BUILTINS=yes/";
    site.router()
        .exec(&["sed", "-i", builtins, "/etc/default/ufw"])?;
    ufw.run(&["reload"])?;
    site.heals("a reload that flushes")?;
    site.works()?;
    ensure!(site.warning()?.is_none(), "{:?}", site.warning());

    site.gate().cli(&["down"])?;
    similar(&before, &site.saved()?)
}

#[test]
fn a_host_of_docker_is_a_gateway_and_is_left_as_it_was() -> Result<()> {
    skip_unless_available!("ping", "iptables-nft");
    let site = Site::prepare()?;
    docker(site.router())?;
    let before = site.saved()?;

    site.gate().cli(&["up"])?;
    site.works()?;
    // Docker starts anew.
    docker(site.router())?;
    site.heals("the rules were loaded anew")?;
    ensure!(site.warning()?.is_none(), "{:?}", site.warning());

    site.gate().cli(&["down"])?;
    similar(&before, &site.saved()?)
}

#[test]
fn a_host_with_firewalld_is_a_gateway_and_is_left_as_it_was() -> Result<()> {
    skip_unless_available!("ping", "firewalld", "dbus-daemon");
    let site = Site::prepare()?;
    let firewalld = Firewalld::start(site.router())?;
    let rules = || {
        let list = ["nft", "-s", "list", "table", "inet", "firewalld"];
        site.router().exec(&list)
    };
    let zone = || firewalld.run(&["--get-active-zones"]);
    let before = (rules()?, zone()?);

    site.gate().cli(&["up"])?;
    site.works()?;
    ensure!(zone()?.contains("tailrace0"), "{}", zone()?);
    firewalld.run(&["--reload"])?;
    site.heals("firewall-cmd --reload")?;
    site.works()?;
    site.is_not_warned()?;

    site.gate().cli(&["down"])?;
    similar(&before.1, &zone()?)?;
    ensure!(!rules()?.contains("tailrace"), "{}", rules()?);
    // Its chains of a zone that it used once stay until it reloads.
    firewalld.run(&["--reload"])?;
    similar(&before.0, &rules()?)
}

#[test]
fn a_zone_that_the_operator_chose_stays_and_calls_of_the_lan_need_a_policy() -> Result<()> {
    skip_unless_available!("ping", "firewalld", "dbus-daemon");
    let site = Site::prepare()?;
    let firewalld = Firewalld::start(site.router())?;
    let zone = || firewalld.run(&["--get-zone-of-interface=tailrace0"]);
    firewalld.run(&["--permanent", "--zone=work", "--add-interface=tailrace0"])?;
    firewalld.run(&["--reload"])?;

    site.gate().cli(&["up"])?;
    let warning = site.is_warned(&["firewall-cmd --zone=trusted --change-interface=tailrace0"])?;
    ensure!(zone()? == "work", "{}", zone()?);
    site.obey(&warning)?;
    site.works()?;
    site.is_not_warned()?;

    site.gate().cli(&["set", "--snat-subnet-routes=false"])?;
    let warning = site.is_warned(&["--new-policy=tailrace0"])?;
    firewalld.run(&[
        "--permanent",
        "--zone=trusted",
        "--change-interface=tailrace0",
    ])?;
    site.obey(&warning)?;
    site.is_not_warned()?;

    site.gate().cli(&["down"])?;
    ensure!(zone()? == "trusted", "{}", zone()?);
    Ok(())
}

#[test]
fn a_table_that_drops_by_default_is_named_with_the_command_that_admits_us() -> Result<()> {
    skip_unless_available!("ping");
    let site = Site::prepare()?;
    let list = || {
        let words = ["nft", "-s", "list", "table", "inet", "guard"];
        site.router().exec(&words)
    };
    site.router().nft(NATIVE)?;
    let before = list()?;

    site.gate().cli(&["up"])?;
    let warning = site.is_warned(&[
        "chain through of table guard",
        "chain incoming of table guard",
        "`nft insert rule inet guard through iifname tailrace0 accept`",
    ])?;
    ensure!(list()? == before, "it was touched: {}", list()?);
    ensure!(
        site.carries().is_err(),
        "the test's firewall lets everything pass"
    );
    site.obey(&warning)?;
    site.is_not_warned()?;
    site.works()?;

    // Loaded anew as the file has it: the warning is back, and goes with the table.
    let whole = list()?;
    site.router()
        .exec(&["nft", "delete", "table", "inet", "guard"])?;
    site.router().nft(NATIVE)?;
    site.is_warned(&["chain through of table guard"])?;
    site.router()
        .exec(&["nft", "delete", "table", "inet", "guard"])?;
    site.is_not_warned()?;
    site.router().nft(&whole)?;
    site.gate().cli(&["down"])?;
    similar(&whole, &list()?)
}

#[test]
fn nodivert_leaves_the_chains_of_others_alone_and_off_all() -> Result<()> {
    skip_unless_available!("ping", "iptables-nft");
    let site = Site::prepare()?;
    docker(site.router())?;
    let before = site.saved()?;
    site.gate().cli(&["up"])?;
    site.works()?;

    site.gate().cli(&["set", "--netfilter-mode=nodivert"])?;
    let warning =
        site.is_warned(&["nft insert rule ip filter FORWARD iifname tailrace0 accept"])?;
    similar(&before, &site.saved()?)?;
    site.obey(&warning)?;
    site.works()?;
    site.is_not_warned()?;
    let own = ["nft", "list", "table", "inet", "tailrace0"];
    site.router().exec(&own)?;

    let with_theirs = site.saved()?;
    site.gate().cli(&["set", "--netfilter-mode=off"])?;
    wait_until(CONNECT, "our table goes", || {
        ensure!(site.router().exec(&own).is_err(), "still there");
        Ok(())
    })?;
    site.gate().cli(&["down"])?;
    similar(&with_theirs, &site.saved()?)
}

#[test]
fn a_strict_reverse_path_filter_leaves_the_underlay_reachable_through_an_exit_node() -> Result<()> {
    skip_unless_available!("ping");
    let site = Site::prepare()?;
    site.gate().cli(&["up"])?;
    let Gateway { alice, lan, .. } = &site.gateway;
    let node = site.gateway.node();
    let value = || -> Result<String> {
        let path = "/proc/sys/net/ipv4/conf/all/src_valid_mark";
        Ok(node.exec(&["cat", path])?.trim().to_owned())
    };
    ensure!(value()? == "0", "nothing is strict yet");
    for name in ["all", "eth0"] {
        node.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
    }
    alice.cli(&["set", "--exit-node="])?;
    alice.cli(&["set", "--exit-node=gate"])?;
    let becomes = |wanted: &str| {
        wait_until(CONNECT, "src_valid_mark follows", || {
            ensure!(value()? == wanted, "not yet {wanted}");
            Ok(())
        })
    };
    becomes("1")?;
    let [outside, _]: [IpAddr; 2] = lan.outside();
    wait_until(CONNECT, "the outside answers", || {
        site.echo.call(node, outside, 64)
    })?;
    alice.cli(&["set", "--exit-node="])?;
    becomes("0")?;
    alice.cli(&["set", "--exit-node=gate"])?;
    becomes("1")?;
    alice.cli(&["down"])?;
    becomes("0")
}

/// Fails with the first lines that differ.
fn similar(before: &str, after: &str) -> Result<()> {
    let differs = |(left, right): &(&str, &str)| left != right;
    let pairs = before.lines().zip(after.lines());
    if let Some((left, right)) = pairs.into_iter().find(differs) {
        anyhow::bail!("{left:?} became {right:?}; whole:\n{after}");
    }
    ensure!(
        before == after,
        "longer or shorter:\n{before}\n---\n{after}"
    );
    Ok(())
}
