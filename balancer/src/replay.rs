//! The core over recorded lines, in virtual time: one answer per line, flushed at once, so that it can also be driven
//! by a program that waits for each answer.
//!
//! A line that cannot be read is answered with its error and the run goes on. One absurd heartbeat is left out of its
//! line, named on standard error and counted; its node, which is alive, keeps its weight if it is in the ring and does
//! not come in if it is not. So it is where heartbeats are read from Redis: the reader is the same.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};
use std::sync::Arc;

use ring::control::{RingUpdate, ScaleSignal, WHOLE_MAX};
use ring::{NODES_MAX, NodeId, RingVersion, nesting};
use serde::{Deserialize, Serialize};
use sonic_rs::LazyValue;

use crate::decide::{Inputs, State, decide};
use crate::heartbeats::{self, Refusal, Report, Reports};
use crate::rules::Rules;

/// The longest line: the largest ring's heartbeats, each with room to spare.
const LINE_BYTES_MAX: usize = NODES_MAX * 1024;
/// Heartbeats read from one line; a line of that length cannot hold many more that are sound.
const LINE_HEARTBEATS_MAX: usize = 4 * NODES_MAX;
/// The deepest nesting of a line: far from what overflows the parser's stack, and far more than a heartbeat may have, so
/// that one that is too deep is refused by itself.
const LINE_DEPTH_MAX: usize = 1000;
/// Characters of a refused heartbeat that are shown where it has no readable name.
const SHOWN_CHARS_MAX: usize = 80;

/// What a run has counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Lines that were answered, errors included.
    pub lines: u64,
    /// Of these, answered with an error.
    pub errors: u64,
    /// Rings decided.
    pub updates: u64,
    /// Scale signals decided.
    pub signals: u64,
    /// Heartbeats left out, by cause.
    pub refused: BTreeMap<&'static str, u64>,
}

#[derive(Deserialize)]
struct Line<'a> {
    ts: f64,
    #[serde(borrow)]
    heartbeats: Vec<LazyValue<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    ts: u64,
    ring_update: Option<&'a RingUpdate>,
    scale_signal: Option<&'a ScaleSignal>,
    leader: bool,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
}

/// Answers every line of `input` on `output`; what is left out is named on `complaints`.
///
/// # Errors
/// When reading or writing fails; a reader that has gone ends the run like the end of the input.
pub fn replay(
    mut input: impl BufRead,
    mut output: impl Write,
    mut complaints: impl Write,
    rules: &Rules,
    seed: u64,
) -> io::Result<Tally> {
    let mut state = State::default();
    let mut tally = Tally::default();
    let mut line = Vec::new();
    while let Some(kind) = next_line(&mut input, &mut line)? {
        let answer = match kind {
            Length::Fits if line.trim_ascii().is_empty() => continue,
            Length::Fits => answer(&line, &mut state, rules, seed, &mut tally, &mut complaints),
            Length::TooLong => Err(format!("line is longer than {LINE_BYTES_MAX} bytes")),
        };
        tally.lines += 1;
        let text = answer.unwrap_or_else(|error| {
            tally.errors += 1;
            sonic_rs::to_vec(&Failure { error: &error }).unwrap_or_else(|_| b"{\"error\":\"unreadable\"}".to_vec())
        });
        let written = output.write_all(&text).and_then(|()| output.write_all(b"\n")).and_then(|()| output.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(tally)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Fits,
    TooLong,
}

/// Reads the next line into `line`, without its end; of one that is too long only the beginning is kept.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<Length>> {
    line.clear();
    let limit = LINE_BYTES_MAX as u64 + 1;
    if input.by_ref().take(limit).read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') || line.len() <= LINE_BYTES_MAX {
        return Ok(Some(Length::Fits));
    }
    let mut rest = Vec::new();
    loop {
        rest.clear();
        let count = input.by_ref().take(limit).read_until(b'\n', &mut rest)?;
        if count == 0 || rest.last() == Some(&b'\n') {
            return Ok(Some(Length::TooLong));
        }
    }
}

