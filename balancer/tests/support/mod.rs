//! What tests of the whole program lean on: servers, nodes that beat and real ones, balancers as processes, a small HTTP
//! client. Whatever is started ends with the test, also where that is killed.
//! Every wait has a deadline and waits for a condition, never for time to pass.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

mod balancer;
// The same as the nodes' tests have.
#[path = "../../../server/tests/support/client.rs"]
mod client;
mod fleet;
mod node;
mod process;
mod prometheus;
mod redis_server;
mod services;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub use balancer::{Balancer, run};
pub use client::{Client, Incoming};
pub use fleet::Fleet;
pub use node::{Node, load, sum_of};
pub use process::{Process, Scratch};
pub use prometheus::Prometheus;
pub use redis_server::RedisServer;
pub use services::Services;
use sonic_rs::Value;

/// How long anything may take before a test gives up: generous, for busy machines.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is still none after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_or(ask, || what.to_owned())
}

/// The same, where what is waited for can only be told when it has not come.
#[track_caller]
pub fn eventually_or<T>(mut ask: impl FnMut() -> Option<T>, what: impl FnOnce() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain until {}", what());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body, which must be JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        sonic_rs::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// `GET path`.
#[track_caller]
pub fn get(addr: SocketAddr, path: &str) -> Answer {
    request(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"))
}

/// `POST path` with these headers, each with its line end, and this body.
#[track_caller]
pub fn post(addr: SocketAddr, path: &str, headers: &str, body: &str) -> Answer {
    let len = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}Content-Length: {len}");
    request(addr, &format!("{head}\r\n\r\n{body}"))
}

#[track_caller]
fn request(addr: SocketAddr, text: &str) -> Answer {
    try_request(addr, text).unwrap_or_else(|error| panic!("{addr}: {error}: {text}"))
}

/// `GET path` of somebody who may be gone, or go while answering.
pub fn try_get(addr: SocketAddr, path: &str) -> Option<Answer> {
    try_request(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")).ok()
}

/// The answer to a request that is written out.
pub fn try_request(addr: SocketAddr, text: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let answer = String::from_utf8_lossy(&bytes);
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    });
    parts.ok_or_else(|| io::Error::other(format!("no response: {answer:?}")))
}
