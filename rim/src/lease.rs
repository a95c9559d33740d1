//! What a lease in Redis is, for whoever takes one: a node and a forwarder that stands in for it take the same. One holder
//! at a time, who knows when its time is up without asking, and a token that rises with every change of hands, so that what
//! a former holder does too late can be told apart.

use std::time::Duration;

/// How long a lease lasts when it is not renewed.
pub const LEASE_TIME: Duration = Duration::from_secs(10);
/// The holder stops so much earlier: clocks drift, and what it has begun must end.
const LEASE_MARGIN: Duration = Duration::from_secs(2);
/// How long its holder may count on it, from before it asked.
pub const HELD_TIME: Duration = LEASE_TIME.saturating_sub(LEASE_MARGIN);
/// A held lease is renewed this often.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// A lease that somebody else holds is asked for this often.
pub const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// The script that takes a lease or keeps it.
pub const TAKE: &str = include_str!("lease/take.lua");
/// The script that gives one back.
pub const GIVE_BACK: &str = include_str!("lease/give_back.lua");

/// The key of the lease on the topic of the node called `node`.
pub fn topic_key(node: &str) -> String {
    format!("{{rtc}}:consume:{node}")
}

/// The key of the counter that the tokens of the lease at `key` come from.
pub fn counter_key(key: &str) -> String {
    format!("{key}:token")
}
