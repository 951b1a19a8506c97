//! `policy`: what a big policy costs: compiled for everybody, kept up to date, explained.
//!
//! One thread, no server. A tailnet is made up from a fixed seed: users own laptops, tags own
//! servers, some of those route subnets; rules name groups, tags, hosts and prefixes. *Compiled*
//! means that every node's filter, peers and own view have been asked for; *added* means that one
//! node was put in and every node's filter, and the peers of the new one, have been asked for again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::bench::process::peak_rss_kib;
use anyhow::{Context as _, Result, ensure};
use policy::file::Context;
use policy::tailnet::{Attribute, Node, NodeId, Owner, Role, User, UserId};
use policy::{Network, Policy, check};
use serde_json::json;

/// Options of the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes of the tailnet.
    #[arg(long, default_value_t = 10_000)]
    nodes: u32,
    /// Users that own two thirds of them.
    #[arg(long, default_value_t = 500)]
    users: u32,
    /// Groups of the policy.
    #[arg(long, default_value_t = 200)]
    groups: u32,
    /// Rules: half `acls`, half `grants`.
    #[arg(long, default_value_t = 500)]
    rules: u32,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Write the policy file and the nodes (JSON lines) to this folder and measure nothing, for
    /// other programs to be measured with the same input.
    #[arg(long, value_name = "FOLDER")]
    write: Option<std::path::PathBuf>,
}

/// How often single changes and questions are repeated.
const ROUNDS: u32 = 50;
const TAGS: u32 = 40;
const DOMAIN: &str = "example.com";

/// Measures and prints a table, or JSON.
///
/// # Errors
///
/// If the made-up policy is refused, which would be a bug.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        args.users > 0 && args.groups > 0,
        "--users and --groups must be positive"
    );
    let text = file(args);
    if let Some(folder) = &args.write {
        return write(args, folder, &text);
    }
    let context = Context {
        domains: vec![DOMAIN.to_owned()],
        ..Context::default()
    };
    let (parsed, parse) = timed(|| Policy::parse("bench.hujson", &text, &context));
    let policy = Arc::new(parsed.map_err(|error| anyhow::anyhow!("{error}"))?.policy);

    let before = peak_rss_kib(std::process::id())?;
    let nodes: Vec<Node> = (0..args.nodes).map(|n| node(args, n)).collect();
    let ((mut network, filters), compile) = timed(|| {
        let network = Network::new(policy, (0..args.users).map(user), nodes);
        let filters = everything(&network, args.nodes);
        (network, filters)
    });
    let memory = peak_rss_kib(std::process::id())? - before;
    let (json_bytes, render) = timed(|| rendered(&filters));
    let rules: usize = filters.iter().map(|filter| filter.rules().len()).sum();
    drop(filters);

    let added = median((0..ROUNDS).map(|round| {
        let id = args.nodes + round;
        timed(|| {
            network.put_node(node(args, id));
            for viewer in 0..=id {
                black_box(network.filter(NodeId(i64::from(viewer) + 1)));
            }
            black_box(network.peers(NodeId(i64::from(id) + 1)));
        })
        .1
    }))?;
    let questions: Vec<(String, String)> = (0..ROUNDS)
        .map(|n| {
            (
                format!("node-{}", n * 97 % args.nodes),
                format!("node-{}:22", n * 61 % args.nodes),
            )
        })
        .collect();
    let mut allowed = 0;
    let mut why = Vec::new();
    for (from, to) in &questions {
        let (answer, took) = timed(|| check::why(&network, from, to));
        allowed += usize::from(answer?.allowed);
        why.push(took);
    }
    let why = median(why.into_iter())?;
    let mut why_user = Vec::new();
    for n in 0..ROUNDS {
        let (from, to) = (
            format!("u{}@{DOMAIN}", n * 97 % args.users),
            format!("tag:t{}:22", n % TAGS),
        );
        let (answer, took) = timed(|| check::why(&network, &from, &to));
        answer?;
        why_user.push(took);
    }
    let why_user = median(why_user.into_iter())?;
    let diff_rule = compared(&network, args, &context)?;
    let mut open = network.clone();
    open.set_policy(Arc::new(Policy::allow_all()));
    let diff_all = timed(|| black_box(check::diff(&open, &network))).1;

    let figures = [
        ("parse_ms", millis(parse), "file parsed, ms"),
        ("compile_ms", millis(compile), "compiled for all nodes, ms"),
        (
            "memory_mib",
            f64::from(u32::try_from(memory)?) / 1024.0,
            "memory for that, MiB",
        ),
        ("render_ms", millis(render), "all filters as JSON, ms"),
        ("added_ms", millis(added), "one node added, ms (median)"),
        ("why_ms", millis(why), "why A may reach B, ms (median)"),
        (
            "why_user_ms",
            millis(why_user),
            "why a user may reach a tag, ms (median)",
        ),
        (
            "diff_rule_ms",
            millis(diff_rule),
            "diff: one rule added, ms (median)",
        ),
        (
            "diff_all_ms",
            millis(diff_all),
            "diff: from no policy to this, ms",
        ),
    ];
    if args.json {
        let mut out = json!({
            "nodes": args.nodes, "users": args.users, "groups": args.groups, "rules": args.rules,
            "filter_rules": rules, "json_bytes": json_bytes,
        });
        for (name, value, _) in figures {
            out[name] = json!(value);
        }
        println!("{out}");
    } else {
        println!(
            "{} nodes, {} users, {} groups, {} rules; filters hold {rules} rules, {} MiB of JSON; \
             {allowed} of {ROUNDS} questions answered with yes",
            args.nodes,
            args.users,
            args.groups,
            args.rules,
            json_bytes >> 20,
        );
        for (_, value, label) in figures {
            println!("{label:<34} {value:>10.3}");
        }
    }
    Ok(())
}

