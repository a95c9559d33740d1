//! Exact cases that the simulation has found, as one node sees them.

use std::sync::Arc;

use ring::{NodeId, SharedRing};

use super::simulation::RULES;
use super::waiting::pair;
use super::{Dispatcher, Now, with_arrival};
use crate::bus::record::node_mark;
use crate::bus::{Address, Arrived, Holder, Record, RecordRef};
use crate::metrics::Counters;
use crate::protocol::{ClientId, PayloadField};
use crate::shard::handover::Posted;
use crate::shard::origin::Origin;
use crate::shard::recent::identity;
use crate::shard::session::{Newcomer, Wishes};
use crate::shard::slab::Key;
use crate::store::request::{Author, StoreAnswer, StoreRequest, Ticket};
use crate::store::{AnyStore, BufferFull, RemoteStore};

const NOW_MS: u64 = 1_800_000_000_000;
const SENDER: u64 = 11;
fn address(name: &str) -> Address {
    Address { node: NodeId::new(name).unwrap(), incarnation: 1, shard: 0 }
}

fn mark(name: &str) -> u64 {
    node_mark(&address(name).node)
}

fn dispatcher(name: &str) -> Dispatcher {
    let store = AnyStore::Remote(RemoteStore::default());
    let now = Now { wall_ms: NOW_MS, steady_ms: 0 };
    Dispatcher::new(address(name), RULES, store, SharedRing::new().reader(), Arc::new(Counters::default()), now)
}

fn posted(node: &mut Dispatcher, msg_id: &str, trail: &[&str]) -> Box<Posted> {
    Box::new(Posted {
        msg_id: msg_id.into(),
        from: "a".into(),
        sender: SENDER,
        to: "b".into(),
        hash: node.hash_of("b"),
        field: PayloadField::Payload,
        payload: "1".into(),
        origin: Origin::NOBODY,
        wants_ack: false,
        ts_ms: NOW_MS,
        ttl_ms: None,
        hops: u8::try_from(trail.len()).unwrap(),
        trail: trail.iter().map(|name| mark(name)).collect(),
        login: 0,
    })
}

fn accept(node: &mut Dispatcher, msg_id: &str) {
    let posted = posted(node, msg_id, &[]);
    let outcome = with_arrival(&posted, NOW_MS + 60_000, |arrival| node.deliver(arrival));
    assert!(outcome.is_none(), "{outcome:?}");
}

fn read(node: &mut Dispatcher, offset: u64, from: &str, record: Record) -> RecordRef {
    let at = RecordRef { partition: 1, offset };
    node.on_record(Arrived { at, origin: address(from), record });
    at
}

fn fence(node: &mut Dispatcher, accepted_by: &str, trail: &[&str]) -> Record {
    let hash = node.hash_of("b");
    let trail = trail.iter().map(|name| mark(name)).collect();
    Record::Fence { id: 70, hash, pair: pair(SENDER ^ mark(accepted_by), hash), trail }
}

fn know(node: &mut Dispatcher, holder: &str, generation: u64) {
    let Address { node: name, incarnation, .. } = address(holder);
    node.learn("b", &Holder { node: name, incarnation, generation });
}

/// What is sent to a node; the bus keeps it.
fn sent_to(node: &mut Dispatcher, name: &str) -> Vec<Record> {
    let parcels = std::mem::take(&mut node.out.parcels);
    for ticket in parcels.iter().filter_map(|parcel| parcel.ticket) {
        node.on_produced(ticket);
    }
    parcels.into_iter().filter(|parcel| parcel.to.as_str() == name).map(|parcel| parcel.record).collect()
}

fn asked(node: &mut Dispatcher) -> Vec<(Ticket, StoreRequest)> {
    node.requests().unwrap().drain(..).collect()
}

/// The tickets of what is to be appended.
fn appends(node: &mut Dispatcher) -> Vec<Ticket> {
    let is_append = |(ticket, request)| matches!(request, StoreRequest::Append { .. }).then_some(ticket);
    asked(node).into_iter().filter_map(is_append).collect()
}

