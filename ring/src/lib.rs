//! The weighted consistent-hash ring, its atomic swap, and the control messages that carry it.
//!
//! Pure: no sockets, clocks, threads, files or environment. The same node weights and seed give the same table, bit for
//! bit, on every machine and in every order of insertion; `tests/golden.jsonl` holds that contract.
//!
//! | file | what it owns |
//! |---|---|
//! | `ring` | [`Ring`]: who owns a key |
//! | `table` | how the slots are dealt out (fill and settle) |
//! | `hash` | the key hash, slots, home shards and permutations, which may never change |
//! | `node`, `weight` | [`NodeId`], [`Weight`] and the validated map [`NodeWeights`] |
//! | `diff` | what moves between two rings |
//! | `shared` | [`SharedRing`]: one writer swaps, every shard reads |
//! | `control` | the JSON messages between balancer and nodes |
//! | `nesting` | how deep a JSON text nests, asked before a parser that recurses sees it |
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod control;
mod diff;
mod error;
mod hash;
pub mod nesting;
mod node;
mod ring;
mod shared;
mod table;
mod weight;

pub use diff::{RingDiff, SlotMove, diff};
pub use error::{ControlError, InvalidNodeId, InvalidVersion, InvalidWeight, InvalidWeights, SeedChanged, StaleRing};
#[doc(hidden)]
pub use hash::Permutation;
pub use hash::{SLOTS, hash_key, shard_of, slot_of};
pub use node::{NODE_ID_BYTES_MAX, NodeId, NodeIndex};
pub use ring::{Owners, Ring, RingVersion, VersionHash};
pub use shared::{RingReader, SharedRing};
#[doc(hidden)]
pub use table::{arrival, fill_unsettled, pace};
pub use weight::{NODES_MAX, NodeWeights, Weight};
