//! The dashboards and alerts of `docs/dashboards`, as Prometheus is asked for them, and traffic to show on them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use testnet::Namespace;

/// What rates are taken over in tests, where production has minutes.
const RANGE: &str = "20s";
/// The alert rules as they are in the repository.
const ALERTS: &str = include_str!("../../../docs/dashboards/alerts.yml");
/// The dashboards as they are in the repository.
const DASHBOARDS: [(&str, &str); 5] = [
    (
        "gateway",
        include_str!("../../../docs/dashboards/gateway.json"),
    ),
    ("peers", include_str!("../../../docs/dashboards/peers.json")),
    ("acl", include_str!("../../../docs/dashboards/acl.json")),
    (
        "control",
        include_str!("../../../docs/dashboards/control.json"),
    ),
    ("relay", include_str!("../../../docs/dashboards/relay.json")),
];

/// One query of one panel.
#[derive(Clone, Debug)]
pub struct Query {
    /// Dashboard and panel.
    pub panel: String,
    /// The expression, with Grafana's variables filled in.
    pub expression: String,
}

/// Every query of every panel of every dashboard.
///
/// # Errors
///
/// When a dashboard is not what Grafana takes.
pub fn queries() -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for (name, text) in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(text).context(name)?;
        let variables = dashboard
            .pointer("/templating/list")
            .and_then(Value::as_array);
        let variables = variables.context("no variables")?;
        let is_source = |variable: &Value| variable["type"] == "datasource";
        anyhow::ensure!(
            variables.iter().any(is_source),
            "{name}: no data source to choose"
        );
        for panel in dashboard["panels"].as_array().context("no panels")? {
            let title = panel["title"].as_str().context("no title")?;
            for target in panel["targets"].as_array().context("no queries")? {
                let expression = target["expr"].as_str().context("no expression")?;
                queries.push(Query {
                    panel: format!("{name}: {title}"),
                    expression: expression
                        .replace("$__rate_interval", RANGE)
                        .replace("$instance", ".*"),
                });
            }
        }
    }
    Ok(queries)
}

/// The alert rules with the durations of a test: what has to hold for minutes there, holds for a second here, and
/// rates are taken over seconds. Everything else is as in the repository.
#[must_use]
pub fn alerts_at_once() -> String {
    let lines = ALERTS.lines().map(|line| {
        if line.trim_start().starts_with("for: ") {
            return "    for: 1s".to_owned();
        }
        ["[5m]", "[15m]"]
            .iter()
            .fold(line.to_owned(), |line, range| {
                line.replace(range, &format!("[{RANGE}]"))
            })
    });
    lines.map(|line| line + "\n").collect()
}

/// Names of all alerts.
#[must_use]
pub fn alert_names() -> Vec<&'static str> {
    let lines = ALERTS.lines();
    lines
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect()
}

/// Every family that is documented: its name and kind.
#[must_use]
pub fn families() -> Vec<(&'static str, &'static str)> {
    let list = include_str!("../../../docs/metrics.txt");
    let families = list.lines().filter(|line| line.starts_with("tail"));
    families
        .filter_map(|line| {
            let (name, kind) = line.rsplit_once(' ')?;
            Some((name.split('{').next()?, kind))
        })
        .collect()
}

/// Sends datagrams until dropped.
#[derive(Debug)]
pub struct Datagrams {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    /// Sends `payload` from `space` to `address` so many times a second; whether anybody takes it does not matter.
    ///
    /// # Errors
    ///
    /// When no socket can be had.
    pub fn send(
        space: &Namespace,
        address: impl Into<SocketAddr>,
        a_second: u32,
        payload: Vec<u8>,
    ) -> Result<Datagrams> {
        let address = address.into();
        let any = SocketAddr::new(unspecified(address.ip()), 0);
        let socket = space.enter(|| UdpSocket::bind(any))??;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        // In lots, since a sleep takes some 100 microseconds more than it should.
        let lot = a_second.div_ceil(100);
        let pause = Duration::from_secs(1) * lot / a_second;
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for _ in 0..lot {
                    drop(socket.send_to(&payload, address));
                }
                std::thread::sleep(pause);
            }
        });
        Ok(Datagrams {
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
