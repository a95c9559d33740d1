//! Where does this go: pure functions of the ring.

pub mod membership;

use ring::{NodeId, Ring};

/// The node that a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// This one.
    Here,
    /// Another one.
    Node(NodeId),
    /// No ring yet: nobody knows.
    Unknown,
}

/// The route to a client whose hash is `hash`.
pub fn route(ring: Option<&Ring>, this: &NodeId, hash: u64) -> Route {
    let Some(ring) = ring else { return Route::Unknown };
    let owner = ring.weights().node(ring.owner_of_hash(hash));
    if owner == this { Route::Here } else { Route::Node(owner.clone()) }
}
