//! How slots are dealt to nodes: weighted rendezvous per slot (fill), then a small correction of the counts (settle).
//!
//! Imagine each node walking through all slots in an order of its own (`hash::Permutation`), the faster the heavier; each
//! slot belongs to whoever gets there first. One node's walk does not depend on the others, so a node that joins, leaves
//! or changes its weight moves only what it must. Who wins how much is chance to within a few percent; settling hands
//! the excess to those who fell short. Both steps are a wire contract (`hash` says why), in integers only.
//!
//! **Time.** With C = 2^46 and T = `SLOTS`, `e[r] = Σ_{k≤r} ⌊C/(T−k)⌋ < 2^50` is the expected time of the r-th of T
//! exponential arrivals. A node of weight w has pace `⌊(2^64−1)/w⌋` and arrives at its r-th slot at
//! `⌊e[r] · pace / 2^66⌋ < 2^48`: in effect `e[r]/w`, in units fine enough that two arrivals of one node always differ
//! (by 2^10 or so at least). Equal arrivals of two nodes go to the first by name. 48 bits of time and 16 of node make one
//! word, so the earliest arrival at a slot is the minimum of such words.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{NODES_MAX, NodeId, NodeWeights, SLOTS, Weight, hash::Permutation};

/// C, the scale of `e[r]`.
const ARRIVAL_SCALE: u64 = 1 << 46;
/// What brings `e[r] · pace`, below 2^114, down to [`TIME_BITS`].
const TIME_SHIFT: u32 = 66;
/// Bits of a time.
const TIME_BITS: u32 = 48;
const _: () = assert!(TIME_BITS + u16::BITS == u64::BITS);
/// The node in a word of time and node.
const NODE_MASK: u64 = u16::MAX as u64;
/// Marks a slot without owner while a table is made; no index reaches it.
const NOBODY: u16 = u16::MAX;
const _: () = assert!(NODES_MAX <= NOBODY as usize);

/// `e[r]` for every rank; 2 MiB of read-only data, the same in every process.
static ARRIVALS: [u64; SLOTS] = arrivals();

#[allow(long_running_const_eval, reason = "a loop over the slots, bounded")]
#[allow(clippy::large_stack_arrays, reason = "evaluated by the compiler")]
const fn arrivals() -> [u64; SLOTS] {
    let mut arrivals = [0; SLOTS];
    let mut sum = 0;
    let mut rank = 0;
    while rank < SLOTS {
        sum += ARRIVAL_SCALE / (SLOTS - rank) as u64;
        arrivals[rank] = sum;
        rank += 1;
    }
    assert!(sum < 1 << (TIME_SHIFT + TIME_BITS - u64::BITS));
    arrivals
}

/// Returns the factor that turns `e[r]` into a time for a node of this weight: the heavier, the shorter.
#[doc(hidden)]
pub fn pace(weight: Weight) -> u64 {
    u64::MAX / u64::from(weight.get())
}

/// Returns when a node of this pace arrives at its `rank`-th slot, below 2^48.
#[doc(hidden)]
#[inline]
pub fn arrival(rank: u32, pace: u64) -> u64 {
    time(ARRIVALS[rank as usize], pace)
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "114 bits shifted by 66 fit 64")]
fn time(e: u64, pace: u64) -> u64 {
    ((u128::from(e) * u128::from(pace)) >> TIME_SHIFT) as u64
}

/// One node as the table sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contender {
    permutation: Permutation,
    pace: u64,
}

impl Contender {
    pub(crate) fn new(node: &NodeId, weight: Weight, seed: u64) -> Self {
        Self { permutation: Permutation::new(node.as_str(), seed), pace: pace(weight) }
    }

    /// Returns when this node arrives at `slot`.
    #[inline]
    pub(crate) fn arrival_at(&self, slot: u32) -> u64 {
        arrival(self.permutation.rank(slot), self.pace)
    }
}

/// Returns the finished table: for every slot the index of its owner in `weights`.
pub(crate) fn deal(weights: &NodeWeights, seed: u64) -> Box<[u16; SLOTS]> {
    let contenders = contenders(weights, seed);
    let mut draft = Draft::fill(&contenders, weights.total());
    let quotas = quotas(weights);
    draft.settle(&contenders, &quotas);
    debug_assert!(quotas.iter().zip(&draft.held).all(|(quota, held)| (quota.min..=quota.max).contains(held)));
    draft.table
}

/// Returns the table before it is settled, for tests of what settling may not disturb.
#[doc(hidden)]
pub fn fill_unsettled(weights: &NodeWeights, seed: u64) -> Box<[u16; SLOTS]> {
    Draft::fill(&contenders(weights, seed), weights.total()).table
}

