//! Port mapping by UPnP: the calls to a router, one after the other, over marked sockets.
//!
//! The library for it (igd-next) opens sockets of its own, which an exit node in use would swallow, and fetches
//! whatever address a device names.

mod choice;
mod igd;
mod running;
mod ssdp;
mod web;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio::time::timeout;

pub(super) use igd::Service;
pub(super) use running::Running;
pub(super) use ssdp::{Found, GROUP, Location, MAX_LEN, PORT, parse, searches};

use igd::{Reply, Values};
use web::{Http, Web};

/// Name of our mappings in the router's list.
const DESCRIPTION: &str = "tailrace-portmap";
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for an order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);
/// Ports that are tried where the wished one is taken.
const RANDOM_PORTS: usize = 3;
/// No system's own.
const FIRST_PORT: u16 = 1024;

// UPnP's error codes (WANIPConnection:2 §2.5).
const INVALID_ARGUMENTS: u16 = 402;
const CONFLICT: u16 = 718;
const ONLY_PERMANENT: u16 = 725;
const OTHER_CONFLICT: u16 = 729;

/// What a router is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Order {
    /// Map a UDP port to us.
    Map(Map),
    /// Map it no longer.
    Unmap(Lease),
}

/// What is to be mapped, and who is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Map {
    /// The service that mapped before is asked first.
    pub(super) held: Option<Service>,
    /// Their services are asked then, best first.
    pub(super) devices: Vec<Location>,
    /// Our address.
    pub(super) own: Ipv4Addr,
    /// Our port.
    pub(super) internal: u16,
    /// The router's port that we would like.
    pub(super) external: u16,
    pub(super) lifetime: Duration,
}

/// A port that a service maps, or may map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Lease {
    pub(super) service: Service,
    /// The router's port.
    pub(super) external: u16,
}

/// A mapping that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mapped {
    pub(super) service: Service,
    pub(super) external: SocketAddrV4,
    /// `None`: it has no end.
    pub(super) lifetime: Option<Duration>,
}

impl Mapped {
    /// What has to be given back.
    pub(super) fn lease(&self) -> Lease {
        Lease {
            service: self.service.clone(),
            external: self.external.port(),
        }
    }
}

