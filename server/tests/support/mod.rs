//! What tests of the whole program lean on: a server process, a blocking WebSocket client, a blocking HTTP client.
//! Every wait has a deadline and waits for a condition, never for time to pass.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

mod client;
mod http;
mod server;

use std::time::{Duration, Instant};

pub use client::{Client, Close, Incoming};
pub use http::{Answer, get, post, request};
pub use server::{Run, Server, run, run_with_descriptors};

/// How long anything may take before a test gives up: generous, for busy machines.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until the answer is yes.
///
/// # Panics
/// When it is still no after [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
