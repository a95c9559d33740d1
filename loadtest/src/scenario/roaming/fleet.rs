//! The virtual clients of a worker, from the opening of their first connections to the account of the run.
//!
//! What becomes of connections is in `connections.rs`, of messages in `messages.rs`. No client has a timer: one heap of
//! alarms (`alarms.rs`) is looked at every few milliseconds.

mod alarms;
mod connections;
mod messages;
mod stints;

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::{Shutdown, TcpStream as StdStream},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use self::stints::Stints;
use super::{
    backoff::Backoff,
    inbox::Inbox,
    outgoing::{KEPT_MAX, Outgoing, Setback},
};
use crate::{
    client::{
        Sender,
        open::{Greeting, Leaving, OpenError, Opener},
    },
    clock::{Clock, Nanos, nanos},
    config::{Server, Unrest},
    envelope::Unescaped,
    journeys::Journeys,
    ledger::{Acks, Promise, Stream},
    payload::{ClientIndex, MessageTemplate, Random, RunId},
    recorder::Window,
    scenario::{
        Desk, NodeHash, opener, pairs_on,
        talk::{Departure, Departures},
        worker_seed,
    },
    tally::{Tally, count},
    targets::approximate,
    timeline::Timeline,
    worker::{Context, Progress},
};

/// How often a client looks whether anyone is there and anything has waited too long.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a silent client acknowledges nothing, and then everything: at random between these. The server waits one
/// second and a half for an ack.
const SILENCE_MIN: Duration = Duration::from_secs(2);
const SILENCE_MAX: Duration = Duration::from_secs(6);

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

/// The connection on which a client was welcomed last.
struct Live {
    number: u32,
    node: Rc<str>,
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
    /// What it wrote over which connection.
    stints: Stints,
    /// When a message newer than all before arrived last.
    newest_at: Nanos,
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
    silent_share: f64,
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
    began: Cell<Nanos>,
    random: RefCell<Random>,
}

impl Fleet {
    pub(super) fn new(context: &Context, desk: &Rc<Desk>) -> Rc<Self> {
        let config = &context.config;
        let run = RunId::from_seed(config.seed);
        let indexes = context.clients();
        let servers: Vec<_> = config.servers.iter().cloned().map(Rc::new).collect();
        let given = servers.len();
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
            silent_share: config.silent_share,
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
            began: Cell::default(),
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

    /// True when every client was welcomed, has given up, or has tried for long enough.
    pub(super) fn is_open(&self, now: Nanos) -> bool {
        // Long enough to have tried every server, even if all but the last keep silent.
        let servers = u32::try_from(self.given).unwrap_or(u32::MAX);
        let patience = nanos(self.opener.timeout.saturating_mul(servers) + LOOK_INTERVAL);
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
        self.began.set(window.start);
        self.journeys.borrow_mut().timeline = Timeline::for_window(window, drain);
        for client in 0..self.len() {
            let live = self.clients[client].borrow().live.as_ref().map(|live| live.number);
            if let Some(number) = live {
                self.plan_leave(client, number, window.start);
            }
            if is_chosen(self.index_of(client).0, self.silent_share) {
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

    /// True when everyone is back, everything is confirmed, and all that is has arrived.
    pub(super) fn is_settled(&self) -> bool {
        let is_settled = |client: &Client| {
            let is_back = client.live.is_some() || client.is_stopped || !client.was_welcomed;
            is_back && client.outgoing.len() == 0
        };
        self.clients.iter().all(|client| is_settled(&client.borrow()))
            && self.streams.borrow().iter().all(|stream| stream.owed() == 0)
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

    fn index_of(&self, client: usize) -> ClientIndex {
        ClientIndex(self.first + index_u32(client))
    }

    /// Seconds since the run began, for sentences.
    fn seconds(&self, at: Nanos) -> f64 {
        approximate(at.saturating_sub(self.began.get())) / 1e9
    }

    fn random_between(&self, least: Duration, most: Duration) -> Nanos {
        let (least, most) = (nanos(least), nanos(most));
        least + self.random.borrow_mut().below(most.saturating_sub(least))
    }
}

/// True for `share` of all indexes, spread evenly: wherever the running sum passes a whole number.
fn is_chosen(index: u32, share: f64) -> bool {
    (f64::from(index) * share).floor() < (f64::from(index + 1) * share).floor()
}

/// Who `client` talks to: clients 0 and 1 are a pair, 2 and 3, and so on.
fn peer_of(client: usize) -> usize {
    client ^ 1
}

fn index_u32(client: usize) -> u32 {
    u32::try_from(client).expect("a worker's share of at most 2^32 clients")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_clients_is_chosen() {
        for (share, expected) in [(0.0, 0), (0.01, 10), (0.25, 250), (0.333, 333), (1.0, 1000)] {
            assert_eq!((0..1000).filter(|index| is_chosen(*index, share)).count(), expected, "{share}");
        }
    }
}
