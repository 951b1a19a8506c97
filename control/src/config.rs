//! Settings of `serve`: flag, else environment, else file, else default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where state is kept unless told otherwise; the command line looks for the server there, too.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/tailrace-control";
const DEFAULT_LISTEN: &str = "0.0.0.0:8080";
const DEFAULT_BASE_DOMAIN: &str = "tailnet.internal";
const DERP_PORT: u16 = 3340;
const STUN_PORT: u16 = 3478;

/// What was given for `serve`, on the command line and in the environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeFlags {
    /// Folder for the database, the keys and the admin socket: `--state-dir` of all commands.
    #[arg(skip)]
    pub state_dir: Option<PathBuf>,
    /// Where nodes connect [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR:PORT", env = "TAILRACE_CONTROL_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// URL under which nodes reach this server, such as https://control.example.com
    #[arg(long, value_name = "URL", env = "TAILRACE_CONTROL_SERVER_URL")]
    pub server_url: Option<String>,
    /// PEM file with the full certificate chain; plain HTTP without it
    #[arg(long, value_name = "FILE", env = "TAILRACE_CONTROL_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert
    #[arg(long, value_name = "FILE", env = "TAILRACE_CONTROL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Where the embedded relay listens (TCP, TLS) [default: the address of --listen, port 3340]
    #[arg(long, value_name = "ADDR:PORT", env = "TAILRACE_CONTROL_DERP_LISTEN")]
    pub derp_listen: Option<SocketAddr>,
    /// Where STUN listens (UDP) [default: the address of --listen, port 3478]
    #[arg(long, value_name = "ADDR:PORT", env = "TAILRACE_CONTROL_STUN_LISTEN")]
    pub stun_listen: Option<SocketAddr>,
    /// JSON file with a DERP map whose regions are added to the embedded one, or replace it
    #[arg(long, value_name = "FILE", env = "TAILRACE_CONTROL_DERP_MAP")]
    pub derp_map: Option<PathBuf>,
    /// Run no embedded relay and no STUN; needs --derp-map
    #[arg(long, env = "TAILRACE_CONTROL_NO_DERP")]
    pub no_derp: bool,
    /// Domain that nodes are named below; must not contain the host of --server-url
    /// [default: tailnet.internal]
    #[arg(long, value_name = "DOMAIN", env = "TAILRACE_CONTROL_BASE_DOMAIN")]
    pub base_domain: Option<String>,
    /// HuJSON file with the policy: read at start, on SIGHUP and when it changes; `policy set` is
    /// refused then
    #[arg(long, value_name = "FILE", env = "TAILRACE_CONTROL_POLICY")]
    pub policy: Option<PathBuf>,
    /// Life of node keys that belong to users, such as 90d [default: 180d]
    #[arg(long, value_name = "TIME", env = "TAILRACE_CONTROL_KEY_EXPIRY")]
    pub key_expiry: Option<String>,
    /// How long ephemeral nodes may be offline before they are removed [default: 30m]
    #[arg(long, value_name = "TIME", env = "TAILRACE_CONTROL_EPHEMERAL_TIMEOUT")]
    pub ephemeral_timeout: Option<String>,
    /// TOML file with any of these settings, named alike with _ for -
    #[arg(long, value_name = "FILE", env = "TAILRACE_CONTROL_CONFIG")]
    pub config: Option<PathBuf>,
}

/// The file of `--config`. Keys are those of the flags.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServeFile {
    state_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    server_url: Option<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    derp_listen: Option<SocketAddr>,
    stun_listen: Option<SocketAddr>,
    derp_map: Option<PathBuf>,
    no_derp: Option<bool>,
    base_domain: Option<String>,
    policy: Option<PathBuf>,
    key_expiry: Option<String>,
    ephemeral_timeout: Option<String>,
}

/// Settings of a server, checked.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Folder for the database, the keys and the admin socket.
    pub state_dir: PathBuf,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// Under which URL.
    pub server_url: ServerUrl,
    /// Certificate chain and key, if this process does TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where the embedded relay and STUN listen, unless there is none.
    pub derp: Option<DerpListen>,
    /// Regions of others.
    pub derp_map: Option<PathBuf>,
    /// Domain that nodes are named below.
    pub base_domain: String,
    /// Where the policy comes from, as an absolute path; `None`: administrators set it.
    pub policy: Option<PathBuf>,
    /// Life of node keys that belong to users.
    pub key_expiry: Option<Duration>,
    /// How long ephemeral nodes may be offline.
    pub ephemeral_timeout: Option<Duration>,
}

