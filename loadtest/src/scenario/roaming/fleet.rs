//! The virtual clients of a worker with their connections: opening, losing, leaving and moving them, and entering into
//! the ledger what arrives.
//!
//! What happens when is decided by one heap of alarms, looked at every few milliseconds: no client has a timer.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::Write as _,
    net::{Shutdown, TcpStream as StdStream},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use socket2::SockRef;

use super::{
    backoff::{Backoff, Loss, Next, jitter},
    inbox::{Arrival, Inbox},
    outgoing::{KEPT_MAX, Outgoing, Setback, Writing},
};
use crate::{
    client::{
        Answering, Conversation, Ending, Message, Outbox, Sender, Waiting,
        open::{Greeting, Leaving, OpenError, Opened, Opener},
    },
    clock::{Clock, Nanos, nanos},
    config::{Server, Unrest, parse_url},
    envelope::{self, Advice, Incoming, Unescaped, Welcome},
    journeys::Journeys,
    ledger::{Acks, Insert, Promise, Stream},
    payload::{ClientIndex, MessageTemplate, Random, RunId, Stamp, sequence_of},
    recorder::Window,
    scenario::{
        Desk, GOODBYE_MAX, NodeHash, opener, pairs_on,
        talk::{Departure, Departures},
        worker_seed,
    },
    tally::{Tally, count},
    timeline::Timeline,
    worker::{Context, Progress},
};

/// A connection that does not take its messages queues this much; the rest waits with the client.
const OUTBOX_BYTES_MAX: usize = 1024 * 1024;
/// How often a client looks whether anyone is there and anything has waited too long.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// From our ping to any sign of life.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long a silent client acknowledges nothing, and then everything: at random between these. The server waits one
/// second and a half for an ack.
const SILENCE_MIN: Duration = Duration::from_secs(2);
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Servers that others have advised to move to.
const ADVISED_SERVERS_MAX: usize = 64;

/// What a client is to do at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// Connect to its server.
    Open,
    /// Leave this connection, as the scenario has it.
    Leave(u32),
    /// Move from this connection to a server, as advised.
    Move(u32, usize),
    /// Write what was held back.
    Write,
    /// Begin or end to be silent.
    Hush,
    Look,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Opening,
    Running,
    /// Nothing new is sent, and nobody leaves.
    Settling,
    Over,
}

/// How a client ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// With a Close frame.
    Goodbye,
    /// Without a word, and with a reset: what was on its way is gone.
    Cut,
}

/// The connection on which a client was welcomed last.
struct Live {
    number: u32,
    sender: Rc<Sender>,
    handle: Rc<StdStream>,
    server: usize,
    welcomed_at: Nanos,
    heard_at: Nanos,
    pinged_at: Option<Nanos>,
    ping_interval: Nanos,
}

/// One virtual client, with or without a connection.
#[derive(Default)]
struct Client {
    /// The server it connects to next.
    server: usize,
    inbox: Inbox,
    outgoing: Outgoing,
    backoff: Backoff,
    live: Option<Live>,
    /// The number of the connection being opened. Beside `live` only while the client moves: make before break.
    opening: Option<u32>,
    connections: u32,
    /// When it began to be without a connection.
    alone_since: Option<Nanos>,
    /// When it began to miss messages, and the newest that it has to receive for that to end.
    behind_since: Option<Nanos>,
    catches_up_at: Option<u64>,
    partings: u32,
    first_tried_at: Option<Nanos>,
    was_welcomed: bool,
    is_stopped: bool,
    is_silent: bool,
    last_failure: Option<OpenError>,
    unescaped: Unescaped,
    /// Messages since the last read ended, repeats apart.
    arrived: u64,
    ack_text: Vec<u8>,
}

/// All virtual clients of a worker.
pub(super) struct Fleet {
    desk: Rc<Desk>,
    clock: Clock,
    opener: Rc<Opener>,
    progress: Arc<Progress>,
    run: RunId,
    first: u32,
    /// Those given, then those that others have advised.
    servers: RefCell<Vec<Rc<Server>>>,
    given: usize,
    unrest: Unrest,
    in_flight_max: u32,
    is_silent: Box<dyn Fn(u32) -> bool>,
    template: RefCell<MessageTemplate>,
    clients: Vec<RefCell<Client>>,
    /// By sender; each has one recipient.
    streams: RefCell<Vec<Stream>>,
    /// When the messages left that have not arrived, by sender.
    departures: RefCell<Vec<Departures>>,
    nodes: RefCell<Vec<Option<NodeHash>>>,
    journeys: RefCell<Journeys>,
    alarms: RefCell<BinaryHeap<Reverse<(Nanos, usize, Alarm)>>>,
    /// Connections to be opened as soon as fewer are under way.
    to_open: RefCell<VecDeque<(usize, u32, usize)>>,
    opening: Cell<u32>,
    /// Connections we said goodbye on, and when we stop waiting for the answer.
    parting: RefCell<VecDeque<(Nanos, Rc<StdStream>)>>,
    phase: Cell<Phase>,
    random: RefCell<Random>,
}

