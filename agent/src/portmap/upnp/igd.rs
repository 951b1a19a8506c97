//! What an Internet gateway device says of itself, and the calls to it: XML in SOAP (UPnP WANIPConnection:2).

use std::fmt::Write as _;

use roxmltree::{Document, Node, ParsingOptions};

use super::ssdp::Location;

/// Services of a description that are looked at.
const MAX_SERVICES: usize = 4;
/// Parts of a document that are read.
const MAX_NODES: u32 = 4096;

/// A service that maps ports, at a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Service {
    /// The web server, and the path of the calls.
    pub(crate) control: Location,
    /// As `urn:schemas-upnp-org:service:WANIPConnection:1`.
    pub(crate) kind: String,
}

impl Service {
    /// It can choose the port itself.
    pub(crate) fn chooses(&self) -> bool {
        self.kind.ends_with(":WANIPConnection:2")
    }

    /// Place in the order in which services are tried; `None` if it maps no ports.
    fn rank(&self) -> Option<u8> {
        let (rest, version) = self.kind.rsplit_once(':')?;
        let (_, name) = rest.rsplit_once(':')?;
        match (name, version) {
            ("WANIPConnection", "2") => Some(0),
            ("WANIPConnection", "1") => Some(1),
            ("WANPPPConnection", "1") => Some(2),
            ("WANIPConnection" | "WANPPPConnection", _) => Some(3),
            _ => None,
        }
    }
}

/// What a device answered to a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Reply {
    /// It did it.
    Done(Values),
    /// It did not; the code is UPnP's.
    Fault(u16),
}

/// The names and values of an answer.
pub(crate) type Values = Vec<(String, String)>;

/// The answer is no such document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Senseless;

/// Returns the services of a description at `place` that map ports, best first. Such that are not at the device's
/// own address are left out: it has no say about others.
pub(crate) fn services(text: &str, place: &Location) -> Result<Vec<Service>, Senseless> {
    let document = parse(text)?;
    let base = find(document.root(), "URLBase").and_then(|node| Location::parse(value(node)));
    let base = base.unwrap_or_else(|| place.clone());
    let service = |node: Node<'_, '_>| {
        let kind = value(find(node, "serviceType")?).to_owned();
        // It goes into a header and into XML.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.".contains(&byte);
        if !kind.bytes().all(is_plain) {
            return None;
        }
        let controls = controls(value(find(node, "controlURL")?), &base);
        Some(controls.into_iter().map(move |control| Service {
            control,
            kind: kind.clone(),
        }))
    };
    let nodes = document.descendants();
    let mut services: Vec<(u8, Service)> = nodes
        .filter(|node| node.tag_name().name() == "service")
        .filter_map(service)
        .flatten()
        .filter(|service| service.control.address.ip() == place.address.ip())
        .filter_map(|service| Some((service.rank()?, service)))
        .collect();
    services.sort_by_key(|(rank, _)| *rank);
    services.truncate(MAX_SERVICES);
    Ok(services.into_iter().map(|(_, service)| service).collect())
}

/// Where calls go. A path that does not begin at the root is meant from there by many routers, as libraries take
/// it, and from where the description lies by such as go by RFC 3986: the one place is tried after the other.
fn controls(url: &str, base: &Location) -> Vec<Location> {
    let resolved = base.join(url);
    let is_path = !url.starts_with('/') && !url.contains("://");
    let rooted = is_path.then(|| base.join(&format!("/{url}"))).flatten();
    let mut places: Vec<Location> = rooted.into_iter().chain(resolved).collect();
    places.dedup();
    places
}

/// The document that calls `action` of `service`.
pub(crate) fn call(service: &Service, action: &str, arguments: &[(&str, &str)]) -> String {
    let kind = &service.kind;
    let mut text = format!(
        "<?xml version=\"1.0\"?>\r\n\
         <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\">\
         <s:Body><u:{action} xmlns:u=\"{kind}\">"
    );
    for (name, value) in arguments {
        // Numbers, addresses and words of our own: nothing to escape.
        let _infallible = write!(text, "<{name}>{value}</{name}>");
    }
    let _infallible = write!(text, "</u:{action}></s:Body></s:Envelope>\r\n");
    text
}

/// Reads the answer to a call of `action`.
pub(crate) fn reply(text: &str, action: &str) -> Result<Reply, Senseless> {
    let document = parse(text)?;
    if let Some(code) = find(document.root(), "errorCode") {
        return value(code).parse().map(Reply::Fault).map_err(|_| Senseless);
    }
    let name = format!("{action}Response");
    let body = find(document.root(), &name).ok_or(Senseless)?;
    let values = body.children().filter(Node::is_element);
    Ok(Reply::Done(
        values
            .map(|node| (node.tag_name().name().to_owned(), value(node).to_owned()))
            .collect(),
    ))
}

fn parse(text: &str) -> Result<Document<'_>, Senseless> {
    // Without document types there are no entities that could grow.
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    // Routers put blanks and zeros around it.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    Document::parse_with_options(text, options).map_err(|_| Senseless)
}

/// The first element of that name, whatever its namespace: routers disagree on those.
fn find<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.descendants()
        .find(|node| node.tag_name().name() == name)
}

