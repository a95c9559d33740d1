//! Prints the bytes that one ring of 1000 nodes holds, table, names and weights, as asked of the allocator.
//!
//! Resident memory would tell more about the allocator than about the ring: building leaves pages behind for reuse.
#![allow(unsafe_code, reason = "a counting allocator has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use ring::{NodeId, Ring, RingVersion, Weight};

const NODES: usize = 1000;

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to `System` unchanged, which keeps the contract; the counter beside it owns no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `System.alloc` above with this `layout`, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() -> anyhow::Result<()> {
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    let nodes = (0..NODES)
        .map(|index| Ok((NodeId::new(&format!("node-{index:04}"))?, Weight::new(100)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ring = Ring::build(RingVersion::FIRST, 0, nodes)?;
    let held_bytes = LIVE_BYTES.load(Ordering::Relaxed) - before;
    println!("{held_bytes}");
    drop(ring);
    Ok(())
}
