//! A session against its client, in virtual time: whatever happens to the connection, every accepted message reaches
//! the client, in order.

use std::task::Poll;

use proptest::prelude::*;
use sonic_rs::JsonValueTrait;
use websocket::{Decoder, Event, Role};

use super::*;
use crate::protocol::{Envelope, PayloadField};
use crate::shard::origin::Origin;
use crate::shard::recent::identity;
use crate::store::{Appended, Kept, LocalStore, Room, StoreLimits};

const SENDER: u64 = 7;
const STARTED_MS: u64 = 1_800_000_000_000;
const LIMITS: SessionLimits = SessionLimits {
    outbox: OutboxLimits { bytes: 4_000, messages: 8 },
    ack_wait_ms: 1000,
    kept_status: AckStatus::Held,
};
const STORE_LIMITS: StoreLimits = StoreLimits {
    recipient_bytes: 20_000,
    recipient_messages: 40,
    sender_bytes: 100_000,
    total_bytes: 100_000,
    memory_ms: 600_000,
};
const TTL_MS: u64 = 600_000;

#[derive(Debug, Clone)]
enum Happening {
    Send,
    SendAgain(usize),
    Write,
    WritePartly,
    Ack,
    AckOne,
    Cut,
    Connect { forgets: bool },
    Pass(u64),
}

/// A node's view of one recipient, the recipient, and a sender that wants acks.
struct World {
    store: LocalStore,
    session: Option<Session>,
    answers: Answers,
    now_ms: u64,
    receiver_acks: bool,
    // What the client has: names in order, without repeats; and the offset it would resume from.
    received: Vec<String>,
    position: u64,
    unacked: Vec<(u64, String)>,
    in_flight: Vec<u8>,
    sent: Vec<String>,
    accepted: Vec<String>,
    answered: std::collections::HashMap<String, Vec<AckStatus>>,
    // How long each live message was on its way.
    delivered: Vec<u64>,
}

impl World {
    fn new(receiver_acks: bool) -> Self {
        Self {
            store: LocalStore::new(STORE_LIMITS),
            session: None,
            answers: Answers::default(),
            now_ms: STARTED_MS,
            receiver_acks,
            received: Vec::new(),
            position: 0,
            unacked: Vec::new(),
            in_flight: Vec::new(),
            sent: Vec::new(),
            accepted: Vec::new(),
            answered: std::collections::HashMap::new(),
            delivered: Vec::new(),
        }
    }

    fn send(&mut self, msg_id: &str) {
        let inbound = Inbound {
            envelope: Envelope {
                msg_id,
                from: "sender",
                to: "recipient",
                field: PayloadField::Payload,
                payload: "\"some text to give it a length\"",
                ts_ms: self.now_ms,
            },
            origin: Origin::publisher(1),
            wants_ack: true,
            sender: SENDER,
            identity: identity(SENDER, msg_id),
            expires_ms: self.now_ms + TTL_MS,
        };
        let accepted = match &mut self.session {
            Some(session) => {
                session.accept(&inbound, &mut self.store, LIMITS, Right::UNBOUNDED, self.now_ms, &mut self.answers)
            }
            None => match self.store.append(&recipient(), &inbound.keep(0), Room::IfFree, self.now_ms) {
                Poll::Ready(Appended::Kept) => Accepted::Kept,
                Poll::Ready(Appended::Repeated) => Accepted::Repeated(AckStatus::Held),
                Poll::Ready(Appended::Refused(cause)) => Accepted::Refused(cause),
                Poll::Pending => unreachable!("the local store answers at once"),
            },
        };
        match accepted {
            Accepted::Queued => self.accepted.push(msg_id.to_owned()),
            Accepted::Kept => {
                self.accepted.push(msg_id.to_owned());
                self.answered.entry(msg_id.to_owned()).or_default().push(AckStatus::Held);
            }
            Accepted::Repeated(status) => self.answered.entry(msg_id.to_owned()).or_default().push(status),
            Accepted::Pending { .. } | Accepted::Refused(_) | Accepted::NoRoom => {}
        }
        self.collect_answers();
    }

