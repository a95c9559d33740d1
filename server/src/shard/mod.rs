//! One pinned thread with its own runtime, its own listener, and the clients whose home it is. Shards share nothing but
//! mailboxes.
//!
//! A turn: the poller tells which sockets are ready; their tasks read, all in one submission; what was read is decoded
//! and acted on; what there is to say leaves in one write per socket, all in one submission.
//!
//! | module | holds |
//! |---|---|
//! | `listener` | the listening socket, accepting |
//! | `poller` | the descriptors a shard waits for |
//! | `connection` | a socket between turns, and the task of a busy one |
//! | `socket` | reading and writing, through the ring or not |
//! | `state` | all a shard knows; `input`, `delivery`, `login`, `sweep`, `drain`, `relocate` are its verbs |
//! | `opening` | what an upgrade request asks for (pure) |
//! | [`session`] | a client's state without its socket (pure) |
//! | [`outbox`], [`recent`], [`offset`], [`answers`], [`origin`] | what a session is made of (pure) |
//! | [`mailbox`], [`handover`] | how shards talk, and about what |
//! | `buffers`, [`slab`], `clock`, `deadlines`, `disconnect` | what all of them lean on |

pub mod answers;
mod buffers;
mod clock;
mod connection;
mod deadlines;
mod delivery;
mod disconnect;
mod drain;
pub mod handover;
mod input;
mod listener;
mod login;
pub mod mailbox;
pub mod offset;
mod opening;
pub mod origin;
pub mod outbox;
mod poller;
pub mod recent;
mod relocate;
pub mod session;
pub mod slab;
mod socket;
mod state;
mod sweep;
mod thread;

pub use disconnect::Disconnect;
pub use opening::OpeningRules;
pub use outbox::{Entry, OutboxLimits};
pub use session::SessionLimits;
pub use socket::Driver;
pub use state::{Settings, Shared};
pub use thread::{Parts, run, try_rings};

pub(crate) use listener::{bind, check_free};
use thread::Shard;
