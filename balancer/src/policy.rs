//! Weights from corrections. Whatever comes in, the weights add up to exactly 100 per node and none is below 10.
//!
//! Two ways: `proportional` takes the correction itself; `feedback` multiplies the weight that a node has by its
//! correction, so that an unequal fleet settles instead of swinging. When to do either is `triggers`' question.

use ring::NODES_MAX;

use crate::rules::PolicyRules;

/// The average weight.
pub const WEIGHT_AVERAGE: u16 = 100;
/// The smallest weight: a node that owned nothing could not show that it has recovered.
pub const WEIGHT_MIN: u16 = 10;
/// A ring's weights have 16 bits.
const WEIGHT_MAX: u16 = u16::MAX;
/// What one rounding may change in the weight of a node that keeps its own.
const ROUNDING: f64 = 1.0;

/// A node whose weight is to be found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What it has now; an average one at the start of a cluster.
    pub weight: f64,
    /// What it should own, relative to the others' corrections; none where nothing is known of its load.
    pub correction: Option<f64>,
    /// By how much its load differs from the mean.
    pub deviation: Option<f64>,
    /// The most it may have yet.
    pub cap: f64,
}

/// Returns the sum of the weights of so many nodes.
pub fn total(nodes: usize) -> u32 {
    u32::from(WEIGHT_AVERAGE) * u32::try_from(nodes.min(NODES_MAX)).unwrap_or(u32::MAX)
}

/// Returns weights by the correction alone. A node of which nothing is known keeps its weight.
pub fn proportional(candidates: &[Candidate]) -> Vec<u16> {
    apportion(&spread(candidates, |candidate| candidate.correction))
}

/// Returns weights for the first ring of a cluster, where nothing has to stay where it is.
pub fn first(candidates: &[Candidate], rules: &PolicyRules) -> Vec<u16> {
    apportion(&spread(candidates, |candidate| corrected(candidate, rules)))
}

/// Returns weights by the current ones times their corrections, moving no more than `moved_share_max` of the keys.
///
/// A node inside the dead-band keeps its weight to within one unit of rounding, one of which nothing is known exactly.
pub fn feedback(candidates: &[Candidate], rules: &PolicyRules, moved_share_max: f64) -> Vec<u16> {
    let wished = spread(candidates, |candidate| corrected(candidate, rules));
    let mut steps: Vec<f64> =
        candidates.iter().zip(&wished).map(|(candidate, wish)| step(candidate, *wish, rules)).collect();
    balance(candidates, &mut steps);
    let moved = steps.iter().filter(|step| **step > 0.0).sum::<f64>();
    let moved_max = moved_share_max * f64::from(total(candidates.len()));
    let scale = if moved > moved_max { moved_max / moved } else { 1.0 };
    let weights: Vec<f64> =
        candidates.iter().zip(&steps).map(|(candidate, step)| candidate.weight + step * scale).collect();
    apportion(&weights)
}

fn corrected(candidate: &Candidate, rules: &PolicyRules) -> Option<f64> {
    candidate.correction.map(|correction| candidate.weight * correction.powf(rules.kappa))
}

/// The change of weight that a node's load asks for.
fn step(candidate: &Candidate, wish: f64, rules: &PolicyRules) -> f64 {
    if candidate.deviation.is_none_or(|deviation| deviation.abs() <= rules.dead_band) {
        return 0.0;
    }
    let room_down = (candidate.weight - f64::from(WEIGHT_MIN)).max(0.0);
    let room_up = (candidate.cap - candidate.weight).max(0.0);
    (wish - candidate.weight).clamp(-room_down, room_up)
}

/// Makes gains equal losses. Nodes that keep their weight take up to one unit of the difference each, no more.
fn balance(candidates: &[Candidate], steps: &mut [f64]) {
    let gain: f64 = steps.iter().filter(|step| **step > 0.0).sum();
    let loss: f64 = -steps.iter().filter(|step| **step < 0.0).sum::<f64>();
    let excess = gain - loss;
    let can_take = |candidate: &Candidate, step: f64| {
        let room = if excess > 0.0 {
            candidate.weight - ROUNDING >= f64::from(WEIGHT_MIN)
        } else {
            candidate.weight + ROUNDING <= candidate.cap
        };
        step == 0.0 && candidate.deviation.is_some() && room
    };
    let keepers = candidates.iter().zip(&*steps).filter(|(candidate, step)| can_take(candidate, **step)).count();
    #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
    let keepers = keepers as f64;
    let taken = excess.abs().min(keepers * ROUNDING);
    let (larger, smaller) = if excess > 0.0 { (gain, loss) } else { (loss, gain) };
    let scale = if larger > 0.0 { (smaller + taken) / larger } else { 0.0 };
    for (candidate, step) in candidates.iter().zip(steps) {
        if can_take(candidate, *step) {
            *step = -excess.signum() * taken / keepers;
        } else if (*step > 0.0) == (excess > 0.0) {
            *step *= scale;
        }
    }
}

