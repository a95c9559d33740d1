//! A client comes, is claimed, is taken over from another node, and leaves. On a node that runs alone all of that is
//! done at once; else the store and the former holder are asked, and neither can keep a client waiting for ever.

use std::task::Poll;

use ring::NodeId;

use crate::bus::{Address, Holder, Lane, Parcel, Record, RecordRef};
use crate::shard::Disconnect;
use crate::shard::offset;
use crate::shard::session::{Newcomer, Right, Session, Start, StoreNews, Wishes};
use crate::shard::slab::Key;
use crate::store::bounds::OFFSETS_RESERVED_MIN;
use crate::store::request::{Author, StoreAnswer, StoreRequest, Ticket};
use crate::store::{AnyStore, Claimed, Room, Store};

use super::dispatcher::Dispatcher;

/// A login that is beaten to its generation asks again this often.
const CLAIMS_MAX: u8 = 8;
/// Sessions looked at in one tick for a claim that is due.
const RENEWALS_PER_TICK: usize = 2_000;
/// A claim is renewed after this share of the time for which it reserves offsets.
const RENEWALS_PER_CEILING: u64 = 2;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Standing {
    /// The store has not answered yet.
    #[default]
    Asked,
    /// The former holder has not released it yet.
    TakingOver,
    /// What waits in the store is being read for the first time.
    Starting,
    /// It is here.
    Held,
    /// The store did not answer in time: the client has been welcomed and may send; the claim follows, and only then
    /// does it get anything, so that nothing it is owed is overtaken.
    Unclaimed,
    /// It is elsewhere: the store gets what is left here.
    Lost,
}

/// The right to a client, and how it came about.
#[derive(Debug, Default)]
pub(super) struct Claim {
    pub generation: u64,
    pub ceiling: u64,
    // What the claim under way asks for.
    pub asked_ceiling: u64,
    pub standing: Standing,
    pub since_ms: u64,
    // What only matters at the beginning and the end.
    pub rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
pub(super) struct Rare {
    pub wishes: Wishes,
    pub tries: u8,
    pub found: Found,
    /// Nodes that have not released the client yet.
    pub unreleased: Vec<NodeId>,
    /// A newer login elsewhere waits for this session's end.
    pub superseded: Option<(Address, u64, RecordRef)>,
    /// Logins elsewhere that wait for what an earlier session of this client left here.
    pub claimed: Vec<(Address, u64, RecordRef)>,
    /// Who has a lost client.
    pub holder: Option<Holder>,
}

/// What the claim found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    last_offset: u64,
    lost_offset: u64,
    is_known: bool,
    has_messages: bool,
}

impl Claim {
    /// True when messages may be given to the session.
    pub fn takes_messages(&self) -> bool {
        matches!(self.standing, Standing::Starting | Standing::Held)
    }

    pub fn right(&self) -> Right {
        match self.standing {
            Standing::Starting | Standing::Held => Right { ceiling: self.ceiling, is_claimed: true },
            _ => Right { ceiling: u64::MAX, is_claimed: false },
        }
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// What became of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// It can be welcomed now.
    Welcome(Key, Start),
    /// It will be welcomed later.
    Waits(Key),
}

impl Dispatcher {
    pub(super) fn claim(&self, key: Key) -> Option<&Claim> {
        self.sessions.get(key)?;
        self.claims.get(key.index as usize)
    }

    pub(super) fn claim_mut(&mut self, key: Key) -> Option<&mut Claim> {
        self.sessions.get(key)?;
        self.claims.get_mut(key.index as usize)
    }

