//! What was counted of clients that outlive their connections: how often they left or were left, how soon they were
//! back, what they sent again and what they dropped as a repeat.
//!
//! One worker's counts, and the sum of several. Knows no connection.

use serde::{Deserialize, Serialize};

use crate::{
    recorder::Latency,
    tally::{Causes, add_causes},
    timeline::Timeline,
};

/// Sentences that are kept; the counts tell of the rest.
const DISORDERS_MAX: usize = 32;

/// The counts of one worker, or of all.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Journeys {
    /// Connections we ended without a word, as a broken network does.
    pub(crate) cuts: u64,
    /// Connections we closed in good order, to return later.
    pub(crate) goodbyes: u64,
    /// Moves to another server that opened the second connection before the first was closed.
    pub(crate) moves: u64,
    /// Of those, the ones that a server had advised.
    pub(crate) advised: u64,
    /// Welcomes after a client's first.
    pub(crate) returns: u64,
    /// Of those, the ones whose position the server could not vouch for.
    pub(crate) unrecovered: u64,
    /// Connections that ended without our doing, and were opened again.
    pub(crate) breaks: Causes,
    /// Attempts to connect that failed and were followed by another.
    pub(crate) retries: Causes,
    /// Messages that were written again, each time.
    pub(crate) resent: u64,
    /// Messages that clients recognised as repeats and dropped.
    pub(crate) repeats: u64,
    /// Messages that arrived while their sender was on another node.
    pub(crate) across: u64,
    /// Clients that acknowledge nothing for a while.
    pub(crate) silent: u64,
    /// From the end of a connection to the welcome on the next.
    pub(crate) to_welcome: Latency,
    /// From the end of a connection until all had arrived that was confirmed before the welcome on the next.
    pub(crate) to_caught_up: Latency,
    pub(crate) timeline: Timeline,
    /// The first messages that came after later ones, and clients that were told to stay away: a sentence for each.
    pub(crate) disorders: Vec<String>,
}

impl Journeys {
    /// Adds another worker's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.cuts, other.cuts),
            (&mut self.goodbyes, other.goodbyes),
            (&mut self.moves, other.moves),
            (&mut self.advised, other.advised),
            (&mut self.returns, other.returns),
            (&mut self.unrecovered, other.unrecovered),
            (&mut self.resent, other.resent),
            (&mut self.repeats, other.repeats),
            (&mut self.across, other.across),
            (&mut self.silent, other.silent),
        ] {
            *mine += theirs;
        }
        add_causes(&mut self.breaks, &other.breaks);
        add_causes(&mut self.retries, &other.retries);
        self.to_welcome.add(&other.to_welcome);
        self.to_caught_up.add(&other.to_caught_up);
        self.timeline.add(&other.timeline);
        for disorder in &other.disorders {
            self.note_disorder(|| disorder.clone());
        }
    }

    /// Keeps a sentence about something that should not be, if there is room for one more.
    pub(crate) fn note_disorder(&mut self, sentence: impl FnOnce() -> String) {
        if self.disorders.len() < DISORDERS_MAX {
            self.disorders.push(sentence());
        }
    }
}