/// Shares the total out by `raw`, within caps; who has none keeps its weight.
fn spread(candidates: &[Candidate], raw: impl Fn(&Candidate) -> Option<f64>) -> Vec<f64> {
    let total = f64::from(total(candidates.len()));
    let raws: Vec<Option<f64>> = candidates.iter().map(raw).collect();
    let mut weights: Vec<f64> = candidates.iter().map(|candidate| candidate.weight).collect();
    let mut is_fixed: Vec<bool> = raws.iter().map(Option::is_none).collect();
    // Each round fixes at least one more node at its cap, or is the last.
    for _ in 0..=candidates.len() {
        let fixed: f64 = weights.iter().zip(&is_fixed).filter(|(_, fixed)| **fixed).map(|(weight, _)| weight).sum();
        let free: f64 =
            raws.iter().zip(&is_fixed).filter(|(_, fixed)| !**fixed).filter_map(|(raw, _)| *raw).sum::<f64>();
        if free <= 0.0 {
            break;
        }
        let pace = (total - fixed).max(0.0) / free;
        let mut has_capped = false;
        for (index, candidate) in candidates.iter().enumerate() {
            let Some(raw) = raws[index].filter(|_| !is_fixed[index]) else { continue };
            weights[index] = raw * pace;
            if weights[index] > candidate.cap {
                weights[index] = candidate.cap;
                is_fixed[index] = true;
                has_capped = true;
            }
        }
        if !has_capped {
            break;
        }
    }
    weights
}

/// Rounds quotas to whole weights by largest remainder: the total is exact, each is from 10 to 65535.
///
/// Any quotas will do; what is no number above 0 counts as none. Of equal remainders the earlier node's is rounded up.
pub fn apportion(quotas: &[f64]) -> Vec<u16> {
    let sum_wanted = total(quotas.len());
    let quotas = fitted(quotas, f64::from(sum_wanted));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "fitted to 10..=65535")]
    let mut weights: Vec<u16> = quotas.iter().map(|quota| quota.floor() as u16).collect();
    let mut by_remainder: Vec<usize> = (0..quotas.len()).collect();
    by_remainder.sort_by(|one, other| quotas[*other].fract().total_cmp(&quotas[*one].fract()));
    let sum: u32 = weights.iter().copied().map(u32::from).sum();
    let mut missing = i64::from(sum_wanted) - i64::from(sum);
    // Once around nearly always; more only where a quota stands at a bound.
    while missing != 0 {
        for &index in &by_remainder {
            let weight = &mut weights[index];
            if missing > 0 && *weight < WEIGHT_MAX {
                *weight += 1;
                missing -= 1;
            } else if missing < 0 && *weight > WEIGHT_MIN {
                *weight -= 1;
                missing += 1;
            }
        }
    }
    weights
}

/// Scales quotas to `total`, each within the bounds of a weight.
fn fitted(quotas: &[f64], total: f64) -> Vec<f64> {
    let (min, max) = (f64::from(WEIGHT_MIN), f64::from(WEIGHT_MAX));
    let is_sound = |quota: f64| quota.is_finite() && quota > 0.0;
    let largest = quotas.iter().copied().filter(|quota| is_sound(*quota)).fold(0.0, f64::max);
    // Relative to the largest, so that no sum overflows; all equal where none is sound.
    let raws: Vec<f64> =
        quotas.iter().map(|quota| if is_sound(*quota) { quota / largest } else { f64::from(largest == 0.0) }).collect();
    let mut fixed: Vec<Option<f64>> = vec![None; quotas.len()];
    for bound in [min, max] {
        loop {
            let taken: f64 = fixed.iter().flatten().sum();
            let free: f64 = raws.iter().zip(&fixed).filter(|(_, fixed)| fixed.is_none()).map(|(raw, _)| raw).sum();
            let pace = if free > 0.0 { (total - taken) / free } else { 0.0 };
            let before = fixed.iter().flatten().count();
            for (raw, fixed) in raws.iter().zip(&mut fixed).filter(|(_, fixed)| fixed.is_none()) {
                let quota = raw * pace;
                if (bound == min && quota < min) || (bound == max && quota > max) {
                    *fixed = Some(bound);
                }
            }
            if fixed.iter().flatten().count() == before {
                break;
            }
        }
    }
    let taken: f64 = fixed.iter().flatten().sum();
    let free: f64 = raws.iter().zip(&fixed).filter(|(_, fixed)| fixed.is_none()).map(|(raw, _)| raw).sum();
    let quota = |(raw, fixed): (&f64, &Option<f64>)| fixed.unwrap_or(raw * (total - taken) / free).clamp(min, max);
    raws.iter().zip(&fixed).map(quota).collect()
}

#[cfg(test)]
mod tests;
