//! Two ends with a tunnel between them, and what is sent through it.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use ipnet::IpNet;
use keys::NodePrivate;
use serde::de::DeserializeOwned;

use super::end::{Answer, Spec};
use super::load::{GAUGE, Pinged, Sent};
use super::{BenchError, name, process};
use crate::config::EngineName;

/// Port of WireGuard at both ends.
const PORT: u16 = 41641;
/// The far end's address in the tunnel.
const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Time within which a tunnel carries its first packet.
const PATIENCE: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_millis(200);

/// A tunnel between two namespaces. All of it goes with this value.
#[derive(Debug)]
pub(super) struct Lab {
    near: End,
    far: End,
    serving: Load,
}

/// One end, as long as its input is open.
#[derive(Debug)]
struct End {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// A load that is under way.
#[derive(Debug)]
struct Load(Child);

impl Lab {
    /// Starts both ends on `engine` and waits until packets pass.
    ///
    /// # Errors
    ///
    /// [`BenchError::NoWireGuard`] if the kernel cannot; when an end fails, or nothing passes.
    pub(super) fn start(engine: EngineName) -> Result<Self, BenchError> {
        let (mut near, mut far) = (End::start()?, End::start()?);
        let keys = [NodePrivate::generate(), NodePrivate::generate()];
        let [near_key, far_key] = &keys;
        let cables = [Ipv4Addr::new(10, 8, 0, 1), Ipv4Addr::new(10, 8, 0, 2)];
        let overlays = [Ipv4Addr::new(10, 9, 0, 1), FAR];
        let net = |address: Ipv4Addr, length| IpNet::new_assert(address.into(), length);
        near.tell(&Spec {
            engine,
            lay_to: Some(far.process.id()),
            cable: net(cables[0], 24),
            overlay: net(overlays[0], 24),
            key: hex::encode(near_key.as_bytes()),
            port: PORT,
            peer: far_key.public(),
            peer_endpoint: SocketAddr::from((cables[1], PORT)),
            peer_overlay: net(overlays[1], 32),
        })?;
        far.tell(&Spec {
            engine,
            lay_to: None,
            cable: net(cables[1], 24),
            overlay: net(overlays[1], 24),
            key: hex::encode(far_key.as_bytes()),
            port: PORT,
            peer: near_key.public(),
            peer_endpoint: SocketAddr::from((cables[0], PORT)),
            peer_overlay: net(overlays[0], 32),
        })?;
        let serving = far.load(&["serve"])?;
        let mut lab = Self { near, far, serving };
        lab.serving.expect("ready")?;
        let begin = Instant::now();
        while lab.pings(PING)?.is_empty() {
            if begin.elapsed() > PATIENCE {
                let engine = name(engine);
                return Err(BenchError::Silent { engine });
            }
        }
        Ok(lab)
    }

    /// Sends TCP in one stream.
    ///
    /// # Errors
    ///
    /// When it breaks off.
    pub(super) fn tcp(&self, time: Duration) -> Result<Sent, BenchError> {
        self.near.load(&tcp(time))?.finish()
    }

    /// Floods the tunnel with packets of `size` bytes; how many came out of it, in which time in seconds.
    ///
    /// # Errors
    ///
    /// When they cannot be sent or counted.
    pub(super) fn packets(&self, size: usize, time: Duration) -> Result<(u64, f64), BenchError> {
        let [far, port, size] = [FAR.to_string(), GAUGE.to_string(), size.to_string()];
        let flood = |seconds: &str| -> Result<Sent, BenchError> {
            let words = [
                "udp",
                &far,
                "--port",
                &port,
                "--size",
                &size,
                "--seconds",
                seconds,
            ];
            self.near.load(&words)?.finish()
        };
        // Fills what the socket holds before anything is counted.
        flood("0.2")?;
        let before = self.arrived()?;
        let sent = flood(&seconds(time))?;
        Ok((self.arrived()? - before, sent.seconds))
    }

    /// Pings through the tunnel; the times in milliseconds.
    ///
    /// # Errors
    ///
    /// When a ping cannot be sent.
    pub(super) fn pings(&self, time: Duration) -> Result<Vec<f64>, BenchError> {
        let (far, seconds) = (FAR.to_string(), seconds(time));
        let load = self.near.load(&["ping", &far, "--seconds", &seconds])?;
        Ok(load.finish::<Pinged>()?.times)
    }

