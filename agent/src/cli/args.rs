//! The command line: clap types, nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::routes::RouteArgs;
use crate::config::{EngineName, ShieldName};

/// A tailnet node whose data plane is the Linux kernel.
#[derive(Debug, Parser)]
#[command(name = "tailrace", version = crate::VERSION, disable_help_subcommand = true)]
pub struct Cli {
    /// Socket of the daemon [default: /run/tailrace/tailrace0.sock; the daemon's: /run/tailrace/DEVICE.sock]
    #[arg(long, global = true, value_name = "PATH", env = "TAILRACE_SOCKET")]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node's daemon (needs root).
    Daemon(DaemonArgs),
    /// Measure this host, beside a daemon or without one.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Ask a running daemon.
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands that ask a running daemon.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Join the tailnet, or come back to it; ends once the tunnel is up.
    Up(UpArgs),
    /// Change preferences; what is not named stays.
    #[command(arg_required_else_help = true)]
    Set(SetArgs),
    /// Take the tunnel down and leave no trace on this host; the node stays a member.
    Down,
    /// Take the tunnel down and give the membership up.
    Logout,
    /// Show this node and its peers.
    Status(JsonArgs),
    /// Watch live throughput of peers and routes, paths, latencies and drops.
    Top(TopArgs),
    /// Print overlay addresses.
    Ip(IpArgs),
    /// Ask whether and how a peer answers.
    Ping(PingArgs),
    /// Measure the relays, and how this host looks from there.
    Netcheck(JsonArgs),
    /// Look into a running daemon, and meddle with it.
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Print the version.
    Version(JsonArgs),
}

/// `bench`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure the kernel's WireGuard and the embedded tunnel, and say which serves which use (needs root).
    Host(HostArgs),
    /// One end of the tunnel that is measured.
    #[command(hide = true)]
    End,
    /// What is sent through it.
    #[command(hide = true)]
    Load(crate::bench::load::Args),
}

/// `bench host`
#[derive(Args, Clone, Copy, Debug)]
pub struct HostArgs {
    /// Seconds that packets flow in all, from 5 to 3600; setting up takes a few more.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub seconds: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `daemon`
#[derive(Args, Debug)]
pub struct DaemonArgs {
    /// Folder for keys, preferences and the cached network map.
    #[arg(long, value_name = "DIR", env = "TAILRACE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Name of the overlay device [default: tailrace0].
    #[arg(long, value_name = "NAME", env = "TAILRACE_DEVICE")]
    pub device: Option<String>,
    /// UDP port of WireGuard [default: 41641].
    #[arg(long, value_name = "N", env = "TAILRACE_PORT")]
    pub port: Option<u16>,
    /// Which WireGuard [default: auto].
    #[arg(long, value_name = "WHICH", env = "TAILRACE_WIREGUARD")]
    pub wireguard: Option<EngineName>,
    /// Where floods of WireGuard handshakes are held off [default: tcx].
    #[arg(long, value_name = "WHERE", env = "TAILRACE_SHIELD")]
    pub shield: Option<ShieldName>,
    /// Look for direct paths to peers; false: reach them through relays only.
    #[arg(long, env = "TAILRACE_DIRECT", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub direct: Option<bool>,
    /// Ask the router for a port that leads to this node, by NAT-PMP, PCP or UPnP; false: do not.
    #[arg(long, env = "TAILRACE_PORT_MAPPING", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub port_mapping: Option<bool>,
    /// Tell peers that this node can be reached at this address and port, beside those that it finds; may be
    /// given several times, or as a list with commas.
    #[arg(
        long,
        env = "TAILRACE_ENDPOINT",
        value_name = "ADDR:PORT",
        value_delimiter = ','
    )]
    pub endpoint: Vec<SocketAddr>,
    /// Serve Prometheus metrics on this address.
    #[arg(long, value_name = "ADDR:PORT", env = "TAILRACE_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// Configuration file; flags and environment win over it.
    #[arg(long, value_name = "FILE", env = "TAILRACE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// `up`
