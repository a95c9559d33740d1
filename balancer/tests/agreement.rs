//! What the balancer has a copy of, beside the nodes' own: the two programs do not depend on each other, and meet on the
//! wire. (Rings, heartbeats and leases need no such test: both have them from `rtc-ring` and `rtc-rim`.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use ring::{NodeId, NodeWeights, Ring, RingVersion, Weight};
use rtc_balancer::forwarder::plan::{self, Kind, OwnHeader, Plan};
use rtc_server::bus::Holder;
use rtc_server::bus::codec::{self, Decoder, Raw};
use rtc_server::bus::record::{self, Address, Lane, Parcel, Record};
use rtc_server::protocol::PayloadField;
use rtc_server::shard::handover::Posted;
use rtc_server::shard::origin::Origin;

const SEED: u64 = 7;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn ring() -> Ring {
    let weights = ["a", "b", "c"].map(|name| (id(name), Weight::new(100).unwrap()));
    Ring::from_weights(RingVersion::FIRST, SEED, NodeWeights::new(weights).unwrap())
}

fn origin(node: &str) -> Address {
    Address { node: id(node), incarnation: 41, shard: 3 }
}

fn message() -> Record {
    Record::Message(Box::new(Posted {
        msg_id: "m\"1".into(),
        from: "bob".into(),
        sender: ring::hash_key(b"bob", SEED),
        to: "an\u{e9}".into(),
        hash: ring::hash_key("an\u{e9}".as_bytes(), SEED),
        field: PayloadField::Payload,
        payload: r#"{"n":[1]}"#.into(),
        origin: Origin::NOBODY,
        wants_ack: false,
        ts_ms: 1_700_000_000_000,
        ttl_ms: Some(9_000),
        hops: 1,
        trail: vec![5],
        login: 0,
    }))
}

/// A record as a node writes it: its value and headers.
fn written(record: Record, from: &str) -> (Vec<u8>, Vec<OwnHeader>) {
    let parcel = Parcel { to: id("dead"), lane: Lane::Control, origin: origin(from), record, ticket: None };
    let mut value = Vec::new();
    let headers = codec::encode(&parcel, &mut value);
    let hops = headers.hops.map(|hops| hops.to_string());
    let all = [
        (codec::KIND_HEADER, Some(headers.kind.to_owned())),
        (codec::ORIGIN_HEADER, Some(headers.origin)),
        (codec::HOPS_HEADER, hops),
        (codec::TRAIL_HEADER, headers.trail),
    ];
    let given = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Some(value?.into_bytes()))));
    (value, given.collect())
}

/// What the forwarder makes of it.
fn planned(value: &[u8], headers: &[OwnHeader]) -> Plan {
    let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref())).collect();
    plan::plan(&plan::Raw { value: Some(value), headers }, &id("dead"), &ring())
}

/// What a node reads.
fn read(value: &[u8], headers: &[OwnHeader]) -> (Address, Record) {
    let header = |name: &str| headers.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.as_deref());
    let raw = Raw {
        value: Some(value),
        kind: header(codec::KIND_HEADER),
        origin: header(codec::ORIGIN_HEADER),
        hops: header(codec::HOPS_HEADER),
        trail: header(codec::TRAIL_HEADER),
        taken_ms: 3,
    };
    Decoder { node: id("a"), value_bytes_max: 10_000 }.decode(&raw, SEED).unwrap()
}

#[test]
fn a_forwarded_message_is_what_a_node_would_have_sent_on() {
    let (value, headers) = written(message(), "far");
    let Plan::Copy { kind: Kind::Message, to, headers } = planned(&value, &headers) else { panic!("not copied") };
    assert_eq!(&to, ring().owner("an\u{e9}".as_bytes()));
    let (from, Record::Message(posted)) = read(&value, &headers) else { panic!("no message") };
    let Record::Message(mut sent_on) = message() else { panic!("no message") };
    sent_on.hops += 1;
    sent_on.trail.push(record::node_mark(&id("dead")));
    assert_eq!(from, origin("far"));
    assert_eq!(format!("{posted:?}"), format!("{sent_on:?}"));
}

#[test]
fn a_fence_is_passed_on_whole_and_echoed_to_who_wrote_it() {
    let hash = ring::hash_key(b"anna", SEED);
    let owner = ring().owner(b"anna").clone();
    let fence = || Record::Fence { id: 9, hash, pair: u64::MAX, trail: vec![1, 2] };
    let (value, headers) = written(fence(), "far");
    let Plan::Copy { kind: Kind::Fence, to, headers } = planned(&value, &headers) else { panic!("not copied") };
    assert_eq!(to, owner);
    let (from, record) = read(&value, &headers);
    assert_eq!((from, format!("{record:?}")), (origin("far"), format!("{:?}", fence())));

    let (value, headers) = written(fence(), owner.as_str());
    let Plan::Echo { to, value } = planned(&value, &headers) else { panic!("not echoed") };
    assert_eq!(to, owner);
    let (from, record) = read(&value, &plan::notice_headers(Kind::Fenced, &id("dead")));
    let echo = Record::Fenced { id: 9, shard: 3, incarnation: 41 };
    assert_eq!((from.node, format!("{record:?}")), (id("dead"), format!("{echo:?}")));
}

#[test]
fn a_claim_is_answered_as_a_node_would() {
    let (value, headers) = written(Record::Claimed { client: "an\"na".into(), generation: 77 }, "far");
    let answer = planned(&value, &headers);
    let Plan::Release { to, client, generation } = answer else { panic!("not answered: {answer:?}") };
    assert_eq!(to, id("far"));
    let value = plan::released(&client, generation);
    let (from, record) = read(&value, &plan::notice_headers(Kind::Released, &id("dead")));
    let released = Record::Released { client: "an\"na".into(), generation: 77 };
    assert_eq!((from.node, format!("{record:?}")), (id("dead"), format!("{released:?}")));
}

#[test]
fn every_kind_of_record_is_known() {
    let holder = Holder { node: id("b"), incarnation: 1, generation: 2 };
    for (record, kind) in [
        (Record::Fenced { id: 1, shard: 2, incarnation: 3 }, Kind::Fenced),
        (Record::Released { client: "c".into(), generation: 1 }, Kind::Released),
        (Record::Moved { client: "c".into(), holder }, Kind::Moved),
        (Record::Nudge { client: "c".into() }, Kind::Nudge),
    ] {
        let (value, headers) = written(record, "far");
        assert_eq!(planned(&value, &headers), Plan::Drop(kind));
    }
}