impl Fleet {
    pub(super) fn new(context: &Context, desk: &Rc<Desk>) -> Rc<Self> {
        let config = &context.config;
        let run = RunId::from_seed(config.seed);
        let indexes = context.clients();
        let servers: Vec<_> = config.servers.iter().cloned().map(Rc::new).collect();
        let (given, share) = (servers.len(), config.silent_share);
        let client = |index| Client { server: config.placement.server_of(index, given), ..Client::default() };
        Rc::new(Self {
            desk: Rc::clone(desk),
            clock: context.clock,
            opener: opener(context, Greeting::Welcome, Leaving::Gracefully),
            progress: Arc::clone(&context.progress),
            run,
            first: indexes.start,
            servers: RefCell::new(servers),
            given,
            unrest: config.unrest,
            in_flight_max: config.in_flight,
            // Spread evenly: wherever the running sum of shares passes a whole number.
            is_silent: Box::new(move |index| {
                (f64::from(index + 1) * share).floor() > (f64::from(index) * share).floor()
            }),
            template: RefCell::new(MessageTemplate::new(config.payload_bytes as usize, run, config.seed)),
            clients: indexes.clone().map(|index| RefCell::new(client(index))).collect(),
            streams: RefCell::new(indexes.clone().map(|_| Stream::default()).collect()),
            departures: RefCell::new(indexes.clone().map(|_| Departures::default()).collect()),
            nodes: RefCell::new(indexes.map(|_| None).collect()),
            journeys: RefCell::default(),
            alarms: RefCell::default(),
            to_open: RefCell::default(),
            opening: Cell::new(0),
            parting: RefCell::default(),
            phase: Cell::new(Phase::Opening),
            random: RefCell::new(Random::new(!worker_seed(context))),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Every client sets out to its first server.
    pub(super) fn open_all(self: &Rc<Self>) {
        let now = self.clock.now();
        for client in 0..self.len() {
            let server = self.clients[client].borrow().server;
            self.open(client, server);
            let first_look = self.random_between(Duration::ZERO, LOOK_INTERVAL);
            self.set_alarm(client, now + first_look, Alarm::Look);
        }
    }

    /// True when every client was welcomed, has given up, or has tried for as long as one attempt may take.
    pub(super) fn is_open(&self, now: Nanos) -> bool {
        let patience = nanos(self.opener.timeout);
        let is_overdue = |client: &Client| client.first_tried_at.is_some_and(|at| now.saturating_sub(at) > patience);
        let is_settled = |client: &Client| client.was_welcomed || client.is_stopped || is_overdue(client);
        // Where the first have waited in vain, the others would as well.
        let is_hopeless = !self.is_anyone_welcome() && self.clients.iter().any(|client| is_overdue(&client.borrow()));
        is_hopeless || self.clients.iter().all(|client| is_settled(&client.borrow()))
    }

    pub(super) fn is_anyone_welcome(&self) -> bool {
        self.clients.iter().any(|client| client.borrow().was_welcomed)
    }

    /// The run begins.
    pub(super) fn begin(&self, window: Window, drain: Duration) {
        self.phase.set(Phase::Running);
        self.journeys.borrow_mut().timeline = Timeline::for_window(window, drain);
        for client in 0..self.len() {
            let live = self.clients[client].borrow().live.as_ref().map(|live| live.number);
            if let Some(number) = live {
                self.plan_leave(client, number, window.start);
            }
            if (self.is_silent)(self.first + index_u32(client)) {
                self.journeys.borrow_mut().silent += 1;
                let wait = self.random_between(Duration::ZERO, SILENCE_MAX);
                self.set_alarm(client, window.start + wait, Alarm::Hush);
            }
        }
    }

    /// Client `client` takes a message that was due at `due`. False if it has too many already, or stays away for good.
    pub(super) fn take(&self, client: usize, due: Nanos, now: Nanos) -> bool {
        {
            let client_state = &mut *self.clients[client].borrow_mut();
            if client_state.is_stopped || client_state.outgoing.len() >= KEPT_MAX {
                return false;
            }
            let sequence = self.streams.borrow_mut()[client].send();
            let late = u32::try_from(now.saturating_sub(due)).unwrap_or(u32::MAX);
            client_state.outgoing.take(sequence, due, late);
        }
        self.departures.borrow_mut()[client].push(Departure { due, sent: now });
        self.desk.sent.set(self.desk.sent.get() + 1);
        self.write(client, now);
        true
    }

    /// Does what is due.
    pub(super) fn turn(self: &Rc<Self>, now: Nanos) {
        self.opener.interrupt_overdue();
        loop {
            let next = self.alarms.borrow().peek().map(|Reverse(next)| *next);
            let Some((_, client, alarm)) = next.filter(|(at, ..)| *at <= now) else {
                break;
            };
            self.alarms.borrow_mut().pop();
            self.ring(client, alarm, now);
        }
        while let Some((_, handle)) = self.take_overdue_parting(now) {
            // Mostly it is closed already.
            let _ = handle.shutdown(Shutdown::Both);
        }
    }

    /// Nothing new will be sent: everyone stays, and acknowledges what it has.
    pub(super) fn settle(&self) {
        self.phase.set(Phase::Settling);
        let now = self.clock.now();
        for (index, client) in self.clients.iter().enumerate() {
            client.borrow_mut().is_silent = false;
            self.write(index, now);
        }
    }

    /// Messages that are not confirmed, and those that are and have not arrived.
    pub(super) fn outstanding(&self) -> u64 {
        let unconfirmed: u64 = self.clients.iter().map(|client| client.borrow().outgoing.len() as u64).sum();
        unconfirmed + self.streams.borrow().iter().map(Stream::owed).sum::<u64>()
    }

    /// Every connection is closed, and no other opened.
    pub(super) fn close(&self) {
        self.phase.set(Phase::Over);
        self.to_open.borrow_mut().clear();
        for client in &self.clients {
            if let Some(live) = &client.borrow().live {
                live.sender.close();
            }
        }
    }

    /// What the worker counted. What has not arrived by now never will.
    pub(super) fn finish(&self) -> Tally {
        let mut tally = self.desk.finish();
        let mut journeys = self.journeys.take();
        tally.pairs = pairs_on(&self.nodes.borrow());
        let streams = &mut *self.streams.borrow_mut();
        for (index, client) in self.clients.iter().enumerate() {
            let client = client.borrow();
            let refused = client.outgoing.letters().filter(|(_, letter)| letter.setback == Some(Setback::Refused));
            for (sequence, _) in refused {
                streams[index].refuse(sequence);
                self.departures.borrow_mut()[index].take(sequence);
            }
            match (client.was_welcomed, client.live.is_some() || client.is_stopped) {
                (true, false) => count(&mut tally.endings, "not back by the end"),
                (false, _) if !client.is_stopped => {
                    let cause = client.last_failure.unwrap_or(OpenError::TimedOut).to_string();
                    count(&mut tally.open_failures, &cause);
                }
                _ => {}
            }
        }
        for (stream, departures) in streams.iter().zip(&*self.departures.borrow()) {
            for (sequence, departure) in departures.left() {
                if stream.is_accepted(sequence) {
                    journeys.timeline.record_lost(departure.due);
                } else {
                    journeys.timeline.record_undelivered(departure.due);
                }
            }
            stream.close_into(&mut tally.ledger, Acks::Requested, Promise::Accepted);
        }
        tally.journeys = journeys;
        tally
    }

    // Alarms.

    fn set_alarm(&self, client: usize, at: Nanos, alarm: Alarm) {
        self.alarms.borrow_mut().push(Reverse((at, client, alarm)));
    }

    fn ring(self: &Rc<Self>, client: usize, alarm: Alarm, now: Nanos) {
        match alarm {
            Alarm::Open => {
                let server = self.clients[client].borrow().server;
                if self.clients[client].borrow().live.is_none() {
                    self.open(client, server);
                }
            }
            Alarm::Leave(number) => {
                if self.phase.get() == Phase::Running && self.is_live(client, number) {
                    self.leave(client, number, now);
                }
            }
            Alarm::Move(number, server) => {
                if self.phase.get() < Phase::Over && self.is_live(client, number) {
                    self.journeys.borrow_mut().advised += 1;
                    self.open(client, server);
                }
            }
            Alarm::Write => self.write(client, now),
            Alarm::Hush => {
                if self.phase.get() == Phase::Running {
                    let client_state = &mut *self.clients[client].borrow_mut();
                    client_state.is_silent = !client_state.is_silent;
                    self.set_alarm(client, now + self.random_between(SILENCE_MIN, SILENCE_MAX), Alarm::Hush);
                }
                self.write(client, now);
            }
            Alarm::Look => {
                if self.phase.get() < Phase::Over {
                    self.look(client, now);
                    self.set_alarm(client, now + nanos(LOOK_INTERVAL), Alarm::Look);
                }
            }
        }
    }

    /// Is anyone there, and has anything waited too long?
    fn look(self: &Rc<Self>, client: usize, now: Nanos) {
        let is_dead = {
            let client_state = &mut *self.clients[client].borrow_mut();
            let unanswered = client_state.outgoing.take_back_unanswered(now);
            for _ in 0..unanswered {
                count(&mut self.desk.tally.borrow_mut().error_replies, "no answer within 30 s");
            }
            match &mut client_state.live {
                Some(live) if live.pinged_at.is_some_and(|at| now.saturating_sub(at) > nanos(PONG_WITHIN)) => true,
                Some(live) => {
                    if live.pinged_at.is_none() && now.saturating_sub(live.heard_at) >= live.ping_interval {
                        live.pinged_at = Some(now);
                        live.sender.outbox().text(br#"{"type":"ping"}"#);
                        live.sender.flush_soon();
                    }
                    false
                }
                None => false,
            }
        };
        if is_dead {
            count(&mut self.journeys.borrow_mut().breaks, "no sign of life");
            self.part(client, Parting::Cut, now);
            self.set_alarm(client, now + jitter(0, &mut self.random.borrow_mut()), Alarm::Open);
        }
        self.write(client, now);
    }

    // Connections: opened, welcomed, left, lost.

    /// Opens a connection to `server`, unless one is being opened already.
    fn open(self: &Rc<Self>, client: usize, server: usize) {
        {
            let client_state = &mut *self.clients[client].borrow_mut();
            if client_state.opening.is_some() || client_state.is_stopped || self.phase.get() == Phase::Over {
                return;
            }
            client_state.connections += 1;
            client_state.opening = Some(client_state.connections);
            self.to_open.borrow_mut().push_back((client, client_state.connections, server));
        }
        self.open_next();
    }

    fn open_next(self: &Rc<Self>) {
        while self.opening.get() < self.in_flight_max {
            let Some((client, number, server)) = self.to_open.borrow_mut().pop_front() else {
                return;
            };
            self.opening.set(self.opening.get() + 1);
            let query = {
                let client_state = &mut *self.clients[client].borrow_mut();
                client_state.first_tried_at.get_or_insert_with(|| self.clock.now());
                let id = self.run.client_id(self.index_of(client));
                format!("?clientId={id}&acks=1&recvAck=1&resumeOffset={}", client_state.inbox.position())
            };
            let (fleet, target) = (Rc::clone(self), Rc::clone(&self.servers.borrow()[server]));
            monoio::spawn(async move {
                let opened = fleet.opener.open_to(&target, fleet.index_of(client).0, &query).await;
                fleet.opening.set(fleet.opening.get() - 1);
                fleet.note_opened(client, number, server, opened);
                fleet.open_next();
            });
        }
    }

    fn note_opened(self: &Rc<Self>, client: usize, number: u32, server: usize, opened: Result<Opened, OpenError>) {
        let now = self.clock.now();
        let client_state = &mut *self.clients[client].borrow_mut();
        if client_state.opening.take_if(|opening| *opening == number).is_none() || self.phase.get() == Phase::Over {
            return;
        }
        let error = match opened {
            Ok(opened) => return self.welcome(client, client_state, number, server, opened, now),
            Err(error) => error,
        };
        client_state.last_failure = Some(error);
        count(&mut self.journeys.borrow_mut().retries, &error.to_string());
        if let Some(live) = &client_state.live {
            // The second cannot be opened: the first is still there.
            let number = live.number;
            self.plan_leave(client, number, now);
            return;
        }
        client_state.server = self.server_after(server);
        self.come_back(client, client_state, Loss::Unopened(error), now);
    }

    fn welcome(
        self: &Rc<Self>,
        client: usize,
        client_state: &mut Client,
        number: u32,
        server: usize,
        mut opened: Opened,
        now: Nanos,
    ) {
        let welcome = opened.welcome.take().unwrap_or_default();
        let node = self.desk.note_node(&welcome.node_id);
        self.nodes.borrow_mut()[client] = Some(node);
        self.desk.recorder.borrow_mut().record_handshake(opened.handshake);
        self.note_return(client, client_state, &welcome, now);
        if let Some(older) = client_state.live.take() {
            self.journeys.borrow_mut().moves += 1;
            self.say_goodbye(&older, now);
        }
        client_state.server = if server < self.given { server } else { client_state.server };
        client_state.inbox.welcome(welcome.offset, welcome.recovered);
        client_state.outgoing.begin_again();
        let handle = Rc::clone(&opened.handle);
        let link = self.opener.link(opened);
        client_state.live = Some(Live {
            number,
            sender: Rc::clone(&link.sender),
            handle,
            server,
            welcomed_at: now,
            heard_at: now,
            pinged_at: None,
            ping_interval: nanos(welcome.ping_interval()),
        });
        if self.phase.get() == Phase::Running {
            self.plan_leave(client, number, now);
        }
        // Not from here: the client is in use.
        self.set_alarm(client, now, Alarm::Write);
        self.desk.live.set(self.desk.live.get() + 1);
        let (fleet, clock) = (Rc::clone(self), self.clock);
        monoio::spawn(async move {
            let ear = Ear { fleet: Rc::clone(&fleet), client, number };
            let ending = link.converse(ear, Waiting::Hot, Answering::Apart, clock).await;
            fleet.desk.live.set(fleet.desk.live.get() - 1);
            fleet.note_ending(client, number, ending);
        });
    }

    /// Counts how long the client was away, and sets what it has to receive before it has missed nothing.
    fn note_return(&self, client: usize, client_state: &mut Client, welcome: &Welcome, now: Nanos) {
        let journeys = &mut *self.journeys.borrow_mut();
        if !client_state.was_welcomed {
            client_state.was_welcomed = true;
            self.desk.tally.borrow_mut().opened += 1;
            self.progress.opened.fetch_add(1, Relaxed);
            client_state.alone_since = None;
            return;
        }
        journeys.returns += 1;
        journeys.unrecovered += u64::from(!welcome.recovered);
        if let Some(since) = client_state.alone_since.take() {
            journeys.to_welcome.record(now.saturating_sub(since));
        }
        if client_state.behind_since.is_some() {
            let streams = self.streams.borrow();
            client_state.catches_up_at = streams[peer_of(client)].newest_accepted();
            drop(streams);
            self.note_caught_up(client, client_state, journeys, now);
        }
    }

    /// Ends the time in which the client was behind, if it has received what it had missed.
    fn note_caught_up(&self, client: usize, client_state: &mut Client, journeys: &mut Journeys, now: Nanos) {
        let Some(since) = client_state.behind_since.filter(|_| client_state.alone_since.is_none()) else {
            return;
        };
        let newest = self.streams.borrow()[peer_of(client)].newest_received();
        if newest >= client_state.catches_up_at {
            journeys.to_caught_up.record(now.saturating_sub(since));
            client_state.behind_since = None;
        }
    }

    /// Ends the client's connection, which is none from now on: what it still says is ignored.
    fn part(&self, client: usize, parting: Parting, now: Nanos) {
        let client_state = &mut *self.clients[client].borrow_mut();
        let Some(live) = client_state.live.take() else {
            return;
        };
        client_state.alone_since = Some(now);
        client_state.behind_since.get_or_insert(now);
        match parting {
            Parting::Goodbye => self.say_goodbye(&live, now),
            Parting::Cut => {
                // Neither can fail in a way that matters: the connection ends one way or the other.
                let _ = SockRef::from(&*live.handle).set_linger(Some(Duration::ZERO));
                let _ = live.handle.shutdown(Shutdown::Both);
            }
        }
    }

    fn say_goodbye(&self, live: &Live, now: Nanos) {
        live.sender.close();
        self.parting.borrow_mut().push_back((now + nanos(GOODBYE_MAX), Rc::clone(&live.handle)));
    }

    fn take_overdue_parting(&self, now: Nanos) -> Option<(Nanos, Rc<StdStream>)> {
        let parting = &mut *self.parting.borrow_mut();
        if parting.front().is_some_and(|(at, _)| *at <= now) { parting.pop_front() } else { None }
    }

    /// The scenario's part: the connection is cut, or the client moves on.
    fn leave(self: &Rc<Self>, client: usize, number: u32, now: Nanos) {
        let (at, partings) = {
            let client_state = &mut *self.clients[client].borrow_mut();
            if client_state.opening.is_some() {
                // It is about to move anyway.
                return self.plan_leave(client, number, now);
            }
            client_state.partings += 1;
            (client_state.server, client_state.partings)
        };
        let is_even = (partings + index_u32(client) / 2).is_multiple_of(2);
        let (parting, server) = match self.unrest {
            Unrest::None => return,
            Unrest::Cuts { .. } => {
                let server = self.random.borrow_mut().below(self.given as u64);
                let server = usize::try_from(server).expect("an index");
                (if is_even { Parting::Cut } else { Parting::Goodbye }, server)
            }
            Unrest::Hops { .. } if is_even => {
                // Make before break. The client's place is where it is, until it is welcomed there.
                return self.open(client, self.server_after(at));
            }
            Unrest::Hops { .. } => (Parting::Goodbye, self.server_after(at)),
        };
        {
            let journeys = &mut *self.journeys.borrow_mut();
            match parting {
                Parting::Cut => journeys.cuts += 1,
                Parting::Goodbye => journeys.goodbyes += 1,
            }
        }
        self.part(client, parting, now);
        let client_state = &mut *self.clients[client].borrow_mut();
        client_state.server = server;
        // We know that the network is back, and that it was no fault of the server.
        client_state.backoff.reset();
        self.set_alarm(client, now + jitter(0, &mut self.random.borrow_mut()), Alarm::Open);
    }

    fn plan_leave(&self, client: usize, number: u32, now: Nanos) {
        if let Some(interval) = self.unrest.interval() {
            let stay = self.random_between(interval / 2, interval * 3 / 2);
            self.set_alarm(client, now + stay, Alarm::Leave(number));
        }
    }

    /// Connection `number` ended.
    fn note_ending(self: &Rc<Self>, client: usize, number: u32, ending: Ending) {
        let now = self.clock.now();
        let client_state = &mut *self.clients[client].borrow_mut();
        let Some(live) = client_state.live.take_if(|live| live.number == number) else {
            // One that we had left.
            return;
        };
        if self.phase.get() == Phase::Over {
            // Closed by us, or about to be: it lasted to the end.
            client_state.live = Some(live);
            return;
        }
        client_state.alone_since = Some(now);
        client_state.behind_since.get_or_insert(now);
        client_state.server = if live.server < self.given { live.server } else { client_state.server };
        if client_state.opening.is_some() {
            // While we move, the end of the first is no news.
            return;
        }
        count(&mut self.journeys.borrow_mut().breaks, &ending.to_string());
        let lived = now.saturating_sub(live.welcomed_at);
        self.come_back(client, client_state, Loss::Ended { ending, lived }, now);
    }

    /// Plans the next attempt, unless there is to be none.
    fn come_back(&self, client: usize, client_state: &mut Client, loss: Loss, now: Nanos) {
        match client_state.backoff.after(loss, &mut self.random.borrow_mut()) {
            Next::Wait(wait) => self.set_alarm(client, now + wait, Alarm::Open),
            Next::Stop => {
                client_state.is_stopped = true;
                let tally = &mut *self.desk.tally.borrow_mut();
                match loss {
                    Loss::Ended { ending, .. } => count(&mut tally.endings, &ending.to_string()),
                    Loss::Unopened(error) if client_state.was_welcomed => count(&mut tally.endings, &error.to_string()),
                    Loss::Unopened(error) => {
                        self.progress.failed.fetch_add(1, Relaxed);
                        count(&mut tally.open_failures, &error.to_string());
                    }
                }
            }
        }
    }

    fn is_live(&self, client: usize, number: u32) -> bool {
        self.clients[client].borrow().live.as_ref().is_some_and(|live| live.number == number)
    }

    fn server_after(&self, server: usize) -> usize {
        (server + 1) % self.given
    }

    /// The server that was advised: another of ours, or one we had not heard of. `None` if there is no such server.
    fn advised_server(&self, client_state: &Client, url: &str) -> Option<usize> {
        if url.is_empty() {
            // Where we are now is what we are to leave.
            return Some(self.server_after(client_state.server));
        }
        let server = parse_url(url, crate::args::Scenario::Churn).ok()?;
        let servers = &mut *self.servers.borrow_mut();
        if let Some(known) = servers.iter().position(|known| known.addr == server.addr && known.path == server.path) {
            return Some(known);
        }
        if servers.len() >= self.given + ADVISED_SERVERS_MAX {
            return None;
        }
        servers.push(Rc::new(server));
        Some(servers.len() - 1)
    }

    // Messages.

    /// Writes what the client has to say, if it has a connection.
    fn write(&self, client: usize, now: Nanos) {
        let client_state = &mut *self.clients[client].borrow_mut();
        let Some(sender) = client_state.live.as_ref().map(|live| Rc::clone(&live.sender)) else {
            return;
        };
        if !sender.is_open() {
            return;
        }
        let has_written = {
            let outbox = &mut *sender.outbox();
            self.fill(client, client_state, outbox, now);
            outbox.queued_bytes() > 0
        };
        if has_written {
            sender.flush_soon();
        }
    }

    fn fill(&self, client: usize, client_state: &mut Client, outbox: &mut Outbox, now: Nanos) {
        if !client_state.is_silent
            && let Some(offset) = client_state.inbox.take_ack()
        {
            let text = &mut client_state.ack_text;
            text.clear();
            write!(text, r#"{{"type":"ack","offset":{offset}}}"#).expect("writing to a vector cannot fail");
            outbox.text(text);
        }
        let (sender, recipient) = (self.index_of(client), self.index_of(peer_of(client)));
        while outbox.queued_bytes() < OUTBOX_BYTES_MAX {
            let Some(Writing { sequence, due, late, is_repeated, is_displaced }) = client_state.outgoing.next(now)
            else {
                break;
            };
            let stamp = Stamp { sender, sequence, due, late };
            outbox.text(self.template.borrow_mut().compose(stamp, recipient));
            self.journeys.borrow_mut().resent += u64::from(is_repeated);
            if is_displaced {
                self.streams.borrow_mut()[client].displace(sequence);
            }
        }
    }

    /// A message arrived on the client's connection.
    fn receive(&self, client: usize, message: Message<'_>, now: Nanos) {
        let client_state = &mut *self.clients[client].borrow_mut();
        let mut unescaped = std::mem::take(&mut client_state.unescaped);
        let (text, incoming) = match message {
            Message::Text(text) => (text, envelope::read(text, &mut unescaped)),
            Message::Binary(_) => ("", None),
        };
        match incoming {
            Some(Incoming {
                kind: "message",
                from: Some(from),
                msg_id: Some(msg_id),
                payload,
                offset: Some(offset),
                ..
            }) => match client_state.inbox.receive(from, msg_id, offset) {
                Arrival::New => self.account(client, client_state, payload, now),
                Arrival::Repeat => {
                    let journeys = &mut *self.journeys.borrow_mut();
                    journeys.repeats += 1;
                    journeys.timeline.record_repeat(now);
                }
                Arrival::Stale => {
                    let errors = &mut self.desk.tally.borrow_mut().error_replies;
                    count(errors, "new message at an offset that was handled");
                }
            },
            Some(Incoming { kind: "ack", msg_id, .. }) => self.confirm(client, client_state, msg_id, now),
            Some(Incoming { kind: "error", code, msg_id, .. }) => {
                self.note_error(client, client_state, code, msg_id, now);
            }
            Some(Incoming { kind: "reconnect", .. }) => {
                if let (Some(advice), Some(live)) = (Advice::read(text), &client_state.live)
                    && let Some(server) = self.advised_server(client_state, &advice.url)
                {
                    self.set_alarm(client, now + nanos(advice.after()), Alarm::Move(live.number, server));
                }
            }
            Some(Incoming { kind: "pong", .. }) => {}
            Some(_) | None => self.desk.tally.borrow_mut().ledger.corrupt += 1,
        }
        client_state.unescaped = unescaped;
    }

    /// Enters a delivery into the ledger.
    fn account(&self, client: usize, client_state: &mut Client, payload: Option<&str>, now: Nanos) {
        let peer = peer_of(client);
        let verified = payload.and_then(|payload| self.template.borrow().verify(payload.as_bytes()));
        let Some(Stamp { sender, sequence, due, late }) = verified else {
            self.desk.tally.borrow_mut().ledger.corrupt += 1;
            return;
        };
        if sender != self.index_of(peer) {
            self.desk.tally.borrow_mut().ledger.misdelivered += 1;
            return;
        }
        let insert = self.streams.borrow_mut()[peer].receive(sequence);
        match insert {
            None => self.desk.tally.borrow_mut().ledger.corrupt += 1,
            Some(Insert::Repeat) => {}
            Some(Insert::Newest | Insert::Behind) => {
                client_state.arrived += 1;
                self.departures.borrow_mut()[peer].take(sequence);
                self.desk.recorder.borrow_mut().record_latency(due, due + u64::from(late), now);
                let journeys = &mut *self.journeys.borrow_mut();
                journeys.timeline.record_arrival(due, now);
                let nodes = self.nodes.borrow();
                journeys.across += u64::from(nodes[client] != nodes[peer]);
                self.note_caught_up(client, client_state, journeys, now);
            }
        }
    }

    /// The server confirmed one of the client's messages.
    fn confirm(&self, client: usize, client_state: &mut Client, msg_id: Option<&str>, now: Nanos) {
        let sequence = msg_id.and_then(|msg_id| sequence_of(msg_id.as_bytes(), self.index_of(client)));
        let confirm = |sequence| self.streams.borrow_mut()[client].accept(sequence);
        if sequence.and_then(confirm).is_none() {
            count(&mut self.desk.tally.borrow_mut().error_replies, "ack of a message never sent");
            return;
        }
        // One that was sent again may be answered again.
        if let Some(letter) = sequence.and_then(|sequence| client_state.outgoing.confirm(sequence)) {
            self.desk.recorder.borrow_mut().record_ack(letter.due, now);
        }
    }

    /// The server refused something.
    fn note_error(
        &self,
        client: usize,
        client_state: &mut Client,
        code: Option<&str>,
        msg_id: Option<&str>,
        now: Nanos,
    ) {
        let code = code.unwrap_or("without a code");
        count(&mut self.desk.tally.borrow_mut().error_replies, code);
        let Some(sequence) = msg_id.and_then(|msg_id| sequence_of(msg_id.as_bytes(), self.index_of(client))) else {
            return;
        };
        let setback = match code {
            "overloaded" | "rate_limited" => Setback::Refused,
            "unconfirmed" => Setback::Unknown,
            _ => {
                if client_state.outgoing.refuse(sequence).is_some() {
                    self.streams.borrow_mut()[client].refuse(sequence);
                    self.departures.borrow_mut()[client].take(sequence);
                }
                return;
            }
        };
        let again_at = client_state.outgoing.set_back(sequence, setback, now, &mut self.random.borrow_mut());
        self.set_alarm(client, again_at, Alarm::Write);
    }

    /// All messages of one read were received.
    fn finish_read(&self, client: usize, now: Nanos, outbox: &mut Outbox) {
        let client_state = &mut *self.clients[client].borrow_mut();
        if let Some(live) = &mut client_state.live {
            live.heard_at = now;
            live.pinged_at = None;
        }
        let arrived = std::mem::take(&mut client_state.arrived);
        if arrived > 0 {
            self.desk.received.set(self.desk.received.get() + arrived);
            self.desk.recorder.borrow_mut().record_arrivals(arrived, now);
        }
        self.fill(client, client_state, outbox, now);
    }

    fn index_of(&self, client: usize) -> ClientIndex {
        ClientIndex(self.first + index_u32(client))
    }

    fn random_between(&self, least: Duration, most: Duration) -> Nanos {
        let (least, most) = (nanos(least), nanos(most));
        least + self.random.borrow_mut().below(most.saturating_sub(least))
    }
}

/// Who `client` talks to: clients 0 and 1 are a pair, 2 and 3, and so on.
fn peer_of(client: usize) -> usize {
    client ^ 1
}

fn index_u32(client: usize) -> u32 {
    u32::try_from(client).expect("a worker's share of at most 2^32 clients")
}

/// What hears one connection of a client, for as long as it is the client's.
struct Ear {
    fleet: Rc<Fleet>,
    client: usize,
    number: u32,
}

impl Conversation for Ear {
    fn handle_message(&mut self, message: Message<'_>, now: Nanos, _outbox: &mut Outbox) {
        if self.fleet.is_live(self.client, self.number) {
            self.fleet.receive(self.client, message, now);
        }
    }

    fn handle_read_end(&mut self, now: Nanos, outbox: &mut Outbox) {
        if self.fleet.is_live(self.client, self.number) {
            self.fleet.finish_read(self.client, now, outbox);
        }
    }
}