    /// A client logs in. The connection of an older login of it on this shard is closed before.
    pub fn log_in(&mut self, who: Newcomer) -> Login {
        self.counters.logins.add(1);
        if self.store.is_local() {
            return self.log_in_alone(who);
        }
        let (hash, wishes) = (who.hash, who.wishes);
        let older = self.find_session(hash, who.id.as_str());
        let key = match older {
            Some(older) if self.may_be_attached(older) => {
                if let Some(session) = self.sessions.get_mut(older) {
                    session.attach(who.connection, wishes);
                }
                older
            }
            older => {
                if let Some(older) = older {
                    self.unlist(older);
                    self.parting.push(older);
                }
                let key = self.sessions.insert(Session::unknown(who));
                self.list(key, hash);
                let slots = self.sessions.slots();
                self.claims.resize_with(slots, Claim::default);
                if let Some(claim) = self.claims.get_mut(key.index as usize) {
                    *claim = Claim::default();
                }
                key
            }
        };
        self.counters.sessions.set(self.sessions.len() as u64);
        let now = self.now;
        self.generation = self.generation.saturating_add(1).max(now.wall_ms << 10);
        let generation = self.generation;
        if let Some(claim) = self.claim_mut(key) {
            claim.standing = Standing::Asked;
            claim.generation = generation;
            claim.since_ms = now.steady_ms;
            let rare = claim.rare_mut();
            rare.wishes = wishes;
            rare.tries = 0;
        }
        self.ask_for_claim(key);
        self.opening.push(key);
        Login::Waits(key)
    }

    /// An older login's session goes on with a new connection, unless another node waits for its end.
    fn may_be_attached(&self, key: Key) -> bool {
        self.claim(key).is_some_and(|claim| {
            let is_superseded = claim.rare.as_ref().is_some_and(|rare| rare.superseded.is_some());
            claim.standing != Standing::Lost && !is_superseded
        })
    }

    fn log_in_alone(&mut self, who: Newcomer) -> Login {
        let now_ms = self.now.wall_ms;
        let hash = who.hash;
        let claimed = match self.store.claim(&who.id) {
            Poll::Ready(claimed) => claimed,
            Poll::Pending => Claimed::default(),
        };
        let (session, start) = Session::new(who, claimed, &mut self.store, self.started_ms, now_ms);
        let key = self.sessions.insert(session);
        self.list(key, hash);
        self.counters.sessions.set(self.sessions.len() as u64);
        Login::Welcome(key, start)
    }

    fn list(&mut self, key: Key, hash: u64) {
        let sessions = &self.sessions;
        let hash_of = |index: &u32| sessions.at(*index).map_or(0, |(_, session)| session.hash());
        self.by_client.insert_unique(hash, key.index, hash_of);
    }

    /// Messages find the session no longer.
    fn unlist(&mut self, key: Key) {
        let Some(hash) = self.sessions.get(key).map(Session::hash) else { return };
        if let Ok(found) = self.by_client.find_entry(hash, |index| *index == key.index) {
            found.remove();
        }
    }

    fn ask_for_claim(&mut self, key: Key) {
        let ceiling = offset::at(self.now.wall_ms.saturating_add(self.rules.ceiling_ms));
        self.act_for(key);
        let Some(session) = self.sessions.get(key) else { return };
        let ceiling = ceiling.max(session.last_offset().saturating_add(OFFSETS_RESERVED_MIN));
        // By its ceiling the store tells a claim that is renewed from one that is asked again.
        let asked_ceiling = self.claim(key).map_or(0, |claim| claim.asked_ceiling);
        let ceiling = ceiling.max(asked_ceiling.saturating_add(1));
        if let AnyStore::Remote(remote) = &mut self.store {
            remote.claim_until(session.id(), ceiling);
        }
        if let Some(claim) = self.claim_mut(key) {
            claim.asked_ceiling = ceiling;
        }
    }

    /// The connection of a session is gone: what is not acknowledged is kept, then the session is given back.
    pub fn log_out(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_detached() {
            return;
        }
        session.detach();
        if self.store.is_local() {
            let now_ms = self.now.wall_ms;
            session.spill_all(&mut self.store, self.rules.session, now_ms, &mut self.answers);
            self.unlist(key);
            if let Some(session) = self.sessions.remove(key) {
                session.release(&mut self.store, now_ms);
            }
            self.counters.sessions.set(self.sessions.len() as u64);
            return;
        }
        self.settle_detached(key);
    }

