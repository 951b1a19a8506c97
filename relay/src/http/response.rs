//! What a request gets (derp.md sections 1 and 10).

use std::fmt::Write as _;

use keys::NodePublic;

use super::request::{HeadError, Request};
use crate::metrics::Metrics;

/// Longest captive-portal challenge that is answered.
const MAX_CHALLENGE_LEN: usize = 64;

const PAGE: &str = "<!doctype html><html lang=\"en\"><title>Tailrace relay</title>\
    <h1>Tailrace relay</h1><p>This is a DERP server: nodes of a tailnet that find no direct path \
    to each other exchange their encrypted packets here.</p></html>\n";

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// Say nothing and speak DERP.
    FastStart,
    /// Say this and speak DERP.
    Upgrade(Vec<u8>),
    /// Say this and close.
    Close(Vec<u8>),
}

pub(super) fn answer(request: &Request, server: &NodePublic) -> Answer {
    let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
    match request.path.as_str() {
        derp_proto::http::PATH => derp(request, server),
        "/derp/probe" | "/derp/latency-check" if is_read => Answer::Close(plain(
            request,
            "200 OK",
            "Access-Control-Allow-Origin: *\r\n",
            "",
        )),
        "/generate_204" => Answer::Close(no_content(request)),
        "/" if is_read => {
            let html = "Content-Type: text/html; charset=utf-8\r\n";
            Answer::Close(plain(request, "200 OK", html, PAGE))
        }
        "/derp/probe" | "/derp/latency-check" | "/" => Answer::Close(plain(
            request,
            "405 Method Not Allowed",
            "",
            "only GET and HEAD\n",
        )),
        _ => Answer::Close(plain(request, "404 Not Found", "", "not found\n")),
    }
}

fn derp(request: &Request, server: &NodePublic) -> Answer {
    // Some proxies turn the token into "websocket": without the sub-protocol it is DERP all the same.
    let derp = match request.upgrade.as_str() {
        "derp" => true,
        "websocket" => !request.derp_websocket,
        _ => false,
    };
    if !derp || request.method != "GET" {
        let hint = "Upgrade: DERP\r\n";
        let text = "this is where DERP clients connect, with `Upgrade: DERP`\n";
        return Answer::Close(plain(request, "426 Upgrade Required", hint, text));
    }
    if request.fast_start {
        return Answer::FastStart;
    }
    let mut head = String::from("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n");
    let key = derp_proto::meta::common_name(server);
    let key = key.trim_start_matches(derp_proto::meta::COMMON_NAME_PREFIX);
    // Writing into a String cannot fail.
    let _ = write!(
        head,
        "Upgrade: {}\r\n{}: {}\r\n{}: {key}\r\n\r\n",
        derp_proto::http::UPGRADE,
        derp_proto::http::VERSION,
        derp_proto::PROTOCOL_VERSION,
        derp_proto::http::PUBLIC_KEY,
    );
    Answer::Upgrade(head.into())
}

/// 204, which shows that no captive portal sits in between: it repeats the client's challenge.
fn no_content(request: &Request) -> Vec<u8> {
    let is_harmless = |challenge: &&String| {
        challenge.len() <= MAX_CHALLENGE_LEN
            && challenge
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
    };
    let challenge = request.challenge.as_ref().filter(is_harmless);
    let header = challenge.map_or_else(String::new, |challenge| {
        format!("X-Tailscale-Response: response {challenge}\r\n")
    });
    format!("HTTP/1.1 204 No Content\r\nConnection: close\r\n{header}\r\n").into_bytes()
}

/// A whole response; `headers` end in CRLF each, HEAD gets no body.
fn plain(request: &Request, status: &str, headers: &str, body: &str) -> Vec<u8> {
    let shown = if request.method == "HEAD" { "" } else { body };
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n{shown}"
    )
    .into_bytes()
}

/// What somebody gets whose request was none; `None` if nobody listens any more.
pub(super) fn refusal(error: &HeadError) -> Option<Vec<u8>> {
    let status = match error {
        HeadError::Io(_) => return None,
        HeadError::Syntax(_) => "400 Bad Request",
        HeadError::TooLong => "431 Request Header Fields Too Large",
        HeadError::Timeout => "408 Request Timeout",
    };
    Some(plain(&Request::default(), status, "", ""))
}

/// The answer of the listener for Prometheus.
pub(super) fn metrics(request: &Request, metrics: &Metrics) -> Vec<u8> {
    if request.path != "/metrics" {
        return plain(request, "404 Not Found", "", "try /metrics\n");
    }
    match metrics
        .encode()
        .ok()
        .and_then(|text| String::from_utf8(text).ok())
    {
        Some(text) => {
            let kind = "Content-Type: text/plain; version=0.0.4\r\n";
            plain(request, "200 OK", kind, &text)
        }
        None => plain(request, "500 Internal Server Error", "", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Request {
        Request {
            method: "GET".into(),
            path: path.into(),
            ..Request::default()
        }
    }

    fn text(request: &Request) -> String {
        match answer(request, &NodePublic::from_bytes([0xAB; 32])) {
            Answer::FastStart => String::new(),
            Answer::Upgrade(bytes) | Answer::Close(bytes) => String::from_utf8(bytes).unwrap(),
        }
    }

    #[test]
    fn derp_wants_an_upgrade() {
        assert!(text(&get("/derp")).starts_with("HTTP/1.1 426 "));
        for upgrade in ["derp", "websocket"] {
            let request = Request {
                upgrade: upgrade.into(),
                ..get("/derp")
            };
            let text = text(&request);
            assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
            assert!(text.contains("Derp-Version: 2\r\n"));
            assert!(text.contains(&format!("Derp-Public-Key: {}\r\n", "ab".repeat(32))));
        }
        let websocket = Request {
            upgrade: "websocket".into(),
            derp_websocket: true,
            ..get("/derp")
        };
        assert!(text(&websocket).starts_with("HTTP/1.1 426 "));
    }

    #[test]
    fn a_challenge_is_repeated_if_it_is_harmless() {
        let with = |challenge: &str| {
            text(&Request {
                challenge: Some(challenge.into()),
                ..get("/generate_204")
            })
        };
        assert!(with("ts_a.B:9-").contains("X-Tailscale-Response: response ts_a.B:9-\r\n"));
        assert!(with(&"a".repeat(64)).contains("response a"));
        for bad in ["a b", "a\"", &"a".repeat(65)] {
            let text = with(bad);
            assert!(
                text.starts_with("HTTP/1.1 204 ") && !text.contains("Response"),
                "{text}"
            );
        }
    }

    #[test]
    fn probes_are_open_to_web_pages() {
        for path in ["/derp/probe", "/derp/latency-check"] {
            let ok = text(&get(path));
            assert!(ok.starts_with("HTTP/1.1 200 "));
            assert!(ok.contains("Access-Control-Allow-Origin: *\r\n"));
            let post = Request {
                method: "POST".into(),
                ..get(path)
            };
            assert!(text(&post).starts_with("HTTP/1.1 405 "));
        }
    }
}
