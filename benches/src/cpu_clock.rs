//! Time as this thread's CPU time: on a machine that is shared, what others take from us is not in the result.

use std::time::Duration;

use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rustix::time::{ClockId, clock_gettime};

const WARM_UP: Duration = Duration::from_millis(300);
const MEASUREMENT: Duration = Duration::from_secs(1);

/// Measures the CPU time of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuClock;

/// The configuration of every bench here: by [`CpuClock`], and short, as `scripts/bench-micro.sh` repeats it in rounds.
pub fn criterion_by_cpu() -> Criterion<CpuClock> {
    Criterion::default().with_measurement(CpuClock).warm_up_time(WARM_UP).measurement_time(MEASUREMENT)
}

impl CpuClock {
    fn now() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("CPU time is never negative")
    }
}

impl Measurement for CpuClock {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Self::now()
    }

    fn end(&self, started: Duration) -> Duration {
        Self::now().saturating_sub(started)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}