fn log_in(node: &mut Dispatcher, slot: u32) {
    let id = ClientId::try_from("b").unwrap();
    let hash = node.hash_of("b");
    let connection = Key { index: slot, life: 0 };
    node.log_in(Newcomer {
        id,
        hash,
        connection,
        wishes: Wishes { acks: true, receiver_acks: true, resume_offset: None },
    });
    for (ticket, request) in asked(node) {
        let StoreRequest::Claim { generation, .. } = request else { continue };
        let (unreleased, is_known, has_messages) = (Vec::new(), true, false);
        let answer =
            StoreAnswer::Claimed { generation, unreleased, last_offset: 0, lost_offset: 0, is_known, has_messages };
        node.on_store(ticket, answer);
    }
}

fn is_released(record: &Record) -> bool {
    matches!(record, Record::Released { .. })
}

#[test]
fn a_fence_passes_behind_what_has_come_back_from_ahead_of_it() {
    let mut node = dispatcher("n0");
    know(&mut node, "n2", 1);
    let message = posted(&mut node, "m", &["n1"]);
    read(&mut node, 0, "n1", Record::Message(message));
    let record = fence(&mut node, "n1", &["n1"]);
    let at = read(&mut node, 1, "n1", record);
    assert!(matches!(sent_to(&mut node, "n2")[..], [Record::Message(_)]));
    // Now that it is on its way, the fence follows it.
    let Some(Record::Fence { id, trail, .. }) = sent_to(&mut node, "n2").pop() else { panic!("no fence") };
    assert_eq!(trail, [mark("n1"), mark("n0")]);
    let message = posted(&mut node, "m", &["n1", "n0", "n2"]);
    read(&mut node, 2, "n2", Record::Message(message));
    read(&mut node, 3, "n2", Record::Fenced { id, shard: 0, incarnation: 1 });
    assert!(node.out.passed.is_empty(), "the store has not kept the message yet");
    let tickets = appends(&mut node);
    assert_eq!(tickets.len(), 1);
    node.on_store(tickets[0], StoreAnswer::Appended { last_offset: 1 });
    assert_eq!(node.out.passed, [at]);
}

#[test]
fn a_fence_follows_what_has_come_back_and_was_sent_on() {
    let mut node = dispatcher("n0");
    know(&mut node, "n2", 1);
    let message = posted(&mut node, "m", &["n1"]);
    read(&mut node, 0, "n1", Record::Message(message));
    sent_to(&mut node, "n2");
    let record = fence(&mut node, "n1", &["n1"]);
    let at = read(&mut node, 1, "n1", record);
    let Some(Record::Fence { id, .. }) = sent_to(&mut node, "n2").pop() else { panic!("no fence") };
    know(&mut node, "n3", 2);
    let mut message = posted(&mut node, "m", &["n1", "n0", "n2"]);
    message.hops = 2;
    read(&mut node, 2, "n2", Record::Message(message));
    // Whatever else comes waits for a fence of this node's own, and so does the other's from here on.
    let mut own = None;
    for parcel in &node.out.parcels {
        if let Record::Fence { id, .. } = parcel.record {
            assert_eq!(parcel.to.as_str(), "n2");
            own = Some(id);
        }
    }
    assert!(matches!(sent_to(&mut node, "n3")[..], [Record::Message(_)]));
    read(&mut node, 3, "n2", Record::Fenced { id, shard: 0, incarnation: 1 });
    read(&mut node, 4, "n2", Record::Fenced { id: own.unwrap(), shard: 0, incarnation: 1 });
    let Some(Record::Fence { id, .. }) = sent_to(&mut node, "n3").pop() else { panic!("no second fence") };
    assert!(node.out.passed.is_empty());
    read(&mut node, 5, "n3", Record::Fenced { id, shard: 0, incarnation: 1 });
    assert_eq!(node.out.passed, [at]);
}

#[test]
fn a_fence_does_not_wait_for_what_was_accepted_here() {
    let mut node = dispatcher("n1");
    know(&mut node, "n0", 1);
    accept(&mut node, "m");
    let record = fence(&mut node, "n1", &["n2"]);
    let at = read(&mut node, 0, "n2", record);
    assert_eq!(node.out.passed, [at]);
    assert!(matches!(sent_to(&mut node, "n0")[..], [Record::Message(_)]));
}

