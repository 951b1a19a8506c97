//! Settings of the daemon: flag > environment > file > default, parsed once into [`Config`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::net::{EngineChoice, ShieldMode};

/// Overlay device if none is named.
pub const DEFAULT_DEVICE: &str = "tailrace0";
/// UDP port of WireGuard if none is named.
pub const DEFAULT_PORT: u16 = 41641;
/// Folder of the local API's sockets.
const SOCKET_DIR: &str = "/run/tailrace";
/// Longest interface name that Linux takes (IFNAMSIZ - 1).
const MAX_DEVICE_LEN: usize = 15;

/// Settings as one source gives them; what is absent is left to the next source.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder for keys, preferences and the cached network map. No default.
    pub state_dir: Option<PathBuf>,
    /// Unix socket of the local API. Default `/run/tailrace/DEVICE.sock`.
    pub socket: Option<PathBuf>,
    /// Name of the overlay device. Default `tailrace0`.
    pub device: Option<String>,
    /// UDP port of WireGuard. Default 41641.
    pub port: Option<u16>,
    /// `auto`, `kernel` or `embedded`. Default `auto`.
    pub wireguard: Option<EngineName>,
    /// `off`, `tcx` or `native`. Default `tcx`.
    pub shield: Option<ShieldName>,
    /// Address of the Prometheus endpoint. Default: none.
    pub metrics: Option<SocketAddr>,
    /// `false`: peers are only reached through relays. Default `true`.
    pub direct: Option<bool>,
    /// `false`: the router is not asked to map a port to this node. Default `true`.
    pub port_mapping: Option<bool>,
    /// Addresses with ports at which peers can reach this node, beside those that it finds. Default: none.
    #[serde(alias = "endpoints")]
    pub endpoint: Option<Vec<SocketAddr>>,
}

/// [`EngineChoice`] as it is written in flags and files.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// The kernel's WireGuard if there is one, else the embedded tunnel.
    Auto,
    /// The kernel's WireGuard, or fail.
    Kernel,
    /// The tunnel inside the daemon.
    Embedded,
}

impl From<EngineName> for EngineChoice {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Auto => Self::Auto,
            EngineName::Kernel => Self::Kernel,
            EngineName::Embedded => Self::Embedded,
        }
    }
}

/// [`ShieldMode`] as it is written in flags and files.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ShieldName {
    /// No shield.
    Off,
    /// Behind the driver, beside others' programs: on every device.
    Tcx,
    /// In the driver (XDP), where it can and has no other such program.
    Native,
}

impl From<ShieldName> for ShieldMode {
    fn from(name: ShieldName) -> Self {
        match name {
            ShieldName::Off => Self::Off,
            ShieldName::Tcx => Self::Tcx,
            ShieldName::Native => Self::Native,
        }
    }
}

/// Everything the daemon needs to know before it starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Folder for keys, preferences and the cached network map.
    pub state_dir: PathBuf,
    /// Unix socket of the local API.
    pub socket: PathBuf,
    /// Name of the overlay device.
    pub device: String,
    /// UDP port of WireGuard.
    pub port: u16,
    /// Which WireGuard.
    pub engine: EngineChoice,
    /// Where floods of handshakes are held off.
    pub shield: ShieldMode,
    /// Address of the Prometheus endpoint, if wanted.
    pub metrics: Option<SocketAddr>,
    /// Direct paths are looked for.
    pub direct: bool,
    /// The router is asked for a port of its own that leads here.
    pub port_mapping: bool,
    /// Endpoints at which we can be reached, as the operator knows.
    pub endpoints: Vec<SocketAddr>,
}

/// Why the settings are not usable. The message names the source and the fix.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be used.
    #[error(transparent)]
    File(#[from] settings::FileError),
    /// No state folder was given.
    #[error("no state folder: name one with --state-dir DIR (for example /var/lib/tailrace)")]
    NoStateDir,
    /// The device name cannot be an interface.
    #[error(
        "{0:?} is not an interface name: use 1 to 15 letters, digits, '-', '_' or '.', e.g. tailrace0"
    )]
    Device(String),
}

impl Settings {
    /// Takes from `fallback` what is not set here.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        Self {
            state_dir: self.state_dir.or(fallback.state_dir),
            socket: self.socket.or(fallback.socket),
            device: self.device.or(fallback.device),
            port: self.port.or(fallback.port),
            wireguard: self.wireguard.or(fallback.wireguard),
            shield: self.shield.or(fallback.shield),
            metrics: self.metrics.or(fallback.metrics),
            direct: self.direct.or(fallback.direct),
            port_mapping: self.port_mapping.or(fallback.port_mapping),
            endpoint: self.endpoint.or(fallback.endpoint),
        }
    }

    /// Fills in the defaults and checks what can be checked without the system.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NoStateDir`] and [`ConfigError::Device`].
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let device = self.device.unwrap_or_else(|| DEFAULT_DEVICE.to_owned());
        if !is_interface_name(&device) {
            return Err(ConfigError::Device(device));
        }
        Ok(Config {
            state_dir: self.state_dir.ok_or(ConfigError::NoStateDir)?,
            socket: self.socket.unwrap_or_else(|| default_socket(&device)),
            port: self.port.unwrap_or(DEFAULT_PORT),
            engine: self.wireguard.unwrap_or(EngineName::Auto).into(),
            shield: self.shield.map_or_else(ShieldMode::default, Into::into),
            metrics: self.metrics,
            direct: self.direct.unwrap_or(true),
            port_mapping: self.port_mapping.unwrap_or(true),
            endpoints: self.endpoint.unwrap_or_default(),
            device,
        })
    }
}

/// Returns the local API's socket for an overlay device, so that two agents can share a host.
#[must_use]
pub fn default_socket(device: &str) -> PathBuf {
    Path::new(SOCKET_DIR).join(format!("{device}.sock"))
}

fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_DEVICE_LEN
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = Settings {
            port: Some(1),
            ..Settings::default()
        };
        let file =
            settings::parse::<Settings>("port = 2\nstate_dir = \"/s\"\nwireguard = \"kernel\"\n")
                .unwrap();
        let config = flags.or(file).into_config().unwrap();
        assert_eq!(config.port, 1);
        assert_eq!(config.engine, EngineChoice::Kernel);
        assert_eq!(config.state_dir, Path::new("/s"));
    }

    #[test]
    fn two_devices_have_two_sockets() {
        let config = |device: &str| {
            Settings {
                state_dir: Some("/s".into()),
                device: Some(device.to_owned()),
                ..Settings::default()
            }
            .into_config()
            .unwrap()
        };
        assert_eq!(
            config("tailrace0").socket,
            Path::new("/run/tailrace/tailrace0.sock")
        );
        assert_ne!(config("tailrace0").socket, config("tailrace1").socket);
    }

    #[test]
    fn a_device_name_that_linux_refuses_is_refused_here() {
        for name in ["", "sixteen-letters-", "a/b", "..", "a b"] {
            let settings = Settings {
                state_dir: Some("/s".into()),
                device: Some(name.to_owned()),
                ..Settings::default()
            };
            assert!(
                matches!(settings.into_config(), Err(ConfigError::Device(_))),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_missing_state_folder_is_named() {
        let error = Settings::default().into_config().unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn the_documented_file_is_what_the_daemon_reads() {
        let text = include_str!("../../docs/examples/tailrace.toml");
        let config = settings::parse::<Settings>(text)
            .unwrap()
            .into_config()
            .unwrap();
        assert_eq!(config.device, DEFAULT_DEVICE);
        assert_eq!(config.port, DEFAULT_PORT);
        assert!(config.metrics.is_some());
    }
}
