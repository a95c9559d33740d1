//! What a worker does, by scenario; and what scenarios share: opening the worker's connections, and its desk.

mod echo;
mod idle;
mod p2p;
mod roaming;
mod storm;
mod talk;

use std::{
    cell::{Cell, RefCell},
    io,
    ops::ControlFlow,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    args::Scenario,
    client::{
        Link,
        open::{Greeting, Leaving, OpenError, Opened, Opener, open_all},
    },
    clock::Nanos,
    payload::{ClientIndex, Random, RunId},
    recorder::{Recorder, Window},
    tally::{Pairs, Tally, count},
    worker::Context,
};

/// How often overdue openings are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);
/// How long the server may take to answer our Close frames at the end.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Plays the worker's part in the run.
///
/// # Errors
/// The worker itself cannot go on; what the server does is in the tally.
pub(crate) async fn run(context: Context) -> io::Result<Tally> {
    match context.config.scenario {
        Scenario::Echo => echo::run(&context).await,
        Scenario::P2p | Scenario::Capacity if !context.config.is_roaming() => p2p::run(&context).await,
        Scenario::P2p | Scenario::Capacity | Scenario::Resume | Scenario::Churn => roaming::run(&context).await,
        Scenario::Idle => idle::run(&context).await,
        Scenario::Storm => storm::run(&context).await,
    }
}

/// Which node, without its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NodeHash(u64);

/// The pairs of a worker whose clients are on these nodes, each beside its partner.
fn pairs_on(nodes: &[Option<NodeHash>]) -> Pairs {
    let whole = nodes.chunks_exact(2).filter_map(|pair| Some((pair[0]?, pair[1]?)));
    let crossing = whole.filter(|(one, other)| one != other).count();
    Pairs { total: nodes.len() as u64 / 2, crossing: crossing as u64 }
}

/// What all connections of a worker write into.
struct Desk {
    recorder: RefCell<Recorder>,
    tally: RefCell<Tally>,
    /// Until when a closed loop answers with another message; 0 before the start.
    sends_until: Cell<Nanos>,
    /// Connections being read from.
    live: Cell<u32>,
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl Desk {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            recorder: RefCell::new(Recorder::new()),
            tally: RefCell::default(),
            sends_until: Cell::new(0),
            live: Cell::new(0),
            sent: Cell::new(0),
            received: Cell::new(0),
        })
    }

    fn open_window(&self, window: Window) {
        self.recorder.borrow_mut().open(window);
        self.sends_until.set(window.end);
    }

    /// A client was welcomed by the node of this name.
    fn note_node(&self, name: &str) -> NodeHash {
        count(&mut self.tally.borrow_mut().nodes, name);
        NodeHash(xxh3_64(name.as_bytes()))
    }

    /// The run ends now if it has not already.
    fn cut_short(&self, now: Nanos) {
        self.sends_until.set(self.sends_until.get().min(now));
        self.recorder.borrow_mut().cut_short(now);
    }

    /// Lets the coordinator see how far this worker is.
    fn publish(&self, context: &Context) {
        context.progress.sent.store(self.sent.get(), Relaxed);
        context.progress.received.store(self.received.get(), Relaxed);
    }

    /// What the worker counted, with its measurements.
    fn finish(&self) -> Tally {
        let mut tally = self.tally.take();
        let measures = self.recorder.replace(Recorder::new()).finish();
        tally.measures.add(&measures);
        tally
    }
}

/// The seed of one worker's share of randomness.
fn worker_seed(context: &Context) -> u64 {
    let mut random = Random::new(context.config.seed ^ u64::from(context.index).rotate_left(32));
    random.next_u64()
}

fn opener(context: &Context, greeting: Greeting, leaving: Leaving) -> Rc<Opener> {
    let config = &context.config;
    Rc::new(Opener::new(
        config.servers.clone(),
        config.placement,
        config.sources.clone(),
        greeting,
        leaving,
        config.payload_bytes as usize,
        config.connect_timeout,
        context.driver,
        context.clock,
        worker_seed(context),
    ))
}

/// What follows the server's path when virtual client so-and-so connects.
type Query = Rc<dyn Fn(u32) -> String>;

/// True unless the server only echoes, and so knows no client ids and says no welcome.
fn is_session(context: &Context) -> bool {
    !context.config.servers.iter().any(|server| server.path == "/ws/echo")
}

/// Under the client protocol: the client's id and what it asks of the session.
fn connect_query(context: &Context) -> Query {
    if !is_session(context) {
        return Rc::new(|_| String::new());
    }
    let run = RunId::from_seed(context.config.seed);
    let acks = if context.config.sender_acks { "&acks=1" } else { "" };
    let receiver_acks = if context.config.receiver_acks { "&recvAck=1" } else { "" };
    Rc::new(move |index| format!("?clientId={}{acks}{receiver_acks}", run.client_id(ClientIndex(index))))
}

/// Opens the connections of all the worker's virtual clients. `each` takes them as they come, reading at once, so that
/// a server that pings while others are still connecting finds an answer.
async fn open_clients(
    context: &Context,
    desk: &Rc<Desk>,
    greeting: Greeting,
    query: Query,
    each: impl Fn(u32, Link, Option<NodeHash>) + 'static,
) -> io::Result<()> {
    let opener = opener(context, greeting, Leaving::Gracefully);
    let started = context.clock.now();
    let is_done = Rc::new(Cell::new(false));
    let outcome = {
        let (desk, opener) = (Rc::clone(desk), Rc::clone(&opener));
        let progress = std::sync::Arc::clone(&context.progress);
        move |index, outcome: Result<Opened, OpenError>| match outcome {
            Ok(new) => {
                desk.recorder.borrow_mut().record_handshake(new.handshake);
                desk.tally.borrow_mut().opened += 1;
                progress.opened.fetch_add(1, Relaxed);
                let node = new.welcome.as_ref().map(|welcome| desk.note_node(&welcome.node_id));
                each(index, opener.link(new), node);
                ControlFlow::Continue(())
            }
            Err(error) => {
                progress.failed.fetch_add(1, Relaxed);
                let tally = &mut *desk.tally.borrow_mut();
                count(&mut tally.open_failures, &error.to_string());
                // One that has accepted nobody by the time the first opening times out would cost every few
                // connections another timeout.
                let is_hopeless = tally.opened == 0 && error == OpenError::TimedOut;
                if is_hopeless { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        }
    };
    let (indexes, in_flight) = (context.clients(), context.config.in_flight);
    monoio::spawn({
        let (opener, is_done) = (Rc::clone(&opener), Rc::clone(&is_done));
        async move {
            open_all(&opener, indexes, in_flight, query, Rc::new(outcome)).await;
            is_done.set(true);
        }
    });
    while !is_done.get() && !context.is_stopped() {
        context.ticker.wait(SWEEP_INTERVAL).await?;
        opener.interrupt_overdue();
    }
    desk.tally.borrow_mut().opening = context.clock.now() - started;
    Ok(())
}

/// Waits until `is_done` or for `limit`, whichever is first.
async fn wait_until(context: &Context, limit: Duration, is_done: impl Fn() -> bool) -> io::Result<()> {
    let deadline = context.clock.now().saturating_add(crate::clock::nanos(limit));
    while !is_done() && context.clock.now() < deadline {
        context.ticker.wait(Duration::from_millis(1)).await?;
    }
    Ok(())
}
