//! The store as a session sees it when it is elsewhere: what it asks is noted down in order, and answered later.

use std::collections::VecDeque;
use std::task::Poll;

use crate::protocol::ClientId;

use super::request::{Author, ClaimKind, StoreRequest, Ticket};
use super::{Appended, Claimed, Kept, Room, Store};

/// Requests on their way to the store.
#[derive(Default)]
pub struct RemoteStore {
    /// In order; whoever drives this node sends them on.
    pub requests: VecDeque<(Ticket, StoreRequest)>,
    /// On whose behalf the next requests are.
    pub ticket: Ticket,
    /// Of that client's logins the one that is here.
    pub generation: u64,
}

impl RemoteStore {
    /// Notes down a request for whom `ticket` names.
    pub fn ask(&mut self, ticket: Ticket, request: StoreRequest) {
        self.requests.push_back((ticket, request));
    }

    /// Claims a client; the answer carries the current ticket.
    pub fn claim_until(&mut self, client: &ClientId, ceiling: u64) {
        let (client, generation) = (client.clone(), self.generation);
        self.ask(self.ticket.claim(), StoreRequest::Claim { client, generation, kind: ClaimKind::Again, ceiling });
    }
}

impl Store for RemoteStore {
    fn claim(&mut self, _client: &ClientId) -> Poll<Claimed> {
        Poll::Pending
    }

    fn release(&mut self, client: &ClientId, last_offset: u64, _now_ms: u64) {
        let (client, generation) = (client.clone(), self.generation);
        self.ask(Ticket::NOBODY, StoreRequest::Release { client, generation, last_offset });
    }

    fn append(&mut self, client: &ClientId, message: &Kept, room: Room, _now_ms: u64) -> Poll<Appended> {
        let author = Author::Holder { generation: self.generation };
        let (client, messages) = (client.clone(), vec![message.clone()]);
        self.ask(self.ticket, StoreRequest::Append { client, author, messages, room });
        Poll::Pending
    }

    fn append_all(&mut self, client: &ClientId, messages: Vec<Kept>, _now_ms: u64) -> Poll<()> {
        let author = Author::Holder { generation: self.generation };
        self.ask(self.ticket, StoreRequest::Append { client: client.clone(), author, messages, room: Room::Owed });
        Poll::Pending
    }

    fn page(&mut self, client: &ClientId, offset: u64, bytes_max: usize) -> Poll<Vec<Kept>> {
        self.ask(self.ticket, StoreRequest::Page { client: client.clone(), after: offset, bytes_max });
        Poll::Pending
    }

    fn trim(&mut self, client: &ClientId, offset: u64) {
        let (client, generation) = (client.clone(), self.generation);
        self.ask(Ticket::NOBODY, StoreRequest::Trim { client, generation, offset });
    }

    fn remove(&mut self, client: &ClientId, offset: u64) {
        let (client, generation) = (client.clone(), self.generation);
        self.ask(Ticket::NOBODY, StoreRequest::Remove { client, generation, offset });
    }
}

/// The store of a node: in this process, or elsewhere.
#[expect(clippy::large_enum_variant, reason = "there is one to a shard, for good")]
pub enum AnyStore {
    /// The node runs alone.
    Local(super::LocalStore),
    /// The node is one of several.
    Remote(RemoteStore),
}

impl AnyStore {
    /// True when the node runs alone.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// From here on requests are made for this session.
    pub fn act_for(&mut self, ticket: Ticket, generation: u64) {
        if let Self::Remote(remote) = self {
            remote.ticket = ticket;
            remote.generation = generation;
        }
    }
}

/// Passes a call on to whichever store there is.
macro_rules! either {
    ($store:expr, $inner:ident => $call:expr) => {
        match $store {
            AnyStore::Local($inner) => $call,
            AnyStore::Remote($inner) => $call,
        }
    };
}

impl Store for AnyStore {
    fn claim(&mut self, client: &ClientId) -> Poll<Claimed> {
        either!(self, store => store.claim(client))
    }

    fn release(&mut self, client: &ClientId, last_offset: u64, now_ms: u64) {
        either!(self, store => store.release(client, last_offset, now_ms));
    }

    fn append(&mut self, client: &ClientId, message: &Kept, room: Room, now_ms: u64) -> Poll<Appended> {
        either!(self, store => store.append(client, message, room, now_ms))
    }

    fn append_all(&mut self, client: &ClientId, messages: Vec<Kept>, now_ms: u64) -> Poll<()> {
        either!(self, store => store.append_all(client, messages, now_ms))
    }

    fn page(&mut self, client: &ClientId, offset: u64, bytes_max: usize) -> Poll<Vec<Kept>> {
        either!(self, store => store.page(client, offset, bytes_max))
    }

    fn trim(&mut self, client: &ClientId, offset: u64) {
        either!(self, store => store.trim(client, offset));
    }

    fn remove(&mut self, client: &ClientId, offset: u64) {
        either!(self, store => store.remove(client, offset));
    }
}
