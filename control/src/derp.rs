//! Relays: the embedded one, which admits only nodes of the tailnet, and the map of all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use control_proto::json;
use control_proto::tailcfg::DerpMap;
use relay::admission::Admission;
use relay::derp_map::Location;
use relay::net::BindError;
use relay::tls::Identity;
use relay::{Server, ServerConfig};
use tokio::net::{TcpListener, UdpSocket};

use crate::config::ServeConfig;
use crate::service::Control;

/// Relays that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DerpError {
    /// A port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A file of the state folder.
    #[error(transparent)]
    State(#[from] relay::files::FileError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] relay::tls::TlsError),
    /// The system says no.
    #[error("embedded relay: {0}")]
    Io(#[from] std::io::Error),
    /// The file of --derp-map is missing or unreadable.
    #[error("cannot read the DERP map {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file of --derp-map holds something else.
    #[error("{path} is not a DERP map: {reason}")]
    Map {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The embedded relay, bound and not yet serving.
pub struct Embedded {
    listener: TcpListener,
    stun: UdpSocket,
    identity: Identity,
    key: keys::NodePrivate,
    /// The relay as nodes are told.
    pub map: DerpMap,
}

impl Embedded {
    /// Takes the ports, and reads or makes key and certificate.
    ///
    /// # Errors
    ///
    /// See [`DerpError`].
    pub async fn bind(config: &ServeConfig) -> Result<Option<Self>, DerpError> {
        let Some(listen) = config.derp else {
            return Ok(None);
        };
        let host = config.server_url.host.clone();
        let key = relay::files::load_or_create_key(&config.state_dir)?;
        let identity = match &config.tls {
            Some((cert, key)) => Identity::load(cert, key)?,
            None => Identity::self_signed(&config.state_dir, &host)?,
        };
        let listener = relay::net::bind_tcp(listen.derp, "relay (TCP)", "--derp-listen").await?;
        let stun = relay::net::bind_udp(listen.stun, "STUN (UDP)", "--stun-listen").await?;
        let location = Location {
            host,
            derp_port: listener.local_addr()?.port(),
            stun_port: Some(stun.local_addr()?.port()),
            cert_name: identity.cert_name(),
        };
        let map = serde_json::from_value(location.derp_map())
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Some(Self {
            listener,
            stun,
            identity,
            key,
            map,
        }))
    }

    /// Serves nodes that `control` knows, and drops those that it removes.
    ///
    /// # Errors
    ///
    /// The certificate cannot be used.
    pub fn start(self, control: &Arc<Control>) -> Result<Server, DerpError> {
        let admitting = Arc::clone(control);
        let admission = Admission::Callback(Arc::new(move |key| admitting.admits(&key)));
        let server = Server::new(
            self.key,
            ServerConfig {
                admission,
                ..ServerConfig::default()
            },
        );
        let tls = self.identity.server_config(&server.public_key())?;

        let kicking = server.clone();
        control.on_key_gone(move |key| {
            kicking.kick(&key);
        });
        if let Err(error) = control.metrics().include(server.metrics().clone()) {
            tracing::warn!(%error, "the relay's metrics are not shown");
        }
        tokio::spawn(relay::http::listen(
            self.listener,
            Some(tls),
            server.clone(),
        ));
        let sweeping = server.clone();
        tokio::spawn(async move { sweeping.sweep_forever().await });
        let metrics = server.metrics().clone();
        tokio::spawn(async move {
            if let Err(error) = relay::stun::serve(self.stun, &metrics).await {
                tracing::error!(%error, "STUN ended: nodes no longer learn their addresses");
            }
        });
        Ok(server)
    }
}

/// The map that nodes get: the embedded relay, then the regions of `file`, which win.
///
/// # Errors
///
/// The file is unreadable, or clients would refuse what is in it.
pub fn merged_map(own: Option<DerpMap>, file: Option<&Path>) -> Result<DerpMap, DerpError> {
    let mut map = own.unwrap_or_default();
    let Some(path) = file else { return Ok(map) };
    let bad = |reason: String| DerpError::Map {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read(path).map_err(|source| DerpError::Read {
        path: path.to_owned(),
        source,
    })?;
    let others: DerpMap = json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    if others.home_params.is_some() {
        map.home_params = others.home_params;
    }
    let regions = map.regions.get_or_insert_default();
    for (id, region) in others.regions.unwrap_or_default() {
        // A null region takes the embedded one away.
        let Some(region) = region else {
            regions.remove(&id);
            continue;
        };
        if region.region_id != id {
            return Err(bad(format!(
                "region {id} says RegionID {}",
                region.region_id
            )));
        }
        if !region
            .nodes
            .iter()
            .any(|node| !node.stun_only && !node.host_name.is_empty())
        {
            return Err(bad(format!(
                "region {id} has no node with a HostName that relays"
            )));
        }
        regions.insert(id, Some(region));
    }
    if regions.is_empty() {
        return Err(bad(
            "there is no region in it, and no embedded relay".to_owned()
        ));
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> DerpMap {
        let location = Location {
            host: "192.0.2.1".into(),
            derp_port: 1,
            stun_port: None,
            cert_name: None,
        };
        serde_json::from_value(location.derp_map()).unwrap()
    }

    fn merge(text: &str) -> Result<DerpMap, DerpError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("derp.json");
        std::fs::write(&path, text).unwrap();
        merged_map(Some(own()), Some(&path))
    }

    #[test]
    fn regions_of_the_file_are_added_and_replace_the_embedded_one() {
        let map = merge(
            r#"{"Regions":{"901":{"RegionID":901,"Nodes":[{"Name":"a","HostName":"a.example"}]},"900":null}}"#,
        )
        .unwrap();
        assert_eq!(map.regions().map(|(id, _)| id).collect::<Vec<_>>(), [901]);
    }

    #[test]
    fn a_map_that_clients_would_refuse_is_refused_here() {
        for bad in [
            "[]",
            r#"{"Regions":{"900":null}}"#,
            r#"{"Regions":{"901":{"RegionID":902,"Nodes":[{"HostName":"a"}]}}}"#,
            r#"{"Regions":{"901":{"RegionID":901,"Nodes":[{"HostName":"a","STUNOnly":true}]}}}"#,
        ] {
            let error = merge(bad).unwrap_err().to_string();
            assert!(error.contains("derp.json"), "{error}");
        }
    }
}