    fn collect_answers(&mut self) {
        for (_, msg_id, status) in self.answers.iter() {
            self.answered.entry(msg_id.to_owned()).or_default().push(status);
        }
        self.answers.clear();
    }

    fn write(&mut self, is_whole: bool) {
        let Some(session) = &mut self.session else { return };
        session.take_unsent(&mut self.in_flight, 1_000);
        if !is_whole {
            // The connection will be cut before the rest is out: the client sees whole frames only.
            let half = self.in_flight.len() / 2;
            self.in_flight.truncate(half);
            self.client_reads();
            self.cut();
            return;
        }
        self.client_reads();
        if let Some(session) = &mut self.session {
            let delivered = &mut self.delivered;
            session.on_written(&mut self.store, self.now_ms, &mut self.answers, |ms| delivered.push(ms));
            session.read_on_if_room(&mut self.store, LIMITS, self.now_ms);
        }
        self.collect_answers();
    }

    fn client_reads(&mut self) {
        let mut decoder = Decoder::new(Role::Client, 10_000);
        let mut bytes = std::mem::take(&mut self.in_flight);
        let mut at = 0;
        while at < bytes.len() {
            let frame = decoder.decode(&mut bytes[at..]).unwrap();
            at += frame.consumed;
            let Some(Event::Text(text)) = frame.event else { break };
            let value: sonic_rs::Value = sonic_rs::from_str(text).unwrap();
            let offset = value["offset"].as_u64().unwrap();
            let msg_id = value["msgId"].as_str().unwrap().to_owned();
            assert!(offset > self.position, "offsets rise: {offset} after {}", self.position);
            self.position = offset;
            self.unacked.push((offset, msg_id.clone()));
            if !self.received.contains(&msg_id) {
                self.received.push(msg_id);
            }
        }
    }

    fn cut(&mut self) {
        if let Some(session) = self.session.take() {
            leave(session, &mut self.store, self.now_ms, &mut self.answers);
            self.collect_answers();
        }
        self.unacked.clear();
        self.in_flight.clear();
    }

    fn connect(&mut self, forgets: bool) {
        self.cut();
        let id = ClientId::try_from("recipient").unwrap();
        let Poll::Ready(claimed) = self.store.claim(&id) else { unreachable!() };
        if forgets || !self.receiver_acks {
            self.position = 0;
        }
        let wishes = Wishes {
            acks: false,
            receiver_acks: self.receiver_acks,
            resume_offset: self.receiver_acks.then_some(self.position),
        };
        let who = Newcomer { id, hash: 1, connection: Key { index: 0, life: 0 }, wishes };
        let (session, start) = Session::new(who, claimed, &mut self.store, STARTED_MS, self.now_ms);
        assert!(start.recovered, "nothing was lost");
        self.session = Some(session);
    }

    fn ack(&mut self) {
        let position = self.position;
        if let Some(session) = &mut self.session {
            session.on_ack_offset(position, &mut self.store, self.now_ms, &mut self.answers);
            session.read_on_if_room(&mut self.store, LIMITS, self.now_ms);
            self.unacked.clear();
        }
        self.collect_answers();
    }

