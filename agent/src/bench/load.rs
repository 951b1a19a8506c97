//! Traffic through a tunnel: TCP in one or more streams, datagrams as fast as they go, and pings.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::icmp;

/// Where the other side listens, for both protocols.
const PORT: u16 = 5201;
/// A UDP port that nobody reads: once its buffer is full, the kernel counts there what arrives.
pub(super) const GAUGE: u16 = 5202;
const CHUNK: usize = 128 << 10;
/// How long a ping may take, and how long after one the next follows.
const PING_PATIENCE: Duration = Duration::from_millis(500);
const PING_EVERY: Duration = Duration::from_millis(10);

/// What to do in the network namespace this runs in.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Join the network namespace of this process first, and end with who started this one.
    #[arg(long = "in", value_name = "PID")]
    inside: Option<u32>,
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, clap::Subcommand)]
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
        /// Port there.
        #[arg(long, default_value_t = PORT)]
        port: u16,
        /// Bytes of the inner IP packet.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long.
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
    /// Pings, a hundred times a second, and prints the times, as JSON.
    Ping {
        /// Address.
        to: IpAddr,
        /// How long.
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
}

/// What was sent.
#[derive(Debug, Deserialize, Serialize)]
pub struct Sent {
    /// Payload bytes that the other side has read (TCP), or datagrams that left (UDP).
    pub amount: u64,
    /// In which time.
    pub seconds: f64,
}

impl Sent {
    /// Mbit/s of a stream.
    #[must_use]
    pub fn mbit(&self) -> f64 {
        self.amount as f64 * 8.0 / self.seconds / 1e6
    }
}

/// What pings took, in milliseconds; those without an answer are counted as lost.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Pinged {
    pub(super) times: Vec<f64>,
    pub(super) lost: u64,
}

/// Does one job.
///
/// # Errors
///
/// When a socket fails.
pub fn run(args: &Args) -> io::Result<()> {
    if let Some(pid) = args.inside {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let space = File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    let time = |seconds: &f64| Duration::from_secs_f64(*seconds);
    let said = match &args.job {
        Job::Serve => return serve(),
        Job::Tcp {
            to,
            streams,
            seconds,
        } => serde_json::to_string(&tcp(to, *streams, time(seconds))?),
        Job::Udp {
            to,
            port,
            size,
            seconds,
        } => serde_json::to_string(&udp((*to, *port).into(), *size, time(seconds))?),
        Job::Ping { to, seconds } => serde_json::to_string(&ping(*to, time(seconds))?),
    };
    println!("{}", said?);
    Ok(())
}

fn serve() -> io::Result<()> {
    // One socket for both families, where the host has both.
    let any = |port| match UdpSocket::bind(("::", port)) {
        Err(_) => UdpSocket::bind(("0.0.0.0", port)),
        bound => bound,
    };
    let listener =
        TcpListener::bind(("::", PORT)).or_else(|_| TcpListener::bind(("0.0.0.0", PORT)))?;
    let (datagrams, _gauge) = (any(PORT)?, any(GAUGE)?);
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

fn tcp(to: &[IpAddr], streams: usize, time: Duration) -> io::Result<Sent> {
    let open = |to: &IpAddr| {
        let address = SocketAddr::from((*to, PORT));
        let stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(10)).map_err(|error| {
                io::Error::new(error.kind(), format!("connecting to {address}: {error}"))
            })?;
        // What most hosts have, whatever this one has: others pace, and send small super-packets in many slow flows.
        rustix::net::sockopt::set_tcp_congestion(&stream, "cubic")?;
        io::Result::Ok(stream)
    };
    let connections = to.iter().cycle().take(streams).map(open);
    let connections = connections.collect::<io::Result<Vec<_>>>()?;
    let begin = Instant::now();
    let threads = connections.into_iter().map(|mut stream| {
        thread::spawn(move || -> io::Result<u64> {
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
        amount += thread
            .join()
            .map_err(|_| io::Error::other("a stream panicked"))??;
    }
    Ok(Sent {
        amount,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn udp(to: SocketAddr, size: usize, time: Duration) -> io::Result<Sent> {
    let (any, headers): (IpAddr, _) = if to.is_ipv4() {
        ([0; 4].into(), 28)
    } else {
        ([0u16; 8].into(), 48)
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    let payload = size.checked_sub(headers);
    let payload =
        payload.ok_or_else(|| io::Error::other("a packet without room for its headers"))?;
    let datagram = vec![0; payload];
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

fn ping(to: IpAddr, time: Duration) -> io::Result<Pinged> {
    let begin = Instant::now();
    let mut pinged = Pinged {
        times: Vec::new(),
        lost: 0,
    };
    while begin.elapsed() < time {
        let due = Instant::now() + PING_EVERY;
        match icmp::ping(to, 0, PING_PATIENCE)? {
            Some(took) => pinged.times.push(took.as_secs_f64() * 1e3),
            None => pinged.lost += 1,
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(pinged)
}
