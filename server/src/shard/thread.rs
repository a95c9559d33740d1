//! A shard's thread: its runtime, and the loop that turns readiness, mail and time into work for the state.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use monoio::RuntimeBuilder;
use ring::SharedRing;
use rustix::event::epoll::Event;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::bus::Address;
use crate::cluster::Links;
use crate::metrics::Counters;
use crate::routing::{Dispatcher, Now, Rules};
use crate::store::{AnyStore, LocalStore, RemoteStore};

use super::clock::{Clock, TICK};
use super::connection::{self, Purpose};
use super::handover::{Handover, Mail, Order};
use super::listener::{Accept, accept};
use super::mailbox;
use super::opening::Refusal;
use super::poller::{EVENTS_MAX, Poller, Ready, ready};
use super::slab::Key;
use super::socket::Driver;
use super::state::{Settings, Shared, State};

/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 256;
/// How far ahead of the clock a claim reserves offsets.
const CEILING_MS: u64 = 60_000;
/// How long a shard that ends waits for the store and the bus.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// Pieces of mail acted on in one turn.
const MAIL_PER_TURN: usize = 1024;
/// Connections past the limit that are still told so; the next are closed without a word.
const SURPLUS_CONNECTIONS_MAX: usize = 1024;
/// Submission queue of a shard's ring, in entries.
const SUBMISSION_ENTRIES: u32 = 4096;
/// Completion queue of a shard's ring, in entries.
const COMPLETION_ENTRIES: u32 = 32_768;

/// What a shard's thread is given.
pub struct Parts {
    /// Its number.
    pub index: usize,
    /// How many there are.
    pub shards: NonZeroUsize,
    /// How it behaves.
    pub settings: Arc<Settings>,
    /// What all shards count together.
    pub shared: Arc<Shared>,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// The ring of nodes.
    pub ring: SharedRing,
    /// The ways to the bus and the store; none on a node that runs alone.
    pub links: Option<Links>,
    /// Where it accepts.
    pub listener: TcpListener,
    /// Its own mail.
    pub mail: mailbox::Receiver<Mail>,
    /// Everybody's mailboxes, its own included.
    pub mailboxes: Vec<mailbox::Sender<Mail>>,
    /// How it reads and writes.
    pub driver: Driver,
    /// Told once the shard serves.
    pub on_start: Box<dyn FnOnce() + Send>,
}

/// A shard on its thread.
pub(super) struct Shard {
    state: RefCell<State>,
    poller: Poller,
    driver: Driver,
    is_over: Cell<bool>,
}

/// Runs a shard until it is told to stop and its last connection is closed.
///
/// # Errors
/// When the runtime, the poller or the timer cannot be had.
pub fn run(parts: Parts) -> io::Result<()> {
    match parts.driver {
        Driver::Ring => RuntimeBuilder::<monoio::IoUringDriver>::new()
            .uring_builder(ring_builder())
            .with_entries(SUBMISSION_ENTRIES)
            .build()?
            .block_on(turns(parts)),
        Driver::Direct => RuntimeBuilder::<monoio::LegacyDriver>::new().build()?.block_on(turns(parts)),
    }
}

fn ring_builder() -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(COMPLETION_ENTRIES);
    builder
}

/// Makes the rings that so many shards would need, on a thread of its own, and drops them again.
///
/// # Errors
/// The kernel's refusal.
pub fn try_rings(shards: NonZeroUsize) -> io::Result<()> {
    let attempt = std::thread::Builder::new().name("try-rings".to_owned()).spawn(move || {
        let rings: io::Result<Vec<io_uring::IoUring>> =
            (0..shards.get()).map(|_| ring_builder().build(SUBMISSION_ENTRIES)).collect();
        rings.map(drop)
    })?;
    attempt.join().unwrap_or_else(|_| Err(io::Error::other("the attempt has panicked")))
}

