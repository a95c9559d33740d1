//! The right to a client, by which this node alone gives it offsets and keeps messages for it: asked of the store,
//! granted, renewed, lost. What is done with it is for `login`, `takeover` and `leaving`.
//!
//! Invariant: what a session writes to its client has an offset within the ceiling of a claim that was granted, or one
//! that the store gave.

use ring::NodeId;

use crate::bus::{Address, Holder, Lane, Parcel, Record, RecordRef};
use crate::shard::offset;
use crate::shard::session::{Right, Session, Wishes};
use crate::shard::slab::{Key, Round};
use crate::store::AnyStore;
use crate::store::bounds::OFFSETS_RESERVED_MIN;
use crate::store::request::StoreAnswer;

use super::dispatcher::{Dispatcher, Rules};

/// A login that is beaten to its generation asks again this often.
const CLAIMS_MAX: u8 = 8;
/// Sessions looked at in one tick for a claim that is due.
const RENEWALS_PER_TICK: usize = 2_000;
/// Rounds over all sessions in the time for which a claim reserves offsets. Those that are due are renewed together: a
/// request that comes alone costs the store's thread, and the server, many times what it does among others.
const ROUNDS_PER_CEILING: u64 = 12;
/// A claim is renewed after this share of the time for which it reserves offsets.
const RENEWALS_PER_CEILING: u64 = 2;
/// A claim whose session needed no offset since is renewed after so many times that time: it has all those it reserved.
const QUIET_CEILINGS: u64 = 2;
/// The client of such a session is remembered for so many times as long at least as its claim is left alone.
const QUIET_PER_MEMORY: u64 = 4;
/// The last part of the time for which a claim reserves offsets: there offsets follow each other, not the clock, so that
/// they suffice until it is renewed.
const FOLLOWING_PER_CEILING: u64 = 3;

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
    /// One of them was released by the forwarder in its place.
    pub is_forced: bool,
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
    pub last_offset: u64,
    pub lost_offset: u64,
    pub is_known: bool,
    pub has_messages: bool,
}

impl Claim {
    /// True when messages may be given to the session.
    pub fn takes_messages(&self) -> bool {
        matches!(self.standing, Standing::Starting | Standing::Held)
    }

    pub fn right(&self, rules: &Rules) -> Right {
        match self.standing {
            Standing::Starting | Standing::Held => {
                let clock_until_ms =
                    offset::moment(self.ceiling).saturating_sub(rules.ceiling_ms / FOLLOWING_PER_CEILING);
                Right { ceiling: self.ceiling, clock_until_ms, is_claimed: true }
            }
            _ => Right { is_claimed: false, ..Right::UNBOUNDED },
        }
    }

    fn is_due(&self, session: &Session, rules: &Rules, now_ms: u64) -> bool {
        let waited_ms = now_ms.saturating_sub(self.since_ms);
        if self.standing != Standing::Held || waited_ms < rules.ceiling_ms / RENEWALS_PER_CEILING {
            return false;
        }
        // Offsets follow the clock: whether one was given since the claim was asked for can be read from the last.
        let has_moved = offset::moment(session.last_offset()).saturating_add(rules.ceiling_ms)
            >= offset::moment(self.asked_ceiling);
        let quiet_ms = (rules.ceiling_ms * QUIET_CEILINGS).min(rules.message_ttl_ms / QUIET_PER_MEMORY);
        has_moved || session.has_come() || waited_ms >= quiet_ms
    }

    pub fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
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

    pub(super) fn ask_for_claim(&mut self, key: Key) {
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
        // Of a client that was here last the store says no less: then there is nothing to wait for, and little to lose.
        self.note_coming(key, standing != Standing::Held && (found.is_known || !unreleased.is_empty()));
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
                    let rare = claim.rare_mut();
                    (rare.unreleased, rare.is_forced) = (nodes, false);
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

    pub(super) fn drop_rare(&mut self, key: Key) {
        if let Some(claim) = self.claim_mut(key)
            && claim.rare.as_ref().is_some_and(|rare| rare.superseded.is_none() && rare.claimed.is_empty())
        {
            claim.rare = None;
        }
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

    /// Claims are renewed long before the offsets they reserve are used up.
    pub(super) fn tick_claims(&mut self) {
        let now_ms = self.now.steady_ms;
        let slots = self.sessions.slots();
        for _ in 0..self.renewals.share(slots, self.rules.ceiling_ms / ROUNDS_PER_CEILING, now_ms) {
            let index = self.renewals.round.step(slots);
            let Some((key, session)) = self.sessions.at(index) else { continue };
            if self.claims.get(index as usize).is_some_and(|claim| claim.is_due(session, &self.rules, now_ms)) {
                self.ask_for_claim(key);
                if let Some(claim) = self.claim_mut(key) {
                    claim.since_ms = now_ms;
                }
            }
        }
    }
}

/// How far the round over all sessions is in which claims are renewed.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    round: Round,
    left: usize,
    began_ms: u64,
}

impl Renewals {
    /// How many sessions are to be looked at now: some until the round is over; the next begins an interval after it began.
    fn share(&mut self, slots: usize, interval_ms: u64, now_ms: u64) -> usize {
        if self.left == 0 && now_ms.saturating_sub(self.began_ms) >= interval_ms {
            self.began_ms = now_ms;
            self.left = slots;
        }
        let share = self.left.min(RENEWALS_PER_TICK);
        self.left -= share;
        share
    }
}
