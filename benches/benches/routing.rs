//! Routing: what a shard's core spends on a message, all but sockets, Kafka and Redis. From its arrival to the record
//! for the right node and the bus's confirmation; or into its recipient's outbox and out again. Beside it, what a node
//! spends on an update of the ring before its shards see it.
//!
//! Each iteration passes one message, under a name of its own, to each of many clients.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::control::RingUpdate;
use ring::{NodeId, Ring, SharedRing};
use rtc_benches::{CpuClock, criterion_by_cpu};
use rtc_server::bus::Address;
use rtc_server::metrics::Counters;
use rtc_server::protocol::{AckStatus, ClientId, PayloadField};
use rtc_server::routing::{Dispatcher, Now, Rules, with_arrival};
use rtc_server::shard::handover::Posted;
use rtc_server::shard::origin::Origin;
use rtc_server::shard::session::{Newcomer, Wishes};
use rtc_server::shard::slab::Key;
use rtc_server::shard::{OutboxLimits, SessionLimits};
use rtc_server::store::request::{StoreAnswer, StoreRequest};
use rtc_server::store::{AnyStore, RemoteStore};

const NODE_COUNTS: [usize; 3] = [3, 10, 1000];
/// Clients with a message each.
const CLIENTS: usize = 4096;
/// A usual message.
const PAYLOAD_BYTES: usize = 200;
/// Some moment of the wall clock, in milliseconds since 1970.
const NOW_MS: u64 = 1_800_000_000_000;

const RULES: Rules = Rules {
    session: SessionLimits {
        outbox: OutboxLimits { bytes: 1024 * 1024, messages: 1024 },
        ack_wait_ms: 10_000,
        kept_status: AckStatus::Stored,
    },
    message_ttl_ms: 3_600_000,
    claim_wait_ms: 2_000,
    takeover_wait_ms: 20_000,
    ceiling_ms: 60_000,
    lanes: 16,
};

fn node(index: usize) -> String {
    format!("node-{index:04}")
}