#[derive(Args, Debug)]
pub struct UpArgs {
    /// Coordination server, for example `https://control.example`; remembered.
    #[arg(long, value_name = "URL")]
    pub login_server: Option<String>,
    /// Key that joins without a person: the key itself, or file:PATH.
    #[arg(
        long,
        value_name = "VALUE|file:PATH",
        env = "TAILRACE_AUTH_KEY",
        hide_env_values = true
    )]
    pub auth_key: Option<Secret>,
    /// Name to ask for instead of the host's own.
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give up after this long in all; waiting for a person to approve does not count.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = settings::parse_duration)]
    pub timeout: Duration,
    /// Peers may answer this node but not initiate.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shields_up: Option<bool>,
    /// Log in again with a new node key; the present one works until the new one is authorised.
    #[arg(long)]
    pub force_reauth: bool,
    /// Subnet routes and exit nodes.
    #[command(flatten)]
    pub routes: RouteArgs,
}

/// `set`
#[derive(Args, Debug)]
pub struct SetArgs {
    /// Coordination server.
    #[arg(long, value_name = "URL")]
    pub login_server: Option<String>,
    /// Name to ask for; empty for the host's own.
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Peers may answer this node but not initiate.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shields_up: Option<bool>,
    /// User who may change this node without root; empty for none.
    #[arg(long, value_name = "USER")]
    pub operator: Option<String>,
    /// Which WireGuard carries the packets, from now on; default: the daemon's own setting.
    #[arg(long, value_name = "WHICH", value_parser = ["auto", "kernel", "embedded", "default"])]
    pub wireguard: Option<String>,
    /// Subnet routes and exit nodes.
    #[command(flatten)]
    pub routes: RouteArgs,
}

/// A reading command.
#[derive(Args, Clone, Copy, Debug)]
pub struct JsonArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `top`
#[derive(Args, Clone, Copy, Debug)]
pub struct TopArgs {
    /// Seconds between two samples, from 0.2 to 60.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = sample_interval)]
    pub interval: Duration,
    /// Print one sample as JSON, with the rates of one interval.
    #[arg(long)]
    pub json: bool,
}

