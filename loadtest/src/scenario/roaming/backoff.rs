//! When a client that lost its connection, or could not open one, tries again: the rules of `docs/protocol.md`.
//!
//! Pure: randomness is an argument, and there is no clock.

use std::time::Duration;

use crate::{
    client::{Ending, open::OpenError},
    clock::{Nanos, nanos},
    payload::Random,
};

const BASE: Duration = Duration::from_millis(250);
const CAP: Duration = Duration::from_secs(30);
/// Not sooner than this where the server says "too much".
const FLOOR: Duration = Duration::from_secs(5);
/// A connection this old was a good one: the next attempt counts as the first.
const STABLE: Duration = Duration::from_secs(10);
/// What a 503 means that does not say for how long.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It broke, so long after its welcome.
    Ended {
        ending: Ending,
        lived: Nanos,
    },
    Unopened(OpenError),
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It connects after this time.
    Wait(Nanos),
    /// It stays away: coming back unchanged would end the same way.
    Stop,
}

/// One client's attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The network is back: the next attempt counts as the first.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// What to do after `loss`.
    pub(super) fn after(&mut self, loss: Loss, random: &mut Random) -> Next {
        let is_stable = matches!(loss, Loss::Ended { lived, .. } if lived >= nanos(STABLE));
        if is_stable {
            self.reset();
        }
        let wait = jitter(self.attempts, random);
        self.attempts += 1;
        let asked = match loss {
            Loss::Ended { ending: Ending::ClosedByServer { code, delay }, .. } => match code.number() {
                1002 | 1003 | 1007..=1009 | 4000..=4099 => return Next::Stop,
                4200..=4299 if is_stable => return Next::Wait(0),
                1013 | 4100..=4199 => FLOOR,
                _ => delay,
            },
            Loss::Unopened(OpenError::Refused { status, retry_after }) => match status {
                400 | 403 | 404 | 405 | 426 | 431 => return Next::Stop,
                503 => retry_after.unwrap_or(RETRY_AFTER).min(RETRY_AFTER_MAX),
                _ => Duration::ZERO,
            },
            // A breach of the protocol was the server's here, and may be one node's.
            Loss::Ended { .. } | Loss::Unopened(_) => Duration::ZERO,
        };
        Next::Wait(nanos(asked) + wait)
    }
}

/// Full jitter: a random time up to 250 ms × 2^attempt, but no longer than 30 s.
pub(super) fn jitter(attempt: u32, random: &mut Random) -> Nanos {
    let most = BASE.saturating_mul(1 << attempt.min(16)).min(CAP);
    random.below(nanos(most))
}

#[cfg(test)]
mod tests {
    use websocket::CloseCode;

    use super::*;

    const MILLI: Nanos = 1_000_000;

    fn closed(code: u16, delay_ms: u64, lived: Duration) -> Loss {
        let code = CloseCode::new(code);
        Loss::Ended {
            ending: Ending::ClosedByServer { code, delay: Duration::from_millis(delay_ms) },
            lived: nanos(lived),
        }
    }

    #[test]
    fn close_codes_and_refusals_are_followed() {
        let (young, old) = (Duration::from_secs(1), Duration::from_secs(10));
        for (loss, least, most) in [
            (closed(1006, 0, young), 0, 250),
            (closed(1001, 0, old), 0, 250),
            (closed(1012, 1830, young), 1830, 2080),
            (closed(1013, 0, young), 5000, 5250),
            (closed(4100, 0, old), 5000, 5250),
            (closed(4202, 0, old), 0, 0),
            (closed(4202, 0, young), 0, 250),
            (Loss::Unopened(OpenError::TimedOut), 0, 250),
            (Loss::Unopened(OpenError::Refused { status: 503, retry_after: None }), 2000, 2250),
            (Loss::Unopened(OpenError::Refused { status: 503, retry_after: Some(Duration::from_secs(7)) }), 7000, 7250),
        ] {
            for seed in 0..50 {
                let next = Backoff::default().after(loss, &mut Random::new(seed));
                let Next::Wait(wait) = next else { panic!("{loss:?}") };
                assert!((least * MILLI..=most * MILLI).contains(&wait), "{loss:?}: {wait}");
            }
        }
        for code in [4000, 4001, 4099, 1002, 1003, 1007, 1008, 1009] {
            let next = Backoff::default().after(closed(code, 0, old), &mut Random::new(1));
            assert_eq!(next, Next::Stop, "{code}");
        }
        let refused = Loss::Unopened(OpenError::Refused { status: 403, retry_after: None });
        assert_eq!(Backoff::default().after(refused, &mut Random::new(1)), Next::Stop);
    }

    #[test]
    fn waits_grow_to_a_cap_and_shrink_again_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let mut random = Random::new(7);
        let mut longest = 0;
        for _ in 0..200 {
            let Next::Wait(wait) = backoff.after(closed(1006, 0, Duration::ZERO), &mut random) else { panic!() };
            longest = longest.max(wait);
        }
        assert!((20_000 * MILLI..=30_000 * MILLI).contains(&longest), "{longest}");
        let Next::Wait(wait) = backoff.after(closed(1006, 0, STABLE), &mut random) else { panic!() };
        assert!(wait <= 250 * MILLI, "{wait}");
    }
}
