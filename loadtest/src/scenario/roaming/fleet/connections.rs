//! Connections of the clients: opened, welcomed, left, moved and lost.

use std::{
    net::{Shutdown, TcpStream as StdStream},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use socket2::SockRef;

use super::{Alarm, Client, Fleet, Live, Phase, index_u32, messages::Ear, peer_of};
use crate::{
    args::Scenario,
    client::{
        Answering, Ending, Waiting,
        open::{OpenError, Opened},
    },
    clock::{Nanos, nanos},
    config::{Unrest, parse_url},
    envelope::Welcome,
    journeys::Journeys,
    scenario::{
        GOODBYE_MAX,
        roaming::backoff::{Loss, Next, jitter},
    },
    tally::count,
};

/// Servers that others have advised to move to.
const ADVISED_SERVERS_MAX: usize = 64;

/// How a client ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// With a Close frame.
    Goodbye,
    /// Without a word, and with a reset: what was on its way is gone.
    Cut,
}

impl Fleet {
    /// Opens a connection to `server`, unless one is being opened already.
    pub(super) fn open(self: &Rc<Self>, client: usize, server: usize) {
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
        let name = Rc::from(welcome.node_id.as_str());
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
            node: name,
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
    pub(super) fn note_caught_up(&self, client: usize, client_state: &mut Client, journeys: &mut Journeys, now: Nanos) {
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
    pub(super) fn part(&self, client: usize, parting: Parting, now: Nanos) {
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

    pub(super) fn say_goodbye(&self, live: &Live, now: Nanos) {
        live.sender.close();
        self.parting.borrow_mut().push_back((now + nanos(GOODBYE_MAX), Rc::clone(&live.handle)));
    }

    pub(super) fn take_overdue_parting(&self, now: Nanos) -> Option<(Nanos, Rc<StdStream>)> {
        let parting = &mut *self.parting.borrow_mut();
        if parting.front().is_some_and(|(at, _)| *at <= now) { parting.pop_front() } else { None }
    }

    /// The scenario's part: the connection is cut, or the client moves on.
    pub(super) fn leave(self: &Rc<Self>, client: usize, number: u32, now: Nanos) {
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

    pub(super) fn plan_leave(&self, client: usize, number: u32, now: Nanos) {
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
        if client_state.is_stopped {
            self.journeys.borrow_mut().note_disorder(|| {
                let (id, node, number) = (self.run.client_id(self.index_of(client)), &live.node, live.number);
                let (from, until) = (self.seconds(live.welcomed_at), self.seconds(now));
                let tried = client_state.connections;
                format!("{id} on {node}#{number} ({from:.3}..{until:.3} s, {tried} connections tried): {ending}")
            });
        }
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

    pub(super) fn is_live(&self, client: usize, number: u32) -> bool {
        self.clients[client].borrow().live.as_ref().is_some_and(|live| live.number == number)
    }

    pub(super) fn server_after(&self, server: usize) -> usize {
        (server + 1) % self.given
    }

    /// The server that was advised: another of ours, or one we had not heard of. `None` if there is no such server.
    pub(super) fn advised_server(&self, client_state: &Client, url: &str) -> Option<usize> {
        if url.is_empty() {
            // Where we are now is what we are to leave.
            return Some(self.server_after(client_state.server));
        }
        let server = parse_url(url, Scenario::Churn).ok()?;
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
}