    fn ack_one(&mut self) {
        if let Some(session) = &mut self.session
            && let Some((_, msg_id)) = self.unacked.pop()
        {
            session.on_ack_message(&msg_id, &mut self.store, self.now_ms, &mut self.answers);
        }
        self.collect_answers();
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        if let Some(session) = &mut self.session {
            session.spill_overdue(&mut self.store, LIMITS, self.now_ms, &mut self.answers);
            session.read_on_if_room(&mut self.store, LIMITS, self.now_ms);
            session.rest(5_000, self.now_ms);
        }
        self.collect_answers();
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Send => {
                let msg_id = format!("m{}", self.sent.len());
                self.sent.push(msg_id.clone());
                self.send(&msg_id);
            }
            Happening::SendAgain(index) => {
                let again = self.sent.iter().rev().nth(index % 8).cloned();
                // A sender repeats what it has no answer to, or what it was answered and lost the answer of.
                if let Some(msg_id) = again
                    && self.accepted.contains(&msg_id)
                    && self.session.is_some()
                {
                    self.send(&msg_id);
                }
            }
            Happening::Write => self.write(true),
            Happening::WritePartly => self.write(false),
            Happening::Ack if self.receiver_acks => self.ack(),
            Happening::AckOne if self.receiver_acks => self.ack_one(),
            Happening::Ack | Happening::AckOne => {}
            Happening::Cut => self.cut(),
            Happening::Connect { forgets } => self.connect(*forgets),
            Happening::Pass(ms) => self.pass(*ms),
        }
    }

    /// In the end the client comes back and stays.
    fn settle(&mut self) {
        self.connect(false);
        for _ in 0..200 {
            self.write(true);
            if self.receiver_acks {
                self.ack();
            }
            self.pass(1);
        }
    }
}

fn recipient() -> ClientId {
    ClientId::try_from("recipient").unwrap()
}

fn leave(mut session: Session, store: &mut LocalStore, now_ms: u64, answers: &mut Answers) {
    session.detach();
    session.spill_all(store, LIMITS, now_ms, answers);
    session.release(store, now_ms);
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        8 => Just(Happening::Send),
        1 => (0usize..8).prop_map(Happening::SendAgain),
        5 => Just(Happening::Write),
        1 => Just(Happening::WritePartly),
        4 => Just(Happening::Ack),
        1 => Just(Happening::AckOne),
        1 => Just(Happening::Cut),
        2 => Just(Happening::Connect { forgets: false }),
        2 => (0u64..3_000).prop_map(Happening::Pass),
    ];
    proptest::collection::vec(one, 0..120)
}

fn without_repeats(names: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    names.iter().filter(|name| seen.insert((*name).clone())).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_accepted_message_reaches_a_client_that_acks_in_order(script in happenings()) {
        let mut world = World::new(true);
        for happening in &script {
            world.happen(happening);
        }
        world.settle();
        prop_assert_eq!(&world.received, &without_repeats(&world.accepted));
        prop_assert_eq!(world.store.messages(), 0);
        for msg_id in &world.accepted {
            let answers = world.answered.get(msg_id).map_or(0, Vec::len);
            prop_assert!(answers >= 1, "{} was accepted and never answered", msg_id);
        }
    }

    #[test]
    fn what_was_not_written_reaches_a_client_that_does_not_ack(script in happenings()) {
        let mut world = World::new(false);
        for happening in &script {
            world.happen(happening);
        }
        world.settle();
        // Half a write is outside the promise to such a client, but it only ever repeats messages, and loses none.
        prop_assert_eq!(&world.received, &without_repeats(&world.accepted));
    }
}

#[test]
fn a_message_is_answered_once_whatever_becomes_of_it() {
    let mut world = World::new(true);
    world.connect(false);
    world.send("delivered");
    world.write(true);
    world.ack();
    world.pass(2_000);
    world.cut();
    assert_eq!(world.answered["delivered"], [AckStatus::Delivered]);
    world.connect(false);
    world.send("silent");
    world.write(true);
    world.pass(500);
    assert!(!world.answered.contains_key("silent"));
    world.pass(501);
    world.ack();
    world.cut();
    assert_eq!(world.answered["silent"], [AckStatus::Held]);
    world.send("absent");
    world.settle();
    assert_eq!(world.answered["absent"], [AckStatus::Held]);
    assert_eq!(world.received, ["delivered", "silent", "absent"]);
}