fn contenders(weights: &NodeWeights, seed: u64) -> Vec<Contender> {
    weights.iter().map(|(node, weight)| Contender::new(node, weight, seed)).collect()
}

/// A table in the making.
struct Draft {
    table: Box<[u16; SLOTS]>,
    // By node: slots owned, and a rank above which it owns none.
    held: Vec<usize>,
    ranks: Vec<u32>,
}

impl Draft {
    /// Gives every slot to its earliest arrival.
    ///
    /// Nodes walk to a common horizon only; the few slots that nobody reached by then are decided by asking every node.
    /// Where the horizon lies thus costs time and changes nothing. They walk in stages: what was reached in one stage
    /// cannot be won in the next, and most arrivals are turned away by a bitmap that fits the first-level cache.
    fn fill(contenders: &[Contender], weights_total: u64) -> Self {
        let horizon = horizon(contenders.len(), weights_total);
        // Per slot the earliest arrival so far, `time << 16 | node`.
        let mut earliest: Box<[u64; SLOTS]> =
            vec![u64::MAX; SLOTS].into_boxed_slice().try_into().expect("made with this length");
        let mut is_decided = Bitmap::new();
        let mut ranks = vec![0; contenders.len()];
        for stage in [horizon / 8, horizon / 4, horizon / 2, horizon] {
            for ((node, contender), from) in (0_u16..).zip(contenders).zip(&mut ranks) {
                let to = ARRIVALS.partition_point(|&e| time(e, contender.pace) <= stage);
                for (rank, &e) in (*from..).zip(&ARRIVALS[*from as usize..to]) {
                    let slot = contender.permutation.slot(rank);
                    if !is_decided.contains(slot) {
                        let earliest = &mut earliest[slot as usize];
                        *earliest = (*earliest).min(time(e, contender.pace) << u16::BITS | u64::from(node));
                    }
                }
                *from = u32::try_from(to).expect("a rank has 18 bits");
            }
            is_decided.assign(earliest.iter().map(|&earliest| earliest != u64::MAX));
        }

        let mut held = vec![0; contenders.len()];
        let mut table = Vec::with_capacity(SLOTS);
        for (slot, &earliest) in (0_u32..).zip(earliest.iter()) {
            let mut owner = u16::try_from(earliest & NODE_MASK).expect("masked to 16 bits");
            if owner == NOBODY {
                owner = earliest_at(slot, contenders, 0..as_index(contenders.len()));
                let node = usize::from(owner);
                ranks[node] = ranks[node].max(contenders[node].permutation.rank(slot) + 1);
            }
            held[usize::from(owner)] += 1;
            table.push(owner);
        }
        let table = table.into_boxed_slice().try_into().expect("one owner was pushed for each slot");
        Self { table, held, ranks }
    }

    /// Moves as few slots as it takes to bring every node's count within its quota's bounds.
    ///
    /// 1. Nodes above their maximum release their latest arrivals down to it.
    /// 2. While that is less than what nodes below their minimum lack: among the nodes above their quota, the one whose
    ///    latest slot was reached last releases it (equal times: the last by name).
    /// 3. In order of slot, each released one goes to the earliest to arrive among the nodes below their minimum, and
    ///    once there are none, among those below their quota.
    fn settle(&mut self, contenders: &[Contender], quotas: &[Quota]) {
        let mut released = Vec::new();
        for (node, quota) in quotas.iter().enumerate() {
            while self.held[node] > quota.max {
                released.push(self.release_latest(node, &contenders[node]));
            }
        }

        let lacking: usize = quotas.iter().zip(&self.held).map(|(quota, held)| quota.min.saturating_sub(*held)).sum();
        if released.len() < lacking {
            let mut donors = BinaryHeap::new();
            for (node, quota) in quotas.iter().enumerate() {
                if self.held[node] > quota.slots {
                    donors.push((self.latest_arrival(node, &contenders[node]), node));
                }
            }
            while released.len() < lacking {
                // Quotas sum to the slots, so as long as someone lacks, someone is above quota.
                let (_, node) = donors.pop().expect("excess covers the lack");
                released.push(self.release_latest(node, &contenders[node]));
                if self.held[node] > quotas[node].slots {
                    donors.push((self.latest_arrival(node, &contenders[node]), node));
                }
            }
        }

        released.sort_unstable();
        let mut released = released.into_iter();
        self.hand_out(&mut released, contenders, |node| quotas[node].min);
        self.hand_out(&mut released, contenders, |node| quotas[node].slots);
        debug_assert!(released.next().is_none());
    }

