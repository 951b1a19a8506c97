//! Debian's wireguard-go as the tunnel, configured through its own socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testnet::{Process, wait_until};

use super::lab::{End, Lab, PORT};

const DEADLINE: Duration = Duration::from_secs(10);

/// The tunnel; it ends with this.
#[derive(Debug)]
pub(super) struct WireguardGo {
    _processes: Vec<Process>,
}

impl WireguardGo {
    /// Starts wireguard-go at both ends.
    ///
    /// # Errors
    ///
    /// When it is not installed or refuses its configuration.
    pub(super) fn open(lab: &Lab) -> Result<WireguardGo> {
        let mut processes = Vec::new();
        for (end, other) in lab.pairs() {
            let mut command = end.namespace.command("wireguard-go");
            command.args(["-f", end.device]).env("LOG_LEVEL", "error");
            processes.push(Process::spawn("wireguard-go", command)?);
            let socket = PathBuf::from(format!("/var/run/wireguard/{}.sock", end.device));
            let mut stream = wait_until(DEADLINE, "wireguard-go listens", || {
                Ok(UnixStream::connect(&socket)?)
            })?;
            stream.write_all(configuration(lab, end, other)?.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .context("no answer of wireguard-go")?;
            ensure!(
                answer.starts_with("errno=0"),
                "wireguard-go refused: {answer:?}"
            );
        }
        lab.open()?;
        Ok(WireguardGo {
            _processes: processes,
        })
    }
}

/// In WireGuard's cross-platform language (wireguard.com/xplatform).
fn configuration(lab: &Lab, end: &End, other: &End) -> Result<String> {
    let hex = |bytes: &[u8; 32]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    let mut text = format!(
        "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\nendpoint={}\n",
        hex(end.key().as_bytes()),
        hex(other.public().as_bytes()),
        other.endpoint()
    );
    for prefix in lab.prefixes(other)? {
        text.push_str(&format!("allowed_ip={prefix}\n"));
    }
    text.push('\n');
    Ok(text)
}