    /// Brings a session without a connection one step closer to its end.
    fn settle_detached(&mut self, key: Key) {
        self.act_for(key);
        let (now_ms, limits) = (self.now.wall_ms, self.rules.session);
        let Some(standing) = self.claim(key).map(|claim| claim.standing) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        if standing == Standing::Lost {
            if !session.is_waiting_for_store() {
                self.nudge_holder(key);
                self.end(key, false);
            }
            return;
        }
        if !session.is_detached() || !matches!(standing, Standing::Held | Standing::Starting) {
            return;
        }
        let (waiting_messages, _) = session.outbox_size();
        if waiting_messages > 0 || session.is_behind() {
            session.fall_behind(&mut self.store, limits, now_ms, &mut self.answers);
            session.spill_all(&mut self.store, limits, now_ms, &mut self.answers);
        }
        if session.is_waiting_for_store() {
            return;
        }
        self.end(key, true);
    }

    /// Ends a session of which the store has everything; `is_ours` if it is to be given back.
    fn end(&mut self, key: Key, is_ours: bool) {
        self.act_for(key);
        self.unlist(key);
        self.parting.retain(|parting| *parting != key);
        let rare = self.claim_mut(key).and_then(|claim| claim.rare.take());
        let Some(session) = self.sessions.remove(key) else { return };
        self.counters.sessions.set(self.sessions.len() as u64);
        let (client, hash) = (session.id().clone(), session.hash());
        if is_ours {
            session.release(&mut self.store, self.now.wall_ms);
        }
        let rare = rare.map(|rare| *rare).unwrap_or_default();
        if let Some((origin, generation, _)) = &rare.superseded {
            let holder = Holder { node: origin.node.clone(), incarnation: origin.incarnation, generation: *generation };
            self.learn(client.as_str(), &holder);
        }
        // There may be another session of the client here, which they have to wait for, too.
        for (origin, generation, at) in rare.claimed.into_iter().chain(rare.superseded) {
            self.on_claimed(client.as_str(), hash, &origin, generation, at);
        }
        self.go_on_with(client.as_str(), hash);
    }

