//! The bus against real brokers and against broken ones.
//!
//! The tests in `kafka` need a broker: `RTC_KAFKA=HOST:PORT` (`scripts/services.sh up` prints one). Without it they say
//! SKIPPED, and fail where `CI=true`. Those in `mock` bring the client library's own model of a cluster.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod control;
mod fenced;
mod kafka;
mod mock;
mod restart;
mod rig;