async fn turns(mut parts: Parts) -> io::Result<()> {
    let on_start = std::mem::replace(&mut parts.on_start, Box::new(|| ()));
    let Parts { listener, mail, driver, .. } = &parts;
    let poller = Poller::new()?;
    let timer = tick_timer()?;
    poller.add_timer(&timer)?;
    poller.add_mailbox(mail.event())?;
    poller.add_listener(listener)?;
    let waiter = poller.waiter()?;
    let shard =
        Rc::new(Shard { state: RefCell::new(new_state(&parts)), poller, driver: *driver, is_over: Cell::new(false) });
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
    let mut is_listening = true;
    on_start();
    while !shard.is_over.get() {
        waiter.readable(false).await?;
        shard.poller.take(&mut events);
        shard.with(|state| {
            state.refresh_clock();
            state.counters.turns.add(1);
        });
        let mut ticked = false;
        for event in &events {
            match ready(event) {
                Ready::Socket { key, is_readable, is_writable, is_hung_up } => {
                    shard.with(|state| state.on_ready(key, is_readable, is_hung_up, is_writable));
                }
                Ready::Mailbox => shard.take_mail(mail),
                Ready::Listener => {
                    if !shard.accept(listener) {
                        // Level-triggered, it would be told again at once: the next tick tries again.
                        shard.poller.remove_listener(listener);
                        is_listening = false;
                    }
                }
                Ready::Timer => ticked = true,
            }
        }
        if ticked {
            let _ = rustix::io::read(&timer, &mut [0; 8]);
            shard.tick(mail.len());
            if !is_listening {
                is_listening = shard.poller.add_listener(listener).is_ok();
            }
        }
        shard.with(|state| {
            state.post_waiting();
            state.send_on();
            for key in std::mem::take(&mut state.paused) {
                state.wake(key);
            }
        });
        shard.settle();
    }
    Ok(())
}

fn tick_timer() -> io::Result<OwnedFd> {
    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
    rustix::time::timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: tick, it_value: tick },
    )?;
    Ok(timer)
}

fn new_state(parts: &Parts) -> State {
    let clock = Clock::start();
    State {
        index: parts.index,
        shards: parts.shards,
        settings: Arc::clone(&parts.settings),
        shared: Arc::clone(&parts.shared),
        counters: Arc::clone(&parts.counters),
        clock,
        pool: super::buffers::Pool::default(),
        connections: super::slab::Slab::default(),
        dispatch: new_dispatcher(parts, clock.now()),
        links: parts.links.clone(),
        end_by: None,
        moves: super::relocate::Moves::default(),
        publishers: crate::publish::PublishAnswers::default(),
        drain: None,
        is_stopping: false,
        mailboxes: parts.mailboxes.clone(),
        outgoing: parts.mailboxes.iter().map(|_| std::collections::VecDeque::new()).collect(),
        to_start: Vec::new(),
        paused: Vec::new(),
        accept_allowance: f64::from(parts.settings.accepts_per_second),
        deadlines: super::deadlines::Deadlines::default(),
        ticks: 0,
        names: 0,
        sender_id: String::new(),
    }
}

