//! Whole runs of the program on a machine that may be busy with anything else.

use std::{fmt::Debug, net::SocketAddr};

/// What the generator exits with when it fell short itself: the run says nothing of the server.
pub const VOID: i32 = 3;
/// So many runs may say nothing before one does: a few hundredths of a second in which the machine stands still void one.
pub const ATTEMPTS: usize = 60;
/// Waits that end by themselves as soon as what is waited for has come: as long as a machine may ever need.
const PATIENT: [[&str; 2]; 2] = [["--drain", "60s"], ["--connect-timeout", "60s"]];

/// Nobody ever listens there; a port that was free a moment ago may be another test's by now.
pub fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// The flags of `line`, patient where it says nothing else.
pub fn flags(line: &str) -> Vec<&str> {
    let said: Vec<&str> = line.split_whitespace().collect();
    let missing = PATIENT.into_iter().filter(|[flag, _]| !said.contains(flag)).flatten();
    said.iter().copied().chain(missing).collect()
}

/// Makes runs until one is not void, and by `is_telling` had enough to do for its result to say anything.
pub fn steady<T: Debug>(mut run: impl FnMut() -> (i32, T), is_telling: impl Fn(&T) -> bool) -> (i32, T) {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let (code, report) = run();
        if code != VOID && is_telling(&report) {
            return (code, report);
        }
        last = Some((code, report));
    }
    panic!("none of {ATTEMPTS} runs says anything; the last: {last:?}");
}
