//! Ring: look-ups beside the crate `hashring` and a `BTreeMap` of points, building a table, reaching the current ring.
//!
//! A look-up bench resolves every key of one list per iteration, so time per element is time per look-up.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hashring::HashRing;
use ring::{NodeId, Ring, RingVersion, SharedRing, Weight};
use rtc_benches::{CpuClock, criterion_by_cpu};
use xxhash_rust::xxh3::xxh3_64;

const NODE_COUNTS: [usize; 4] = [3, 10, 100, 1000];
/// Keys that are asked for again and again, and so many that every look-up is at another place of the table.
const KEY_SETS: [(&str, usize); 2] = [("look_up", 4096), ("look_up_wide", 65_536)];
const KEY_BYTES: usize = 16;
/// Points per node for the rings that need them: the shares are then within some 10 % of even.
const POINTS_PER_NODE: u32 = 100;

/// Client ids of one length, side by side in memory: reading them costs every contender the same.
fn keys(count: usize) -> Vec<[u8; KEY_BYTES]> {
    (0..count)
        .map(|index| format!("client-{index:09}").into_bytes().try_into().expect("an id of KEY_BYTES bytes"))
        .collect()
}

fn node_names(nodes: usize) -> impl Iterator<Item = String> {
    (0..nodes).map(|index| format!("node-{index:04}"))
}

fn build_ring(nodes: usize) -> Ring {
    let weight = Weight::new(100).expect("a valid weight");
    let nodes = node_names(nodes).map(|name| (NodeId::new(&name).expect("a valid name"), weight));
    Ring::build(RingVersion::FIRST, 0, nodes).expect("distinct nodes")
}

/// A point of the crate's ring: it hashes the name and replica, and hands back the node's index.
#[derive(Clone, Debug, Hash)]
struct Point {
    name: String,
    replica: u32,
}

fn build_hashring(nodes: usize) -> HashRing<Point> {
    let mut ring = HashRing::new();
    ring.batch_add(
        node_names(nodes)
            .flat_map(|name| (0..POINTS_PER_NODE).map(move |replica| Point { name: name.clone(), replica }))
            .collect(),
    );
    ring
}

/// The ring of most textbooks: points on a circle in an ordered map, the same hash as ours.
struct BTreeRing {
    points: BTreeMap<u64, String>,
}

impl BTreeRing {
    fn new(nodes: usize) -> Self {
        let points = node_names(nodes).flat_map(|name| {
            (0..POINTS_PER_NODE).map(move |replica| (xxh3_64(format!("{name}#{replica}").as_bytes()), name.clone()))
        });
        Self { points: points.collect() }
    }

    fn owner(&self, key: &[u8]) -> Option<&String> {
        let behind = self.points.range(xxh3_64(key)..).next();
        behind.or_else(|| self.points.first_key_value()).map(|(_, name)| name)
    }
}

// Each contender is one call, as in a program: whether the compiler would inline one into the loop and hoist half of it
// says nothing about a look-up.

#[inline(never)]
fn hash_alone(key: &[u8]) -> u64 {
    xxh3_64(key)
}

#[inline(never)]
fn owner_by_ring<'a>(ring: &'a Ring, key: &[u8]) -> &'a NodeId {
    ring.owner(key)
}

#[inline(never)]
fn owner_by_hashring<'a>(ring: &'a HashRing<Point>, key: &[u8]) -> Option<&'a Point> {
    ring.get(&key)
}

#[inline(never)]
fn owner_by_btreemap<'a>(ring: &'a BTreeRing, key: &[u8]) -> Option<&'a String> {
    ring.owner(key)
}

fn look_up(c: &mut Criterion<CpuClock>) {
    for (name, count) in KEY_SETS {
        let keys = keys(count);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function("xxh3", |b| b.iter(|| each(&keys, hash_alone)));
        for nodes in NODE_COUNTS {
            let ring = build_ring(nodes);
            group.bench_function(BenchmarkId::new("ring", nodes), |b| {
                b.iter(|| each(&keys, |key| owner_by_ring(&ring, key)));
            });
            let ring = build_hashring(nodes);
            group.bench_function(BenchmarkId::new("hashring", nodes), |b| {
                b.iter(|| each(&keys, |key| owner_by_hashring(&ring, key)));
            });
            let ring = BTreeRing::new(nodes);
            group.bench_function(BenchmarkId::new("btreemap", nodes), |b| {
                b.iter(|| each(&keys, |key| owner_by_btreemap(&ring, key)));
            });
        }
        group.finish();
    }
}

/// The length of a key is hidden, so that no hash is compiled for this one length.
fn each<'a, Owner>(keys: &'a [[u8; KEY_BYTES]], look_up: impl Fn(&'a [u8]) -> Owner) {
    for key in keys {
        black_box(look_up(black_box(key)));
    }
}

fn build(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("build");
    for nodes in [10, 100, 1000] {
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| b.iter(|| build_ring(nodes)));
    }
    group.finish();
}

/// What a shard pays per message to reach the ring that is current, before it looks anything up.
fn reach(c: &mut Criterion<CpuClock>) {
    let ring = Arc::new(build_ring(100));
    let shared = SharedRing::new();
    shared.publish(Arc::clone(&ring)).expect("the first ring is the newest");
    let mut reader = shared.reader();
    let locked = Arc::new(RwLock::new(ring));

    reach_by(c, "reader", move || reader.load().map(|ring| ring.seed()));
    reach_by(c, "load_full", move || shared.load().map(|ring| ring.seed()));
    reach_by(c, "rwlock", move || locked.read().ok().map(|ring| ring.seed()));
}

/// One way to reach the ring: alone, and while another thread does the same without pause.
fn reach_by(c: &mut Criterion<CpuClock>, name: &str, mut access: impl FnMut() -> Option<u64> + Clone + Send) {
    let mut group = c.benchmark_group("reach");
    let mut other = access.clone();
    group.bench_function(BenchmarkId::new(name, "alone"), |b| b.iter(&mut access));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                black_box(other());
            }
        });
        group.bench_function(BenchmarkId::new(name, "in_company"), |b| b.iter(&mut access));
        is_over.store(true, Ordering::Relaxed);
    });
    group.finish();
}

criterion_group! { name = benches; config = criterion_by_cpu(); targets = look_up, build, reach }
criterion_main!(benches);
