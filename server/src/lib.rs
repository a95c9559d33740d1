//! The socket node: it keeps one WebSocket per client and passes messages between clients, in order, losing none that
//! it accepted.
//!
//! | module | holds |
//! |---|---|
//! | [`node`] | start, run, stop |
//! | [`admin`] | the operators' port |
//! | [`drain`] | how far a node is on its way out |
//! | [`shard`] | a pinned thread and the clients whose home it is |
//! | [`protocol`] | the client protocol as values |
//! | [`routing`] | which node a message is for |
//! | [`cluster`] | what one node of several has beside its shards |
//! | [`bus`] | the way to other nodes |
//! | [`store`] | replay buffers |
//! | [`load`] | how busy the machine is |
//! | [`vitals`] | how the node is doing, for heartbeats and metrics |
//! | [`metrics`] | what is counted |
//! | [`publish`] | who waits for what became of a published message |
//! | [`page`] | the page at `/` |

pub mod admin;
pub mod bus;
pub mod cluster;
pub mod drain;
pub mod load;
pub mod metrics;
pub mod node;
pub mod page;
pub mod protocol;
pub mod publish;
pub mod routing;
pub mod shard;
pub mod store;
mod sys;
pub mod vitals;
