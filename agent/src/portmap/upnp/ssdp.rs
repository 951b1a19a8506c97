//! The search for UPnP devices: SSDP (UPnP Device Architecture 2.0 §1.3).

use std::net::{Ipv4Addr, SocketAddrV4};

use http::Uri;

/// Where devices listen.
pub(crate) const PORT: u16 = 1900;
/// All of them.
pub(crate) const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), PORT);
/// Longest answer that is read.
pub(crate) const MAX_LEN: usize = 2048;

/// Headers of an answer that are looked at.
const MAX_HEADERS: usize = 32;
/// What a router calls itself, of either version.
const GATEWAY: &str = ":InternetGatewayDevice:";
/// Some routers answer to all only, others to what they are called only.
const TARGETS: [&str; 2] = [
    "ssdp:all",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
];

/// A device's description: where it lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Location {
    /// The web server.
    pub(crate) address: SocketAddrV4,
    /// Path and query.
    pub(crate) path: String,
}

/// A router that was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// Its description.
    pub(crate) location: Location,
    /// Its unique name, which outlives a restart; empty if it tells none.
    pub(crate) device: String,
    /// Another number means that the device has restarted since; some tell none.
    pub(crate) boot: Option<u32>,
}

/// The searches to send, to one device or all.
pub(crate) fn searches() -> impl Iterator<Item = String> {
    TARGETS.into_iter().map(|target| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nST: {target}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\r\n"
        )
    })
}

/// Reads an answer. `Ok(None)` is another device's; an answer that makes no sense is an error.
pub(crate) fn parse(datagram: &[u8]) -> Result<Option<Found>, Senseless> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(datagram).map_err(|_| Senseless)?;
    if !parsed.is_complete() || response.code != Some(200) {
        return Err(Senseless);
    }
    let value = |name: &str| {
        let mut headers = response.headers.iter();
        let header = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    };
    if !value("ST").ok_or(Senseless)?.contains(GATEWAY) {
        return Ok(None);
    }
    let location = value("LOCATION").and_then(Location::parse);
    Ok(Some(Found {
        location: location.ok_or(Senseless)?,
        device: value("USN")
            .and_then(|name| name.split("::").next())
            .unwrap_or_default()
            .to_owned(),
        boot: value("BOOTID.UPNP.ORG").and_then(|text| text.parse().ok()),
    }))
}

/// No answer to a search.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Senseless;

impl Location {
    /// Reads `http://ADDRESS[:PORT]/PATH`. No names: nobody is to be looked up for a router's sake.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let authority = uri.authority()?.as_str();
        let web = || Some(SocketAddrV4::new(authority.parse().ok()?, 80));
        Some(Self {
            address: authority.parse().ok().or_else(web)?,
            path: uri.path_and_query()?.as_str().to_owned(),
        })
    }

    /// What `reference` means in a document that lies here (RFC 3986 §5.2).
    pub(crate) fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.split('#').next().unwrap_or_default();
        if let Some((scheme, _)) = reference.split_once("://")
            && !scheme.contains(['/', '?'])
        {
            return Self::parse(reference);
        }
        if reference.starts_with("//") {
            return Self::parse(&format!("http:{reference}"));
        }
        let (path, query) = split_query(reference);
        let (own_path, own_query) = split_query(&self.path);
        let (path, query) = if path.is_empty() {
            let query = if query.is_empty() { own_query } else { query };
            (own_path.to_owned(), query)
        } else if path.starts_with('/') {
            (without_dots(path), query)
        } else {
            let folder = own_path.rfind('/').map_or("/", |end| &own_path[..=end]);
            (without_dots(&format!("{folder}{path}")), query)
        };
        Self::parse(&format!("http://{}{path}{query}", self.address))
    }
}

/// Splits before the question mark.
fn split_query(path: &str) -> (&str, &str) {
    path.split_at(path.find('?').unwrap_or(path.len()))
}