fn value<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Location {
        Location::parse("http://192.168.1.1:5000/root.xml").unwrap()
    }

    fn description(services: &[(&str, &str)]) -> String {
        let mut text = String::from(
            "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
             <deviceList><device><serviceList>",
        );
        for (kind, url) in services {
            text += &format!(
                "<service><serviceType>urn:schemas-upnp-org:service:{kind}</serviceType>\
                 <controlURL>{url}</controlURL></service>"
            );
        }
        text + "</serviceList></device></deviceList></device></root>"
    }

    fn paths(text: &str) -> Vec<String> {
        let services = services(text, &device()).unwrap();
        services
            .into_iter()
            .map(|service| service.control.path)
            .collect()
    }

    #[test]
    fn the_newest_service_is_tried_first() {
        let text = description(&[
            ("WANPPPConnection:1", "/ppp"),
            ("Layer3Forwarding:1", "/l3f"),
            ("WANIPConnection:1", "/ip1"),
            ("WANIPConnection:2", "ip2"),
        ]);
        assert_eq!(paths(&text), ["/ip2", "/ip1", "/ppp"]);
    }

    #[test]
    fn calls_go_to_the_router_only() {
        let text = description(&[
            ("WANIPConnection:1", "http://192.168.1.1:80/own"),
            ("WANIPConnection:1", "http://203.0.113.9/other"),
            ("WANIPConnection:1", "http://localhost/name"),
            ("WANIPConnection:1", "//evil.example/"),
        ]);
        assert_eq!(paths(&text), ["/own"]);
        let base = "<URLBase>http://203.0.113.9/</URLBase><device>";
        let text = description(&[("WANIPConnection:1", "/x")]).replacen("<device>", base, 1);
        assert!(paths(&text).is_empty());
    }

    #[test]
    fn a_path_is_tried_from_the_root_and_from_where_the_description_lies() {
        let below = Location::parse("http://192.168.1.1:5000/upnp/root.xml").unwrap();
        let places = |text: &str| {
            let services = services(text, &below).unwrap().into_iter();
            let places =
                services.map(|Service { control, .. }| (control.address.port(), control.path));
            places.collect::<Vec<_>>()
        };
        let text = description(&[("WANIPConnection:1", "ctl/WAN")]);
        let both = [
            (5000, "/ctl/WAN".to_owned()),
            (5000, "/upnp/ctl/WAN".to_owned()),
        ];
        assert_eq!(places(&text), both);
        let base = "<URLBase>http://192.168.1.1:80/igd/</URLBase><device>";
        let text = text.replacen("<device>", base, 1);
        let both = [(80, "/ctl/WAN".to_owned()), (80, "/igd/ctl/WAN".to_owned())];
        assert_eq!(places(&text), both);
        let text = description(&[("WANIPConnection:1", "/ctl/WAN")]);
        assert_eq!(places(&text), [(5000, "/ctl/WAN".to_owned())]);
    }

    #[test]
    fn a_service_cannot_put_words_into_our_calls() {
        let text = description(&[("WANIPConnection:1\"&gt;&lt;x", "/x")]);
        assert!(paths(&text).is_empty());
    }

    #[test]
    fn answers_and_faults_are_told_apart() {
        let service = Service {
            control: Location::parse("http://192.168.1.1/c").unwrap(),
            kind: "urn:schemas-upnp-org:service:WANIPConnection:1".into(),
        };
        let call = call(&service, "GetExternalIPAddress", &[("A", "1")]);
        assert!(parse(&call).is_ok() && call.contains("<A>1</A>"), "{call}");
        let answer = "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
            <u:GetExternalIPAddressResponse xmlns:u=\"x\"><NewExternalIPAddress> 198.51.100.7 \
            </NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>\0";
        let values = vec![("NewExternalIPAddress".to_owned(), "198.51.100.7".to_owned())];
        assert_eq!(
            reply(answer, "GetExternalIPAddress"),
            Ok(Reply::Done(values))
        );
        assert_eq!(reply(answer, "AddPortMapping"), Err(Senseless));
        let fault = "<Envelope><Body><Fault><detail><UPnPError><errorCode>718</errorCode>\
            </UPnPError></detail></Fault></Body></Envelope>";
        assert_eq!(reply(fault, "AddPortMapping"), Ok(Reply::Fault(718)));
    }

    #[test]
    fn documents_that_mean_harm_are_refused() {
        let bomb =
            "<!DOCTYPE a [<!ENTITY b \"bbbb\"><!ENTITY c \"&b;&b;&b;&b;\">]><root>&c;</root>";
        assert_eq!(services(bomb, &device()), Err(Senseless));
        let deep = "<a>".repeat(20_000);
        assert_eq!(services(&deep, &device()), Err(Senseless));
        let wide = format!("<a>{}</a>", "<b/>".repeat(20_000));
        assert_eq!(services(&wide, &device()), Err(Senseless));
        assert_eq!(services("", &device()), Err(Senseless));
        assert_eq!(reply("<html>401</html>", "AddPortMapping"), Err(Senseless));
        let many = description(&[("WANIPConnection:1", "/x"); 100]);
        assert_eq!(paths(&many).len(), MAX_SERVICES);
    }
}
