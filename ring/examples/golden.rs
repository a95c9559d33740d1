//! Prints the golden vectors of the ring, one map a line:
//! `cargo run -p rtc-ring --example golden > ring/tests/golden.jsonl`
//!
//! That file is a contract: run this to add maps, never to make a failing test pass.

use std::collections::BTreeMap;

use rtc_ring::{NodeId, NodeWeights, Ring, RingVersion, VersionHash, Weight};
use serde::Serialize;

const KEYS_PER_MAP: usize = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    name: &'static str,
    seed: u64,
    node_weights: NodeWeights,
    version_hash: VersionHash,
    /// XXH3 (seed 0) of the table as little-endian 16-bit indexes into the names in order.
    table_digest: String,
    owners: BTreeMap<String, NodeId>,
}

fn main() {
    let equal = |nodes: usize| map((0..nodes).map(|n| (format!("node-{n}"), 100)));
    let named = |nodes: &[(&str, u64)]| map(nodes.iter().map(|&(name, weight)| (name.to_owned(), weight)));
    let uneven = map((0..60).map(|n| (format!("rack{}.host{n}", n % 4), 10 + (n * 37) % 291)));
    let vectors = [
        ("one", 0, equal(1)),
        ("three", 0, equal(3)),
        ("ten", 0, equal(10)),
        ("hundred", 0, equal(100)),
        ("thousand", 0, equal(1000)),
        ("uneven", 0, uneven.clone()),
        ("uneven, another seed", 0x9e37_79b9_7f4a_7c15, uneven),
        ("extreme", 0, named(&[("feather", 1), ("anvil", 65_535)])),
        ("extreme, three", 1, named(&[("a", 1), ("b", 65_535), ("c", 256)])),
        ("names of every length", 7, map((1..=64).map(|n| ("x".repeat(usize::try_from(n).unwrap_or(1)), n)))),
    ];
    for (name, seed, node_weights) in vectors {
        let ring = Ring::from_weights(RingVersion::FIRST, seed, node_weights.clone());
        let table: Vec<u8> = ring
            .slot_owners()
            .flat_map(|node| u16::try_from(node.get()).expect("an index has 16 bits").to_le_bytes())
            .collect();
        let owners = (0..KEYS_PER_MAP).map(key).map(|key| {
            let owner = ring.owner(key.as_bytes()).clone();
            (key, owner)
        });
        let vector = Vector {
            name,
            seed,
            version_hash: ring.version_hash(),
            table_digest: format!("{:016x}", rtc_ring::hash_key(&table, 0)),
            owners: owners.collect(),
            node_weights,
        };
        println!("{}", sonic_rs::to_string(&vector).expect("a vector is plain data"));
    }
}

fn map(nodes: impl Iterator<Item = (String, u64)>) -> NodeWeights {
    let valid = |(name, weight): (String, u64)| {
        (NodeId::new(&name).expect("a valid name"), Weight::new(weight).expect("a valid weight"))
    };
    NodeWeights::new(nodes.map(valid)).expect("a valid map")
}

/// Keys of many lengths, so that every path of the hash is in the contract.
fn key(n: usize) -> String {
    match n % 5 {
        0 => format!("client-{n}"),
        1 => format!("{n:032x}"),
        2 => "k".repeat(n),
        3 => format!("пользователь-{n}"),
        _ => format!("{n:0>128}"),
    }
}
