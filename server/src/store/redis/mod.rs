//! The store that is Redis: sessions and replay buffers of all nodes, and who is alive.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | the names of keys |
//! | [`scripts`] | the scripts, and how a request becomes a call |
//! | [`codec`] | messages as fields, replies as answers |
//! | [`pack`] | commands packed by hand |
//! | [`thread`] | the thread that asks for all shards |
//! | `lanes` | what it has taken, a lane to each client |
//! | `sweeper` | the thread that drops what is too old |
//! | [`membership`] | the thread of heartbeats and leases |
//! | [`lease`] | one holder at a time |
//! | [`link`] | connections, of whatever kind |
//! | `links` | several of them, which share the requests |
//! | `durability` | whether the server keeps what it says it keeps |
//! | [`counters`], `backoff` | what all of them lean on |

mod backoff;
pub mod codec;
pub mod counters;
mod durability;
pub mod keys;
mod lanes;
pub mod lease;
pub mod link;
mod links;
pub mod membership;
pub mod pack;
pub mod scripts;
mod sentinel;
mod sweeper;
pub mod thread;

pub use counters::StoreCounters;
pub use lease::Lease;
pub use link::BadUrl;
pub use membership::{Claimed, Event, Figures, Identity, Members, claim_node_id, new_incarnation};
pub use thread::{RedisStore, StartError, StoreHandle, StoreSettings};
