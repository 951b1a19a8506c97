//! Port mapping by UPnP: the calls to a router, one after the other, over marked sockets.
//!
//! The library for it (igd-next) opens sockets of its own, which an exit node in use would swallow, and fetches
//! whatever address a device names.

mod igd;
mod ssdp;
mod web;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use rand::Rng;
use tokio::time::timeout;

pub(super) use igd::Service;
pub(super) use ssdp::{Found, GROUP, Location, MAX_LEN, PORT, parse, searches};

use igd::{Reply, Values};

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
    Map {
        place: Place,
        /// Our address.
        own: Ipv4Addr,
        /// Our port.
        internal: u16,
        /// The router's port that we would like.
        external: u16,
        lifetime: Duration,
    },
    /// Map it no longer.
    Unmap { service: Service, external: u16 },
}

/// Whom to ask.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// Whichever service of these devices is best.
    Devices(Vec<Location>),
    /// The one that mapped before.
    Service(Service),
}

/// A mapping that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mapped {
    pub(super) service: Service,
    pub(super) external: SocketAddrV4,
    /// `None`: it has no end.
    pub(super) lifetime: Option<Duration>,
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
    /// No service of it has a connection and an address.
    #[error("the router offers no UPnP service that is connected and has an address")]
    NoService,
}

/// Carries out [`Order::Map`].
pub(super) async fn map(
    place: Place,
    own: Ipv4Addr,
    (internal, external): (u16, u16),
    lifetime: Duration,
) -> Result<Mapped, UpnpError> {
    let mapping = async {
        let (service, address) = match place {
            Place::Devices(devices) => choose(&devices).await?,
            Place::Service(service) => {
                let address = external_address(&service).await?;
                (service, address)
            }
        };
        let wanted = Wanted {
            service: &service,
            own,
            internal,
        };
        let (port, lifetime) = wanted.add(external, lifetime).await?;
        let external = SocketAddrV4::new(address, port);
        Ok(Mapped {
            external,
            lifetime: Some(lifetime).filter(|lifetime| !lifetime.is_zero()),
            service,
        })
    };
    let ended = timeout(ORDER_TIMEOUT, mapping).await;
    ended.unwrap_or(Err(UpnpError::Silent))
}

/// Carries out [`Order::Unmap`].
pub(super) async fn unmap(service: &Service, external: u16) -> Result<(), UpnpError> {
    let port = external.to_string();
    let arguments = [
        ("NewRemoteHost", ""),
        ("NewExternalPort", &port),
        ("NewProtocol", "UDP"),
    ];
    done(call(service, "DeletePortMapping", &arguments).await?).map(drop)
}

/// Finds the best service of the devices: connected, with a public address if there is such a one.
async fn choose(devices: &[Location]) -> Result<(Service, Ipv4Addr), UpnpError> {
    let mut second = None;
    let mut problem = UpnpError::NoService;
    for device in devices {
        let services = match describe(device).await {
            Ok(services) => services,
            Err(error) => {
                problem = error;
                continue;
            }
        };
        for service in services {
            if !is_connected(&service).await {
                continue;
            }
            match external_address(&service).await {
                Ok(address) if is_public(address) => return Ok((service, address)),
                Ok(address) => second = second.or(Some((service, address))),
                Err(error) => problem = error,
            }
        }
    }
    second.ok_or(problem)
}

async fn describe(device: &Location) -> Result<Vec<Service>, UpnpError> {
    let text = within(web::get(device)).await?;
    let services = igd::services(&text, device.address);
    services.map_err(|_| UpnpError::Senseless("with no description"))
}

async fn is_connected(service: &Service) -> bool {
    let status = match call(service, "GetStatusInfo", &[]).await {
        Ok(Reply::Done(values)) => field(&values, "NewConnectionStatus").map(str::to_owned),
        Ok(Reply::Fault(_)) | Err(_) => None,
    };
    status.as_deref() == Some("Connected")
}

async fn external_address(service: &Service) -> Result<Ipv4Addr, UpnpError> {
    let values = done(call(service, "GetExternalIPAddress", &[]).await?)?;
    let address = field(&values, "NewExternalIPAddress").and_then(|text| text.parse().ok());
    address
        .filter(|address| super::is_external(*address))
        .ok_or(UpnpError::Senseless("with no address"))
}

/// What a service is to map.
struct Wanted<'a> {
    service: &'a Service,
    own: Ipv4Addr,
    internal: u16,
}

impl Wanted<'_> {
    /// Asks for the mapping; returns the router's port, and the time it lasts: zero if for ever.
    async fn add(&self, wish: u16, lifetime: Duration) -> Result<(u16, Duration), UpnpError> {
        let mut lifetime = lifetime;
        if self.service.chooses()
            && let (Reply::Done(values), lasts) =
                self.add_for("AddAnyPortMapping", wish, lifetime).await?
        {
            let port = field(&values, "NewReservedPort").and_then(|text| text.parse().ok());
            let port = port.ok_or(UpnpError::Senseless("with no port"))?;
            return Ok((port, lasts));
        }
        let random = [(); RANDOM_PORTS].map(|()| rand::rng().random_range(FIRST_PORT..u16::MAX));
        let mut fault = CONFLICT;
        for port in std::iter::once(wish).chain(random) {
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
        let (port, internal) = (port.to_string(), self.internal.to_string());
        let (own, seconds) = (self.own.to_string(), lifetime.as_secs().to_string());
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
        call(self.service, action, &arguments).await
    }
}

async fn call(
    service: &Service,
    action: &str,
    arguments: &[(&str, &str)],
) -> Result<Reply, UpnpError> {
    let body = igd::call(service, action, arguments);
    let name = format!("\"{}#{action}\"", service.kind);
    let text = within(web::post(&service.control, &name, body)).await?;
    let reply = igd::reply(&text, action);
    reply.map_err(|_| UpnpError::Senseless("with no answer to the call"))
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

/// True unless it is one of the ranges behind a NAT.
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    !address.is_private() && !address.is_link_local() && !is_shared
}
