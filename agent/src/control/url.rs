//! Where the coordination server is: [`ServerUrl`].

use std::fmt;

/// URL of a coordination server: scheme, host and port, no path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerUrl {
    /// Speak TLS.
    pub tls: bool,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    explicit_port: bool,
}

impl ServerUrl {
    /// Parses `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    ///
    /// What is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: http::Uri = text
            .parse()
            .map_err(|_| "write it as https://HOST[:PORT]")?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it must begin with https:// or http://"),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("it must end after the host and port, without a path");
        }
        let authority = uri.authority().ok_or("the host is missing")?;
        if authority.as_str().contains('@') {
            return Err("it must not hold a user name");
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err("the host is missing");
        }
        // Not `Authority::port`: it takes a number that is too large for none.
        let explicit = match authority.as_str().strip_prefix(authority.host()) {
            Some("") | None => None,
            Some(port) => Some(
                port.trim_start_matches(':')
                    .parse()
                    .map_err(|_| "the port is not a number below 65536")?,
            ),
        };
        if explicit == Some(0) {
            return Err("port 0 cannot be reached");
        }
        Ok(Self {
            tls,
            host,
            port: explicit.unwrap_or(if tls { 443 } else { 80 }),
            explicit_port: explicit.is_some(),
        })
    }

    /// Returns the value of the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.explicit_port {
            format!("{host}:{}", self.port)
        } else {
            host
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_gives_the_port() {
        assert_eq!(ServerUrl::parse("https://c.example").unwrap().port, 443);
        assert_eq!(ServerUrl::parse("http://c.example/").unwrap().port, 80);
        assert_eq!(
            ServerUrl::parse("http://c.example:8080").unwrap().port,
            8080
        );
    }

    #[test]
    fn an_ipv6_host_keeps_its_brackets_only_in_the_header() {
        let url = ServerUrl::parse("http://[fd00::1]:8080").unwrap();
        assert_eq!(url.host, "fd00::1");
        assert_eq!(url.authority(), "[fd00::1]:8080");
        assert_eq!(url.to_string(), "http://[fd00::1]:8080");
    }

    #[test]
    fn what_is_no_server_url_is_refused() {
        for text in [
            "",
            "c.example",
            "c.example:80",
            "ftp://c.example",
            "https://",
            "https://c/path",
            "https://c?x",
            "https://u@c",
            "http://c:0",
            "http://c:99999",
            "http://a b",
        ] {
            assert!(ServerUrl::parse(text).is_err(), "{text}");
        }
    }
}
