//! Over which of its connections a client wrote which messages: for the account of one that came after a later one.

use std::{collections::VecDeque, fmt::Write as _, rc::Rc};

use crate::clock::Nanos;

/// Connections of a client that are remembered.
const STINTS_MAX: usize = 8;

/// What was written over one connection.
#[derive(Debug)]
struct Stint {
    connection: u32,
    node: Rc<str>,
    first: u64,
    last: u64,
    from: Nanos,
    until: Nanos,
}

/// One client's latest connections, oldest first.
#[derive(Debug, Default)]
pub(super) struct Stints(VecDeque<Stint>);

impl Stints {
    /// `sequence` was written over `connection`, to `node`.
    pub(super) fn note(&mut self, sequence: u64, connection: u32, node: &Rc<str>, now: Nanos) {
        if let Some(stint) = self.0.back_mut().filter(|stint| stint.connection == connection) {
            stint.first = stint.first.min(sequence);
            stint.last = stint.last.max(sequence);
            stint.until = now;
            return;
        }
        if self.0.len() >= STINTS_MAX {
            self.0.pop_front();
        }
        let node = Rc::clone(node);
        self.0.push_back(Stint { connection, node, first: sequence, last: sequence, from: now, until: now });
    }

    /// The connections over which `sequence` may have been written, in words.
    pub(super) fn of(&self, sequence: u64, seconds: impl Fn(Nanos) -> f64) -> String {
        let mut text = String::new();
        for stint in self.0.iter().filter(|stint| (stint.first..=stint.last).contains(&sequence)) {
            let Stint { connection, node, first, last, from, until } = stint;
            let (from, until) = (seconds(*from), seconds(*until));
            let separator = if text.is_empty() { "" } else { ", " };
            write!(text, "{separator}{node}#{connection} ({first}..={last} at {from:.3}..{until:.3} s)")
                .expect("writing to a string cannot fail");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_written_again_is_named_with_both_connections() {
        let mut stints = Stints::default();
        let (a, b) = (Rc::from("a"), Rc::from("b"));
        for (sequence, connection, node, at) in [(0, 1, &a, 1), (1, 1, &a, 2), (1, 2, &b, 3), (2, 2, &b, 4)] {
            stints.note(sequence, connection, node, at);
        }
        let seconds = |at| if at < 3 { 0.25 } else { 0.5 };
        assert_eq!(stints.of(0, seconds), "a#1 (0..=1 at 0.250..0.250 s)");
        assert_eq!(stints.of(1, seconds), "a#1 (0..=1 at 0.250..0.250 s), b#2 (1..=2 at 0.500..0.500 s)");
        assert_eq!(stints.of(3, seconds), "");
    }
}
