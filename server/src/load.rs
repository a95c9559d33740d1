//! How busy this node's machine is, from `/proc`. Where the kernel does not tell, the figure is 0.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Shares from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Of the processors' time since the reading before: the machine's, or the process's of what it may use, whichever
    /// is higher.
    pub cpu: f64,
    /// Of the memory that is not available.
    pub mem: f64,
}

/// Reads the load, each time since the last.
#[derive(Debug)]
pub struct LoadMeter {
    machine: Option<Times>,
    process: Duration,
    at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    busy: u64,
    all: u64,
}

impl LoadMeter {
    /// Begins to measure.
    pub fn start(now: Instant) -> Self {
        Self { machine: machine_times(), process: process_time(), at: now }
    }

    /// The load since the last reading.
    pub fn read(&mut self, now: Instant) -> Load {
        let (machine, process) = (machine_times(), process_time());
        let of_machine = match (self.machine, machine) {
            (Some(before), Some(after)) => {
                share(after.busy.saturating_sub(before.busy), after.all.saturating_sub(before.all))
            }
            _ => 0.0,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let elapsed = now.saturating_duration_since(self.at).saturating_mul(u32::try_from(cores).unwrap_or(1));
        let used = process.saturating_sub(self.process);
        let of_process = if elapsed.is_zero() { 0.0 } else { used.as_secs_f64() / elapsed.as_secs_f64() };
        (self.machine, self.process, self.at) = (machine, process, now);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Load { cpu: of_machine.max(of_process).clamp(0.0, 1.0), mem: mem_share(&meminfo) }
    }
}

fn machine_times() -> Option<Times> {
    times(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line: `cpu user nice system idle iowait irq softirq steal …`.
fn times(stat: &str) -> Option<Times> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let all: u64 = fields.iter().fold(0, |sum, field| sum.saturating_add(*field));
    let idle = fields.get(3)?.saturating_add(*fields.get(4)?);
    Some(Times { busy: all.saturating_sub(idle), all })
}

fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

fn mem_share(meminfo: &str) -> f64 {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(available)) => share(total.saturating_sub(available), total),
        _ => 0.0,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_become_shares() {
        let times = times("cpu  10 0 20 60 10 0 0 0 5 5\ncpu0 1").unwrap();
        assert_eq!((times.busy, times.all), (30, 100));
        assert!((mem_share("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 25 kB\n") - 0.75).abs() < 1e-9);
        for foreign in ["", "cpu", "cpu x y", "intr 1 2 3"] {
            assert!(super::times(foreign).is_none(), "{foreign}");
        }
        assert!(mem_share("MemTotal: x").abs() < 1e-9);
    }

    #[test]
    fn a_busy_process_is_seen() {
        let started = Instant::now();
        let mut meter = LoadMeter::start(started);
        // A machine that stands still meanwhile has not been busy: then some more.
        let load = loop {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            let load = meter.read(Instant::now());
            if load.cpu > 0.0 || started.elapsed() > Duration::from_secs(60) {
                break load;
            }
        };
        assert!(load.cpu > 0.0 && load.cpu <= 1.0, "{load:?}");
        assert!(load.mem > 0.0 && load.mem < 1.0, "{load:?}");
    }
}