    /// As [`Self::pings`], beside TCP in one stream.
    ///
    /// # Errors
    ///
    /// As there, and when TCP breaks off.
    pub(super) fn pings_under_load(&self, time: Duration) -> Result<Vec<f64>, BenchError> {
        let tcp = self.near.load(&tcp(time))?;
        let times = self.pings(time)?;
        tcp.finish::<Sent>()?;
        Ok(times)
    }

    /// Resident memory of both ends' processes.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub(super) fn resident_kib(&self) -> Result<[u64; 2], BenchError> {
        let resident = |end: &End| process::resident_kib(end.process.id());
        Ok([resident(&self.near)?, resident(&self.far)?])
    }

    /// Datagrams that reached the socket that nobody reads.
    fn arrived(&self) -> Result<u64, BenchError> {
        // Both families, since where the host has IPv6 the socket is one of both.
        let tables =
            ["udp6", "udp"].map(|table| format!("/proc/{}/net/{table}", self.far.process.id()));
        let port = format!(":{GAUGE:04X}");
        for table in tables {
            let text = fs::read_to_string(table).unwrap_or_default();
            let mut rows = text.lines().map(str::split_whitespace);
            let row = rows.find(|row| {
                row.clone()
                    .nth(1)
                    .is_some_and(|local| local.ends_with(&port))
            });
            if let Some(drops) = row.and_then(|row| row.last()?.parse().ok()) {
                return Ok(drops);
            }
        }
        Err(BenchError::Part {
            part: "the counter of packets",
            said: "its socket is gone".to_owned(),
        })
    }
}

/// The words of a load of TCP.
fn tcp(time: Duration) -> [String; 4] {
    let [job, flag] = ["tcp", "--seconds"].map(str::to_owned);
    [job, IpAddr::from(FAR).to_string(), flag, seconds(time)]
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// This program, to be run again for a part of the measurement.
fn again(words: &[&str]) -> Result<Command, BenchError> {
    let program = env::current_exe().map_err(|source| BenchError::System {
        operation: "finding this program",
        source,
    })?;
    let mut command = Command::new(program);
    command
        .arg("bench")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

fn start(mut command: Command) -> Result<Child, BenchError> {
    command.spawn().map_err(|source| BenchError::System {
        operation: "starting a part of the measurement",
        source,
    })
}

impl End {
    fn start() -> Result<Self, BenchError> {
        let mut process = start(again(&["end"])?)?;
        let input = process.stdin.take();
        let output = process.stdout.take();
        let output = output.ok_or(io::Error::from(io::ErrorKind::BrokenPipe))?;
        let mut end = Self {
            process,
            input,
            output: BufReader::new(output),
        };
        end.answer()?.check()?;
        Ok(end)
    }

    /// Gives it its part and waits until it is done.
    fn tell(&mut self, spec: &Spec) -> Result<(), BenchError> {
        let line = serde_json::to_string(spec).map_err(io::Error::from)?;
        if let Some(input) = &mut self.input {
            writeln!(input, "{line}")?;
        }
        self.answer()?.check()
    }

    fn answer(&mut self) -> Result<Answer, BenchError> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|_| BenchError::Part {
            part: "an end",
            said: if line.is_empty() {
                "it ended".to_owned()
            } else {
                line
            },
        })
    }

    /// Starts a load in its namespace.
    fn load<S: AsRef<str>>(&self, words: &[S]) -> Result<Load, BenchError> {
        let pid = self.process.id().to_string();
        let mut all = vec!["load", "--in", &pid];
        all.extend(words.iter().map(AsRef::as_ref));
        Ok(Load(start(again(&all)?)?))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        drop(self.input.take());
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Load {
    /// Waits for a line that it says.
    fn expect(&mut self, line: &str) -> Result<(), BenchError> {
        let mut said = String::new();
        if let Some(output) = &mut self.0.stdout {
            BufReader::new(output).read_line(&mut said)?;
        }
        match said.trim() == line {
            true => Ok(()),
            false => Err(self.failed(said)),
        }
    }

    /// Waits for its end and reads what it measured.
    fn finish<T: DeserializeOwned>(mut self) -> Result<T, BenchError> {
        let said = match self.0.stdout.take() {
            Some(output) => io::read_to_string(output)?,
            None => String::new(),
        };
        serde_json::from_str(&said).map_err(|_| self.failed(said))
    }

    fn failed(&mut self, mut said: String) -> BenchError {
        if let Some(errors) = self.0.stderr.take() {
            said.push_str(&io::read_to_string(errors).unwrap_or_default());
        }
        BenchError::Part {
            part: "a load",
            said: said.trim().to_owned(),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