/// Reads seconds between two samples: quicker ones would measure the measuring.
fn sample_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "give a number of seconds, as 1 or 0.5".to_owned())?;
    if !(0.2..=60.0).contains(&seconds) {
        return Err("give 0.2 to 60 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// `ip`
#[derive(Args, Debug)]
pub struct IpArgs {
    /// Only the IPv4 address.
    #[arg(short = '4', conflicts_with = "v6")]
    pub v4: bool,
    /// Only the IPv6 address.
    #[arg(short = '6')]
    pub v6: bool,
    /// Name, address or id of a peer; this node if absent.
    pub peer: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `ping`
#[derive(Args, Debug)]
pub struct PingArgs {
    /// Name, address or id of the peer.
    pub peer: String,
    /// How many pings at most.
    #[arg(short, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// End with the first pong that came straight from the peer [default: true]. Asked for by name, none at
    /// all is a failure.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub until_direct: Option<bool>,
    /// Length of each ping as a message of disco, in bytes: IP and UDP add 28 (IPv4) or 48 (IPv6). 0 and what is
    /// less than a ping takes stand for one without padding.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=8_000))]
    pub size: u16,
    /// Ask the peer's agent inside the tunnel instead of beside it.
    #[arg(long, group = "kind")]
    pub tsmp: bool,
    /// Send ordinary pings through the tunnel instead of asking the peer's agent.
    #[arg(long, group = "kind")]
    pub icmp: bool,
    /// Ask the peer's PeerAPI, by HTTP through the tunnel; nodes that run tailrace have none yet.
    #[arg(long, group = "kind")]
    pub peerapi: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub json: bool,
}

/// `debug`
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Show packets as the filter drops them, until Ctrl-C.
    Drops(JsonArgs),
    /// Send what is for a peer straight to an address, or by the relays again.
    Endpoint(EndpointArgs),
    /// Show the packet filter's rules and what each has admitted.
    Rules(JsonArgs),
}

/// `debug endpoint`
#[derive(Args, Debug)]
pub struct EndpointArgs {
    /// Name, address or id of the peer.
    pub peer: String,
    /// Where the peer's WireGuard listens, as ADDRESS:PORT or [ADDRESS]:PORT; none: by the relays.
    #[arg(value_name = "ADDRESS:PORT|none", value_parser = endpoint)]
    pub endpoint: String,
}

/// Checks an endpoint, or none, which goes to the daemon as it is.
fn endpoint(text: &str) -> Result<String, String> {
    if text != "none" && text.parse::<SocketAddr>().is_err() {
        return Err("give an address and a port, as 203.0.113.7:41641, or none".to_owned());
    }
    Ok(text.to_owned())
}

/// A secret given as a flag: it prints as nothing.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Returns the secret, read from its file if it was given as `file:PATH`.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, for people.
    pub fn reveal(&self) -> Result<String, String> {
        let Some(path) = self.0.strip_prefix("file:") else {
            return Ok(self.0.clone());
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the auth key from {path}: {error}"))?;
        match text.trim() {
            "" => Err(format!("{path} holds no auth key: it is empty")),
            key => Ok(key.to_owned()),
        }
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err("the auth key is empty".to_owned()),
            key => Ok(Self(key.to_owned())),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_parse() {
        for line in [
            "tailrace daemon --state-dir /s --socket /x.sock --device t1 --port 1 --wireguard embedded --shield off --metrics 127.0.0.1:9 --config /c",
            "tailrace --socket /x.sock up --login-server http://c --auth-key k --hostname n --timeout 60s --shields-up",
            "tailrace set --shields-up=false",
            "tailrace set --hostname n",
            "tailrace set --advertise-routes=10.0.0.0/8,fd00::/64 --advertise-exit-node",
            "tailrace set --advertise-routes= --exit-node= --netfilter-mode=off",
            "tailrace up --accept-routes --exit-node=100.64.0.2 --exit-node-allow-lan-access",
            "tailrace up --snat-subnet-routes=false --accept-routes=false --enable-ip-forward",
            "tailrace down",
            "tailrace logout",
            "tailrace status --json",
            "tailrace top",
            "tailrace top --interval 0.2 --json",
            "tailrace top --interval 60",
            "tailrace ip -4",
            "tailrace ip -6 peer --json",
            "tailrace ping peer -c 3 --icmp",
            "tailrace ping peer --tsmp",
            "tailrace ping peer --peerapi",
            "tailrace debug drops --json",
            "tailrace debug rules",
            "tailrace debug endpoint peer 203.0.113.7:41641",
            "tailrace debug endpoint peer [2001:db8::7]:41641",
            "tailrace debug endpoint 100.64.0.2 none",
            "tailrace version --json",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn a_command_without_its_necessities_is_refused() {
        for line in [
            "tailrace",
            "tailrace ping",
            "tailrace ping p -c 0",
            "tailrace set",
            "tailrace ip -4 -6",
            "tailrace top --interval 0.1",
            "tailrace top --interval 61",
            "tailrace top --interval nan",
            "tailrace top --interval soon",
            "tailrace debug",
            "tailrace debug endpoint peer",
            "tailrace debug endpoint peer 203.0.113.7",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn an_auth_key_comes_from_a_file_without_its_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret: Secret = format!("file:{}", file.path().display()).parse().unwrap();
        assert!(secret.reveal().unwrap_err().contains("empty"));
        std::fs::write(file.path(), "key-1\n").unwrap();
        assert_eq!(secret.reveal().unwrap(), "key-1");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