/// Resolves `.` and `..` in a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut parts = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    parts.pop();
                }
                // What it names is a folder.
                if is_last {
                    parts.push("");
                }
            }
            _ => parts.push(segment),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\n\
        CACHE-CONTROL: max-age=120\r\n\
        ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
        USN: uuid:7::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
        EXT:\r\n\
        SERVER: Debian/12 UPnP/1.1 MiniUPnPd/2.3.1\r\n\
        LOCATION: http://192.168.1.1:44265/rootDesc.xml\r\n\
        BOOTID.UPNP.ORG: 1700000000\r\n\r\n";

    #[test]
    fn a_router_tells_where_its_description_is() {
        let found = parse(ANSWER.as_bytes()).unwrap().unwrap();
        let address = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 1), 44265);
        assert_eq!(found.location.address, address);
        assert_eq!(found.location.path, "/rootDesc.xml");
        assert_eq!(found.boot, Some(1_700_000_000));
        assert_eq!(found.device, "uuid:7");
    }

    #[test]
    fn other_devices_are_none_of_our_business() {
        let printer = ANSWER.replace("InternetGatewayDevice", "Printer");
        assert_eq!(parse(printer.as_bytes()), Ok(None));
    }

    #[test]
    fn what_is_no_answer_makes_no_sense() {
        for len in 0..ANSWER.len() {
            assert_eq!(parse(&ANSWER.as_bytes()[..len]), Err(Senseless), "{len}");
        }
        let places = [
            "https://192.168.1.1/d.xml",
            "http://router.example/d.xml",
            "ftp://192.168.1.1/d.xml",
            "192.168.1.1",
            "http://192.168.1.1:99999/",
            "http://[::1]/d.xml",
            "http://192.168.1.1@203.0.113.9/",
            "http://192.168.1.1:/",
            "",
        ];
        for place in places {
            let answer = ANSWER.replace("http://192.168.1.1:44265/rootDesc.xml", place);
            assert_eq!(parse(answer.as_bytes()), Err(Senseless), "{place}");
        }
        assert_eq!(parse(&[0xff; MAX_LEN]), Err(Senseless));
        assert_eq!(
            parse(ANSWER.replace("200 OK", "500 No").as_bytes()),
            Err(Senseless)
        );
        let many = ANSWER.replace("EXT:\r\n", &"X: y\r\n".repeat(MAX_HEADERS));
        assert_eq!(parse(many.as_bytes()), Err(Senseless));
    }

    #[test]
    fn references_mean_what_the_rfc_says() {
        let at = Location::parse("http://192.168.1.1:5000/b/c/d?q").unwrap();
        // RFC 3986 §5.4, as far as it applies.
        let examples = [
            ("g", "/b/c/g"),
            ("./g", "/b/c/g"),
            ("g/", "/b/c/g/"),
            ("/g", "/g"),
            ("?y", "/b/c/d?y"),
            ("g?y", "/b/c/g?y"),
            ("#s", "/b/c/d?q"),
            ("g#s", "/b/c/g"),
            ("", "/b/c/d?q"),
            (".", "/b/c/"),
            ("..", "/b/"),
            ("../g", "/b/g"),
            ("../../g", "/g"),
            ("../../../../g", "/g"),
            ("/./g", "/g"),
            ("/../g", "/g"),
            ("g/./h", "/b/c/g/h"),
            ("g?y/../x", "/b/c/g?y/../x"),
        ];
        for (reference, path) in examples {
            let found = at.join(reference).map(|found| (found.address, found.path));
            assert_eq!(found, Some((at.address, path.to_owned())), "{reference}");
        }
        let other = Location::parse("http://203.0.113.9/g").unwrap();
        assert_eq!(at.join("http://203.0.113.9/g"), Some(other.clone()));
        assert_eq!(at.join("//203.0.113.9/g"), Some(other));
        for nowhere in ["https://192.168.1.1/g", "//evil.example/g", "a b"] {
            assert_eq!(at.join(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_search_ends_as_http_does() {
        for search in searches() {
            assert!(search.starts_with("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"));
            assert!(search.ends_with("\r\n\r\n"));
        }
        assert_eq!(searches().count(), 2);
    }
}
