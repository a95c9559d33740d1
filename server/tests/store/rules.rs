//! The scripts do what the plain model does: over random lives of a few clients on a few nodes, each request once and
//! once more.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use ring::NodeId;
use rtc_server::protocol::ClientId;
use rtc_server::store::bounds::BufferLimits;
use rtc_server::store::model::ModelStore;
use rtc_server::store::redis::codec::Outcome;
use rtc_server::store::request::{Author, ClaimKind, StoreAnswer, StoreRequest};
use rtc_server::store::{Kept, Room};

use crate::redis_server::Redis;
use crate::scripted::{NOW, Scripted};

const LIMITS: BufferLimits = BufferLimits { recipient_bytes: 2500, recipient_messages: 12 };
const NODES: [&str; 7] = ["n0", "n1", "n2", "n3", "n4", "n5", "n6"];

#[derive(Debug, Clone)]
enum Step {
    Ask { life: (usize, u64), client: usize, ask: Ask },
    Sweep { client: usize },
    Wait(u64),
}

#[derive(Debug, Clone)]
enum Ask {
    Claim { generation: u64, kind: ClaimKind, ceiling: u64 },
    Release { generation: u64, last: u64 },
    Append { author: Author, messages: Vec<Kept>, room: Room },
    Page { after: u64, bytes_max: usize },
    Trim { generation: u64, offset: u64 },
    Remove { generation: u64, offset: u64 },
}

fn generation() -> impl Strategy<Value = u64> {
    1..9u64
}

/// Offsets near each other, now and then at the edge of what there is.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..40u64, 10 => (0..40u64).prop_map(|at| (NOW << 12) + at), 1 => Just((1 << 53) - 1)]
}

fn message() -> impl Strategy<Value = Kept> {
    (prop_oneof![3 => Just(0u64), 2 => offset()], 0..30u64, 0..400u64, 0..300usize).prop_map(
        |(offset, identity, age, len)| Kept {
            offset,
            identity: u64::MAX - identity,
            sender: 1,
            ts_ms: NOW,
            expires_ms: NOW + age,
            body: [b"{".as_slice(), &vec![b'x'; len]].concat().into(),
        },
    )
}

