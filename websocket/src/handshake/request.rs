//! The server's side of the request: reading it, and judging whether it asks for a WebSocket (§4.2.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::query::{QueryPairs, query_pairs};
use super::{HEADERS_MAX, KEY_BYTES, KEY_NONCE_BYTES, VERSION, names_token};
use crate::error::{RequestError, UpgradeError};

/// A request's line and headers, borrowed from the bytes received. Large (it lists the headers): pass it by reference
/// and keep it out of what outlives the handshake.
#[derive(Debug)]
pub struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    minor_version: u8,
    host: Option<&'a str>,
    origin: Option<&'a str>,
    headers: [httparse::Header<'a>; HEADERS_MAX],
    headers_count: usize,
}

impl<'a> Request<'a> {
    /// Reads a request from the front of `bytes`: the request and its length in bytes, or `None` until more bytes
    /// arrive. A body is not part of it; the caller caps how many bytes it gathers.
    ///
    /// # Errors
    ///
    /// Not HTTP/1.x, more than [`HEADERS_MAX`] headers, a second `Host` or `Origin`.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, RequestError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        let consumed = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(consumed)) => consumed,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(RequestError::TooManyHeaders { limit: HEADERS_MAX });
            }
            Err(_) => return Err(RequestError::Malformed),
        };
        let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(RequestError::Malformed);
        };
        let headers_count = parsed.headers.len();
        let host = single_text(parsed.headers, "host")?;
        let origin = single_text(parsed.headers, "origin")?;
        let (path, query) = split_target(target);
        let request = Self { method, path, query, minor_version, host, origin, headers, headers_count };
        Ok(Some((request, consumed)))
    }

    /// The method, in the case it was sent in.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The target's path, not decoded.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// What stands behind the `?`, not decoded; empty when there is none.
    pub fn query(&self) -> &'a str {
        self.query
    }

    /// The query's names and values, decoded one by one.
    pub fn query_pairs(&self) -> QueryPairs<'a> {
        query_pairs(self.query)
    }

    /// The one `Host` header.
    pub fn host(&self) -> Option<&'a str> {
        self.host
    }

    /// The one `Origin` header; browsers always send it with an upgrade.
    pub fn origin(&self) -> Option<&'a str> {
        self.origin
    }

    /// The value of the first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers(name).next()
    }

    /// The values of all headers of this name, in any case.
    pub fn headers(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.header_lines()
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// Judges the request as an opening handshake.
    ///
    /// # Errors
    ///
    /// The first of §4.2.1's conditions that does not hold.
    pub fn upgrade(&self) -> Result<Upgrade<'_>, UpgradeError> {
        if self.method != "GET" {
            return Err(UpgradeError::MethodNotGet);
        }
        if self.minor_version != 1 {
            return Err(UpgradeError::VersionNotHttp11);
        }
        if self.host.is_none_or(str::is_empty) {
            return Err(UpgradeError::MissingHost);
        }
        let mut upgrades_to_websocket = false;
        let mut connection_upgrades = false;
        let mut version = None;
        let mut key = None;
        for header in self.header_lines() {
            let name = header.name;
            if name.eq_ignore_ascii_case("upgrade") {
                upgrades_to_websocket |= names_token(header.value, "websocket");
            } else if name.eq_ignore_ascii_case("connection") {
                connection_upgrades |= names_token(header.value, "upgrade");
            } else if name.eq_ignore_ascii_case("sec-websocket-version") {
                if version.replace(header.value).is_some() {
                    return Err(UpgradeError::DuplicateHeader("sec-websocket-version"));
                }
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                if key.replace(header.value).is_some() {
                    return Err(UpgradeError::DuplicateHeader("sec-websocket-key"));
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding")
                || name.eq_ignore_ascii_case("content-length") && header.value != b"0"
            {
                return Err(UpgradeError::HasBody);
            }
        }
        if !(upgrades_to_websocket && connection_upgrades) {
            return Err(UpgradeError::NotAnUpgrade);
        }
        if version != Some(VERSION.as_bytes()) {
            return Err(UpgradeError::UnsupportedVersion);
        }
        let key = key.and_then(valid_key).ok_or(UpgradeError::InvalidKey)?;
        Ok(Upgrade { key, headers: self.header_lines() })
    }

    fn header_lines(&self) -> &[httparse::Header<'a>] {
        &self.headers[..self.headers_count]
    }
}

/// A request that may be answered with [`super::encode_switching_protocols`].
#[derive(Clone, Copy, Debug)]
pub struct Upgrade<'a> {
    key: &'a str,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> Upgrade<'a> {
    /// The `Sec-WebSocket-Key`: base64 of 16 bytes.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// The subprotocols offered, in the client's order of preference. What is not text is left out.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case("sec-websocket-protocol"))
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .flat_map(|value| value.split(','))
            .map(str::trim_ascii)
            .filter(|item| !item.is_empty())
    }
}

/// The value of a header that must be text and must not come twice.
fn single_text<'a>(headers: &[httparse::Header<'a>], name: &'static str) -> Result<Option<&'a str>, RequestError> {
    let mut values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let Some(first) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(RequestError::DuplicateHeader(name));
    }
    std::str::from_utf8(first.value).map(Some).map_err(|_| RequestError::HeaderNotText(name))
}

/// Path and query of a request target. RFC 9112 §3.2.2: a server accepts the absolute form too.
fn split_target(target: &str) -> (&str, &str) {
    let origin_form = if target.starts_with('/') {
        target
    } else {
        match target.split_once("://") {
            Some((_, after_scheme)) => {
                let authority_len = after_scheme.find(['/', '?']).unwrap_or(after_scheme.len());
                &after_scheme[authority_len..]
            }
            None => target,
        }
    };
    let (path, query) = origin_form.split_once('?').unwrap_or((origin_form, ""));
    (if path.is_empty() { "/" } else { path }, query)
}

fn valid_key(value: &[u8]) -> Option<&str> {
    let mut nonce = [0; KEY_NONCE_BYTES + 2];
    if value.len() != KEY_BYTES || STANDARD.decode_slice(value, &mut nonce) != Ok(KEY_NONCE_BYTES) {
        return None;
    }
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests;