    /// Tries again with all that waits for one client.
    fn go_on_with(&mut self, client: &str, hash: u64) {
        for queue in self.waiting.of_client(client, hash) {
            self.go_on(queue);
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

    /// The store has answered a session's claim.
    pub(super) fn on_claim_answer(&mut self, key: Key, answer: StoreAnswer) {
        match answer {
            StoreAnswer::Claimed { generation, unreleased, last_offset, lost_offset, is_known, has_messages } => {
                let found = Found { last_offset, lost_offset, is_known, has_messages };
                self.on_claim_granted(key, generation, unreleased, found);
            }
            StoreAnswer::Elsewhere(holder) => self.on_claim_lost(key, holder),
            _ => self.counters.unexpected_answers.add(1),
        }
    }

    /// The store has answered something that a session asked about its messages.
    pub(super) fn on_session_answer(&mut self, key: Key, answer: StoreAnswer) {
        let mut refused = self.take_refused();
        let news = self.with_session(key, |session, store, limits, answers, now_ms| {
            session.on_store(answer, store, limits, now_ms, answers, &mut refused)
        });
        self.tell_refused(refused);
        match news {
            Some(StoreNews::Unexpected) => self.counters.unexpected_answers.add(1),
            Some(StoreNews::Lost(holder)) => match self.claim(key).map(|claim| claim.standing) {
                Some(Standing::Held | Standing::Starting) => return self.lose(key, holder),
                // What an earlier login left here; this one has yet to be judged.
                _ => self.keep_rest(key),
            },
            _ => {}
        }
        self.on_session_moved(key);
    }

    /// Gives the store all that is left here of a session whose client another node has held meanwhile.
    fn keep_rest(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let messages = session.take_rest();
        let client = session.id().clone();
        if messages.is_empty() {
            return;
        }
        let request = StoreRequest::Append { client, author: Author::Anyone, messages, room: Room::Owed };
        if let AnyStore::Remote(remote) = &mut self.store {
            remote.ask(Ticket::session(key), request);
        }
    }

    /// A session may have got further: welcome, write, or end it.
    fn on_session_moved(&mut self, key: Key) {
        let Some(session) = self.sessions.get(key) else { return };
        if !session.is_waiting_for_store() {
            self.answer_claimed(key);
        }
        let Some(session) = self.sessions.get(key) else { return };
        if session.is_detached() {
            return self.settle_detached(key);
        }
        if session.has_unsent() {
            self.out.wakes.push(session.connection());
        }
        let last_offset = session.last_offset();
        let is_used_up = self.claim(key).is_some_and(|claim| {
            claim.standing == Standing::Held && last_offset >= claim.ceiling.max(claim.asked_ceiling)
        });
        if is_used_up {
            self.ask_for_claim(key);
        }
        let is_starting = self.claim(key).is_some_and(|claim| claim.standing == Standing::Starting);
        if is_starting && !self.sessions.get(key).is_some_and(Session::is_paging) {
            self.welcome(key);
        }
    }

    fn on_claim_granted(&mut self, key: Key, generation: u64, unreleased: Vec<Holder>, found: Found) {
        let now_ms = self.now.steady_ms;
        let Some(last_offset) = self.sessions.get(key).map(Session::last_offset) else { return };
        let hash = self.sessions.get(key).map_or(0, Session::hash);
        let client: Box<str> = self.sessions.get(key).map_or("", |session| session.id().as_str()).into();
        let known_as = client.clone();
        self.generation = self.generation.max(generation);
        let Some(claim) = self.claim_mut(key) else { return };
        if generation < claim.generation {
            // The answer to an earlier login of the same session.
            return;
        }
        claim.generation = generation;
        // The store reckons the same.
        let reserved = found.last_offset.saturating_add(OFFSETS_RESERVED_MIN);
        claim.ceiling = claim.asked_ceiling.max(reserved).max(claim.ceiling);
        let standing = claim.standing;
        claim.since_ms = now_ms;
        let mut nodes: Vec<NodeId> = Vec::new();
        for holder in unreleased.into_iter().filter(|_| standing != Standing::Held) {
            if nodes.contains(&holder.node) || holder.node == self.me.node {
                continue;
            }
            nodes.push(holder.node.clone());
            self.out.parcels.push_back(Box::new(Parcel {
                to: holder.node,
                lane: Lane::Partition(self.paths.lane_of(hash)),
                origin: self.me.clone(),
                record: Record::Claimed { client: client.clone(), generation },
                ticket: None,
            }));
        }
        if standing != Standing::Held {
            let (node, incarnation) = (self.me.node.clone(), self.me.incarnation);
            self.learn(&known_as, &Holder { node, incarnation, generation });
        }
        let Some(claim) = self.claim_mut(key) else { return };
        match standing {
            Standing::Asked | Standing::Unclaimed => {
                claim.rare_mut().found = found;
                if nodes.is_empty() {
                    self.begin(key, false, true);
                } else {
                    claim.rare_mut().unreleased = nodes;
                    claim.standing = Standing::TakingOver;
                    if standing == Standing::Unclaimed {
                        self.opening.push(key);
                    }
                }
            }
            Standing::Held | Standing::Starting => {
                // Renewed. Something above all that was given here was kept by another node.
                let has_foreign = found.has_messages && found.last_offset > last_offset;
                self.settle_claimed(key, has_foreign);
            }
            Standing::TakingOver | Standing::Lost => {}
        }
    }

    /// The claim of a session that is live already has come, or come again.
    fn settle_claimed(&mut self, key: Key, must_look: bool) {
        if must_look {
            self.look_again(key);
        }
        if self.claim(key).is_some_and(|claim| claim.standing == Standing::Held) {
            self.drop_rare(key);
        }
        self.on_session_moved(key);
    }

    /// Something may have been kept in the store for a live session: it is read before anything else.
    pub(super) fn look_again(&mut self, key: Key) {
        self.with_session(key, |session, store, limits, answers, now_ms| {
            session.fall_behind(store, limits, now_ms, answers);
            if !session.is_detached() {
                session.read_on_if_room(store, limits, now_ms);
            }
        });
    }

    fn drop_rare(&mut self, key: Key) {
        if let Some(claim) = self.claim_mut(key)
            && claim.rare.as_ref().is_some_and(|rare| rare.superseded.is_none() && rare.claimed.is_empty())
        {
            claim.rare = None;
        }
    }

    /// Nothing stands in the way any more: delivery begins, after what waits in the store.
    pub(super) fn begin(&mut self, key: Key, was_taken_over: bool, is_whole: bool) {
        let now_ms = self.now.steady_ms;
        let Some(claim) = self.claim_mut(key) else { return };
        claim.standing = Standing::Starting;
        claim.since_ms = now_ms;
        let rare = claim.rare_mut();
        let found = rare.found;
        rare.found.is_known &= is_whole;
        let position = rare.wishes.resume_offset.unwrap_or(0);
        let is_detached = self.sessions.get(key).is_some_and(Session::is_detached);
        self.with_session(key, |session, store, limits, answers, now_ms| {
            let is_known = found.is_known && position <= found.last_offset.max(session.last_offset());
            let position = if is_known { position } else { 0 };
            let has_messages = found.has_messages || was_taken_over;
            session.begin(position, found.last_offset, has_messages, store, limits, now_ms, answers);
            if !is_detached {
                session.read_on_if_room(store, limits, now_ms);
            }
        });
        self.on_session_moved(key);
        if let Some(session) = self.sessions.get(key) {
            let (client, hash) = (session.id().clone(), session.hash());
            self.go_on_with(client.as_str(), hash);
        }
    }

    fn welcome(&mut self, key: Key) {
        let Some(claim) = self.claim_mut(key) else { return };
        claim.standing = Standing::Held;
        let rare = claim.rare_mut();
        let (found, wishes) = (rare.found, rare.wishes);
        self.drop_rare(key);
        let position = wishes.resume_offset.unwrap_or(0);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_welcomed() {
            // Before the store answered.
            session.welcome(position);
            self.out.wakes.push(session.connection());
            return;
        }
        let is_known = position == 0 || (found.is_known && position <= found.last_offset.max(session.last_offset()));
        let start = Start {
            offset: session.welcome(if is_known { position } else { 0 }),
            recovered: is_known && found.lost_offset <= position,
        };
        self.out.wakes.push(session.connection());
        self.out.welcomes.push((key, start));
    }

    /// The former holder takes its time: the client is welcomed, so that it does not give up, and may send; it gets
    /// nothing before the session is released. What it is owed is kept, wherever it is.
    fn welcome_early(&mut self, key: Key) {
        let Some(rare) = self.claim(key).and_then(|claim| claim.rare.as_deref()) else { return };
        let (found, position) = (rare.found, rare.wishes.resume_offset.unwrap_or(0));
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_detached() || session.is_welcomed() {
            return;
        }
        session.welcome_early();
        let is_known = position == 0 || (found.is_known && position <= found.last_offset.max(session.last_offset()));
        let offset = if is_known { position } else { 0 };
        self.out.wakes.push(session.connection());
        self.out.welcomes.push((key, Start { offset, recovered: is_known && found.lost_offset <= position }));
    }

    /// The store did not answer in time.
    fn go_on_unclaimed(&mut self, key: Key) {
        self.counters.unclaimed.add(1);
        let Some(claim) = self.claim_mut(key) else { return };
        claim.standing = Standing::Unclaimed;
        let position = claim.rare_mut().wishes.resume_offset.unwrap_or(0);
        let Some(session) = self.sessions.get_mut(key).filter(|session| !session.is_detached()) else { return };
        session.welcome_early();
        let start = Start { offset: position, recovered: false };
        self.out.wakes.push(session.connection());
        self.out.welcomes.push((key, start));
    }

    /// The client is another node's.
    fn on_claim_lost(&mut self, key: Key, holder: Holder) {
        let Some(claim) = self.claim_mut(key) else { return };
        let tries = claim.rare.as_ref().map_or(0, |rare| rare.tries);
        match claim.standing {
            Standing::Lost => {}
            // The answer to an earlier login of the same session; this one's is to come.
            Standing::Asked if holder.generation < claim.generation => {}
            Standing::Asked if tries < CLAIMS_MAX => {
                // It happens now, so it is the newest: only a clock was behind.
                claim.rare_mut().tries += 1;
                claim.generation = holder.generation.saturating_add(1).max(claim.generation);
                let generation = claim.generation;
                self.generation = self.generation.max(generation);
                self.ask_for_claim(key);
            }
            _ => self.lose(key, holder),
        }
    }

    /// The session is over: the store gets what is left of it, whoever holds the client.
    fn lose(&mut self, key: Key, holder: Holder) {
        self.counters.claims_lost.add(1);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !session.is_detached() {
            self.out.closes.push((session.connection(), Disconnect::Replaced));
            session.detach();
        }
        let client = session.id().clone();
        self.learn(client.as_str(), &holder);
        if let Some(claim) = self.claim_mut(key) {
            claim.standing = Standing::Lost;
            claim.rare_mut().holder = Some(holder);
        }
        self.keep_rest(key);
        self.settle_detached(key);
    }

    /// Tells the holder of a client that something was kept for it past what it knows.
    fn nudge_holder(&mut self, key: Key) {
        let holder = self.claim_mut(key).and_then(|claim| claim.rare_mut().holder.take());
        let (Some(session), Some(holder)) = (self.sessions.get(key), holder) else { return };
        let (client, hash) = (session.id().as_str().into(), session.hash());
        self.out.parcels.push_back(Box::new(Parcel {
            to: holder.node,
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Nudge { client },
            ticket: None,
        }));
    }

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

    /// What an earlier session left here is kept: those who claimed its client meanwhile may go on.
    fn answer_claimed(&mut self, key: Key) {
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

    /// A former holder of a client has kept all that it had.
    pub(super) fn on_released(&mut self, client: &str, hash: u64, generation: u64, node: &NodeId) {
        let Some(key) = self.find_session(hash, client) else { return };
        let Some(claim) = self.claim_mut(key) else { return };
        match claim.standing {
            Standing::TakingOver if claim.generation == generation => {
                let rare = claim.rare_mut();
                rare.unreleased.retain(|waits_for| waits_for != node);
                if rare.unreleased.is_empty() {
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

    pub(super) fn tick_logins(&mut self) {
        let now_ms = self.now.steady_ms;
        for key in std::mem::take(&mut self.opening) {
            let Some(claim) = self.claim(key) else { continue };
            let waited_ms = now_ms.saturating_sub(claim.since_ms);
            match claim.standing {
                Standing::Asked if waited_ms >= self.rules.claim_wait_ms => self.go_on_unclaimed(key),
                Standing::TakingOver if waited_ms >= self.rules.takeover_wait_ms => {
                    self.counters.takeovers_given_up.add(1);
                    // From here on the store gives what the former holder still brings a place behind all of this one's:
                    // under its own offsets the client would be past it.
                    self.ask_for_claim(key);
                    self.begin(key, true, false);
                }
                Standing::TakingOver if waited_ms >= self.rules.claim_wait_ms => {
                    self.welcome_early(key);
                    self.opening.push(key);
                }
                Standing::Asked | Standing::TakingOver => self.opening.push(key),
                _ => {}
            }
        }
        let renew_ms = self.rules.ceiling_ms / RENEWALS_PER_CEILING;
        let slots = self.sessions.slots();
        for _ in 0..slots.min(RENEWALS_PER_TICK) {
            let index = self.renewed.step(slots);
            let Some((key, _)) = self.sessions.at(index) else { continue };
            let is_due = self.claims.get(index as usize).is_some_and(|claim| {
                claim.standing == Standing::Held && now_ms.saturating_sub(claim.since_ms) >= renew_ms
            });
            if is_due {
                self.ask_for_claim(key);
                if let Some(claim) = self.claim_mut(key) {
                    claim.since_ms = now_ms;
                }
            }
        }
    }
}
