//! The coordinator of one process: starts its workers, gives them a common start, watches the clock and the server,
//! and adds up what they hand back. Does no I/O towards the server.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use rustix::time::ClockId;

use crate::{
    clock::{Clock, Nanos},
    config::Config,
    recorder::Window,
    tally::Tally,
    targets::approximate,
    worker::{Control, Worker, window},
};

/// How often the coordinator looks at its workers.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// From the order to start until the start: every worker has read the order by then.
const START_DELAY: Nanos = 20_000_000;

/// How far a process is, for the progress bar.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) phase: Phase,
}

/// What a run is doing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) enum Phase {
    #[default]
    Opening,
    WarmingUp,
    Measuring,
    Draining,
}

/// Who follows a run from outside: the terminal, the parent process, the watcher of the server's CPU.
pub(crate) trait Observer {
    /// All connections are open, or failed. Returns once the run may start.
    ///
    /// # Errors
    /// The run cannot start.
    fn ready(&mut self) -> io::Result<()>;

    /// Called every few milliseconds.
    fn watch(&mut self, snapshot: Snapshot);

    /// True when the user wants the run to end now.
    fn is_interrupted(&self) -> bool;
}

/// Runs process number `process` of the configured ones to its end.
///
/// # Errors
/// No threads, or the run cannot start. What goes wrong in a worker is in the tally.
pub(crate) fn run_process(config: &Arc<Config>, process: u32, observer: &mut dyn Observer) -> io::Result<Tally> {
    let clock = Clock::start();
    let control = Arc::new(Control::new());
    let first = process * config.threads;
    let workers = (first..first + config.threads)
        .map(|index| Worker::spawn(config, index, clock, &control))
        .collect::<io::Result<Vec<_>>>()?;
    // A worker that ended before it was ready has failed; its fault is in its tally.
    let is_settled = |worker: &Worker| worker.progress.is_ready() || worker.is_finished();
    while !workers.iter().all(is_settled) {
        observe(&workers, Phase::Opening, &control, observer);
        thread::sleep(WATCH_INTERVAL);
    }
    observe(&workers, Phase::Opening, &control, observer);
    observer.ready()?;
    let window = window(config, clock.now() + START_DELAY);
    control.start(window.start);
    let measured = follow(&workers, window, clock, &control, observer);

    let mut tally = Tally { cpu_cores: measured.cores, measured: measured.length, ..Tally::default() };
    for worker in workers {
        tally.add(worker.join());
    }
    Ok(tally)
}

/// What the coordinator itself saw of the window.
struct Measured {
    /// CPU of this process.
    cores: f64,
    /// Less than planned if the run was interrupted.
    length: Nanos,
}

fn follow(
    workers: &[Worker],
    window: Window,
    clock: Clock,
    control: &Control,
    observer: &mut dyn Observer,
) -> Measured {
    let (mut at_measure, mut at_end) = (None, None);
    loop {
        let now = clock.now();
        let is_over = now >= window.end || control.is_stopped();
        let phase = match now {
            _ if is_over => Phase::Draining,
            _ if now >= window.measure => Phase::Measuring,
            _ => Phase::WarmingUp,
        };
        if phase >= Phase::Measuring {
            at_measure.get_or_insert_with(|| (now, process_cpu()));
        }
        if phase == Phase::Draining {
            at_end.get_or_insert_with(|| (now, process_cpu()));
        }
        observe(workers, phase, control, observer);
        if workers.iter().all(Worker::is_finished) {
            break;
        }
        thread::sleep(until_next_look(now, window));
    }
    let (Some((start, before)), Some((end, after))) = (at_measure, at_end) else {
        return Measured { cores: 0.0, length: 0 };
    };
    // On a busy machine this thread may look a little late: CPU is divided by the time between its own two looks.
    let between = approximate(end - start).max(1.0);
    Measured {
        cores: approximate(after - before) / between,
        length: end.min(window.end).saturating_sub(window.measure),
    }
}

/// The window's edges are met to the microsecond, everything else on the coarse beat.
fn until_next_look(now: Nanos, window: Window) -> Duration {
    let edge = [window.measure, window.end].into_iter().filter(|edge| *edge > now).min();
    edge.map_or(WATCH_INTERVAL, |edge| WATCH_INTERVAL.min(Duration::from_nanos(edge - now)))
}

fn observe(workers: &[Worker], phase: Phase, control: &Control, observer: &mut dyn Observer) {
    let mut snapshot = Snapshot { phase, ..Snapshot::default() };
    for Worker { progress, .. } in workers {
        snapshot.opened += u64::from(progress.opened.load(Relaxed));
        snapshot.failed += u64::from(progress.failed.load(Relaxed));
        snapshot.sent += progress.sent.load(Relaxed);
        snapshot.received += progress.received.load(Relaxed);
    }
    observer.watch(snapshot);
    if observer.is_interrupted() {
        control.stop();
    }
}

/// CPU time of all threads of this process.
fn process_cpu() -> Nanos {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
