//! The store against a real Redis.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod garbage;
mod membership;
mod redis_server;
mod rules;
mod running;
mod scripted;
mod thread;
