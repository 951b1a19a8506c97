//! A coordination server under load: nodes that join and see each other, then single changes.
//!
//! Simulated nodes over TCP, Noise and HTTP/2 on loopback; each registers with an auth key, opens
//! its map stream and sends one lite update with endpoints. The server is another process: its cost
//! is its CPU time and resident memory, the nodes' own does not count, though all share the
//! machine.
//!
//! ```text
//! joined   every node knows every other one, however the server batches that
//! change   one node's endpoints change; over when all others have decoded it
//! ```
//!
//! A server that drops streams or loses messages is measured, too: a node whose stream ends opens
//! another, as clients do; what never arrives is counted, and times are of what did.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use control_proto::tailcfg::MapResponse;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::figures::{Kept, KeptFigures};
use crate::plot::{Bars, Group};
use agent::bench::process::{cpu_time, resident_kib};
use client::{Client, Identity, MapStream};

pub(crate) mod client;

/// Longest that the server may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(300);
/// When no node has learnt of its last peer for so long, the others never will.
const STALLED: Duration = Duration::from_secs(20);
/// What has not arrived so long after a change is lost.
const LOST: Duration = Duration::from_secs(5);

/// Settings of the bench.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Nodes that join.
    #[arg(long, default_value_t = 300)]
    nodes: usize,
    /// Joins under way at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    at_once: usize,
    /// Endpoint changes that are measured, one after the other.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// A server that runs already, as http://IP:PORT; needs --auth-key and --pid.
    #[arg(long, value_name = "URL", requires_all = ["auth_key", "pid"])]
    server_url: Option<String>,
    /// A reusable auth key of that server.
    #[arg(long, value_name = "KEY")]
    auth_key: Option<String>,
    /// Process id of that server.
    #[arg(long)]
    pid: Option<u32>,
    /// Our server's program. Default: beside this one.
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/control.svg")]
    plot: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    nodes: usize,
    nodes_that_know_all: usize,
    joined_seconds: f64,
    joins_per_second: f64,
    join_cpu_seconds: f64,
    resident_mib: f64,
    changes: usize,
    changes_lost: usize,
    propagation_p50_ms: f64,
    propagation_p99_ms: f64,
    propagation_max_ms: f64,
    cpu_per_change_ms: f64,
    streams_dropped: usize,
    /// What later runs are held against.
    figures: KeptFigures,
}

/// The server under test.
struct Target {
    address: SocketAddr,
    auth_key: String,
    pid: u32,
    /// Ours: ends with the bench.
    own: Option<(Child, tempfile::TempDir)>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (_, figures) = measured(args)?;
    draw(&figures, &args.plot)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    Ok(())
}

/// Starts the server and measures; what it had resident without nodes, in MiB, comes first.
fn measured(args: &Args) -> anyhow::Result<(f64, Figures)> {
    relay::net::raise_file_limit();
    let target = Target::start(args)?;
    let before = resident_kib(target.pid)? as f64 / 1024.0;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let figures = runtime.block_on(measure(args, &target))?;
    // The nodes go first: streams that end with the server are not dropped ones.
    runtime.shutdown_background();
    Ok((before, figures))
}

/// Resident MiB of our server, without nodes and with `nodes` that all see each other.
///
/// # Errors
///
/// When it does not run or refuses a node.
pub(crate) fn resident_mib(nodes: usize) -> anyhow::Result<[f64; 2]> {
    let args = Args {
        nodes,
        at_once: 16,
        changes: 0,
        server_url: None,
        auth_key: None,
        pid: None,
        control: None,
        plot: PathBuf::new(),
        json: true,
    };
    let (before, figures) = measured(&args)?;
    ensure!(
        figures.nodes_that_know_all == nodes,
        "only {} of {nodes} nodes know all others",
        figures.nodes_that_know_all
    );
    Ok([before, figures.resident_mib])
}

fn draw(figures: &Figures, path: &Path) -> anyhow::Result<()> {
    let bar = |name, value: f64, unit| (name, value, format!("{value:.1} {unit}"));
    let changes = vec![
        bar("median", figures.propagation_p50_ms, "ms"),
        bar("99th percentile", figures.propagation_p99_ms, "ms"),
        bar("most", figures.propagation_max_ms, "ms"),
        bar("CPU a change", figures.cpu_per_change_ms, "ms"),
    ];
    let joins = vec![
        bar("until all know all", figures.joined_seconds, "s"),
        bar("CPU for that", figures.join_cpu_seconds, "s"),
    ];
    let groups = [
        ("all nodes join", joins),
        ("one change, until all know", changes),
        ("resident", vec![bar("server", figures.resident_mib, "MiB")]),
    ];
    let groups = groups.map(|(name, bars)| Group { name, bars });
    Bars {
        title: &format!("A coordination server with {} nodes", figures.nodes),
        groups: groups.into(),
    }
    .write(path)
}

