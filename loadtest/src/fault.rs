//! Faults made on purpose: signals to a process at a moment of the run, and what a run shows of each.
//!
//! Reading and judging are pure; [`Fault::strike`] sends the signal.

use std::{fmt, io, str::FromStr, time::Duration};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    args::{Span, SpanError},
    timeline::Timeline,
};

/// What is done to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Kill,
    Stop,
    Cont,
    Term,
}

const ACTIONS: &[(&str, Action)] =
    &[("kill", Action::Kill), ("stop", Action::Stop), ("cont", Action::Cont), ("term", Action::Term)];

impl Action {
    pub(crate) fn name(self) -> &'static str {
        ACTIONS.iter().find(|(_, action)| *action == self).map_or("", |(name, _)| name)
    }

    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Stop => Signal::STOP,
            Self::Cont => Signal::CONT,
            Self::Term => Signal::TERM,
        }
    }

    /// False for what only ends an earlier fault.
    fn is_disturbing(self) -> bool {
        self != Self::Cont
    }
}

/// Why a fault could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FaultError {
    #[error("fault {0:?} is not of the form 'at=10s kill=PID', with kill, stop, cont or term")]
    Form(String),
    #[error("fault {text:?}: {cause}")]
    BadSpan { text: String, cause: SpanError },
    #[error("fault {text:?}: {pid:?} is no id of another process")]
    BadPid { text: String, pid: String },
}

/// A signal to `pid`, so long after measuring began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) action: Action,
    pid: Pid,
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let form = || FaultError::Form(text.to_owned());
        let (at, deed) = text.trim().split_once(' ').ok_or_else(form)?;
        let at: Span = at
            .strip_prefix("at=")
            .ok_or_else(form)?
            .parse()
            .map_err(|cause| FaultError::BadSpan { text: text.to_owned(), cause })?;
        let (name, pid) = deed.trim().split_once('=').ok_or_else(form)?;
        let &(_, action) = ACTIONS.iter().find(|(known, _)| *known == name).ok_or_else(form)?;
        let bad_pid = || FaultError::BadPid { text: text.to_owned(), pid: pid.to_owned() };
        // 0 and negative numbers mean groups of processes, and 1 is the machine itself.
        let number = pid.parse::<i32>().ok().filter(|number| *number > 1).ok_or_else(bad_pid)?;
        let pid = Pid::from_raw(number).filter(|pid| *pid != rustix::process::getpid()).ok_or_else(bad_pid)?;
        Ok(Self { at: at.into(), action, pid })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at={} {}={}", Span::from(self.at), self.action.name(), self.pid())
    }
}

impl Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Fault {
    pub(crate) fn pid(self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// # Errors
    /// The process does not exist, or is not ours to signal.
    pub(crate) fn check(self) -> io::Result<()> {
        Ok(test_kill_process(self.pid)?)
    }

    /// # Errors
    /// As those of [`Fault::check`].
    pub(crate) fn strike(self) -> io::Result<()> {
        Ok(kill_process(self.pid, self.action.signal())?)
    }
}

/// What a run shows of one fault: of the time from it to the next kill, stop or term, or to the end.
///
/// A `cont` only ends what an earlier fault began, so that its time is part of that fault's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Aftermath {
    pub(crate) fault: Fault,
    /// From the fault to the end of the last moment at which a message was overdue, that is, not delivered one second
    /// after it was due. Zero if none was. `None` if some still were at the next fault or the end.
    pub(crate) recovery: Option<Duration>,
    /// Messages that were confirmed, became overdue in this time and never arrived.
    pub(crate) lost: u64,
    /// Repeats which clients dropped in this time.
    pub(crate) repeats: u64,
}

/// What became of each of `faults`, in the order of time. `warm_up` lies between the timeline's start and theirs.
pub(crate) fn aftermaths(faults: &[Fault], timeline: &Timeline, warm_up: Duration) -> Vec<Aftermath> {
    let mut faults = faults.to_vec();
    faults.sort_by_key(|fault| fault.at);
    let after = |fault: &Fault| {
        let next = faults.iter().find(|next| next.at > fault.at && next.action.is_disturbing());
        let period = timeline.period(warm_up + fault.at, next.map(|next| warm_up + next.at));
        Aftermath { fault: *fault, recovery: period.overdue_until, lost: period.lost, repeats: period.repeats }
    };
    faults.iter().map(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::Window;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn faults_are_read_and_shown_again() {
        for text in ["at=10s kill=1234", "at=1500ms stop=7", "at=0s term=99999", "at=2s cont=7"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_faults_name_themselves() {
        for text in ["", "kill=7", "at=10s", "at=10s pause=7", "at=10 kill=7", "at=1s kill=0", "at=1s kill=1"] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        for pid in ["-7", "x", &std::process::id().to_string()] {
            let error = format!("at=1s kill={pid}").parse::<Fault>().unwrap_err();
            assert!(matches!(error, FaultError::BadPid { .. }), "{error}");
        }
    }

    fn timeline() -> Timeline {
        Timeline::for_window(Window { start: 0, measure: SECOND, end: 30 * SECOND }, Duration::from_secs(5))
    }

    fn faults(texts: &[&str]) -> Vec<Fault> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn recovery_ends_with_the_last_overdue_message() {
        let mut timeline = timeline();
        timeline.record_arrival(11 * SECOND, 11 * SECOND + 1);
        // Due a second after the fault, here 5.25 s later: overdue from 13 s to 17.25 s of the timeline.
        timeline.record_arrival(12 * SECOND, 17 * SECOND + SECOND / 4);
        timeline.record_repeat(15 * SECOND);
        let after = aftermaths(&faults(&["at=10s kill=7"]), &timeline, Duration::from_secs(1));
        assert_eq!(after[0].recovery, Some(Duration::from_millis(6300)));
        assert_eq!((after[0].lost, after[0].repeats), (0, 1));
    }

    #[test]
    fn a_fault_that_delays_nothing_recovers_at_once() {
        let after = aftermaths(&faults(&["at=3s kill=7"]), &timeline(), Duration::ZERO);
        assert_eq!(after[0].recovery, Some(Duration::ZERO));
    }

    #[test]
    fn a_lost_message_keeps_its_fault_from_recovering_and_is_counted_there() {
        let mut timeline = timeline();
        timeline.record_lost(14 * SECOND);
        let after = aftermaths(&faults(&["at=20s stop=7", "at=10s kill=7"]), &timeline, Duration::from_secs(1));
        assert_eq!((after[0].recovery, after[0].lost), (None, 1), "still overdue when the next fault comes");
        assert_eq!((after[1].recovery, after[1].lost), (None, 0));
    }

    #[test]
    fn a_cont_does_not_end_the_time_of_its_stop() {
        let mut timeline = timeline();
        timeline.record_arrival(12 * SECOND, 21 * SECOND);
        let after = aftermaths(&faults(&["at=10s stop=7", "at=20s cont=7"]), &timeline, Duration::ZERO);
        assert_eq!(after[0].recovery, Some(Duration::from_millis(11_100)));
        assert_eq!(after[1].recovery, Some(Duration::from_millis(1_100)));
    }
}
