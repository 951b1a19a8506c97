//! firewalld by its D-Bus: the overlay device in its zone `trusted`, in the running configuration only.
//!
//! firewalld forgets what it was told at run time whenever it reloads, and whoever asks again does so on seeing
//! its table change; so nothing here listens to the bus.

use std::time::Duration;

use zbus::Connection;

const SERVICE: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONES: &str = "org.fedoraproject.FirewallD1.zone";
/// The zone that accepts everything: what peers may do is decided before.
const TRUSTED: &str = "trusted";
/// While firewalld reloads, questions wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why firewalld does not do what we ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirewalldError {
    /// The bus, or firewalld on it, refuses or is not there.
    #[error("firewalld is not reached by D-Bus, or refuses")]
    Bus(#[from] zbus::Error),
    /// No answer.
    #[error("firewalld gives no answer within {PATIENCE:?}")]
    Silent,
}

/// Puts the device into the zone `trusted`, unless it has a zone already, which is then the operator's
/// choice. Returns whether it is there because of us.
///
/// # Errors
///
/// When firewalld is not there or refuses.
pub(super) async fn admit(device: &str) -> Result<bool, FirewalldError> {
    patiently(async {
        let bus = Connection::system().await?;
        if !zone(&bus, device).await?.is_empty() {
            return Ok(false);
        }
        call(&bus, "addInterface", device).await?;
        tracing::info!(device, "put into firewalld's zone {TRUSTED}");
        Ok(true)
    })
    .await
}

/// Takes the device out of the zone `trusted`, if it is there.
///
/// # Errors
///
/// When firewalld is not there or refuses.
pub(super) async fn withdraw(device: &str) -> Result<(), FirewalldError> {
    patiently(async {
        let bus = Connection::system().await?;
        if zone(&bus, device).await? == TRUSTED {
            call(&bus, "removeInterface", device).await?;
        }
        Ok(())
    })
    .await
}

async fn patiently<T>(
    work: impl Future<Output = Result<T, zbus::Error>>,
) -> Result<T, FirewalldError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(FirewalldError::Silent),
    }
}

/// The zone that the device was put into; empty if it has none of its own.
async fn zone(bus: &Connection, device: &str) -> Result<String, zbus::Error> {
    let method = "getZoneOfInterface";
    let answer = bus
        .call_method(Some(SERVICE), PATH, Some(ZONES), method, &device)
        .await?;
    answer.body().deserialize()
}

async fn call(bus: &Connection, method: &str, device: &str) -> Result<(), zbus::Error> {
    let arguments = (TRUSTED, device);
    bus.call_method(Some(SERVICE), PATH, Some(ZONES), method, &arguments)
        .await
        .map(drop)
}