async fn measure(args: &Args, target: &Target) -> anyhow::Result<Figures> {
    let key = client::server_key(target.address).await?;
    let watcher = Arc::new(Watcher::new(args.nodes));
    let (arrivals_tx, mut arrivals) = mpsc::unbounded_channel();
    let places = Arc::new(Semaphore::new(args.at_once.max(1)));

    let cpu_start = cpu_time(target.pid)?;
    let start = Instant::now();
    let mut joining = Vec::with_capacity(args.nodes);
    for number in 0..args.nodes {
        let (watcher, places) = (Arc::clone(&watcher), Arc::clone(&places));
        let (auth_key, address) = (target.auth_key.clone(), target.address);
        let arrivals = arrivals_tx.clone();
        joining.push(tokio::spawn(async move {
            let _place = places.acquire().await?;
            let identity = Identity::new(&format!("node{number}"));
            let client = Client::connect(address, &key, &identity.machine).await?;
            let answer = client.register(&identity.register(Some(&auth_key))).await?;
            ensure!(
                answer.error.is_empty(),
                "registration refused: {}",
                answer.error
            );
            ensure!(answer.auth_url.is_empty(), "the auth key was not taken");
            let mut stream = client.map(&identity.stream()).await?;
            let first = stream.next().await?;
            let node = Arc::new((client, identity));
            let (seen, following) = (Arc::clone(&watcher), Arc::clone(&node));
            tokio::spawn(async move { seen.follow(&following, stream, first, arrivals).await });
            let (client, identity) = &*node;
            client
                .update(&identity.lite(vec![endpoint(number, 1)]))
                .await?;
            anyhow::Ok(node)
        }));
    }
    let mut nodes = Vec::with_capacity(args.nodes);
    for join in joining {
        nodes.push(join.await??);
    }
    let mut complete = watcher.complete.subscribe();
    let mut joined = start.elapsed();
    let mut nodes_that_know_all = *complete.borrow_and_update();
    while nodes_that_know_all < args.nodes {
        let Ok(progress) = tokio::time::timeout(STALLED, complete.changed()).await else {
            break;
        };
        progress?;
        joined = start.elapsed();
        nodes_that_know_all = *complete.borrow_and_update();
    }
    let join_cpu = cpu_time(target.pid)? - cpu_start;

    let mut samples: Vec<Duration> = Vec::new();
    let mut changes_lost = 0;
    // What trails the joins must not count as the first change's.
    settle(target.pid).await?;
    let cpu_start = cpu_time(target.pid)?;
    for change in 0..args.changes {
        let number = change % nodes.len();
        let (client, identity) = &*nodes[number];
        let marker = 10_000 + u64::try_from(change)?;
        watcher.marker.store(marker, Ordering::SeqCst);
        let sent = Instant::now();
        let port = u16::try_from(marker)?;
        client
            .update(&identity.lite(vec![endpoint(number, port)]))
            .await?;
        let deadline = tokio::time::Instant::now() + LOST;
        let mut missing = nodes.len() - 1;
        while missing > 0 {
            match tokio::time::timeout_at(deadline, arrivals.recv()).await {
                Ok(Some((seen, at))) if seen == marker => {
                    samples.push(at.saturating_duration_since(sent));
                    missing -= 1;
                }
                // Of an earlier change, given up already.
                Ok(Some(_)) => {}
                Ok(None) => bail!("all streams ended"),
                Err(_) => break,
            }
        }
        changes_lost += missing;
    }
    let change_cpu = cpu_time(target.pid)? - cpu_start;

    samples.sort_unstable();
    let percentile = |percent: usize| {
        let index = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
        samples
            .get(index)
            .copied()
            .unwrap_or_default()
            .as_secs_f64()
            * 1e3
    };
    let changes = u32::try_from(args.changes.max(1))?;
    let resident_mib = resident_kib(target.pid)? as f64 / 1024.0;
    let memory = Kept::Memory {
        value: resident_mib,
    };
    let name = format!("resident with {} nodes, MiB", args.nodes);
    Ok(Figures {
        nodes: args.nodes,
        nodes_that_know_all,
        joined_seconds: joined.as_secs_f64(),
        joins_per_second: args.nodes as f64 / joined.as_secs_f64(),
        join_cpu_seconds: join_cpu.as_secs_f64(),
        resident_mib,
        changes: args.changes,
        changes_lost,
        propagation_p50_ms: percentile(50),
        propagation_p99_ms: percentile(99),
        propagation_max_ms: percentile(100),
        cpu_per_change_ms: (change_cpu / changes).as_secs_f64() * 1e3,
        streams_dropped: watcher.dropped.load(Ordering::SeqCst),
        figures: [(name, memory)].into(),
    })
}

/// Waits until the server has used next to no CPU for half a second.
async fn settle(pid: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let before = cpu_time(pid)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if cpu_time(pid)? - before <= Duration::from_millis(10) {
            return Ok(());
        }
    }
    bail!("the server does not come to rest")
}

/// A node's endpoint: the port marks the change.
fn endpoint(number: usize, port: u16) -> SocketAddr {
    let [.., high, low] = number.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(198, 18, high, low), port))
}

/// Follows all streams.
struct Watcher {
    nodes: usize,
    /// Nodes that know all others.
    complete: watch::Sender<usize>,
    /// Port that marks the change under way.
    marker: AtomicU64,
    dropped: AtomicUsize,
}