#[test]
fn a_take_over_waits_for_every_session_of_the_client_here() {
    let mut node = dispatcher("n0");
    log_in(&mut node, 1);
    accept(&mut node, "earlier");
    read(&mut node, 0, "n1", Record::Claimed { client: "b".into(), generation: (NOW_MS << 10) + 10 });
    let earlier = appends(&mut node);
    assert_eq!(earlier.len(), 1);
    node.generation = (NOW_MS << 10) + 20;
    log_in(&mut node, 2);
    accept(&mut node, "later");
    read(&mut node, 1, "n2", Record::Claimed { client: "b".into(), generation: (NOW_MS << 10) + 30 });
    node.on_store(earlier[0], StoreAnswer::Appended { last_offset: 1 });
    assert!(!sent_to(&mut node, "n2").iter().any(is_released), "the later session still has a message");
    let later = appends(&mut node);
    assert_eq!(later.len(), 1);
    node.on_store(later[0], StoreAnswer::Appended { last_offset: 2 });
    assert_eq!(sent_to(&mut node, "n2").iter().filter(|record| is_released(record)).count(), 1);
}

#[test]
fn what_a_silent_nodes_topic_held_does_not_go_back_there() {
    let mut node = dispatcher("n0");
    know(&mut node, "n2", 7);
    node.note_live([address("n0").node, address("n3").node].into());
    // What comes straight from its sender's node waits in the silent one's topic, whoever reads that.
    let fresh = posted(&mut node, "1", &["n1"]);
    read(&mut node, 1, "n1", Record::Message(fresh));
    assert_eq!(sent_to(&mut node, "n2").len(), 1);
    // So does what comes from the silent node itself: it was only stopped for a while.
    let own = Posted { sender: 13, ..*posted(&mut node, "3", &["n2"]) };
    read(&mut node, 3, "n2", Record::Message(Box::new(own)));
    assert_eq!(sent_to(&mut node, "n2").len(), 1);
    // This has been there, and was forwarded: the store is asked where the client is now.
    let forwarded = Posted { sender: 12, ..*posted(&mut node, "2", &["n1", "n2"]) };
    read(&mut node, 2, "n1", Record::Message(Box::new(forwarded)));
    assert!(sent_to(&mut node, "n2").is_empty());
    let [(ticket, StoreRequest::Append { .. })] = &asked(&mut node)[..] else { panic!("the store was not asked") };
    let holder = Holder { node: address("n3").node, incarnation: 1, generation: 9 };
    node.on_store(*ticket, StoreAnswer::Elsewhere(holder));
    assert_eq!(sent_to(&mut node, "n3").len(), 1);
}

#[test]
fn what_a_silent_nodes_topic_held_is_kept_for_a_client_that_has_not_come_back() {
    let mut node = dispatcher("n0");
    node.note_live([address("n0").node].into());
    let forwarded = posted(&mut node, "1", &["n1", "n2"]);
    read(&mut node, 1, "n1", Record::Message(forwarded));
    let [(ticket, _)] = asked(&mut node)[..] else { panic!("the store was not asked") };
    let holder = Holder { node: address("n2").node, incarnation: 1, generation: 7 };
    node.on_store(ticket, StoreAnswer::Elsewhere(holder));
    let [(_, StoreRequest::Append { author, .. })] = &asked(&mut node)[..] else { panic!("the store was not asked") };
    assert!(matches!(author, Author::Other { past: Some((past, 1)) } if past.as_str() == "n2"));
    assert!(sent_to(&mut node, "n2").is_empty());
}

#[test]
fn a_client_is_looked_for_elsewhere_when_its_node_falls_silent() {
    let mut node = dispatcher("n0");
    node.note_live([address("n0").node, address("n2").node].into());
    know(&mut node, "n2", 7);
    accept(&mut node, "1");
    assert_eq!(sent_to(&mut node, "n2").len(), 1);
    node.note_live([address("n0").node].into());
    // Behind a fence, for the first may stand there still.
    accept(&mut node, "2");
    let [Record::Fence { id, .. }] = sent_to(&mut node, "n2")[..] else { panic!("no fence") };
    assert!(asked(&mut node).is_empty());
    read(&mut node, 1, "n2", Record::Fenced { id, shard: 0, incarnation: 1 });
    let [(_, StoreRequest::Append { .. })] = asked(&mut node)[..] else { panic!("the store was not asked") };
}