#[test]
fn a_repeat_is_answered_whatever_became_of_the_first() {
    let mut world = World::new(true);
    world.connect(false);
    world.send("m");
    world.send("m");
    assert!(!world.answered.contains_key("m"), "the first is still under way");
    world.write(true);
    world.pass(2_000);
    assert_eq!(world.answered["m"], [AckStatus::Held]);
    world.send("m");
    assert_eq!(world.answered["m"], [AckStatus::Held, AckStatus::Held], "stored, and not acknowledged yet");
    world.ack();
    world.send("m");
    assert_eq!(world.answered["m"].last(), Some(&AckStatus::Delivered));
    assert_eq!(world.received, ["m"]);
}

#[test]
fn advice_names_a_position_that_loses_nothing() {
    let mut world = World::new(true);
    world.connect(false);
    world.send("one");
    world.send("two");
    world.write(true);
    let second = world.position;
    let settled = world.session.as_ref().unwrap().settled_offset();
    assert!(settled < second - 1);
    world.ack();
    assert_eq!(world.session.as_ref().unwrap().settled_offset(), second);
}

#[test]
fn a_full_buffer_refuses_the_new_message_and_keeps_the_old() {
    let mut world = World::new(true);
    for number in 0..100 {
        world.send(&format!("m{number}"));
    }
    let accepted = world.accepted.len();
    assert!(accepted < 100);
    world.settle();
    assert_eq!(world.received.len(), accepted);
    world.send("later");
    world.settle();
    assert_eq!(world.received.last().map(String::as_str), Some("later"));
}

#[test]
fn a_position_that_is_gone_or_unknown_is_said_to_be() {
    let mut store = LocalStore::new(STORE_LIMITS);
    let id = ClientId::try_from("recipient").unwrap();
    let check = |store: &mut LocalStore, resume_offset, now_ms| {
        let Poll::Ready(claimed) = store.claim(&id) else { unreachable!() };
        let wishes = Wishes { resume_offset, ..Wishes::default() };
        let who = Newcomer { id: id.clone(), hash: 1, connection: Key { index: 0, life: 0 }, wishes };
        let (session, start) = Session::new(who, claimed, store, STARTED_MS, now_ms);
        leave(session, store, now_ms, &mut Answers::default());
        start.recovered
    };
    assert!(check(&mut store, None, STARTED_MS));
    assert!(check(&mut store, Some(0), STARTED_MS));
    assert!(check(&mut store, Some(offset::at(STARTED_MS)), STARTED_MS + 5));
    assert!(!check(&mut store, Some(offset::at(STARTED_MS) - 1), STARTED_MS + 5), "from before this process");
    assert!(!check(&mut store, Some(offset::at(STARTED_MS + 99_999)), STARTED_MS + 5), "from the future");
    let kept = Kept {
        offset: 0,
        identity: 1,
        sender: 1,
        ts_ms: STARTED_MS + 10,
        expires_ms: STARTED_MS + 20,
        body: b"{".as_slice().into(),
    };
    let _ = store.append(&id, &kept, Room::IfFree, STARTED_MS + 10);
    assert_eq!(store.expire(STARTED_MS + 30, 10), 1);
    assert!(!check(&mut store, Some(offset::at(STARTED_MS + 5)), STARTED_MS + 40), "expired behind this position");
    assert!(check(&mut store, Some(offset::at(STARTED_MS + 35)), STARTED_MS + 40));
}

#[test]
fn live_deliveries_are_timed_once_and_replays_never() {
    let mut world = World::new(true);
    world.connect(false);
    world.send("m0");
    world.now_ms += 30;
    world.send("m1");
    world.write(true);
    assert_eq!(world.delivered, [30, 0]);
    world.write(true);
    // A client that has lost its position gets again what was never acknowledged.
    world.connect(true);
    world.write(true);
    assert_eq!((world.delivered.len(), world.unacked.len()), (2, 2));
    // One that returns with its position has acknowledged all of it.
    world.connect(false);
    world.write(true);
    assert_eq!((world.delivered.len(), world.unacked.len()), (2, 0));
    // Accepted by a clock that is ahead.
    world.send("m2");
    world.now_ms -= 5;
    world.write(true);
    assert_eq!(world.delivered, [30, 0, 0]);
}
