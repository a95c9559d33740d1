//! What the kernel knows of this process. A number it does not tell is left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::metrics::{Kind, Page};

/// Adds the process's numbers under the names that Prometheus' own libraries use.
pub(super) fn add_to(page: &mut Page, started: SystemTime) {
    if let Some(bytes) = resident_bytes() {
        page.add("process_resident_memory_bytes", "", Kind::Gauge, "Memory that the process occupies.", bytes);
    }
    page.add(
        "process_cpu_seconds_total",
        "",
        Kind::Counter,
        "Time that the process's threads have run.",
        format!("{:.3}", cpu_seconds()),
    );
    if let Some(count) = open_descriptors() {
        page.add("process_open_fds", "", Kind::Gauge, "Open file descriptors.", count);
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        page.add("process_max_fds", "", Kind::Gauge, "File descriptors that the process may open.", limit);
    }
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    page.add(
        "process_start_time_seconds",
        "",
        Kind::Gauge,
        "When the process began to serve, in seconds since 1970.",
        format!("{started:.3}"),
    );
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    (seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))).as_secs_f64()
}

fn open_descriptors() -> Option<u64> {
    // Since Linux 6.2 the directory's size is their number; counting the entries of a node with many is slow.
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}
