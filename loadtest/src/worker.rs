//! One thread of the generator: its runtime, its share of the run, and how the coordinator steers it.
//!
//! Workers share nothing but the few atomics of [`Control`] and [`Progress`], which they look at every few
//! milliseconds: the runtime cannot be woken from another thread.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::thread::CpuSet;

use crate::{
    args::DriverChoice,
    clock::{Clock, Nanos, nanos},
    config::Config,
    recorder::Window,
    scenario,
    tally::Tally,
    ticker::Ticker,
};

const SUBMISSION_ENTRIES: u32 = 4096;
const COMPLETION_ENTRIES: u32 = 32 * 1024;
/// How often a worker looks at its orders.
const ORDERS_INTERVAL: Duration = Duration::from_millis(2);

/// What carries a worker's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Uring,
    /// Where the kernel refuses `io_uring`.
    Epoll,
}

/// The coordinator's orders to all workers of a process.
#[derive(Debug)]
pub(crate) struct Control {
    // 0: not yet.
    start_at: AtomicU64,
    is_stopped: AtomicBool,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self { start_at: AtomicU64::new(0), is_stopped: AtomicBool::new(false) }
    }

    /// All workers start sending at `at`.
    pub(crate) fn start(&self, at: Nanos) {
        self.start_at.store(at.max(1), Relaxed);
    }

    /// The run ends now; what was measured is reported.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Relaxed)
    }

    fn start_at(&self) -> Option<Nanos> {
        Some(self.start_at.load(Relaxed)).filter(|at| *at > 0)
    }
}

/// How far one worker is; written by it alone.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) opened: AtomicU32,
    pub(crate) failed: AtomicU32,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    is_ready: AtomicBool,
}

impl Progress {
    /// True once the worker has opened its connections, or tried to.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Relaxed)
    }
}

/// What a scenario needs to know about the worker it runs on.
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    /// This worker's place among those of all processes.
    pub(crate) index: u32,
    pub(crate) clock: Clock,
    pub(crate) driver: Driver,
    pub(crate) ticker: Ticker,
    control: Arc<Control>,
    pub(crate) progress: Arc<Progress>,
}

impl Context {
    /// The virtual clients that are this worker's: an even share, in pairs where clients talk to each other.
    pub(crate) fn clients(&self) -> Range<u32> {
        let unit = if self.config.scenario.has_pairs() { 2 } else { 1 };
        let units = u64::from(self.config.connections / unit);
        let workers = u64::from(self.config.workers());
        let bound = |worker: u32| u32::try_from(units * u64::from(worker) / workers).expect("no more than all") * unit;
        bound(self.index)..bound(self.index + 1)
    }

    /// Reports the connections opened and waits for the order to start. `None` if the run was stopped first.
    pub(crate) async fn ready(&self) -> io::Result<Option<Window>> {
        self.progress.is_ready.store(true, Relaxed);
        loop {
            if self.is_stopped() {
                return Ok(None);
            }
            if let Some(start) = self.control.start_at() {
                return Ok(Some(window(&self.config, start)));
            }
            self.ticker.wait(ORDERS_INTERVAL).await?;
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.control.is_stopped()
    }
}

/// The window of a run that starts at `start`.
pub(crate) fn window(config: &Config, start: Nanos) -> Window {
    let measure = start.saturating_add(nanos(config.warm_up));
    Window { start, measure, end: measure.saturating_add(nanos(config.duration)) }
}

/// A worker under way.
pub(crate) struct Worker {
    pub(crate) progress: Arc<Progress>,
    thread: thread::JoinHandle<io::Result<Tally>>,
}

impl Worker {
    /// Starts worker `index` of all, pinned if CPUs were given.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn spawn(config: &Arc<Config>, index: u32, clock: Clock, control: &Arc<Control>) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        let (config, control, mine) = (Arc::clone(config), Arc::clone(control), Arc::clone(&progress));
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || run(config, index, clock, control, mine))?;
        Ok(Self { progress, thread })
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the worker's result. A worker that failed is a fault of the generator.
    pub(crate) fn join(self) -> Tally {
        let fault = |text: String| Tally { faults: vec![text], ..Tally::default() };
        match self.thread.join() {
            Ok(Ok(tally)) => tally,
            Ok(Err(error)) => fault(format!("a worker failed: {error}")),
            Err(_) => fault("a worker panicked".to_owned()),
        }
    }
}

fn run(
    config: Arc<Config>,
    index: u32,
    clock: Clock,
    control: Arc<Control>,
    progress: Arc<Progress>,
) -> io::Result<Tally> {
    if !config.cpus.is_empty() {
        pin(config.cpus[index as usize % config.cpus.len()])?;
    }
    let choice = config.driver;
    let work = |driver| async move {
        let ticker = Ticker::new()?;
        let context = Context { config, index, clock, driver, ticker, control, progress };
        let mut tally = scenario::run(context).await?;
        tally.workers_on_epoll = u32::from(driver == Driver::Epoll);
        Ok(tally)
    };
    // A runtime is never dropped: operations may be in flight in it. The process ends soon after.
    if choice == DriverChoice::Auto
        && let Ok(runtime) = build_uring()
    {
        return Box::leak(Box::new(runtime)).block_on(work(Driver::Uring));
    }
    let runtime = RuntimeBuilder::<LegacyDriver>::new().build()?;
    Box::leak(Box::new(runtime)).block_on(work(Driver::Epoll))
}

fn build_uring() -> io::Result<monoio::Runtime<IoUringDriver>> {
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun().setup_cqsize(COMPLETION_ENTRIES);
    RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).with_entries(SUBMISSION_ENTRIES).build()
}

fn pin(cpu: u32) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    let cpu = cpu as usize;
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::other(format!("--cpus {cpu} is out of range")));
    }
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus)
        .map_err(|error| io::Error::other(format!("cannot pin to --cpus {cpu}: {error}")))
}