    /// Gives released slots to the nodes that hold less than their `aim`, until there is no slot or no such node left.
    fn hand_out(
        &mut self,
        released: &mut impl Iterator<Item = u32>,
        contenders: &[Contender],
        aim: impl Fn(usize) -> usize,
    ) {
        let mut takers: Vec<u16> =
            (0..as_index(contenders.len())).filter(|&node| self.held[usize::from(node)] < aim(node.into())).collect();
        while !takers.is_empty() {
            let Some(slot) = released.next() else { return };
            let owner = earliest_at(slot, contenders, takers.iter().copied());
            let node = usize::from(owner);
            self.table[slot as usize] = owner;
            self.held[node] += 1;
            if self.held[node] == aim(node) {
                takers.retain(|&taker| taker != owner);
            }
        }
    }

    /// Takes from `node` the slot it reached last.
    fn release_latest(&mut self, node: usize, contender: &Contender) -> u32 {
        let slot = contender.permutation.slot(self.latest_rank(node, contender));
        self.table[slot as usize] = NOBODY;
        self.held[node] -= 1;
        slot
    }

    fn latest_arrival(&mut self, node: usize, contender: &Contender) -> u64 {
        arrival(self.latest_rank(node, contender), contender.pace)
    }

    /// Walks back to the last rank at which `node` owns its slot, and remembers that it owns none above.
    fn latest_rank(&mut self, node: usize, contender: &Contender) -> u32 {
        debug_assert!(self.held[node] > 0);
        let owns = |rank: u32| usize::from(self.table[contender.permutation.slot(rank) as usize]) == node;
        let rank = (0..self.ranks[node]).rev().find(|&rank| owns(rank)).expect("a node with slots owns one by rank");
        self.ranks[node] = rank + 1;
        rank
    }
}

/// One bit per slot.
struct Bitmap(Box<[u64; SLOTS / 64]>);

impl Bitmap {
    fn new() -> Self {
        Self(vec![0; SLOTS / 64].into_boxed_slice().try_into().expect("made with this length"))
    }

