//! What a rebalance was to do to the peak, and whether it did. Weights move keys; where the load does not go with them,
//! as that of one client that outweighs a node, moving more of them is no use, and is tried ever more rarely.

/// The last rebalance's promise, and how many in a row were broken.
#[derive(Debug, Clone, Default)]
pub(super) struct Promises {
    // Peak over mean before, and as it was to become; none once it is judged.
    open: Option<(f64, f64)>,
    broken: u32,
}

impl Promises {
    /// Notes what an update is to do. One that says nothing of the peak, as that of a node that comes, closes the last.
    pub(super) fn make(&mut self, peak: Option<(f64, f64)>) {
        self.open = peak;
    }

    /// Judges the last promise by the peak now: it is kept when half of it is.
    pub(super) fn judge(&mut self, peak: f64) {
        if let Some((before, after)) = self.open.take() {
            self.broken = if peak <= f64::midpoint(before, after) { 0 } else { self.broken.saturating_add(1) };
        }
    }

    /// Returns how many in a row were broken.
    pub(super) fn broken(&self) -> u32 {
        self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_when_half_of_it_is_and_is_judged_once() {
        let mut promises = Promises::default();
        promises.judge(9.0);
        assert_eq!(promises.broken(), 0, "nothing was promised");
        for (peak, broken) in [(1.41, 1), (1.41, 2), (1.40, 0), (1.41, 1)] {
            promises.make(Some((1.6, 1.2)));
            promises.judge(peak);
            promises.judge(9.0);
            assert_eq!(promises.broken(), broken, "{peak}");
        }
        promises.make(None);
        promises.judge(9.0);
        assert_eq!(promises.broken(), 1);
    }
}
