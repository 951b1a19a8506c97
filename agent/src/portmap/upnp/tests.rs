//! Orders to a router of the test's own.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Mutex;

use super::*;

const KIND: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
const DESCRIPTIONS: &str = "http://192.168.1.1:5000";

/// What each path answers to each action; other actions are faults.
#[derive(Debug, Default)]
struct Router {
    /// By paths: the services' control paths.
    descriptions: BTreeMap<&'static str, Vec<&'static str>>,
    answers: BTreeMap<(&'static str, &'static str), String>,
    /// It never answers to this.
    hangs_at: Option<&'static str>,
    asked: Mutex<Vec<String>>,
}

impl Router {
    fn with(descriptions: &[(&'static str, &[&'static str])]) -> Self {
        Self {
            descriptions: descriptions
                .iter()
                .map(|(path, services)| (*path, services.to_vec()))
                .collect(),
            ..Self::default()
        }
    }

    /// A service that maps, tells its connection's `status`, and its `address`.
    fn maps(mut self, path: &'static str, status: &str, address: &str) -> Self {
        let answer = |action: &str, inner: &str| {
            format!("<e><b><u:{action}Response xmlns:u=\"x\">{inner}</u:{action}Response></b></e>")
        };
        let status = format!("<NewConnectionStatus>{status}</NewConnectionStatus>");
        let address = format!("<NewExternalIPAddress>{address}</NewExternalIPAddress>");
        for (action, inner) in [
            ("GetStatusInfo", &*status),
            ("GetExternalIPAddress", &address),
            ("AddPortMapping", ""),
        ] {
            self.answers.insert((path, action), answer(action, inner));
        }
        self
    }

    fn without(mut self, path: &'static str, action: &'static str) -> Self {
        self.answers.remove(&(path, action));
        self
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Http for Router {
    async fn get(&self, location: &Location) -> Result<String, UpnpError> {
        self.asked.lock().unwrap().push(location.path.clone());
        let Some(services) = self.descriptions.get(&*location.path) else {
            return Err(UpnpError::Unreachable(
                std::io::ErrorKind::ConnectionRefused.into(),
            ));
        };
        let services = services.iter().map(|path| {
            format!(
                "<service><serviceType>{KIND}</serviceType><controlURL>{path}</controlURL></service>"
            )
        });
        Ok(format!("<root>{}</root>", services.collect::<String>()))
    }

    async fn post(
        &self,
        location: &Location,
        action: &str,
        _body: String,
    ) -> Result<String, UpnpError> {
        let action = action.trim_matches('"').rsplit('#').next().unwrap();
        let path = &*location.path;
        self.asked.lock().unwrap().push(format!("{path} {action}"));
        if self.hangs_at == Some(action) {
            pending::<()>().await;
        }
        let answer = self.answers.iter().find(|(key, _)| **key == (path, action));
        let fault = || "<e><errorCode>401</errorCode></e>".to_owned();
        Ok(answer.map_or_else(fault, |(_, answer)| answer.clone()))
    }
}

fn service(path: &str) -> Service {
    Service {
        control: Location::parse(&format!("{DESCRIPTIONS}{path}")).unwrap(),
        kind: KIND.to_owned(),
    }
}

fn order(held: Option<Service>, devices: &[&str]) -> Map {
    let place = |path: &&str| Location::parse(&format!("{DESCRIPTIONS}{path}")).unwrap();
    Map {
        held,
        devices: devices.iter().map(place).collect(),
        own: Ipv4Addr::new(192, 168, 1, 2),
        internal: 41641,
        external: 41642,
        lifetime: Duration::from_secs(7200),
    }
}

/// Returns the path of the service that maps, and the address that it tells.
async fn mapped(router: &Router, order: &Map) -> Result<(String, String), UpnpError> {
    let mapped = map(router, order, &watch::channel(Vec::new()).0).await?;
    Ok((mapped.service.control.path, mapped.external.to_string()))
}

#[tokio::test]
async fn a_lone_service_is_not_asked_whether_it_is_connected() {
    let router = Router::with(&[("/d", &["/ip"])]).maps("/ip", "Disconnected", "198.51.100.7");
    let mapped = mapped(&router, &order(None, &["/d"])).await.unwrap();
    assert_eq!(mapped, ("/ip".into(), "198.51.100.7:41642".into()));
    let asked = ["/d", "/ip GetExternalIPAddress", "/ip AddPortMapping"];
    assert_eq!(router.asked(), asked);
}

#[tokio::test]
async fn the_best_connected_service_maps() {
    let all = || {
        Router::with(&[("/d", &["/off", "/private"]), ("/e", &["/mute", "/public"])])
            .maps("/off", "Disconnected", "198.51.100.1")
            .maps("/private", "Connected", "10.0.0.2")
            .maps("/mute", "Connected", "")
            .maps("/public", "Up", "198.51.100.4")
    };
    let order = order(None, &["/d", "/e"]);
    let best = async |router: Router| mapped(&router, &order).await.unwrap().0;
    assert_eq!(best(all()).await, "/public");
    let router = all().without("/public", "AddPortMapping");
    assert_eq!(best(router).await, "/private");
    let router = all().without("/public", "GetStatusInfo");
    assert_eq!(best(router).await, "/private");
    // One that tells no address after all is passed over for one that is not connected, by its word.
    let router = all()
        .without("/public", "GetExternalIPAddress")
        .without("/private", "AddPortMapping");
    assert_eq!(best(router).await, "/off");
    // Some know no status at all.
    let router = Router::with(&[("/d", &["/a", "/b"]), ("/e", &[])])
        .maps("/a", "", "198.51.100.1")
        .without("/a", "GetStatusInfo");
    assert_eq!(best(router).await, "/a");
}

#[tokio::test]
async fn a_service_that_is_gone_gives_way_to_the_devices_that_are_there() {
    let router =
        Router::with(&[("/d", &["/old", "/new"])]).maps("/new", "Connected", "198.51.100.7");
    let both = order(Some(service("/old")), &["/gone", "/d"]);
    assert_eq!(mapped(&router, &both).await.unwrap().0, "/new");
    // The old one is asked once, and first.
    let asked = router.asked();
    assert_eq!(asked[0], "/old GetExternalIPAddress");
    assert!(
        asked[1..].iter().all(|asked| !asked.starts_with("/old")),
        "{asked:?}"
    );
    // While it maps, nobody else is asked.
    let router = Router::default().maps("/old", "Connected", "198.51.100.7");
    assert_eq!(mapped(&router, &both).await.unwrap().0, "/old");
    assert_eq!(router.asked().len(), 2);
}

#[tokio::test]
async fn no_system_port_is_asked_for() {
    for wish in [0, 443, 1023] {
        let order = Map {
            external: wish,
            ..order(Some(service("/ip")), &[])
        };
        let mapped = map(&ready(), &order, &watch::channel(Vec::new()).0)
            .await
            .unwrap();
        assert!(mapped.external.port() >= FIRST_PORT, "{mapped:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_best_is_told() {
    let none = mapped(&Router::default(), &order(None, &[])).await;
    assert!(matches!(none, Err(UpnpError::NoService)), "{none:?}");
    let gone = mapped(&Router::default(), &order(Some(service("/old")), &["/d"])).await;
    assert!(matches!(gone, Err(UpnpError::Fault(401))), "{gone:?}");
}

fn lease(path: &str) -> [Lease; 1] {
    [Lease {
        service: service(path),
        external: 41642,
    }]
}

fn ready() -> Router {
    Router::with(&[("/d", &["/ip"])]).maps("/ip", "Connected", "198.51.100.7")
}

/// Starts an order, and lets it get as far as it can.
async fn run(router: Router) -> Running {
    let running = Running::start_over(router, order(None, &["/d"]));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    running
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_ended_tells_what_it_may_have_mapped() {
    // It has ended by itself.
    assert_eq!(run(ready()).await.stop().await, lease("/ip"));
    // The answer is not in.
    let hangs_at = |action| Router {
        hangs_at: Some(action),
        ..ready()
    };
    assert_eq!(
        run(hangs_at("AddPortMapping")).await.stop().await,
        lease("/ip")
    );
    // There is none that makes sense.
    let mut garbled = ready();
    let key = ("/ip", "AddPortMapping");
    garbled.answers.insert(key, "<html>".to_owned());
    let mut garbled = run(garbled).await;
    assert!(garbled.ended().await.is_err());
    assert_eq!(garbled.begun(), lease("/ip"));
    // Nor is what one service may have mapped forgotten over the next one's mapping.
    let mut second = Router::with(&[("/d", &["/ip", "/other"])])
        .maps("/ip", "Connected", "198.51.100.7")
        .maps("/other", "Connected", "10.0.0.1");
    second.answers.insert(key, "<html>".to_owned());
    let begun = [lease("/ip"), lease("/other")].concat();
    assert_eq!(run(second).await.stop().await, begun);
    // It has not come to that.
    let early = run(hangs_at("GetExternalIPAddress")).await;
    assert_eq!(early.stop().await, []);
    let refused = ready().without("/ip", "AddPortMapping");
    assert_eq!(run(refused).await.stop().await, []);
}
