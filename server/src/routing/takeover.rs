//! A client moves from one node to another: what the two tell each other. The newer login's node asks with `Claimed`;
//! the former holder answers `Released` when the store has all that it had.
//!
//! Invariant: every `Claimed` is answered, and its record finished, once; the newest not before the store has all that
//! is left of the client's sessions here.

use crate::bus::{Address, Lane, Parcel, Record, RecordRef};
use crate::shard::Disconnect;
use crate::shard::session::Session;
use crate::shard::slab::Key;

use super::claim::Standing;
use super::dispatcher::Dispatcher;

impl Dispatcher {
    /// Another node has claimed a client: its record has come to its turn.
    pub(super) fn on_claimed(&mut self, client: &str, hash: u64, origin: &Address, generation: u64, at: RecordRef) {
        let is_it = |key: &&Key| self.sessions.get(**key).is_some_and(|session| session.id().as_str() == client);
        if let Some(parting) = self.parting.iter().find(is_it).copied()
            && let Some(claim) = self.claim_mut(parting)
        {
            claim.rare_mut().claimed.push((origin.clone(), generation, at));
            return;
        }
        let session = self.find_session(hash, client);
        let standing = session.and_then(|key| self.claim(key)).map(|claim| (claim.standing, claim.generation));
        match session.zip(standing) {
            Some((key, (Standing::Lost, _))) => self.supersede(key, origin, generation, at),
            Some((key, (standing, held))) if standing != Standing::Asked && held < generation => {
                self.supersede(key, origin, generation, at);
            }
            Some((key, (Standing::Asked | Standing::Unclaimed | Standing::TakingOver, _))) => {
                // An earlier login's messages may be here still, and the other node's must not go ahead of them.
                self.keep_rest(key);
                if let Some(claim) = self.claim_mut(key) {
                    claim.rare_mut().claimed.push((origin.clone(), generation, at));
                }
                if !self.sessions.get(key).is_some_and(Session::is_waiting_for_store) {
                    self.answer_claimed(key);
                }
            }
            _ => {
                self.tell_released(client, hash, origin, generation);
                self.out.finished.push(at);
            }
        }
    }

    fn supersede(&mut self, key: Key, origin: &Address, generation: u64, at: RecordRef) {
        if let Some(claim) = self.claim_mut(key) {
            let earlier = claim.rare_mut().superseded.replace((origin.clone(), generation, at));
            if let Some((earlier, generation, at)) = earlier {
                // A login between this session's and the newest: it is told at once, and has its own to release.
                let client = self.sessions.get(key).map(|session| (session.id().clone(), session.hash()));
                if let Some((client, hash)) = client {
                    self.tell_released(client.as_str(), hash, &earlier, generation);
                }
                self.out.finished.push(at);
            }
        }
        if let Some(session) = self.sessions.get_mut(key)
            && !session.is_detached()
        {
            self.out.closes.push((session.connection(), Disconnect::Replaced));
            session.detach();
        }
        self.settle_detached(key);
    }

    /// What an earlier session left here is kept: those who claimed its client meanwhile may go on.
    pub(super) fn answer_claimed(&mut self, key: Key) {
        if self.parting.contains(&key) {
            // A newer session may be here: they hear when this one has ended.
            return;
        }
        let claimed =
            self.claim_mut(key).and_then(|claim| claim.rare.as_mut()).map(|rare| std::mem::take(&mut rare.claimed));
        let Some((session, claimed)) = self.sessions.get(key).zip(claimed) else { return };
        let (client, hash) = (session.id().clone(), session.hash());
        for (origin, generation, at) in claimed {
            self.tell_released(client.as_str(), hash, &origin, generation);
            self.out.finished.push(at);
        }
    }

    fn tell_released(&mut self, client: &str, hash: u64, origin: &Address, generation: u64) {
        self.out.parcels.push_back(Box::new(Parcel {
            to: origin.node.clone(),
            // Behind whatever of the client's was sent on from here.
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Released { client: client.into(), generation },
            ticket: None,
        }));
    }

    /// A former holder of a client has kept all that it had; or the forwarder says so, in the name of no life of a node
    /// that may only be silent, and still bring what it has.
    pub(super) fn on_released(&mut self, client: &str, hash: u64, generation: u64, sent_by: &Address) {
        let Some(key) = self.find_session(hash, client) else { return };
        let Some(claim) = self.claim_mut(key) else { return };
        match claim.standing {
            Standing::TakingOver if claim.generation == generation => {
                let rare = claim.rare_mut();
                rare.unreleased.retain(|waits_for| *waits_for != sent_by.node);
                rare.is_forced |= sent_by.incarnation == 0;
                if rare.unreleased.is_empty() {
                    if rare.is_forced {
                        self.shut_out_former(key);
                    }
                    self.begin(key, true, true);
                }
            }
            Standing::Held | Standing::Starting if claim.generation == generation => {
                // It was not waited for, or the claim came later than the login.
                self.look_again(key);
            }
            _ => {}
        }
    }

    /// From here on the store gives what a former holder still brings a place behind all of this one's: under its own
    /// offsets the client would be past it.
    pub(super) fn shut_out_former(&mut self, key: Key) {
        self.ask_for_claim(key);
    }
}