    #[inline]
    fn contains(&self, slot: u32) -> bool {
        self.0[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    /// Sets all bits anew, from slot 0 on.
    fn assign(&mut self, mut bits: impl Iterator<Item = bool>) {
        for word in self.0.iter_mut() {
            *word = (0..64).fold(0, |word, at| word | u64::from(bits.next() == Some(true)) << at);
        }
    }
}

fn as_index(nodes: usize) -> u16 {
    u16::try_from(nodes).expect("NODES_MAX fits u16")
}

/// Returns which of `nodes`, ascending, arrives first at `slot`.
fn earliest_at(slot: u32, contenders: &[Contender], nodes: impl Iterator<Item = u16>) -> u16 {
    let mut best = (u64::MAX, NOBODY);
    for node in nodes {
        let contender = &contenders[usize::from(node)];
        let rank = contender.permutation.rank(slot);
        // Nearly all are too late even by this bound, which spares a load far from the cache.
        if time_at_least(rank, contender.pace) < best.0 {
            let time = arrival(rank, contender.pace);
            if time < best.0 {
                best = (time, node);
            }
        }
    }
    best.1
}

/// Returns a lower bound of [`arrival`]: no term of `e[r]` is below C/T.
#[inline]
fn time_at_least(rank: u32, pace: u64) -> u64 {
    /// log2 of C/T.
    const TERM_BITS: u32 = ARRIVAL_SCALE.ilog2() - SLOTS.ilog2();
    // Shifted in two steps, so that 18 bits of rank and 44 of pace fit a word.
    const PACE_SHIFT: u32 = 20;
    ((u64::from(rank) + 1) * (pace >> PACE_SHIFT)) >> (TIME_SHIFT - TERM_BITS - PACE_SHIFT)
}

/// Returns the time by which nearly all slots have been reached: `(ln N + 1.5) / Σw`.
///
/// N nodes leave a slot untouched until time t with probability `e^(−t·Σw)`, here 0.22/N: some 58 slots times N
/// questions, whatever N. ln is taken linearly between powers of two, at most 0.06 too small.
fn horizon(nodes: usize, weights_total: u64) -> u64 {
    /// ln 2 and 1.5 in units of 2^−16.
    const LN_2: u64 = 45_426;
    const MARGIN: u64 = 3 << 15;
    let nodes = nodes as u64;
    let octave = nodes.ilog2();
    let ln = u64::from(octave) * LN_2 + ((LN_2 * (nodes - (1 << octave))) >> octave);
    // Time 1 for weight 1 is 2^44; ln and margin bring 16 bits of their own.
    let unit = ARRIVAL_SCALE >> (TIME_SHIFT - u64::BITS) >> 16;
    (ln + MARGIN) * unit / weights_total
}

/// How many slots a node should own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quota {
    // Invariant: min <= slots <= max; all nodes' `slots` sum to SLOTS.
    slots: usize,
    // The counts within 1 % or one slot of the exact share, whichever is wider.
    min: usize,
    max: usize,
}

/// Returns each node's quota by largest remainder, ties by name.
fn quotas(weights: &NodeWeights) -> Vec<Quota> {
    let total = weights.total();
    let as_count = |slots: u64| usize::try_from(slots).expect("at most SLOTS");
    let mut remainders = BinaryHeap::with_capacity(weights.len());
    let mut quotas = Vec::with_capacity(weights.len());
    for (node, (_, weight)) in weights.iter().enumerate() {
        // The exact share is numerator / total.
        let numerator = u64::from(weight.get()) * SLOTS as u64;
        let slots = numerator / total;
        let hundredths = total * 100;
        quotas.push(Quota {
            slots: as_count(slots),
            min: as_count((numerator * 99).div_ceil(hundredths).min(numerator.div_ceil(total).saturating_sub(1))),
            max: as_count((numerator * 101 / hundredths).max(slots + 1)),
        });
        remainders.push((numerator % total, Reverse(node)));
    }
    let dealt: usize = quotas.iter().map(|quota| quota.slots).sum();
    for _ in dealt..SLOTS {
        let (_, Reverse(node)) = remainders.pop().expect("fewer slots are left than nodes");
        quotas[node].slots += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks() -> std::ops::Range<u32> {
        0..u32::try_from(SLOTS).unwrap()
    }

    fn weights(list: &[u64]) -> NodeWeights {
        let named = list.iter().enumerate();
        NodeWeights::new(
            named.map(|(n, &weight)| (NodeId::new(&format!("n{n:04}")).unwrap(), Weight::new(weight).unwrap())),
        )
        .unwrap()
    }

    #[test]
    fn arrivals_of_one_node_are_strictly_ordered() {
        for weight in [1, 2, 3, 100, 65_535] {
            let pace = pace(Weight::new(weight).unwrap());
            assert!(ranks().skip(1).all(|rank| arrival(rank - 1, pace) < arrival(rank, pace)));
        }
    }

    #[test]
    fn bound_is_never_above_the_arrival() {
        for weight in [1, 2, 3, 100, 65_535] {
            let pace = pace(Weight::new(weight).unwrap());
            assert!(ranks().all(|rank| time_at_least(rank, pace) <= arrival(rank, pace)));
        }
    }

    #[test]
    fn heavier_never_arrives_later() {
        let mut slower = u64::MAX;
        for weight in 1..=65_535 {
            let pace = pace(Weight::new(weight).unwrap());
            assert!(pace < slower || weight == 1);
            slower = pace;
        }
    }

    #[test]
    fn quotas_sum_to_the_slots_and_lie_within_their_bounds() {
        for list in [
            &[1][..],
            &[1, 1, 1],
            &[1, 65_535],
            &[100; 1000],
            &vec![65_535; NODES_MAX],
            &[3, 5, 7, 11, 300, 10],
            &[vec![1], vec![65_535; NODES_MAX - 1]].concat(),
        ] {
            let quotas = quotas(&weights(list));
            assert_eq!(quotas.iter().map(|quota| quota.slots).sum::<usize>(), SLOTS);
            assert!(quotas.iter().all(|quota| quota.min <= quota.slots && quota.slots <= quota.max));
        }
    }

    #[test]
    fn counts_end_within_their_bounds_for_awkward_maps() {
        for list in [
            &[1, 1][..],
            &[1, 65_535],
            &[1, 1, 65_535],
            &[vec![65_535], vec![1; NODES_MAX - 1]].concat(),
            &[vec![1], vec![65_535; NODES_MAX - 1]].concat(),
            &vec![100; NODES_MAX],
        ] {
            let weights = weights(list);
            for seed in [0, 1, u64::MAX] {
                let mut counts = vec![0; list.len()];
                deal(&weights, seed).iter().for_each(|&owner| counts[usize::from(owner)] += 1);
                for (quota, count) in quotas(&weights).iter().zip(counts) {
                    assert!((quota.min..=quota.max).contains(&count), "{count} slots, {quota:?}");
                }
            }
        }
    }

    #[test]
    #[allow(clippy::cast_precision_loss, reason = "a comparison to three digits")]
    fn horizon_leaves_few_slots_unreached() {
        // (ln N + 1.5)/Σw, compared as real numbers.
        for nodes in [1_usize, 2, 3, 10, 100, 1000, 4096] {
            let unit = 2_f64.powi(44);
            let time = horizon(nodes, 1000) as f64 / unit * 1000.0;
            let exact = (nodes as f64).ln() + 1.5;
            assert!((exact - 0.061..=exact + 0.001).contains(&time), "{nodes}: {time} for {exact}");
        }
    }
}