fn new_dispatcher(parts: &Parts, now: Now) -> Dispatcher {
    let settings = &parts.settings;
    let shard = u16::try_from(parts.index).unwrap_or(u16::MAX);
    let me = Address {
        node: settings.node_id.clone(),
        incarnation: parts.links.as_ref().map_or(0, |links| links.incarnation),
        shard,
    };
    let rules = Rules {
        session: settings.session,
        message_ttl_ms: settings.message_ttl_ms,
        claim_wait_ms: millis(settings.claim_wait),
        takeover_wait_ms: millis(settings.takeover_wait),
        ceiling_ms: CEILING_MS,
        lanes: settings.lanes,
    };
    let store = match parts.links {
        None => AnyStore::Local(LocalStore::new(settings.store)),
        Some(_) => AnyStore::Remote(RemoteStore::default()),
    };
    Dispatcher::new(me, rules, store, parts.ring.reader(), Arc::clone(&parts.counters), now)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Shard {
    /// Works on the state. Never held across an await.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.state.borrow_mut())
    }

    pub(super) fn driver(&self) -> Driver {
        self.driver
    }

    /// Starts the tasks that the last piece of work asked for.
    pub(super) fn settle(self: &Rc<Self>) {
        loop {
            let next = self.with(|state| {
                let key = state.to_start.pop()?;
                Some((key, state.take_fd(key)))
            });
            match next {
                None => return,
                Some((key, Some(fd))) => drop(monoio::spawn(connection::serve(Rc::clone(self), key, fd))),
                Some((_, None)) => {}
            }
        }
    }

    /// Accepts what waits; false when the process has no descriptor left.
    fn accept(self: &Rc<Self>, listener: &TcpListener) -> bool {
        for _ in 0..ACCEPTS_PER_TURN {
            match accept(listener) {
                Accept::Socket(fd) => self.add(fd),
                Accept::Empty => return true,
                Accept::NoDescriptors => {
                    self.with(|state| state.counters.refused_descriptors.add(1));
                    return false;
                }
            }
        }
        true
    }

    fn add(self: &Rc<Self>, fd: OwnedFd) {
        let key = self.with(|state| {
            state.counters.accepted.add(1);
            let open = state.shared.connections.load(Ordering::Relaxed);
            let limit = state.settings.connections_max;
            if open >= limit.saturating_add(SURPLUS_CONNECTIONS_MAX) {
                state.counters.refused_limit.add(1);
                return None;
            }
            let refusal = if open >= limit {
                Some(Refusal::ConnectionLimit)
            } else if state.accept_allowance < 1.0 {
                Some(Refusal::AcceptRate)
            } else {
                state.accept_allowance -= 1.0;
                None
            };
            let key = state.add_connection(Purpose::Opening, state.settings.message_bytes_max);
            if let Some(active) = state.connections.get_mut(key).and_then(|connection| connection.active.as_mut()) {
                active.refusal = refusal;
            }
            Some(key)
        });
        let Some(key) = key else { return };
        self.start(key, fd);
    }

    /// Registers a socket and starts its task.
    fn start(self: &Rc<Self>, key: Key, fd: OwnedFd) {
        if self.poller.add_socket(fd.as_fd(), key).is_err() {
            self.with(|state| {
                state.counters.refused_descriptors.add(1);
                state.forget(key);
            });
            return;
        }
        monoio::spawn(connection::serve(Rc::clone(self), key, fd));
    }

    /// Sends a connection to its client's home shard.
    pub(super) fn hand_over(self: &Rc<Self>, key: Key, fd: OwnedFd) {
        let _ = self.poller.remove_socket(fd.as_fd());
        self.with(|state| {
            let handover = state
                .connections
                .get_mut(key)
                .and_then(|connection| connection.active.as_mut())
                .and_then(|active| active.handover.take());
            if let Some(mut handover) = handover {
                handover.fd = Some(fd);
                let home = state.home_of(handover.hash);
                state.post(home, Mail::Handover(handover));
            }
            // The socket goes on living: only the record here ends.
            state.forget(key);
        });
    }

    fn take_mail(self: &Rc<Self>, mail: &mailbox::Receiver<Mail>) {
        mail.begin();
        for _ in 0..MAIL_PER_TURN {
            match mail.next() {
                None => return,
                Some(Mail::Handover(handover)) => self.take_over(*handover),
                Some(Mail::Message(posted)) => self.with(|state| {
                    state.on_message(&posted);
                    state.settle_dispatch();
                }),
                Some(Mail::Answer(answer)) => {
                    self.with(|state| state.on_answer(answer.key, &answer.escaped_msg_id, answer.outcome));
                }
                Some(Mail::AskedTwice(key)) => self.with(|state| state.count_off(state.index, key)),
                Some(Mail::Order(order)) => self.obey(order),
                Some(Mail::Record(arrived)) => self.with(|state| {
                    state.dispatch.on_record(*arrived);
                    state.settle_dispatch();
                }),
                Some(Mail::ReadAgain) => self.with(|state| {
                    state.dispatch.look_everywhere();
                    state.settle_dispatch();
                }),
                Some(Mail::Produced(ticket)) => self.with(|state| {
                    state.dispatch.on_produced(ticket);
                    state.settle_dispatch();
                }),
                Some(Mail::Stored(ticket, answer)) => self.with(|state| {
                    state.dispatch.on_store(ticket, *answer);
                    state.settle_dispatch();
                }),
            }
        }
        mail.wake_again();
    }

    fn take_over(self: &Rc<Self>, mut handover: Handover) {
        let Some(fd) = handover.fd.take() else { return };
        let key = self.with(|state| {
            let key = state.add_connection(Purpose::Opening, state.settings.message_bytes_max);
            let active = state.connections.get_mut(key).and_then(|connection| connection.active.take());
            if let Some(mut active) = active {
                if let Some(connection) = state.connections.get_mut(key) {
                    connection.is_in_hand = true;
                }
                // The shard that sent it may have heard of the drain later than this one.
                match state.check_admission(&active) {
                    Ok(()) => state.log_in(key, &mut active, handover),
                    Err(refusal) => state.refuse(&mut active, refusal),
                }
                if let Some(connection) = state.connections.get_mut(key) {
                    connection.active = Some(active);
                    connection.is_in_hand = false;
                }
                state.settle_dispatch();
            }
            key
        });
        self.start(key, fd);
    }

    fn obey(&self, order: Order) {
        self.with(|state| match order {
            Order::Drain { window_ms } => state.begin_drain(window_ms),
            Order::Stop => state.stop(),
            Order::Look { client_id, reply } => {
                let hash = state.hash_of(client_id.as_str());
                let _ = reply.try_send(state.look(&client_id, hash));
            }
            Order::Publish { mut posted, reply, index } => {
                let message = super::recent::identity(posted.sender.rotate_left(1) ^ posted.hash, &posted.msg_id);
                let now_ms = state.clock.wall_ms;
                if let Some(number) = state.publishers.expect(reply.clone(), index, message, now_ms) {
                    posted.origin = super::origin::Origin::publisher(number);
                    posted.wants_ack = true;
                    posted.ts_ms = state.clock.wall_ms;
                    state.counters.messages_in.add(1);
                    state.on_message(&posted);
                    state.settle_dispatch();
                } else {
                    state.counters.dropped_overloaded.add(1);
                    let outcome = Err((crate::protocol::ErrorCode::Overloaded, "too many publishers wait"));
                    let _ = reply.try_send(crate::publish::Published { index, outcome });
                }
            }
        });
    }

    fn tick(&self, mail_len: usize) {
        self.with(|state| {
            state.ticks += 1;
            state.counters.mailbox_len.set(mail_len as u64);
            let per_tick = f64::from(state.settings.accepts_per_second) * TICK.as_secs_f64();
            let burst = f64::from(state.settings.accepts_per_second).max(1.0);
            state.accept_allowance = (state.accept_allowance + per_tick).min(burst);
            state.drain_on();
            state.relocate();
            state.sweep();
            if state.ticks.is_multiple_of(POOL_TRIM_TICKS) {
                state.pool.trim();
            }
            if state.ticks.is_multiple_of(POOL_TRIM_TICKS) {
                state.look_around();
            }
            if state.is_stopping && state.connections.is_empty() {
                let now = state.clock.tick;
                let end_by = *state.end_by.get_or_insert(now);
                // What is not acknowledged is still on its way to the store.
                self.is_over.set(state.dispatch.is_settled() || now.since(end_by) >= SETTLE_TIME);
            }
        });
    }
}

/// How often the pool of buffers is trimmed, in ticks.
const POOL_TRIM_TICKS: u64 = 20;
