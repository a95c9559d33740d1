//! HTTP/1.1 as far as operators' tools need it: one request after the other on a connection, bodies of known length,
//! every wait and every size bounded. It knows nothing of what is asked.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde::Serialize;
use websocket::handshake::{Request as Head, encode_response};

use crate::page::File;

/// Bytes of a request's line and headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a whole request may take to arrive, from its first byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay silent between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a peer may take to read some of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is still read of a refused request, so that its sender gets to read the answer.
const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// For how long.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// What is read at a time.
const READ_BYTES: usize = 16 * 1024;

/// A request with its body.
#[derive(Debug)]
pub struct Request {
    /// As it was written: `GET`, `POST`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// What stands behind the question mark, undecoded.
    pub query: String,
    /// Whom it was meant for.
    pub host: Option<String>,
    /// The page it comes from, if a browser sent it.
    pub origin: Option<String>,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// The name under which a repeat of it is known.
    pub idempotency_key: Option<String>,
    /// Its connection may bring another.
    pub keeps_alive: bool,
    /// All of it.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// All but those about the connection and the body's length.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer of this media type that nobody is to keep.
    pub fn text(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type", content_type.into()), ("Cache-Control", "no-store".into())];
        Self { status, headers, body: body.into() }
    }

    /// An answer in JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let mut body = sonic_rs::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
        body.push(b'\n');
        Self::text(status, "application/json", body)
    }

    /// One of the files of a page.
    pub fn file(file: &File) -> Self {
        let headers = file.headers().into_iter().map(|(name, value)| (name, value.into())).collect();
        Self { status: 200, headers, body: file.body.into() }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Why a request does not get what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status code.
    pub status: u16,
    /// A stable word; also the cause under which it is counted.
    pub code: &'static str,
    /// What is wrong, and what would be right.
    pub reason: Cow<'static, str>,
    /// One more header.
    pub header: Option<(&'static str, &'static str)>,
}

impl Problem {
    /// A problem without a header of its own.
    pub fn new(status: u16, code: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, reason: reason.into(), header: None }
    }

    /// A method other than those `allowed`.
    pub fn wrong_method(allowed: &'static str) -> Self {
        let problem = Self::new(405, "method", format!("allowed here: {allowed}"));
        Self { header: Some(("Allow", allowed)), ..problem }
    }

    /// The answer that tells it; where the port itself is at fault, with when to ask again.
    pub fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Error<'a>,
        }
        #[derive(Serialize)]
        struct Error<'a> {
            code: &'a str,
            reason: &'a str,
        }
        let response = Response::json(self.status, &Body { error: Error { code: self.code, reason: &self.reason } });
        let response = match self.header {
            Some((name, value)) => response.with_header(name, value),
            None => response,
        };
        if self.status == 503 { response.with_header("Retry-After", "1") } else { response }
    }
}

/// A connection of an operator's tool.
pub struct Connection {
    stream: TcpStream,
    // What has been read and not been used: the beginning of the next request.
    input: Vec<u8>,
}

/// What a head says of the body behind it.
#[derive(Debug, PartialEq, Eq)]
struct Framing {
    body_bytes: usize,
    expects_continue: bool,
    keeps_alive: bool,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        // Without these an answer is only later, or a wait longer.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        Self { stream, input: Vec::new() }
    }

    /// The next request; none when the peer has gone, or has been silent for too long.
    pub fn next_request(&mut self, body_bytes_max: usize) -> Result<Option<Request>, Problem> {
        if self.input.is_empty() && !self.read_some(Instant::now() + IDLE_TIMEOUT).unwrap_or(false) {
            return Ok(None);
        }
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let (mut request, framing, head_bytes) = loop {
            if let Some(parsed) = parse_head(&self.input, body_bytes_max)? {
                break parsed;
            }
            if self.input.len() > HEAD_BYTES_MAX {
                let reason = format!("request line and headers are longer than {HEAD_BYTES_MAX} bytes");
                return Err(Problem::new(431, "head_too_long", reason));
            }
            if !self.read_in_time(deadline)? {
                return Ok(None);
            }
        };
        self.input.drain(..head_bytes);
        if framing.expects_continue && self.input.is_empty() && framing.body_bytes > 0 {
            let _ = self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        while self.input.len() < framing.body_bytes {
            if !self.read_in_time(deadline)? {
                return Ok(None);
            }
        }
        let rest = self.input.split_off(framing.body_bytes);
        request.body = std::mem::replace(&mut self.input, rest);
        Ok(Some(request))
    }

    fn read_in_time(&mut self, deadline: Instant) -> Result<bool, Problem> {
        self.read_some(deadline).map_err(|_| Problem::new(408, "request_timeout", "the request did not arrive in time"))
    }

    /// Reads what there is; false at the end, or when the socket has failed.
    fn read_some(&mut self, deadline: Instant) -> Result<bool, TimedOut> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut);
            }
            if self.stream.set_read_timeout(Some(left)).is_err() {
                return Ok(false);
            }
            let start = self.input.len();
            self.input.resize(start + READ_BYTES, 0);
            let result = self.stream.read(self.input.get_mut(start..).unwrap_or_default());
            self.input.truncate(start + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(count) => return Ok(count > 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => return Ok(false),
            }
        }
    }

    /// Writes an answer; false when the connection is of no more use.
    pub fn answer(&mut self, request: &Request, response: &Response, stays: bool) -> bool {
        self.write(response, stays, request.method == "HEAD")
    }

    /// Writes an answer to a request that was not read to its end, and ends the connection.
    pub fn refuse(mut self, response: &Response) {
        if !self.write(response, false, false) || self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        // Closing with unread bytes would take the answer back.
        let deadline = Instant::now() + LINGER_TIMEOUT;
        let mut lingered = 0;
        while lingered < LINGER_BYTES_MAX && matches!(self.read_some(deadline), Ok(true)) {
            lingered += self.input.len();
            self.input.clear();
        }
    }

    /// The same by whoever must not wait: a peer that has not sent its request yet may miss the answer.
    pub fn turn_away(mut self, response: &Response) {
        if self.stream.set_nonblocking(true).is_err() || !self.write(response, false, false) {
            return;
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.stream.read(&mut [0; READ_BYTES]);
    }

    fn write(&mut self, response: &Response, stays: bool, is_head: bool) -> bool {
        let mut headers: Vec<(&str, &str)> =
            response.headers.iter().map(|(name, value)| (*name, value.as_ref())).collect();
        headers.push(("Connection", if stays { "keep-alive" } else { "close" }));
        let mut out = Vec::with_capacity(response.body.len() + 512);
        encode_response(&mut out, response.status, &headers, &response.body);
        if is_head {
            out.truncate(out.len() - response.body.len());
        }
        self.stream.write_all(&out).is_ok()
    }
}