#[test]
fn a_message_sent_again_while_it_waits_keeps_its_place() {
    let mut node = dispatcher("n0");
    accept(&mut node, "m0");
    let tickets = appends(&mut node);
    assert_eq!(tickets.len(), 1, "the store is asked about the first, and the others wait");
    accept(&mut node, "m1");
    node.now.steady_ms = 1_000;
    accept(&mut node, "m2");
    node.now.steady_ms = 29_000;
    accept(&mut node, "m1");
    // By now the first attempt would be given up, and the second stand behind m2.
    node.now.steady_ms = 30_500;
    node.tick();
    node.on_store(tickets[0], StoreAnswer::Appended { last_offset: 1 });
    let [(_, StoreRequest::Append { messages, .. })] = &asked(&mut node)[..] else { panic!("the store was not asked") };
    let kept: Vec<u64> = messages.iter().map(|message| message.identity).collect();
    assert_eq!(kept, ["m1", "m2"].map(|name| identity(SENDER, name)));
}

#[test]
fn what_the_store_refuses_and_must_keep_is_asked_again_ever_less_often_and_in_order() {
    const TICK_MS: u64 = 50;
    let mut node = dispatcher("n0");
    for (offset, msg_id) in (0..).zip(["m0", "m1", "m2"]) {
        let message = posted(&mut node, msg_id, &["n1"]);
        read(&mut node, offset, "n1", Record::Message(message));
    }
    let expected = ["m0", "m1", "m2"].map(|name| identity(SENDER, name));
    let mut kept: Vec<u64> = Vec::new();
    let mut asks = Vec::new();
    for tick in 0..20 * 60 {
        node.now.steady_ms = tick * TICK_MS;
        node.tick();
        for (ticket, request) in asked(&mut node) {
            let StoreRequest::Append { messages, .. } = request else { continue };
            asks.push(tick * TICK_MS);
            assert_eq!(messages[0].identity, expected[0], "nothing goes ahead of the first");
            node.on_store(ticket, StoreAnswer::Refused(BufferFull::Recipient));
        }
    }
    assert!((6..30).contains(&asks.len()), "{asks:?}");
    let pauses: Vec<u64> = asks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().max() <= Some(&(10_000 + TICK_MS)), "{pauses:?}");
    // Then it keeps them, and the pace is what it was.
    for tick in 20 * 60..20 * 90 {
        node.now.steady_ms = tick * TICK_MS;
        node.tick();
        while let Some((ticket, StoreRequest::Append { messages, .. })) = asked(&mut node).pop() {
            kept.extend(messages.iter().map(|message| message.identity));
            node.on_store(ticket, StoreAnswer::Appended { last_offset: 1 });
        }
    }
    assert_eq!(kept, expected);
}

/// Lets so many seconds pass, a tick each; the moments at which the claim was renewed, which it is granted.
fn renewals(node: &mut Dispatcher, seconds: u64) -> Vec<u64> {
    let mut moments = Vec::new();
    for _ in 0..seconds {
        node.now.steady_ms += 1_000;
        node.now.wall_ms += 1_000;
        node.tick();
        for (ticket, request) in asked(node) {
            let StoreRequest::Claim { generation, .. } = request else { panic!("{request:?}") };
            moments.push(node.now.steady_ms / 1_000);
            let (unreleased, is_known, has_messages) = (Vec::new(), true, false);
            let answer =
                StoreAnswer::Claimed { generation, unreleased, last_offset: 0, lost_offset: 0, is_known, has_messages };
            node.on_store(ticket, answer);
        }
    }
    moments
}

#[test]
fn a_claim_is_renewed_in_time_and_seldom_where_no_offset_was_needed() {
    let mut node = dispatcher("n0");
    log_in(&mut node, 0);
    // Its client may have come from elsewhere, which is over with the first renewal.
    assert_eq!(renewals(&mut node, 200), [30, 150]);
    accept(&mut node, "m1");
    // A message came: there is a renewal as soon as one may be.
    assert_eq!(renewals(&mut node, 60), [205]);
}

#[test]
fn a_claim_left_alone_has_offsets_for_what_comes_all_at_once() {
    let mut node = dispatcher("n0");
    log_in(&mut node, 0);
    assert_eq!(renewals(&mut node, 140), [30]);
    let hash = node.hash_of("b");
    let key = node.find_session(hash, "b").unwrap();
    let ceiling = node.right(key).ceiling;
    assert!(ceiling < crate::shard::offset::at(node.now.wall_ms), "it is no longer ahead of the clock");
    for number in 0..RULES.session.outbox.messages {
        accept(&mut node, &format!("m{number}"));
    }
    let session = node.session_mut(key).unwrap();
    assert!(session.last_offset() < ceiling);
    assert!(!session.is_behind(), "delivery is live");
}
