//! Where a message goes, and in which order things happen to a client's session: the pure core of a shard. Inputs and
//! the time in; what must be said, asked and sent out. No sockets, clocks, Kafka or Redis.
//!
//! | module | holds |
//! |---|---|
//! | [`dispatcher`] | the core: all that a shard knows; the modules down to `records` are its verbs |
//! | `delivery` | what becomes of a message, and what its sender is told |
//! | `queues` | what cannot go on is held, and tried again |
//! | `relay` | on to another node, and word of where a client is |
//! | `look_up` | kept in the store, unless that knows of a session elsewhere |
//! | `fences` | order across a change of path |
//! | `crossings` | order across a move of the sender |
//! | `sessions` | which client's session is where, and what follows when one has got further |
//! | `login` | a client comes, and delivery to it begins |
//! | `claim` | the right to a client |
//! | `takeover` | a client moves: what the two nodes tell each other |
//! | `leaving` | a session ends, after the store has all of it |
//! | `records` | what other nodes tell this one |
//! | `arrival` | a message as all of them look at it |
//! | `waiting` | the queues, as values |
//! | [`paths`] | by which topic messages go, and how that changes in order |
//! | [`membership`] | which nodes are alive |

mod arrival;
mod claim;
mod crossings;
mod delivery;
pub mod dispatcher;
mod fences;
mod leaving;
mod login;
mod look_up;
pub mod membership;
pub mod paths;
mod queues;
mod records;
mod relay;
mod sessions;
mod takeover;
mod waiting;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use arrival::{Arrival, with_arrival};
pub use dispatcher::{Dispatcher, Now, Outcome, Output, Rules};
pub use login::Login;