fn answer(
    line: &[u8],
    state: &mut State,
    rules: &Rules,
    seed: u64,
    tally: &mut Tally,
    complaints: &mut impl Write,
) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "line is not UTF-8".to_owned())?;
    let depth = nesting::depth(line);
    if depth > LINE_DEPTH_MAX {
        return Err(format!("line nests {depth} deep, limit {LINE_DEPTH_MAX}"));
    }
    let text = without_non_numbers(text);
    let line: Line<'_> = sonic_rs::from_str(&text).map_err(|error| first_line(&error.to_string()))?;
    let ts = whole(line.ts).ok_or_else(|| format!("ts is {}, give ms from 0 to {WHOLE_MAX}", line.ts))?;
    if line.heartbeats.len() > LINE_HEARTBEATS_MAX {
        return Err(format!("line has {} heartbeats, limit {LINE_HEARTBEATS_MAX}", line.heartbeats.len()));
    }
    let mut reports = Reports::default();
    let mut refused = Vec::new();
    for raw in &line.heartbeats {
        let raw = raw.as_raw_str();
        if let Err(refusal) = take(raw, &mut reports) {
            *tally.refused.entry(refusal.cause()).or_insert(0) += 1;
            let name = name(raw);
            // Who does not read complaints gets the counts at the end.
            let _ = writeln!(complaints, "ts {ts}: heartbeat of {} left out: {refusal}", shown(name.as_deref(), raw));
            refused.extend(name.and_then(|name| NodeId::new(&name).ok()));
        }
    }
    for node in refused {
        reports.keep(&node, state.ring().map(Arc::as_ref));
    }
    let inputs = Inputs { reports: &reports, version_floor: RingVersion::FIRST, seed };
    let decision = decide(state, rules, &inputs, ts);
    let ring_update = decision.change.as_ref().map(|change| &change.update);
    let scale_signal = decision.scale.as_ref().map(|scale| &scale.signal);
    tally.updates += u64::from(ring_update.is_some());
    tally.signals += u64::from(scale_signal.is_some());
    sonic_rs::to_vec(&Answer { ts, ring_update, scale_signal, leader: true }).map_err(|error| error.to_string())
}

fn take(raw: &str, reports: &mut Reports) -> Result<(), Refusal> {
    reports.insert(Report::from(&heartbeats::read(raw.as_bytes(), None)?))
}

/// The node's name in a heartbeat that is refused.
fn name(raw: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        node_id: String,
    }
    // No deeper than a line may nest.
    sonic_rs::from_str::<Named>(raw).ok().map(|named| named.node_id)
}

/// Whom a refused heartbeat is from, or the beginning of it.
fn shown(name: Option<&str>, raw: &str) -> String {
    // Quoted, so that nothing in it can move the cursor of whoever reads it.
    format!("{:?}", name.unwrap_or(raw).chars().take(SHOWN_CHARS_MAX).collect::<String>())
}

/// JSON has no word for what is no number, but some writers put `NaN` or `Infinity` there: the heartbeat is wrong, not
/// its line. They become `null`, which no heartbeat's number may be.
fn without_non_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut is_escaped) = (false, false);
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        if !in_string
            && let Some(word) = ["-Infinity", "Infinity", "-NaN", "NaN"].into_iter().find(|word| rest.starts_with(word))
        {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' if in_string => is_escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        out.push(letter);
        rest = &rest[letter.len_utf8()..];
    }
    out
}

/// A whole number in the range of times, however it was written.
fn whole(value: f64) -> Option<u64> {
    #[allow(clippy::cast_precision_loss, reason = "2^53 is exact")]
    let is_whole = (0.0..=WHOLE_MAX as f64).contains(&value) && value.fract() == 0.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    is_whole.then_some(value as u64)
}

/// The parser's message without its excerpt of the input.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests;