fn author() -> impl Strategy<Value = Author> {
    prop_oneof![
        4 => generation().prop_map(|generation| Author::Holder { generation }),
        2 => Just(Author::Other { past: None }),
        2 => (0..2usize, 1..3u64)
            .prop_map(|(node, life)| Author::Other { past: Some((NodeId::new(NODES[node]).unwrap(), life)) }),
        1 => Just(Author::Anyone),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![Just(ClaimKind::Fresh), Just(ClaimKind::Again)];
    let room = prop_oneof![Just(Room::IfFree), Just(Room::Owed)];
    prop_oneof![
        4 => (generation(), kind, offset()).prop_map(|(generation, kind, ceiling)| Ask::Claim { generation, kind, ceiling }),
        2 => (generation(), offset()).prop_map(|(generation, last)| Ask::Release { generation, last }),
        8 => (author(), prop::collection::vec(message(), 0..4), room)
            .prop_map(|(author, messages, room)| Ask::Append { author, messages, room }),
        3 => (offset(), 0..1500usize).prop_map(|(after, bytes_max)| Ask::Page { after, bytes_max }),
        2 => (generation(), offset()).prop_map(|(generation, offset)| Ask::Trim { generation, offset }),
        2 => (generation(), offset()).prop_map(|(generation, offset)| Ask::Remove { generation, offset }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => ((0..2usize, 1..3u64), 0..2usize, ask()).prop_map(|(life, client, ask)| Step::Ask { life, client, ask }),
        1 => (0..2usize).prop_map(|client| Step::Sweep { client }),
        2 => (0..60u64).prop_map(Step::Wait),
    ]
}

fn request(ask: Ask, client: ClientId) -> StoreRequest {
    match ask {
        Ask::Claim { generation, kind, ceiling } => StoreRequest::Claim { client, generation, kind, ceiling },
        Ask::Release { generation, last } => StoreRequest::Release { client, generation, last_offset: last },
        Ask::Append { author, messages, room } => StoreRequest::Append { client, author, messages, room },
        Ask::Page { after, bytes_max } => StoreRequest::Page { client, after, bytes_max },
        Ask::Trim { generation, offset } => StoreRequest::Trim { client, generation, offset },
        Ask::Remove { generation, offset } => StoreRequest::Remove { client, generation, offset },
    }
}

/// One client that is taken over again and again, with few releases: former holders pile up, and go on appending.
fn contested() -> impl Strategy<Value = Step> {
    let lately = || prop_oneof![2 => 1..60u64, 1 => Just(1u64)];
    let kind = prop_oneof![4 => Just(ClaimKind::Again), 1 => Just(ClaimKind::Fresh)];
    let room = prop_oneof![Just(Room::IfFree), Just(Room::Owed)];
    let ask = prop_oneof![
        12 => (1..60u64, kind, 0..40u64).prop_map(|(generation, kind, ceiling)| Ask::Claim { generation, kind, ceiling }),
        3 => (lately(), 0..40u64).prop_map(|(generation, last)| Ask::Release { generation, last }),
        8 => (lately(), prop::collection::vec(message(), 0..4), room).prop_map(|(generation, messages, room)| {
            Ask::Append { author: Author::Holder { generation }, messages, room }
        }),
        2 => (lately(), offset()).prop_map(|(generation, offset)| Ask::Trim { generation, offset }),
    ];
    ((0..NODES.len(), 1..3u64), ask).prop_map(|(life, ask)| Step::Ask { life, client: 0, ask })
}

#[test]
fn the_scripts_keep_the_rules_of_the_model_however_often_they_are_sent() {
    compare(step());
}

#[test]
fn the_scripts_keep_the_rules_of_the_model_while_nodes_contend_for_a_client() {
    compare(contested());
}

/// Lives the steps in Redis and in the model, each request once and once more, and insists on the same answers and on
/// the same messages.
fn compare(step: impl Strategy<Value = Step>) {
    static CASE: AtomicU32 = AtomicU32::new(0);
    let Some(redis) = Redis::any() else { return };
    let scripted = std::cell::RefCell::new(Scripted::new(&redis.url, LIMITS));
    let nodes = NODES.map(|node| NodeId::new(node).unwrap());
    let config = ProptestConfig { cases: 400, max_shrink_iters: 2000, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in prop::collection::vec(step, 1..60))| {
        let scripted = &mut *scripted.borrow_mut();
        let case = CASE.fetch_add(1, Ordering::Relaxed);
        let clients = [0, 1].map(|client| {
            ClientId::try_from(format!("rules-{}-{case}-{client}%{{", std::process::id()).as_str()).unwrap()
        });
        let mut model = ModelStore::new(LIMITS);
        let (mut now, mut expired) = (NOW, 0);
        for step in steps {
            match step {
                Step::Wait(ms) => now += ms,
                Step::Sweep { client } => {
                    let reply = scripted.sweep(&nodes[0], &clients[client], now);
                    let swept = model.sweep_one(&clients[client], now);
                    prop_assert_eq!(reply.expired, swept);
                    expired += swept;
                    let next = model.kept(&clients[client]).map(|kept| kept.expires_ms).min().unwrap_or(0);
                    prop_assert_eq!(reply.outcome, Outcome::Swept(next));
                }
                Step::Ask { life: (node, life), client, ask } => {
                    let request = request(ask, clients[client].clone());
                    let replies = scripted.replies((&nodes[node], life), &request, now, 2);
                    for reply in replies {
                        let answer = model.apply(&nodes[node], life, &request, now);
                        prop_assert_eq!(reply.outcome, Outcome::Answer(answer), "{:?} of n{}/{}", request, node, life);
                        prop_assert_eq!(reply.malformed, 0);
                        expired += reply.expired;
                        prop_assert_eq!(expired, model.expired());
                    }
                }
            }
            for client in &clients {
                let all = StoreRequest::Page { client: client.clone(), after: 0, bytes_max: usize::MAX };
                let page = scripted.ask((&nodes[0], 1), &all, 0);
                prop_assert_eq!(page, StoreAnswer::Page(model.kept(client).cloned().collect()));
            }
        }
    });
}
