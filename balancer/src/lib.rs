//! The balancer: reads how loaded the nodes are, decides how much of the keys each should own, and publishes it.
//!
//! What decides is pure: no sockets, clocks, threads or files; time is an argument, so that a recorded day replays in a
//! second. What reads and publishes is the rim.
//!
//! | file | what it owns |
//! |---|---|
//! | `heartbeats` | which reports count |
//! | `smoothing` | what they say over time, and will say once every client has followed the ring |
//! | `score` | one number for how loaded a node is |
//! | `policy` | weights from scores: exact totals, dead-band, limit of movement |
//! | `triggers` | when to compute weights anew |
//! | `scaling` | when to recommend more nodes or fewer |
//! | `decide` | the pure whole: [`decide::decide`] |
//! | `rules` | every threshold with its default |
//! | `presence` | who is alive |
//! | `replay` | the same core over recorded lines |
//! | `simulate` | the same core over a model of a fleet |
//! | `service` | the loop that looks, decides and publishes, as leader or follower |
//! | `store` | Redis: heartbeats, lease, ring |
//! | `kafka` | how Kafka is spoken to |
//! | `publisher` | control messages out to Kafka, the ring's topic in |
//! | `forwarder` | what stands in the topics of nodes that are gone goes on to the owners of its recipients |
//! | `prometheus` | metrics beside what the nodes report |
//! | `view` | what is shown of all this |
//! | `http`, `metrics`, `page` | how it is served |
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "the numbers compared are exact"))]

pub mod decide;
pub mod forwarder;
pub mod heartbeats;
pub mod http;
pub mod kafka;
mod metrics;
mod page;
pub mod policy;
pub mod presence;
pub mod prometheus;
pub mod publisher;
pub mod replay;
pub mod rules;
pub mod scaling;
pub mod score;
pub mod service;
pub mod simulate;
mod smoothing;
pub mod store;
mod sys;
pub mod triggers;
pub mod view;
