//! Prints the resident bytes of one ring of 1000 nodes, table, names and weights: the growth over many rings, shared out.

use std::hint::black_box;

use anyhow::Context;
use ring::{NodeId, Ring, RingVersion, Weight};

// As in the programs: what a ring costs is also the allocator's affair.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NODES: usize = 1000;
const RINGS: u64 = 64;

fn main() -> anyhow::Result<()> {
    // The first ring also pays for what is made once.
    let first = build()?;
    let before = resident_bytes()?;
    let rings = (0..RINGS).map(|_| build()).collect::<anyhow::Result<Vec<_>>>()?;
    let grown = resident_bytes()?.saturating_sub(before);
    black_box((first, rings));
    println!("{}", grown / RINGS);
    Ok(())
}

fn build() -> anyhow::Result<Ring> {
    let nodes = (0..NODES)
        .map(|index| Ok((NodeId::new(&format!("node-{index:04}"))?, Weight::new(100)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Ring::build(RingVersion::FIRST, 0, nodes)?)
}

fn resident_bytes() -> anyhow::Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss in smaps_rollup")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}