impl Watcher {
    fn new(nodes: usize) -> Self {
        Self {
            nodes,
            complete: watch::Sender::new(0),
            marker: AtomicU64::new(0),
            dropped: AtomicUsize::new(0),
        }
    }

    async fn follow(
        &self,
        (client, identity): &(Client, Identity),
        mut stream: MapStream,
        first: MapResponse,
        arrivals: mpsc::UnboundedSender<(u64, Instant)>,
    ) {
        let mut known = HashSet::new();
        let mut complete = false;
        let mut reported = 0;
        let mut frame = first;
        loop {
            let marker = self.marker.load(Ordering::SeqCst);
            let all = frame.peers.value().filter(|peers| !peers.is_empty());
            if all.is_some() {
                known.clear();
            }
            for id in &frame.peers_removed {
                known.remove(id);
            }
            let peers = all.into_iter().flatten().chain(&frame.peers_changed);
            let whole = peers.inspect(|peer| {
                known.insert(peer.id);
            });
            let whole = whole.map(|peer| peer.endpoints.as_slice());
            let patched = frame.peers_changed_patch.iter();
            let patched = patched.filter_map(|patch| patch.endpoints.as_deref());
            let marked = whole
                .chain(patched)
                .flatten()
                .filter(|endpoint| u64::from(endpoint.port()) == marker)
                .count();
            if marked > 0 && reported != marker {
                reported = marker;
                // Nobody listens any more once the bench is over.
                let _ = arrivals.send((marker, Instant::now()));
            }
            if !complete && known.len() + 1 >= self.nodes {
                complete = true;
                self.complete.send_modify(|count| *count += 1);
            }
            frame = match stream.next().await {
                Ok(frame) => frame,
                Err(_) => {
                    self.dropped.fetch_add(1, Ordering::SeqCst);
                    known.clear();
                    let reopened = async {
                        stream = client.map(&identity.stream()).await?;
                        stream.next().await
                    };
                    match reopened.await {
                        Ok(frame) => frame,
                        // The connection is gone, too: the node counts as lost.
                        Err(_) => return,
                    }
                }
            };
        }
    }
}

impl Target {
    fn start(args: &Args) -> anyhow::Result<Self> {
        if let (Some(url), Some(auth_key), Some(pid)) = (&args.server_url, &args.auth_key, args.pid)
        {
            let address = url
                .strip_prefix("http://")
                .context("only http:// is measured")?;
            let address = address
                .trim_end_matches('/')
                .parse()
                .context("give IP:PORT")?;
            return Ok(Self {
                address,
                auth_key: auth_key.clone(),
                pid,
                own: None,
            });
        }
        let program = match &args.control {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("tailrace-control"),
        };
        let folder = tempfile::tempdir()?;
        let address = free_address()?;
        let listen = |address: SocketAddr| address.to_string();
        let server = Command::new(&program)
            .args(["serve", "--listen", &listen(address)])
            .args(["--server-url", &format!("http://{address}")])
            .args(["--derp-listen", &listen(free_address()?)])
            .args(["--stun-listen", &listen(free_address()?)])
            .arg("--state-dir")
            .arg(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot run {}: build it first (cargo build --release)",
                    program.display()
                )
            })?;
        let pid = server.id();
        let mut target = Self {
            address,
            auth_key: String::new(),
            pid,
            own: Some((server, folder)),
        };
        target.auth_key = target.issue_key(&program)?;
        Ok(target)
    }

    fn issue_key(&self, program: &Path) -> anyhow::Result<String> {
        let Some((_, folder)) = &self.own else {
            bail!("not our server")
        };
        let admin = |args: &[&str]| {
            let mut command = Command::new(program);
            command
                .arg("--state-dir")
                .arg(folder.path())
                .args(args)
                .stderr(Stdio::null())
                .output()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !admin(&["users", "create", "bench"])?.status.success() {
            ensure!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let key = admin(&["keys", "create", "--user", "bench", "--reusable"])?;
        ensure!(key.status.success(), "no auth key");
        Ok(String::from_utf8(key.stdout)?.trim().to_owned())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((server, _)) = &mut self.own {
            // It may have died by itself.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn print(figures: &Figures) {
    println!(
        "nodes that know all others  {} of {}",
        figures.nodes_that_know_all, figures.nodes
    );
    println!(
        "joined in                   {:.1} s ({:.0} /s)",
        figures.joined_seconds, figures.joins_per_second
    );
    println!(
        "server CPU for that         {:.2} s",
        figures.join_cpu_seconds
    );
    println!(
        "server memory (RSS)         {:.0} MiB",
        figures.resident_mib
    );
    println!(
        "endpoint change to {:>4}     p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({} changes)",
        figures.nodes.saturating_sub(1),
        figures.propagation_p50_ms,
        figures.propagation_p99_ms,
        figures.propagation_max_ms,
        figures.changes
    );
    println!(
        "server CPU per change       {:.2} ms",
        figures.cpu_per_change_ms
    );
    println!("changes not delivered       {}", figures.changes_lost);
    println!("map streams dropped         {}", figures.streams_dropped);
}
