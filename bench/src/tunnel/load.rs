//! Traffic through a tunnel: TCP in one or more streams, and datagrams as fast as they go.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};
use testnet::{Namespace, Process};

/// Where the other side listens, for both protocols.
pub(crate) const PORT: u16 = 5201;
const CHUNK: usize = 128 << 10;

/// What to do in the namespace this runs in.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    job: Job,
}

#[derive(clap::Subcommand)]
enum Job {
    /// Takes what comes, until killed; says `ready` first.
    Serve,
    /// Sends TCP to one or more addresses and prints what arrived, as JSON.
    Tcp {
        /// Addresses; streams are dealt out to them in turn.
        #[arg(required = true)]
        to: Vec<IpAddr>,
        /// Connections in all.
        #[arg(long, default_value_t = 1)]
        streams: usize,
        /// How long.
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
    /// Sends datagrams and prints how many, as JSON.
    Udp {
        /// Address.
        to: IpAddr,
        /// Bytes of the inner IP packet.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long.
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
}

/// What was sent.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Sent {
    /// Payload bytes that the other side has read (TCP), or datagrams that left (UDP).
    pub(crate) amount: u64,
    /// In which time.
    pub(crate) seconds: f64,
}

impl Sent {
    /// Mbit/s.
    pub(crate) fn mbit(&self) -> f64 {
        self.amount as f64 * 8.0 / self.seconds / 1e6
    }
}

/// Takes what comes in a namespace, while this lives.
///
/// # Errors
///
/// When it does not listen.
pub(crate) fn serving(space: &Namespace) -> Result<Process> {
    let mut command = space.command(std::env::current_exe()?);
    command.args(["tunnel-load", "serve"]);
    let mut serving = Process::spawn("load", command)?;
    serving.wait_for_line("ready", Duration::from_secs(20))?;
    Ok(serving)
}

/// Sends from a namespace, as the words of [`Args`] say.
///
/// # Errors
///
/// When it fails.
pub(crate) fn send(space: &Namespace, words: &[&str]) -> Result<Sent> {
    let program = std::env::current_exe()?;
    let program = program.to_string_lossy().into_owned();
    let said = space.exec(&[&[program.as_str(), "tunnel-load"], words].concat())?;
    serde_json::from_str(said.trim()).with_context(|| said.clone())
}

/// Does one job.
///
/// # Errors
///
/// When a socket fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let sent = match &args.job {
        Job::Serve => return serve(),
        Job::Tcp {
            to,
            streams,
            seconds,
        } => tcp(to, *streams, Duration::from_secs_f64(*seconds))?,
        Job::Udp { to, size, seconds } => udp(*to, *size, Duration::from_secs_f64(*seconds))?,
    };
    println!("{}", serde_json::to_string(&sent)?);
    Ok(())
}

fn serve() -> Result<()> {
    let listener = TcpListener::bind(("::", PORT))?;
    let datagrams = UdpSocket::bind(("::", PORT))?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        // Who sends counts by the kernel's counters; an error is an ICMP answer to nothing of ours.
        loop {
            let _ = datagrams.recv(&mut buffer);
        }
    });
    println!("ready");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = take(stream) {
                eprintln!("a stream: {error}");
            }
        });
    }
    Ok(())
}

/// Reads to the end, then says how much it was.
fn take(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            len => total += len as u64,
        }
    }
    stream.write_all(&total.to_be_bytes())
}

fn tcp(to: &[IpAddr], streams: usize, time: Duration) -> Result<Sent> {
    let open = |(number, _)| {
        let address: SocketAddr = (to[number % to.len()], PORT).into();
        TcpStream::connect_timeout(&address, Duration::from_secs(10))
            .with_context(|| format!("connecting to {address}"))
    };
    let connections = std::iter::repeat_n((), streams).enumerate().map(open);
    let connections = connections.collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let threads = connections.into_iter().map(|mut stream| {
        thread::spawn(move || -> Result<u64> {
            let chunk = vec![0x5a; CHUNK];
            while begin.elapsed() < time {
                stream.write_all(&chunk)?;
            }
            stream.shutdown(Shutdown::Write)?;
            let mut total = [0; 8];
            stream.read_exact(&mut total)?;
            Ok(u64::from_be_bytes(total))
        })
    });
    let threads: Vec<_> = threads.collect();
    let mut amount = 0;
    for thread in threads {
        amount += thread.join().map_err(|_| anyhow!("a stream panicked"))??;
    }
    Ok(Sent {
        amount,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn udp(to: IpAddr, size: usize, time: Duration) -> Result<Sent> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((to, PORT))?;
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let datagram = vec![
        0;
        size.checked_sub(headers)
            .context("a packet without room for its headers")?
    ];
    let begin = Instant::now();
    let mut amount = 0;
    while begin.elapsed() < time {
        // A full queue refuses some; those have not left.
        for _ in 0..64 {
            amount += u64::from(socket.send(&datagram).is_ok());
        }
    }
    Ok(Sent {
        amount,
        seconds: begin.elapsed().as_secs_f64(),
    })
}
