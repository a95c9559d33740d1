//! Who looks at a run from outside: the progress bar, the watch on the server's process, and Ctrl-C.

use std::{
    io::{self, IsTerminal as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    config::Config,
    fault::Fault,
    procfs::{self, Usage},
    report::ServerUsage,
    report::text::grouped,
    run::{Observer, Phase, Snapshot},
};

const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// The observer of a whole run.
pub(crate) struct Onlooker {
    bar: ProgressBar,
    connections: u32,
    redrawn_at: Instant,
    phase: Phase,
    measuring_since: Option<Instant>,
    duration: Duration,
    interrupted: Arc<AtomicBool>,
    server: Option<ServerWatch>,
    /// Those still to be made, the next one last.
    faults: Vec<Fault>,
    made: MadeFaults,
}

/// The faults that were made during a run, and why others could not be.
#[derive(Debug, Default)]
pub(crate) struct MadeFaults {
    pub(crate) made: Vec<Fault>,
    pub(crate) failures: Vec<String>,
}

struct ServerWatch {
    pid: u32,
    before: Usage,
    at_open: Option<Usage>,
    at_measure: Option<(Instant, Usage)>,
    at_end: Option<(Instant, Usage)>,
}

impl Onlooker {
    /// # Errors
    /// `--server-pid` names no process; signals cannot be caught.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        // A second Ctrl-C ends the process as if it were not caught at all.
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&interrupted))?;
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let server = match config.server_pid {
            Some(pid) => Some(ServerWatch {
                pid,
                before: procfs::usage(pid).with_context(|| format!("--server-pid {pid}"))?,
                at_open: None,
                at_measure: None,
                at_end: None,
            }),
            None => None,
        };
        let mut faults = config.faults.clone();
        faults.sort_by_key(|fault| std::cmp::Reverse(fault.at));
        let is_shown = !config.quiet && io::stderr().is_terminal();
        let bar = if is_shown { ProgressBar::new(u64::from(config.connections)) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{prefix:>10} [{bar:40}] {msg}").expect("a constant template");
        bar.set_style(style.progress_chars("=> "));
        Ok(Self {
            bar,
            connections: config.connections,
            redrawn_at: Instant::now(),
            phase: Phase::Opening,
            measuring_since: None,
            duration: config.duration,
            interrupted,
            server,
            faults,
            made: MadeFaults::default(),
        })
    }

    /// What the server used, as far as it could be watched, and what was done to it.
    pub(crate) fn finish(mut self) -> (Option<ServerUsage>, MadeFaults) {
        self.bar.finish_and_clear();
        if !self.is_interrupted() {
            let unmade = self.faults.iter().map(|fault| format!("fault '{fault}' was not made before the end"));
            self.made.failures.extend(unmade);
        }
        (self.server.take().and_then(ServerWatch::usage), self.made)
    }

    /// Makes the faults whose time has come.
    fn strike(&mut self) {
        let Some(since) = self.measuring_since.filter(|_| self.phase == Phase::Measuring) else {
            return;
        };
        while let Some(fault) = self.faults.pop_if(|fault| fault.at <= since.elapsed()) {
            match fault.strike() {
                Ok(()) => self.made.made.push(fault),
                Err(error) => self.made.failures.push(format!("fault '{fault}' could not be made: {error}")),
            }
        }
    }

    fn redraw(&mut self, snapshot: Snapshot) {
        if self.bar.is_hidden() || self.redrawn_at.elapsed() < REDRAW_INTERVAL {
            return;
        }
        self.redrawn_at = Instant::now();
        let Snapshot { opened, failed, sent, received, phase } = snapshot;
        let prefix = match phase {
            Phase::Opening => "connecting",
            Phase::WarmingUp => "warm-up",
            Phase::Measuring => "measuring",
            Phase::Draining => "draining",
        };
        self.bar.set_prefix(prefix);
        if phase == Phase::Opening {
            self.bar.set_length(u64::from(self.connections));
            self.bar.set_position(opened + failed);
            self.bar.set_message(format!("{} open, {} failed", grouped(opened), grouped(failed)));
            return;
        }
        let elapsed = self.measuring_since.map_or(Duration::ZERO, |since| since.elapsed());
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.bar.set_length(millis(self.duration));
        self.bar.set_position(millis(elapsed).min(millis(self.duration)));
        let waiting = sent.saturating_sub(received);
        self.bar.set_message(format!(
            "{} sent, {} received, {} under way",
            grouped(sent),
            grouped(received),
            grouped(waiting)
        ));
    }
}

impl ServerWatch {
    fn usage(self) -> Option<ServerUsage> {
        let at_open = self.at_open?;
        let ((start, at_measure), (end, at_end)) = (self.at_measure?, self.at_end?);
        let cpu = Duration::from_nanos(at_end.cpu.saturating_sub(at_measure.cpu));
        // As with our own CPU: divided by the time between the two looks, which may have come late.
        let between = end.duration_since(start).as_secs_f64().max(f64::MIN_POSITIVE);
        Some(ServerUsage {
            pid: self.pid,
            cpu_cores: cpu.as_secs_f64() / between,
            rss_before_bytes: self.before.rss_bytes,
            rss_open_bytes: at_open.rss_bytes,
            rss_end_bytes: at_end.rss_bytes,
        })
    }
}

impl Observer for Onlooker {
    fn ready(&mut self) -> io::Result<()> {
        if let Some(server) = &mut self.server {
            server.at_open = Some(procfs::usage(server.pid)?);
        }
        Ok(())
    }

    fn watch(&mut self, snapshot: Snapshot) {
        if snapshot.phase != self.phase {
            self.phase = snapshot.phase;
            if self.phase >= Phase::Measuring {
                self.measuring_since.get_or_insert_with(Instant::now);
            }
            if let Some(server) = &mut self.server {
                // A server that has died in between is reported by its connections.
                let usage = procfs::usage(server.pid).ok().map(|usage| (Instant::now(), usage));
                if self.phase >= Phase::Measuring && server.at_measure.is_none() {
                    server.at_measure = usage;
                }
                if self.phase == Phase::Draining {
                    server.at_end = usage;
                }
            }
        }
        self.strike();
        self.redraw(snapshot);
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Relaxed)
    }
}
