//! The store against a real Redis.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::needless_pass_by_value, reason = "a test gives away what it made")]

mod cluster;
mod garbage;
mod lifetime;
mod membership;
mod redis_server;
mod rules;
mod running;
mod scripted;
mod sentinel;
mod thread;
