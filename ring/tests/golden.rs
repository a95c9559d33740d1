//! The ring's contract: known maps and their owners. A failure here means that two versions of this code would disagree
//! about where a client lives; the code is wrong, not the file. `examples/golden.rs` made it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use rtc_ring::{NodeId, NodeWeights, Ring, RingVersion};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    name: String,
    seed: u64,
    node_weights: NodeWeights,
    version_hash: String,
    table_digest: String,
    owners: BTreeMap<String, NodeId>,
}

fn vectors() -> Vec<Vector> {
    include_str!("golden.jsonl").lines().map(|line| sonic_rs::from_str(line).unwrap()).collect()
}

#[test]
fn every_map_has_its_known_owners() {
    let vectors = vectors();
    assert!(vectors.len() >= 8);
    for vector in vectors {
        let ring = Ring::from_weights(RingVersion::FIRST, vector.seed, vector.node_weights);
        let table: Vec<u8> =
            ring.slot_owners().flat_map(|node| u16::try_from(node.get()).unwrap().to_le_bytes()).collect();
        assert_eq!(format!("{:016x}", rtc_ring::hash_key(&table, 0)), vector.table_digest, "{}", vector.name);
        assert_eq!(ring.version_hash().as_str(), vector.version_hash, "{}", vector.name);
        assert_eq!(vector.owners.len(), 100, "{}", vector.name);
        for (key, owner) in vector.owners {
            assert_eq!(*ring.owner(key.as_bytes()), owner, "{}: {key}", vector.name);
        }
    }
}
