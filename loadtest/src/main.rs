//! `rtc-loadtest`: drives WebSocket servers and accounts for every message.
mod args; mod clock; mod config; mod ledger; mod payload; mod recorder; mod schedule; mod targets;
fn main() {}