/// Why a router did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpnpError {
    /// The connection failed.
    #[error("the router's UPnP service cannot be reached")]
    Unreachable(#[source] std::io::Error),
    /// HTTP failed.
    #[error("the router's UPnP service breaks off")]
    Http(#[source] hyper::Error),
    /// What was to be sent is not HTTP: a path with strange letters.
    #[error("the router names a path that cannot be asked for")]
    Request(#[source] http::Error),
    /// It was silent.
    #[error("the router's UPnP service does not answer")]
    Silent,
    /// No document, too long a one, or not the one asked for.
    #[error("the router's UPnP service answers {0}")]
    Senseless(&'static str),
    /// UPnP's error code.
    #[error("the router refuses with UPnP error {0}")]
    Fault(u16),
    /// It has no service that maps ports.
    #[error("the router offers no UPnP service that maps ports")]
    NoService,
}

/// Carries out [`Order::Map`]. `begun` is told what is being asked for: it may be mapped should this be ended.
async fn map(
    http: &impl Http,
    map: &Map,
    begun: &watch::Sender<Vec<Lease>>,
) -> Result<Mapped, UpnpError> {
    let mapping = async {
        let caller = Caller { http };
        // The first problem is the one of whom we expect most.
        let mut problem = None;
        if let Some(service) = &map.held {
            match caller.map(map, service, None, begun).await {
                Ok(mapped) => return Ok(mapped),
                Err(error) => problem = Some(error),
            }
        }
        let mut services = Vec::new();
        for device in &map.devices {
            match caller.describe(device).await {
                Ok(found) => {
                    for service in found {
                        if !services.contains(&service) && map.held.as_ref() != Some(&service) {
                            services.push(service);
                        }
                    }
                }
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        for (service, address) in choice::order(&caller, services).await {
            match caller.map(map, &service, address, begun).await {
                Ok(mapped) => return Ok(mapped),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or(UpnpError::NoService))
    };
    let ended = timeout(ORDER_TIMEOUT, mapping).await;
    ended.unwrap_or(Err(UpnpError::Silent))
}

/// Carries out [`Order::Unmap`].
pub(super) async fn unmap(lease: &Lease) -> Result<(), UpnpError> {
    Caller { http: &Web }.unmap(lease).await
}

/// Calls services.
struct Caller<'a, H> {
    http: &'a H,
}

impl<H: Http> Caller<'_, H> {
    /// Has `service` map; its address is asked for unless it is known.
    async fn map(
        &self,
        map: &Map,
        service: &Service,
        address: Option<Ipv4Addr>,
        begun: &watch::Sender<Vec<Lease>>,
    ) -> Result<Mapped, UpnpError> {
        let address = match address {
            Some(address) => address,
            None => self.external_address(service).await?,
        };
        let wanted = Wanted {
            caller: self,
            map,
            service,
            begun,
        };
        let (port, lifetime) = wanted.add().await?;
        Ok(Mapped {
            service: service.clone(),
            external: SocketAddrV4::new(address, port),
            lifetime: Some(lifetime).filter(|lifetime| !lifetime.is_zero()),
        })
    }

    async fn unmap(&self, lease: &Lease) -> Result<(), UpnpError> {
        let port = lease.external.to_string();
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", port.as_str()),
            ("NewProtocol", "UDP"),
        ];
        let reply = self.call(&lease.service, "DeletePortMapping", &arguments);
        done(reply.await?).map(drop)
    }

    async fn describe(&self, device: &Location) -> Result<Vec<Service>, UpnpError> {
        let text = within(self.http.get(device)).await?;
        let services = igd::services(&text, device);
        services.map_err(|_| UpnpError::Senseless("with no description"))
    }

    async fn is_connected(&self, service: &Service) -> bool {
        match self.call(service, "GetStatusInfo", &[]).await {
            Ok(Reply::Done(values)) => {
                // The one is UPnP's word, the other that of some routers.
                matches!(
                    field(&values, "NewConnectionStatus"),
                    Some("Connected" | "Up")
                )
            }
            Ok(Reply::Fault(_)) | Err(_) => false,
        }
    }

    async fn external_address(&self, service: &Service) -> Result<Ipv4Addr, UpnpError> {
        let values = done(self.call(service, "GetExternalIPAddress", &[]).await?)?;
        let address = field(&values, "NewExternalIPAddress").and_then(|text| text.parse().ok());
        address
            .filter(|address| super::is_external(*address))
            .ok_or(UpnpError::Senseless("with no address"))
    }

    async fn call(
        &self,
        service: &Service,
        action: &str,
        arguments: &[(&str, &str)],
    ) -> Result<Reply, UpnpError> {
        let body = igd::call(service, action, arguments);
        let name = format!("\"{}#{action}\"", service.kind);
        let text = within(self.http.post(&service.control, &name, body)).await?;
        let reply = igd::reply(&text, action);
        reply.map_err(|_| UpnpError::Senseless("with no answer to the call"))
    }
}

/// What a service is to map.
struct Wanted<'a, H> {
    caller: &'a Caller<'a, H>,
    map: &'a Map,
    service: &'a Service,
    begun: &'a watch::Sender<Vec<Lease>>,
}

impl<H: Http> Wanted<'_, H> {
    /// Asks for the mapping; returns the router's port, and the time it lasts: zero if for ever.
    async fn add(&self) -> Result<(u16, Duration), UpnpError> {
        let random = || rand::rng().random_range(FIRST_PORT..u16::MAX);
        let (wish, mut lifetime) = (self.map.external, self.map.lifetime);
        // Some map none of a system's own ports, and 0 is all ports.
        let wish = if wish < FIRST_PORT { random() } else { wish };
        if self.service.chooses()
            && let (Reply::Done(values), lasts) =
                self.add_for("AddAnyPortMapping", wish, lifetime).await?
        {
            let port = field(&values, "NewReservedPort").and_then(|text| text.parse().ok());
            let port = port.ok_or(UpnpError::Senseless("with no port"))?;
            return Ok((port, lasts));
        }
        let others = std::iter::repeat_with(random).take(RANDOM_PORTS);
        let mut fault = CONFLICT;
        for port in std::iter::once(wish).chain(others) {
            let (reply, lasts) = self.add_for("AddPortMapping", port, lifetime).await?;
            lifetime = lasts;
            match reply {
                Reply::Done(_) => return Ok((port, lasts)),
                Reply::Fault(code @ (CONFLICT | OTHER_CONFLICT)) => fault = code,
                Reply::Fault(code) => return Err(UpnpError::Fault(code)),
            }
        }
        Err(UpnpError::Fault(fault))
    }

    /// Calls `action`, and again for a mapping without end where the router knows no other; returns the
    /// life time that it was called with last.
    async fn add_for(
        &self,
        action: &str,
        port: u16,
        lifetime: Duration,
    ) -> Result<(Reply, Duration), UpnpError> {
        let reply = self.try_add(action, port, lifetime).await?;
        match reply {
            Reply::Fault(ONLY_PERMANENT | INVALID_ARGUMENTS) if !lifetime.is_zero() => {
                let reply = self.try_add(action, port, Duration::ZERO).await?;
                Ok((reply, Duration::ZERO))
            }
            reply => Ok((reply, lifetime)),
        }
    }

    async fn try_add(
        &self,
        action: &str,
        port: u16,
        lifetime: Duration,
    ) -> Result<Reply, UpnpError> {
        let lease = Lease {
            service: self.service.clone(),
            external: port,
        };
        self.begun.send_modify(|begun| begun.push(lease.clone()));
        let (port, internal) = (port.to_string(), self.map.internal.to_string());
        let (own, seconds) = (self.map.own.to_string(), lifetime.as_secs().to_string());
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", port.as_str()),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", &internal),
            ("NewInternalClient", &own),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", DESCRIPTION),
            ("NewLeaseDuration", &seconds),
        ];
        let reply = self.caller.call(self.service, action, &arguments).await?;
        if matches!(reply, Reply::Fault(_)) {
            // The port may be another host's, which keeps it.
            self.begun
                .send_modify(|begun| begun.retain(|known| *known != lease));
        }
        Ok(reply)
    }
}

fn done(reply: Reply) -> Result<Values, UpnpError> {
    match reply {
        Reply::Done(values) => Ok(values),
        Reply::Fault(code) => Err(UpnpError::Fault(code)),
    }
}

fn field<'a>(values: &'a Values, name: &str) -> Option<&'a str> {
    let mut values = values.iter();
    values
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

async fn within<T>(request: impl Future<Output = Result<T, UpnpError>>) -> Result<T, UpnpError> {
    let ended = timeout(REQUEST_TIMEOUT, request).await;
    ended.unwrap_or(Err(UpnpError::Silent))
}

#[cfg(test)]
mod tests;
