//! Where a message goes, and in which order things happen to a client's session: the pure core of a shard. Inputs and
//! the time in; what must be said, asked and sent out. No sockets, clocks, Kafka or Redis.
//!
//! | module | holds |
//! |---|---|
//! | [`dispatcher`] | the core: a shard's sessions, and what becomes of each message |
//! | [`membership`] | which nodes are alive |
//! | `login` | a client comes, is claimed, is taken over, leaves |
//! | `records` | what other nodes tell this one |
//! | `waiting` | messages that wait for a look-up, a login or a fence |
//! | [`paths`] | by which topic messages go, and how that changes in order |

pub mod dispatcher;
mod login;
pub mod membership;
pub mod paths;
mod records;
mod waiting;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use dispatcher::{Arrival, Dispatcher, Now, Outcome, Output, Rules};
pub use login::Login;
