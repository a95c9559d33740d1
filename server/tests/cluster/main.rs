//! Several real processes that act as one, over a real Kafka and a real Redis.
//!
//! `RTC_KAFKA=HOST:PORT` and `RTC_REDIS=URL` name the servers (`scripts/services.sh up` prints them). Without them each
//! test says SKIPPED, and fails where `CI=true`. Tests that end a server start a pair of their own by the same script.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod control;
mod delivery;
mod faults;
mod fleet;
mod hopping;
mod people;
#[path = "../support/mod.rs"]
mod support;