fn update_of(nodes: usize) -> Vec<u8> {
    let weights: Vec<String> = (0..nodes).map(|index| format!(r#""{}":100"#, node(index))).collect();
    let version = format!(r#"{{"version":1,"issuedAt":{NOW_MS},"versionHash":"bench"}}"#);
    let weights = weights.join(",");
    format!(r#"{{"version":{version},"nodeWeights":{{{weights}}},"reason":"bench","ts":{NOW_MS}}}"#).into_bytes()
}

/// The core of one shard of one of so many nodes.
fn dispatcher(nodes: usize) -> Dispatcher {
    let update = RingUpdate::decode(&update_of(nodes)).expect("a valid update");
    let ring = SharedRing::new();
    ring.publish(Arc::new(Ring::from_update(&update))).expect("the first ring");
    let me = Address { node: NodeId::new(&node(0)).expect("a valid name"), incarnation: 1, shard: 0 };
    let now = Now { wall_ms: NOW_MS, steady_ms: 1 };
    let store = AnyStore::Remote(RemoteStore::default());
    let mut core = Dispatcher::new(me, RULES, store, ring.reader(), Arc::new(Counters::default()), now);
    let names = (0..nodes).map(|index| NodeId::new(&node(index)).expect("a valid name"));
    core.note_live(names.collect::<HashSet<_>>());
    core
}

/// A message for each of the first clients that are, by the ring, this node's, or another's.
fn messages(core: &mut Dispatcher, is_ours: bool) -> Vec<Posted> {
    let mut messages = Vec::new();
    for index in 0_u32.. {
        let to = format!("client-{index:09}");
        let hash = core.hash_of(&to);
        if core.owner_of(hash).is_none() == is_ours {
            messages.push(Posted {
                msg_id: "0".into(),
                from: "sender".into(),
                sender: 1,
                to: to.into(),
                hash,
                field: PayloadField::Payload,
                payload: format!("\"{}\"", "x".repeat(PAYLOAD_BYTES - 2)).into(),
                origin: Origin::NOBODY,
                wants_ack: false,
                ts_ms: NOW_MS,
                ttl_ms: None,
                hops: 0,
                trail: Vec::new(),
                login: 0,
            });
        }
        if messages.len() == CLIENTS {
            break;
        }
    }
    messages
}

/// Delivers each message under the next number, and does `then`.
fn deliver(
    core: &mut Dispatcher,
    messages: &mut [Posted],
    number: &mut u64,
    mut then: impl FnMut(&mut Dispatcher, usize),
) {
    for (index, message) in messages.iter_mut().enumerate() {
        *number += 1;
        message.msg_id = number.to_string().into();
        let expires_ms = core.expiry(message.ts_ms, None);
        let outcome = with_arrival(message, expires_ms, |arrival| core.deliver(arrival));
        assert!(!matches!(outcome, Some(Err(_))), "{outcome:?}");
        then(core, index);
    }
}

/// For clients whose home is another node.
fn crossing(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("routing");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    for nodes in NODE_COUNTS {
        let mut core = dispatcher(nodes);
        let (mut messages, mut number) = (messages(&mut core, false), 0);
        group.bench_function(BenchmarkId::new("crossing", nodes), |b| {
            b.iter(|| {
                deliver(&mut core, &mut messages, &mut number, |core, _| {
                    let parcel = core.out.parcels.pop_front().expect("it goes to the other node");
                    if let Some(ticket) = black_box(&parcel).ticket {
                        core.on_produced(ticket);
                    }
                });
            });
        });
    }
    group.finish();
}

/// For clients that are logged in here.
fn here(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("routing");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    let mut core = dispatcher(3);
    let mut messages = messages(&mut core, true);
    let sessions = log_in(&mut core, &messages);
    let (mut number, mut frames) = (0, Vec::new());
    group.bench_function("here", |b| {
        b.iter(|| {
            deliver(&mut core, &mut messages, &mut number, |core, index| {
                core.out.wakes.clear();
                core.with_session(sessions[index], |session, store, _, answers, now_ms| {
                    frames.clear();
                    session.take_unsent(&mut frames, usize::MAX);
                    session.on_written(store, now_ms, answers, |latency_ms| _ = black_box(latency_ms));
                });
                assert!(!frames.is_empty(), "it is written to its client");
            });
        });
    });
    group.finish();
}

fn log_in(core: &mut Dispatcher, messages: &[Posted]) -> Vec<Key> {
    for (slot, message) in (0..).zip(messages) {
        let id = ClientId::try_from(&*message.to).expect("a valid id");
        let connection = Key { index: slot, life: 0 };
        let wishes = Wishes { acks: false, receiver_acks: false, resume_offset: None };
        core.log_in(Newcomer { id, hash: message.hash, connection, wishes });
        let requests: Vec<_> = core.requests().expect("a store elsewhere").drain(..).collect();
        for (ticket, request) in requests {
            let StoreRequest::Claim { generation, .. } = request else { continue };
            let answer = StoreAnswer::Claimed {
                generation,
                unreleased: Vec::new(),
                last_offset: 0,
                lost_offset: 0,
                is_known: false,
                has_messages: false,
            };
            core.on_store(ticket, answer);
        }
    }
    let welcomes = std::mem::take(&mut core.out.welcomes);
    for (key, start) in &welcomes {
        core.session_mut(*key).expect("it is welcomed").welcome(start.offset);
    }
    let keys = messages.iter().map(|message| core.find_session(message.hash, &message.to));
    keys.map(|key| key.expect("it is logged in")).collect()
}

/// From the bytes of an update to the ring that every shard reads with its next message.
fn ring_update(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("ring_update");
    for nodes in NODE_COUNTS {
        let bytes = update_of(nodes);
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| Ring::from_update(&RingUpdate::decode(black_box(&bytes)).expect("a valid update")));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion_by_cpu(); targets = crossing, here, ring_update }
criterion_main!(benches);