/// Where the embedded relay listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DerpListen {
    /// TCP, TLS.
    pub derp: SocketAddr,
    /// UDP.
    pub stun: SocketAddr,
}

/// The URL under which nodes reach the server: scheme, host, port, nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerUrl {
    /// As it was given, without a trailing slash.
    pub text: String,
    /// Is it https?
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
}

/// Settings that cannot be used; each says which and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be used.
    #[error(transparent)]
    File(#[from] settings::FileError),
    /// A setting is missing or makes no sense.
    #[error("{0}")]
    Setting(String),
}

impl ServeFlags {
    /// Completes the flags with the file and the defaults, and checks them.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn resolve(self) -> Result<ServeConfig, ConfigError> {
        let file = match &self.config {
            Some(path) => settings::read(path)?,
            None => ServeFile::default(),
        };
        let listen = self.listen.or(file.listen);
        let listen = listen.map_or_else(|| address(DEFAULT_LISTEN), Ok)?;
        let server_url = self.server_url.or(file.server_url).ok_or_else(|| {
            ConfigError::Setting(
                "--server-url is missing: give the URL under which nodes reach this server, such \
                 as --server-url http://192.0.2.1:8080"
                    .to_owned(),
            )
        })?;
        let server_url = ServerUrl::parse(&server_url)?;
        let tls = match (
            self.tls_cert.or(file.tls_cert),
            self.tls_key.or(file.tls_key),
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(setting("--tls-cert needs --tls-key")),
            (None, Some(_)) => return Err(setting("--tls-key needs --tls-cert")),
        };
        if tls.is_some() && !server_url.tls {
            return Err(ConfigError::Setting(format!(
                "--server-url {} is plain HTTP, but --tls-cert makes this server speak TLS: make \
                 it https://, or leave out --tls-cert",
                server_url.text
            )));
        }
        let derp_map = self.derp_map.or(file.derp_map);
        let no_derp = self.no_derp || file.no_derp.unwrap_or(false);
        if no_derp && derp_map.is_none() {
            return Err(setting(
                "--no-derp needs --derp-map: without any relay no node gets beyond starting",
            ));
        }
        let derp = (!no_derp).then(|| DerpListen {
            derp: self
                .derp_listen
                .or(file.derp_listen)
                .unwrap_or(SocketAddr::new(listen.ip(), DERP_PORT)),
            stun: self
                .stun_listen
                .or(file.stun_listen)
                .unwrap_or(SocketAddr::new(listen.ip(), STUN_PORT)),
        });
        let base_domain = self.base_domain.or(file.base_domain);
        let policy = self.policy.or(file.policy);
        let key_expiry = self.key_expiry.or(file.key_expiry);
        let ephemeral_timeout = self.ephemeral_timeout.or(file.ephemeral_timeout);
        // It is named to people who are elsewhere.
        let policy = policy.map(|path| std::path::absolute(&path).unwrap_or(path));
        Ok(ServeConfig {
            state_dir: self
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR)),
            listen,
            tls,
            derp,
            derp_map,
            policy,
            base_domain: check_domain(
                base_domain.as_deref().unwrap_or(DEFAULT_BASE_DOMAIN),
                &server_url,
            )?,
            server_url,
            key_expiry: duration("--key-expiry", key_expiry.as_deref())?,
            ephemeral_timeout: duration("--ephemeral-timeout", ephemeral_timeout.as_deref())?,
        })
    }
}

impl ServerUrl {
    /// Reads `scheme://host[:port]`.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let bad = |reason: &str| {
            ConfigError::Setting(format!(
                "--server-url {text} {reason}: give scheme, host and port only, such as \
                 https://control.example.com or http://192.0.2.1:8080"
            ))
        };
        let uri: http::Uri = text.parse().map_err(|_| bad("is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(bad("starts with neither https:// nor http://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("has no host"))?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(bad("has no usable host"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("has a path, which clients do not support"));
        }
        Ok(Self {
            text: text.trim_end_matches('/').to_owned(),
            tls,
            host: host.to_lowercase(),
        })
    }

    /// The host, if it is an address.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// Clients answer names below the base domain themselves: the server's must not be one.
