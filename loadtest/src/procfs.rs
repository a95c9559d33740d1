//! What the server's process uses, from `/proc`: CPU and memory.

use std::{fs, io};

use crate::clock::Nanos;

/// CPU and memory of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time of all its threads.
    pub(crate) cpu: Nanos,
    pub(crate) rss_bytes: u64,
}

/// # Errors
/// No such process, or it is not ours to look at.
pub(crate) fn usage(pid: u32) -> io::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let ticks = parse_cpu_ticks(&stat).ok_or_else(|| io::Error::other("unexpected /proc/<pid>/stat"))?;
    let cpu = ticks.saturating_mul(1_000_000_000 / ticks_per_second.max(1));
    // The scheduler's own account is finer than the ticks, where the kernel has it; it is per thread.
    let cpu = schedstat(pid).unwrap_or(cpu);
    let rss_bytes = parse_rss_bytes(&status).ok_or_else(|| io::Error::other("no VmRSS in /proc/<pid>/status"))?;
    Ok(Usage { cpu, rss_bytes })
}

/// Nanoseconds on a CPU, over all threads. Threads that have ended are not in it: servers keep theirs.
fn schedstat(pid: u32) -> Option<Nanos> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        total += text.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
    }
    (total > 0).then_some(total)
}

/// Fields 14 and 15 of `/proc/<pid>/stat`; the name in field 2 may hold anything, parentheses included.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn parse_rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_mislead() {
        let stat = "7 (a) b) 9 (c) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20 0 1";
        assert_eq!(parse_cpu_ticks(stat), Some(333));
        assert_eq!(parse_cpu_ticks("7 (a) S 1"), None);
        assert_eq!(parse_rss_bytes("Name:\tx\nVmRSS:\t  1234 kB\n"), Some(1234 * 1024));
        assert_eq!(parse_rss_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0);
    }
}
