//! The head of a request, as far as a relay looks at it.

use std::io;

/// Longest request head, in bytes.
pub(super) const MAX_HEAD_LEN: usize = 16 << 10;

/// Most header lines.
const MAX_HEADERS: usize = 64;

/// What a request wants.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    /// In lower case.
    pub(super) upgrade: String,
    /// Whether the WebSocket sub-protocol is DERP's.
    pub(super) derp_websocket: bool,
    pub(super) fast_start: bool,
    /// Whether another node than this would have been the client's first choice.
    pub(super) ideal_node: bool,
    pub(super) challenge: Option<String>,
}

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("request head is not HTTP/1: {0}")]
    Syntax(#[from] httparse::Error),
    #[error("request head is longer than {MAX_HEAD_LEN} bytes")]
    TooLong,
    #[error("no request head within the time for it")]
    Timeout,
}

/// Reads the head at the front of `input`; `None` until it is whole. Returns its length too.
pub(super) fn parse(input: &[u8]) -> Result<Option<(Request, usize)>, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(len) = head.parse(input)? else {
        return Ok(None);
    };
    let target = head.path.unwrap_or_default();
    let mut request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: target.split('?').next().unwrap_or_default().to_owned(),
        ..Request::default()
    };
    for header in head.headers {
        let Ok(value) = str::from_utf8(header.value) else {
            continue;
        };
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("Upgrade") {
            request.upgrade = value.to_ascii_lowercase();
        } else if is("Sec-WebSocket-Protocol") {
            let mut protocols = value.split(',').map(str::trim);
            request.derp_websocket |= protocols.any(|protocol| protocol == "derp");
        } else if is(derp_proto::http::FAST_START) {
            request.fast_start = value == "1";
        } else if is(derp_proto::http::IDEAL_NODE) {
            request.ideal_node = !value.is_empty();
        } else if is("X-Tailscale-Challenge") {
            request.challenge = Some(value.to_owned());
        }
    }
    Ok(Some((request, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_start_is_understood_and_what_follows_is_left() {
        let input = b"GET /derp?x HTTP/1.1\r\nHost: a\r\nupgrade: DERP\r\nConnection: Upgrade\r\n\
            Derp-Fast-Start: 1\r\n\r\n\x02rest";
        for cut in 0..input.len() - 5 {
            assert!(parse(&input[..cut]).unwrap().is_none());
        }

        let (request, len) = parse(input).unwrap().unwrap();

        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("GET", "/derp")
        );
        assert_eq!(request.upgrade, "derp");
        assert!(request.fast_start);
        assert_eq!(&input[len..], b"\x02rest");
    }

    #[test]
    fn something_else_is_refused() {
        assert!(matches!(
            parse(b"\x16\x03\x01\x02\x00"),
            Err(HeadError::Syntax(_))
        ));
    }
}