fn check_domain(domain: &str, server: &ServerUrl) -> Result<String, ConfigError> {
    let domain = domain.trim_matches('.').to_lowercase();
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if !domain.contains('.') || domain.len() > 180 || !domain.split('.').all(is_label) {
        return Err(ConfigError::Setting(format!(
            "--base-domain {domain} is not a domain of two labels or more, such as \
             {DEFAULT_BASE_DOMAIN}"
        )));
    }
    if server.host == domain || server.host.ends_with(&format!(".{domain}")) {
        return Err(ConfigError::Setting(format!(
            "--base-domain {domain} contains the server's host {}, which nodes could then not \
             find: choose another, such as {DEFAULT_BASE_DOMAIN}",
            server.host
        )));
    }
    Ok(domain)
}

fn duration(name: &str, text: Option<&str>) -> Result<Option<Duration>, ConfigError> {
    let parsed = text.map(settings::parse_duration).transpose();
    parsed.map_err(|reason| ConfigError::Setting(format!("{name}: {reason}")))
}

fn address(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse()
        .map_err(|_| ConfigError::Setting(format!("{text} is not ADDR:PORT")))
}

fn setting(text: &str) -> ConfigError {
    ConfigError::Setting(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(url: &str) -> ServeFlags {
        ServeFlags {
            server_url: Some(url.to_owned()),
            ..ServeFlags::default()
        }
    }

    fn with_file(text: &str) -> Result<ServeConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.toml");
        std::fs::write(&path, text).unwrap();
        ServeFlags {
            config: Some(path),
            ..flags("http://192.0.2.1:8080")
        }
        .resolve()
    }

    #[test]
    fn the_relay_listens_beside_the_server_by_default() {
        let mut flags = flags("http://192.0.2.1:8080");
        flags.listen = Some("192.0.2.1:8080".parse().unwrap());
        let derp = flags.resolve().unwrap().derp.unwrap();
        assert_eq!(derp.derp, "192.0.2.1:3340".parse().unwrap());
        assert_eq!(derp.stun, "192.0.2.1:3478".parse().unwrap());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.toml");
        std::fs::write(
            &path,
            "server_url = 'http://a.example'\nlisten = '127.0.0.1:1'",
        )
        .unwrap();
        let config = ServeFlags {
            config: Some(path),
            ..flags("http://b.example")
        }
        .resolve()
        .unwrap();
        assert_eq!(config.server_url.host, "b.example");
        assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
    }

    #[test]
    fn an_unknown_setting_is_refused_with_a_suggestion() {
        let error = with_file("derp_listn = '1.2.3.4:5'")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"derp_listn\"") && error.contains("\"derp_listen\""),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
        let error = with_file("listen = 7").unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn server_urls_with_more_than_scheme_host_and_port_are_refused() {
        for bad in [
            "control.example.com",
            "ftp://a.example",
            "https://a.example/x",
            "https://",
        ] {
            let error = flags(bad).resolve().unwrap_err().to_string();
            assert!(error.contains("--server-url"), "{error}");
        }
        let url = ServerUrl::parse("https://[fd00::1]:8443/").unwrap();
        assert_eq!((url.host.as_str(), url.tls), ("fd00::1", true));
        assert_eq!(url.text, "https://[fd00::1]:8443");
    }

    #[test]
    fn a_base_domain_that_contains_the_server_is_refused() {
        let mut flags = flags("https://control.tail.example");
        flags.base_domain = Some("tail.example".to_owned());
        assert!(
            flags
                .resolve()
                .unwrap_err()
                .to_string()
                .contains("--base-domain")
        );
    }

    #[test]
    fn a_server_without_any_relay_is_refused() {
        let flags = ServeFlags {
            no_derp: true,
            ..flags("http://192.0.2.1")
        };
        assert!(
            flags
                .resolve()
                .unwrap_err()
                .to_string()
                .contains("--derp-map")
        );
    }

    #[test]
    fn the_documented_file_is_what_the_server_reads() {
        let config = with_file(include_str!("../../docs/examples/tailrace-control.toml"));
        // The flag of the fixture wins over the file: plain HTTP and a certificate do not agree.
        let problem = config.unwrap_err().to_string();
        assert!(
            problem.contains("--tls-cert makes this server speak TLS"),
            "{problem}"
        );
    }
}
