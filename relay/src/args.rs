//! Command line and configuration file: parsed once into [`Settings`].

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

#[derive(Debug, Parser)]
#[command(
    name = "tailrace-relay",
    version,
    about = "DERP and STUN server of a tailnet"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the relay.
    Serve(Serve),
}

/// Settings as given; a flag goes before the configuration file.
///
/// The file has the same names, with `_`: `stun_listen = "0.0.0.0:3478"`.
#[derive(Args, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serve {
    /// Where DERP listens (TCP, TLS).
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where STUN listens (UDP). Nodes expect port 3478.
    #[arg(long, value_name = "ADDR:PORT")]
    stun_listen: Option<SocketAddr>,
    /// Folder for the relay's key and its own certificate.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Certificate chain (PEM, leaf first). Default: a self-made one, for a DERP map to pin.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Name or address by which nodes reach the relay. Default: the address it listens on.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Ask this URL whether a node may connect, such as `http://control:8080/verify`. Without an
    /// answer nobody new comes in. Default: everybody may.
    #[arg(long, value_name = "URL")]
    verify_url: Option<String>,
    /// File with the key (64 hex digits) that the servers of a region share.
    #[arg(long, value_name = "FILE")]
    mesh_key_file: Option<PathBuf>,
    /// Where Prometheus finds /metrics (TCP, plain HTTP). Default: nowhere.
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// Configuration file (TOML; the names of these flags with `_`).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// Settings that make sense.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) stun_listen: SocketAddr,
    pub(crate) state_dir: PathBuf,
    pub(crate) cert_and_key: Option<(PathBuf, PathBuf)>,
    pub(crate) hostname: Option<String>,
    pub(crate) verify_url: Option<String>,
    pub(crate) mesh_key_file: Option<PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
}

impl Serve {
    /// Adds the configuration file and checks what is needed.
    pub(crate) fn settings(self) -> anyhow::Result<Settings> {
        let file = match &self.config {
            None => Self::default(),
            Some(path) => settings::read(path)?,
        };
        let cert_and_key = match (self.cert.or(file.cert), self.key.or(file.key)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("--cert and --key go together: give both or neither"),
        };
        let needed = |name| format!("{name} is missing: give it as a flag or in --config");
        Ok(Settings {
            listen: self
                .listen
                .or(file.listen)
                .with_context(|| needed("--listen ADDR:PORT"))?,
            stun_listen: self
                .stun_listen
                .or(file.stun_listen)
                .with_context(|| needed("--stun-listen ADDR:PORT"))?,
            state_dir: self
                .state_dir
                .or(file.state_dir)
                .with_context(|| needed("--state-dir DIR"))?,
            cert_and_key,
            hostname: self.hostname.or(file.hostname),
            verify_url: self.verify_url.or(file.verify_url),
            mesh_key_file: self.mesh_key_file.or(file.mesh_key_file),
            metrics: self.metrics.or(file.metrics),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(flags: &[&str]) -> anyhow::Result<Settings> {
        let Command::Serve(serve) =
            Cli::parse_from(["tailrace-relay", "serve"].iter().chain(flags)).command;
        serve.settings()
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        let text = "listen = '127.0.0.1:1'\nstun_listen = '127.0.0.1:2'\nstate_dir = '/x'\n";
        fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();

        let settings = parse(&["--config", file, "--listen", "127.0.0.1:9"]).unwrap();

        assert_eq!(settings.listen.port(), 9);
        assert_eq!(settings.stun_listen.port(), 2);
    }

    #[test]
    fn an_unknown_name_in_the_file_is_refused_with_a_suggestion() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        fs::write(&file, "lisen = '127.0.0.1:1'\n").unwrap();

        let error = parse(&["--config", file.to_str().unwrap()]).unwrap_err();

        assert!(
            format!("{error:#}").ends_with("did you mean \"listen\"?"),
            "{error:#}"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = parse(&["--listen", "127.0.0.1:1"]).unwrap_err().to_string();
        assert!(error.contains("--stun-listen"), "{error}");
        let rest = [
            "--stun-listen",
            "127.0.0.1:2",
            "--state-dir",
            "/x",
            "--cert",
            "c",
        ];
        let flags = [&["--listen", "127.0.0.1:1"][..], &rest].concat();
        let error = parse(&flags).unwrap_err().to_string();
        assert!(error.contains("--key"), "{error}");
    }

    #[test]
    fn the_documented_file_is_what_the_relay_reads() {
        let text = include_str!("../../docs/examples/tailrace-relay.toml");
        let serve: Serve = settings::parse(text).unwrap();
        assert_eq!(serve.settings().unwrap().stun_listen.port(), 3478);
    }
}