/// A deadline has passed.
#[derive(Debug)]
struct TimedOut;

/// Reads a head from the front of `input`: the request without its body, what is known of that, the head's length.
fn parse_head(input: &[u8], body_bytes_max: usize) -> Result<Option<(Request, Framing, usize)>, Problem> {
    let malformed = |reason: String| Problem::new(400, "bad_request", reason);
    let parsed = Head::parse(input).map_err(|error| Problem::new(error.status(), "bad_request", error.to_string()))?;
    let Some((head, head_bytes)) = parsed else { return Ok(None) };
    let text = |name: &str| -> Result<Option<String>, Problem> {
        let mut values = head.headers(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(malformed(format!("request has more than one {name} header")));
        }
        let value = std::str::from_utf8(value).map_err(|_| malformed(format!("value of {name} is not text")))?;
        Ok(Some(value.trim_ascii().to_owned()))
    };
    if head.header("transfer-encoding").is_some() {
        return Err(Problem::new(411, "length_required", "bodies in chunks are not read: send Content-Length"));
    }
    let body_bytes = match text("content-length")? {
        None => 0,
        // `parse` would also take a sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() => {
            digits.parse().unwrap_or(usize::MAX)
        }
        Some(_) => return Err(malformed("content-length is not a whole number".to_owned())),
    };
    if body_bytes > body_bytes_max {
        let reason = format!("body is {body_bytes} bytes, limit {body_bytes_max}");
        return Err(Problem::new(413, "body_too_large", reason));
    }
    let connection = text("connection")?.unwrap_or_default().to_ascii_lowercase();
    let line = input.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let keeps_alive = line.trim_ascii().ends_with(b"HTTP/1.1") && !connection.contains("close");
    let request = Request {
        method: head.method().to_owned(),
        path: head.path().to_owned(),
        query: head.query().to_owned(),
        host: head.host().map(str::to_owned),
        origin: head.origin().map(str::to_owned),
        content_type: text("content-type")?,
        idempotency_key: text("idempotency-key")?,
        keeps_alive,
        body: Vec::new(),
    };
    let expects_continue = text("expect")?.is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
    Ok(Some((request, Framing { body_bytes, expects_continue, keeps_alive }, head_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn framing(head: &str) -> Result<Option<(Framing, usize)>, u16> {
        match parse_head(head.as_bytes(), LIMIT) {
            Ok(parsed) => Ok(parsed.map(|(_, framing, head_bytes)| (framing, head_bytes))),
            Err(problem) => Err(problem.status),
        }
    }

    #[test]
    fn heads_say_what_follows_and_whether_the_connection_stays() {
        let get = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
        let plain = Framing { body_bytes: 0, expects_continue: false, keeps_alive: true };
        assert_eq!(framing(get), Ok(Some((plain, get.len()))));
        for len in 0..get.len() {
            assert_eq!(framing(&get[..len]), Ok(None));
        }
        for (head, body_bytes, expects_continue, keeps_alive) in [
            ("POST / HTTP/1.1\r\nContent-Length: 7\r\nExpect: 100-continue\r\n\r\n", 7, true, true),
            ("POST / HTTP/1.0\r\nContent-Length: 100\r\n\r\n", 100, false, false),
            ("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", 0, false, false),
        ] {
            let expected = Framing { body_bytes, expects_continue, keeps_alive };
            assert_eq!(framing(head), Ok(Some((expected, head.len()))), "{head}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_status() {
        for (head, status) in [
            ("\x16\x03\x01\x02", 400),
            ("GET / HTTP/2.0\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ] {
            assert_eq!(framing(head), Err(status), "{head}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
        assert_eq!(framing(&many), Err(431));
    }
}
