//! A run spread over several processes of this program, which goes past the descriptor limit of one.
//!
//! The parent starts itself with `--child`, tells each child its part on standard input and reads what it reports from
//! standard output, one JSON value a line. It opens no connections of its own. A child that hears nothing more from its
//! parent ends its run; one that dies voids the run.

use std::{
    io::{self, BufRead, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    run::{Observer, Phase, Snapshot, run_process},
    tally::Tally,
};

/// How often a child shows how far it is.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(100);
/// How often the parent looks for what its children say, and for Ctrl-C.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// The first line a child reads.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    config: Config,
    process: u32,
}

/// Every line a child writes.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Snapshot(Snapshot),
    /// Its connections are open, or failed.
    Ready,
    Done(Box<Tally>),
    Failed(String),
}

/// Runs all processes to their end and adds up what they counted.
///
/// # Errors
/// A child cannot be started, or the run cannot. A child that dies later is a fault in the tally.
pub(crate) fn run_processes(config: &Config, observer: &mut dyn Observer) -> Result<Tally> {
    let (reports, inbox) = mpsc::channel();
    let mut children = Vec::new();
    for process in 0..config.processes {
        let orders = Orders { config: config.clone(), process };
        children.push(Fellow::start(&orders, reports.clone()).context("cannot start another process of this program")?);
    }
    drop(reports);
    let mut is_started = false;
    while children.iter().any(|child| child.outcome.is_none()) {
        match inbox.recv_timeout(WATCH_INTERVAL) {
            Ok((process, report)) => children[process as usize].note(report),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        observer.watch(sum(&children));
        if observer.is_interrupted() {
            children.iter_mut().for_each(Fellow::release);
        }
        if !is_started && children.iter().all(|child| child.is_ready || child.outcome.is_some()) {
            is_started = true;
            observer.ready()?;
            children.iter_mut().for_each(Fellow::begin);
        }
    }
    let mut tally = Tally::default();
    for child in children {
        tally.add(child.finish());
    }
    Ok(tally)
}

/// How far all of them are: the sum, in the phase of the slowest.
fn sum(children: &[Fellow]) -> Snapshot {
    let running = children.iter().filter(|child| child.outcome.is_none());
    let phase = running.map(|child| child.snapshot.phase).min().unwrap_or(Phase::Draining);
    children.iter().fold(Snapshot { phase, ..Snapshot::default() }, |sum, child| Snapshot {
        opened: sum.opened + child.snapshot.opened,
        failed: sum.failed + child.snapshot.failed,
        sent: sum.sent + child.snapshot.sent,
        received: sum.received + child.snapshot.received,
        phase,
    })
}

/// A child as its parent sees it.
struct Fellow {
    process: u32,
    child: Child,
    /// Closed to tell the child that its time is over.
    orders: Option<ChildStdin>,
    snapshot: Snapshot,
    is_ready: bool,
    outcome: Option<Tally>,
}

impl Fellow {
    fn start(orders: &Orders, reports: mpsc::Sender<(u32, Option<Report>)>) -> Result<Self> {
        let process = orders.process;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--child")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        let stdout = child.stdout.take().context("no pipe")?;
        writeln!(stdin, "{}", sonic_rs::to_string(orders)?)?;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let report = line.ok().and_then(|line| sonic_rs::from_str(&line).ok());
                if reports.send((process, report)).is_err() {
                    return;
                }
            }
            // The end of its output is the end of the child, whatever it said last.
            let _ = reports.send((process, None));
        });
        Ok(Self { process, child, orders: Some(stdin), snapshot: Snapshot::default(), is_ready: false, outcome: None })
    }

    fn note(&mut self, report: Option<Report>) {
        match report {
            Some(Report::Snapshot(snapshot)) => self.snapshot = snapshot,
            Some(Report::Ready) => self.is_ready = true,
            Some(Report::Done(tally)) => self.outcome = Some(*tally),
            Some(Report::Failed(cause)) => self.fail(&cause),
            None if self.outcome.is_none() => self.fail("died"),
            None => {}
        }
    }

    fn fail(&mut self, cause: &str) {
        let fault = format!("process {}: {cause}", self.process);
        self.outcome = Some(Tally { faults: vec![fault], ..Tally::default() });
    }

    fn begin(&mut self) {
        if let Some(orders) = &mut self.orders {
            // A child that cannot be told has died, which its output tells.
            let _ = orders.write_all(b"start\n");
        }
    }

    fn release(&mut self) {
        self.orders = None;
    }

    fn finish(mut self) -> Tally {
        self.release();
        // Its result is in; how it exits no longer matters.
        let _ = self.child.wait();
        let fault = vec![format!("process {}: died", self.process)];
        self.outcome.unwrap_or(Tally { faults: fault, ..Tally::default() })
    }
}

/// The whole life of a child.
///
/// # Errors
/// Its parent did not tell it what to do, or no longer listens.
pub(crate) fn run_child() -> Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let orders: Orders = sonic_rs::from_str(&line).context("no orders on standard input")?;
    let (starts, is_started) = mpsc::channel();
    let is_interrupted = Arc::new(AtomicBool::new(false));
    // At a terminal Ctrl-C reaches every process; the parent's word decides.
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::new(AtomicBool::new(false)))?;
    thread::spawn({
        let is_interrupted = Arc::clone(&is_interrupted);
        move || {
            for _ in io::stdin().lock().lines().map_while(Result::ok) {
                // The run may be over already.
                let _ = starts.send(());
            }
            is_interrupted.store(true, Relaxed);
        }
    });
    let mut parent = Parent { is_started, is_interrupted, said: Snapshot::default(), said_at: Instant::now() };
    let report = match run_process(&Arc::new(orders.config), orders.process, &mut parent) {
        Ok(tally) => Report::Done(Box::new(tally)),
        Err(error) => Report::Failed(error.to_string()),
    };
    say(&report)?;
    Ok(())
}

/// The parent as a child sees it.
struct Parent {
    is_started: mpsc::Receiver<()>,
    is_interrupted: Arc<AtomicBool>,
    said: Snapshot,
    said_at: Instant,
}

impl Observer for Parent {
    fn ready(&mut self) -> io::Result<()> {
        say(&Report::Ready)?;
        // A parent that is gone ends the run through `is_interrupted`.
        let _ = self.is_started.recv();
        Ok(())
    }

    fn watch(&mut self, snapshot: Snapshot) {
        if snapshot.phase != self.said.phase || self.said_at.elapsed() >= SNAPSHOT_INTERVAL {
            (self.said, self.said_at) = (snapshot, Instant::now());
            // As above.
            let _ = say(&Report::Snapshot(snapshot));
        }
    }

    fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Relaxed)
    }
}

fn say(report: &Report) -> io::Result<()> {
    let mut line = sonic_rs::to_string(report).map_err(io::Error::other)?;
    line.push('\n');
    io::stdout().lock().write_all(line.as_bytes())
}