/// What it takes to say what one more rule changes.
fn compared(before: &Network, args: &Args, context: &Context) -> Result<Duration> {
    let rule = r#"{"src": ["group:g1"], "dst": ["tag:t1"], "ip": ["tcp:7"]},"#;
    let text = file(args).replace("\"grants\": [", &format!("\"grants\": [{rule}"));
    let parsed = Policy::parse("bench.hujson", &text, context);
    let policy = parsed.map_err(|error| anyhow::anyhow!("{error}"))?.policy;
    let mut after = before.clone();
    after.set_policy(Arc::new(policy));
    let mut times = Vec::new();
    for _ in 0..5 {
        let (difference, took) = timed(|| check::diff(before, &after));
        ensure!(
            difference.lost.is_empty(),
            "one more rule takes no access away"
        );
        times.push(took);
    }
    median(times.into_iter())
}

/// Asks for all that a server needs to serve every node its first map.
fn everything(network: &Network, nodes: u32) -> Vec<Arc<policy::compile::Filter>> {
    let ids = || (1..=i64::from(nodes)).map(NodeId);
    for id in ids() {
        black_box(network.peers(id));
        black_box(network.own_view(id));
    }
    ids().map(|id| network.filter(id)).collect()
}

/// Bytes of JSON of all filters.
fn rendered(filters: &[Arc<policy::compile::Filter>]) -> usize {
    let mut out = Vec::new();
    let mut bytes = 0;
    for filter in filters {
        out.clear();
        filter.write_json(&mut out);
        bytes += out.len();
    }
    bytes
}

