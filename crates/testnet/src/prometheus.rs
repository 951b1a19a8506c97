//! Debian's Prometheus beside a lab: it scrapes daemons in their namespaces and evaluates rules.
//!
//! It runs in the namespace of whoever starts it, so that a browser reaches it, and sees each target by way of a
//! forwarder: a port here, behind it a thread over there.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::firewalls::cache;
use crate::folder::Folder;
use crate::namespace::{Namespace, http_get};
use crate::process::Process;
use crate::wait::wait_until;

const START: Duration = Duration::from_secs(30);
/// How often it scrapes and evaluates.
const INTERVAL: &str = "1s";

/// Where the package is unpacked by `cargo xtask setup lab`: a tree with `usr`.
#[must_use]
pub fn prometheus_tree() -> Option<PathBuf> {
    cache().map(|cache| cache.join("prometheus"))
}

/// Something to scrape.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its label `job`.
    pub job: &'a str,
    /// Its label `instance`.
    pub instance: &'a str,
    /// Where it runs.
    pub space: &'a Namespace,
    /// Where its `/metrics` is, seen from there.
    pub address: SocketAddr,
}

/// A running Prometheus.
///
/// Fields drop in order: who asks before who answers.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
    #[expect(dead_code, reason = "forward until dropped")]
    forwarders: Vec<Forwarder>,
    #[expect(dead_code, reason = "holds its data until dropped")]
    folder: Folder,
}

impl Prometheus {
    /// Starts it with `rules`, the text of a rule file, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is not unpacked, refuses the rules, or is not ready in time.
    pub fn start(targets: &[Target<'_>], rules: &str) -> Result<Self> {
        let tree = prometheus_tree().context("no cache folder: set TAILRACE_CACHE or HOME")?;
        let folder = Folder::new("prometheus")?;
        let mut forwarders = Vec::new();
        let mut jobs = String::new();
        for target in targets {
            let forwarder = Forwarder::start(target)?;
            // JSON is YAML.
            jobs.push_str(&format!(
                "- job_name: {:?}\n  static_configs:\n  - targets: [\"{}\"]\n    labels: {}\n",
                format!("{}-{}", target.job, target.instance),
                forwarder.address,
                serde_json::json!({"job": target.job, "instance": target.instance}),
            ));
            forwarders.push(forwarder);
        }
        let config = format!(
            "global:\n  scrape_interval: {INTERVAL}\n  scrape_timeout: {INTERVAL}\n  \
             evaluation_interval: {INTERVAL}\nrule_files: [rules.yml]\nscrape_configs:\n{jobs}"
        );
        let at = |name: &str| folder.path().join(name);
        fs::write(at("rules.yml"), rules)?;
        fs::write(at("prometheus.yml"), config)?;
        let address = free_address()?;
        let mut command = Command::new(tree.join("usr/bin/prometheus"));
        command
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!(
                "--web.local-assets={}",
                tree.join("usr/share/prometheus/web").display()
            ))
            .arg("--log.level=warn");
        let process = Process::spawn("prometheus", command)?;
        let mut prometheus = Self {
            process,
            address,
            forwarders,
            folder,
        };
        prometheus.wait_ready()?;
        Ok(prometheus)
    }

    /// Where a browser finds it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The page that draws an expression over the time until now, second by second.
    ///
    /// It is one of the classic pages: Debian's Prometheus has no others.
    #[must_use]
    pub fn graph(&self, expression: &str, range: Duration) -> String {
        format!(
            "{}/classic/graph?g0.expr={}&g0.tab=0&g0.range_input={}s&g0.step_input=1",
            self.url(),
            encoded(expression),
            range.as_secs()
        )
    }

    /// Evaluates an expression now; returns the samples, each with `metric` and `value`.
    ///
    /// # Errors
    ///
    /// When Prometheus does not answer or refuses the expression.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/query?query={}", encoded(expression));
        let mut answer = self.get(&path)?;
        match answer.pointer_mut("/data/result").map(Value::take) {
            Some(Value::Array(samples)) => Ok(samples),
            _ => bail!("{expression}: no samples in {answer}"),
        }
    }

    /// The values of an expression's samples now.
    ///
    /// # Errors
    ///
    /// As [`query`](Self::query), or when a value is no number.
    pub fn values(&self, expression: &str) -> Result<Vec<f64>> {
        let samples = self.query(expression)?;
        let number = |sample: &Value| {
            let text = sample.pointer("/value/1").and_then(Value::as_str);
            text.context("a sample without value")?
                .parse()
                .with_context(|| format!("not a number: {sample}"))
        };
        samples.iter().map(number).collect()
    }

    /// Names of all families that it has seen.
    ///
    /// # Errors
    ///
    /// When Prometheus does not answer.
    pub fn names(&self) -> Result<Vec<String>> {
        let answer = self.get("/api/v1/label/__name__/values")?;
        let names = answer.get("data").and_then(Value::as_array);
        let names = names
            .with_context(|| format!("no names in {answer}"))?
            .iter();
        Ok(names
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect())
    }

    /// The state of an alert: `inactive`, `pending` or `firing`, whichever is furthest.
    ///
    /// # Errors
    ///
    /// When Prometheus does not answer or knows no such alert.
    pub fn alert(&self, name: &str) -> Result<String> {
        let answer = self.get("/api/v1/rules?type=alert")?;
        let groups = answer.pointer("/data/groups").and_then(Value::as_array);
        let rules = groups
            .into_iter()
            .flatten()
            .filter_map(|group| group["rules"].as_array());
        let rule = rules.flatten().find(|rule| rule["name"] == name);
        let rule = rule.with_context(|| format!("no alert {name}"))?;
        ensure!(
            rule["health"] == "ok" || rule["health"] == "unknown",
            "{rule}"
        );
        Ok(rule["state"].as_str().unwrap_or_default().to_owned())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = http_get(self.address, path)?;
        ensure!(status == 200, "{path} says {status}: {body}");
        serde_json::from_str(&body).with_context(|| format!("not JSON: {body}"))
    }

    fn wait_ready(&mut self) -> Result<()> {
        let (process, address) = (&mut self.process, self.address);
        wait_until(START, "Prometheus is ready", || {
            if let Some(status) = process.ended()? {
                bail!("it ended: {status}: {}", process.log().join("\n"));
            }
            let (status, body) = http_get(address, "/-/ready")?;
            ensure!(status == 200, "{status}: {body}");
            Ok(())
        })
    }
}

/// A port of this namespace that leads to a target in another.
#[derive(Debug)]
struct Forwarder {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    fn start(target: &Target<'_>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let (end, to) = (Arc::clone(&ended), target.address);
        let thread = target.space.enter_detached(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    // A thread is born into its parent's namespaces.
                    thread::spawn(move || carry(stream, to));
                }
            }
        })?;
        Ok(Self {
            address,
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread, to see that.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Carries bytes both ways until one side ends; a target that is not there ends it at once.
fn carry(from: TcpStream, to: SocketAddr) {
    let Ok(target) = TcpStream::connect(to) else {
        return;
    };
    let (Ok(mut from2), Ok(mut target2)) = (from.try_clone(), target.try_clone()) else {
        return;
    };
    let (mut from, mut target) = (from, target);
    let back = thread::spawn(move || {
        drop(io::copy(&mut target2, &mut from2));
        drop(from2.shutdown(Shutdown::Both));
    });
    drop(io::copy(&mut from, &mut target));
    drop(target.shutdown(Shutdown::Both));
    drop(back.join());
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// As it may stand in the query of a URL.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