/// The policy: as an administrator of a big company might have grown it.
fn file(args: &Args) -> String {
    let mut text = String::from("{\n  // Made up by the bench.\n  \"groups\": {\n");
    for group in 0..args.groups {
        let members =
            (0..6).map(|n| format!("\"u{}@{DOMAIN}\"", (group * 7 + n * 31) % args.users));
        let members: BTreeSet<String> = members.collect();
        let members = Vec::from_iter(members).join(", ");
        writeln!(text, "    \"group:g{group}\": [{members}],").ok();
    }
    text.push_str("  },\n  \"hosts\": {\n");
    for host in 0..50 {
        writeln!(text, "    \"host{host}\": \"10.{host}.0.0/16\",").ok();
    }
    text.push_str("  },\n  \"tagOwners\": {\n");
    for tag in 0..TAGS {
        writeln!(
            text,
            "    \"tag:t{tag}\": [\"group:g{}\"],",
            tag % args.groups
        )
        .ok();
    }
    let (acls, grants) = (args.rules / 2, args.rules - args.rules / 2);
    text.push_str("  },\n  \"acls\": [\n");
    for rule in 0..acls {
        let from = format!("group:g{}", rule % args.groups);
        let to = match rule % 5 {
            0 => format!("tag:t{}:22,443", rule % TAGS),
            1 => format!("host{}:*", rule % 50),
            2 => format!("10.{}.{}.0/24:5432", rule % 50, rule % 200),
            3 => format!("u{}@{DOMAIN}:8000-8999", rule * 3 % args.users),
            _ => format!("tag:t{}:*", rule * 7 % TAGS),
        };
        writeln!(
            text,
            "    {{\"action\": \"accept\", \"src\": [\"{from}\", \"tag:t{}\"], \"dst\": [\"{to}\"]}},",
            rule * 11 % TAGS
        )
        .ok();
    }
    text.push_str("  ],\n  \"grants\": [\n");
    for rule in 0..grants {
        let (from, to) = match rule % 50 {
            0 => ("autogroup:member".to_owned(), "autogroup:self".to_owned()),
            1 => (
                "autogroup:member".to_owned(),
                format!("tag:t{}", rule % TAGS),
            ),
            _ => (
                format!("group:g{}", rule * 13 % args.groups),
                format!("tag:t{}", rule * 5 % TAGS),
            ),
        };
        writeln!(
            text,
            "    {{\"src\": [\"{from}\"], \"dst\": [\"{to}\"], \"ip\": [\"tcp:{}\", \"udp:53\"]}},",
            1000 + rule
        )
        .ok();
    }
    text.push_str("  ],\n}\n");
    text
}

fn user(number: u32) -> User {
    User {
        id: UserId(i64::from(number) + 1),
        login: format!("u{number}@{DOMAIN}"),
        role: if number == 0 {
            Role::Owner
        } else {
            Role::Member
        },
        groups: BTreeSet::new(),
    }
}

/// Two thirds are users' laptops, one third tagged servers, of which every thirtieth is a router.
fn node(args: &Args, number: u32) -> Node {
    let base = u32::from(Ipv4Addr::new(100, 64, 0, 0)) + 256;
    let owner = if number % 3 == 2 {
        Owner::Tags([format!("tag:t{}", number / 3 % TAGS)].into())
    } else {
        Owner::User(UserId(i64::from(number % args.users) + 1))
    };
    let routes = (number % 30 == 2)
        .then(|| Ipv4Addr::new(10, (number / 30 % 50) as u8, (number / 1500) as u8, 0))
        .and_then(|network| ipnet::Ipv4Net::new(network, 24).ok())
        .map(Into::into);
    Node {
        id: NodeId(i64::from(number) + 1),
        name: format!("node-{number}"),
        owner,
        v4: (base + number).into(),
        v6: Ipv6Addr::from(0xfd7a_115c_a1e0_u128 << 80 | u128::from(base + number)),
        routes: routes.into_iter().collect(),
        exit: number % 1000 == 5,
        online: true,
        attributes: BTreeMap::from([("node:os".to_owned(), Attribute::Text("linux".to_owned()))]),
    }
}

/// Writes what the bench would measure.
fn write(args: &Args, folder: &std::path::Path, text: &str) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    std::fs::write(folder.join("policy.hujson"), text)?;
    let lines: String = (0..args.nodes)
        .map(|number| {
            let node = node(args, number);
            let (user, tags) = match &node.owner {
                Owner::User(id) => (Some(id.0), Vec::new()),
                Owner::Tags(tags) => (None, tags.iter().cloned().collect()),
            };
            let routes: Vec<String> = node.routes.iter().map(ToString::to_string).collect();
            let line = json!({
                "id": node.id.0, "name": node.name, "user": user, "tags": tags,
                "v4": node.v4, "v6": node.v6, "routes": routes, "exit": node.exit,
            });
            format!("{line}\n")
        })
        .collect();
    std::fs::write(folder.join("nodes.jsonl"), lines)?;
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed())
}

fn median(times: impl Iterator<Item = Duration>) -> Result<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times
        .get(times.len() / 2)
        .copied()
        .context("nothing was measured")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
