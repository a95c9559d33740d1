//! `p2p`: virtual clients in pairs send each other messages of the client protocol, and every one is accounted for.
//!
//! Both clients of a pair are on one worker, so that sender and recipient write into one ledger and read one clock.

use std::{cell::RefCell, io, io::Write as _, rc::Rc};

use super::{
    Desk, NodeHash, connect_query, open_clients, pairs_on,
    talk::{Caller, Departure, Departures, Seat, answering, seat, talk},
};
use crate::{
    client::{Message, Outbox, open::Greeting},
    clock::Nanos,
    envelope::{self, Incoming, Unescaped},
    ledger::{Acks, Insert, Promise, Stream},
    payload::{ClientIndex, MessageTemplate, RunId, Stamp, sequence_of},
    tally::{Tally, count},
    targets::Pacing,
    worker::Context,
};

/// The error that says nobody knows yet: the message may still arrive, and sending it again would be safe.
const CODE_UNCONFIRMED: &str = "unconfirmed";

pub(super) async fn run(context: &Context) -> io::Result<Tally> {
    let desk = Desk::new();
    let exchange = Rc::new(Exchange::new(context, &desk));
    let seats: Rc<RefCell<Vec<Seat<PeerClient>>>> = Rc::default();
    let answering = answering(&context.config);
    let each = {
        let (desk, exchange, seats, clock) = (Rc::clone(&desk), Rc::clone(&exchange), Rc::clone(&seats), context.clock);
        move |index, link, node| {
            exchange.note_node(ClientIndex(index), node);
            let client = PeerClient::new(Rc::clone(&exchange), ClientIndex(index));
            seats.borrow_mut().push(seat(clock, answering, &desk, link, client));
        }
    };
    open_clients(context, &desk, Greeting::Welcome, connect_query(context), each).await?;
    let Some(window) = context.ready().await? else {
        return Ok(desk.finish());
    };
    let seats = seats.take();
    talk(context, &desk, &seats, window, || exchange.outstanding()).await?;
    let mut tally = desk.finish();
    tally.pairs = pairs_on(&exchange.nodes.borrow());
    for stream in exchange.streams.borrow().iter() {
        stream.close_into(&mut tally.ledger, exchange.sender_acks, Promise::Sent);
    }
    Ok(tally)
}

/// Who `client` talks to: clients 0 and 1 are a pair, 2 and 3, and so on.
fn peer_of(client: ClientIndex) -> ClientIndex {
    ClientIndex(client.0 ^ 1)
}

/// What all virtual clients of a worker share.
struct Exchange {
    desk: Rc<Desk>,
    template: RefCell<MessageTemplate>,
    /// By sender, from `first` on; each has one recipient.
    streams: RefCell<Vec<Stream>>,
    /// Which node each of them is on.
    nodes: RefCell<Vec<Option<NodeHash>>>,
    first: ClientIndex,
    pacing: Pacing,
    sender_acks: Acks,
    receiver_acks: Acks,
}

impl Exchange {
    fn new(context: &Context, desk: &Rc<Desk>) -> Self {
        let config = &context.config;
        let run = RunId::from_seed(config.seed);
        let acks = |are_asked: bool| {
            if are_asked { Acks::Requested } else { Acks::None }
        };
        Self {
            desk: Rc::clone(desk),
            template: RefCell::new(MessageTemplate::new(config.payload_bytes as usize, run, config.seed)),
            streams: RefCell::new(context.clients().map(|_| Stream::default()).collect()),
            nodes: RefCell::new(context.clients().map(|_| None).collect()),
            first: ClientIndex(context.clients().start),
            pacing: config.load.pacing(),
            sender_acks: acks(config.sender_acks),
            receiver_acks: acks(config.receiver_acks),
        }
    }

    /// Applies `entry` to the stream of `sender`; `None` if that is no client of this worker.
    fn with_stream<T>(&self, sender: ClientIndex, entry: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let index = usize::try_from(sender.0.checked_sub(self.first.0)?).ok()?;
        self.streams.borrow_mut().get_mut(index).map(entry)
    }

    fn note_node(&self, client: ClientIndex, node: Option<NodeHash>) {
        let index = (client.0 - self.first.0) as usize;
        self.nodes.borrow_mut()[index] = node;
    }

    /// Messages, and confirmations where they were asked for, that are still to come.
    fn outstanding(&self) -> u64 {
        let owed = |stream: &Stream| match self.sender_acks {
            Acks::Requested => stream.outstanding().max(stream.unconfirmed()),
            Acks::None => stream.outstanding(),
        };
        self.streams.borrow().iter().map(owed).sum()
    }
}

/// One virtual client: sends to its peer and receives from it.
struct PeerClient {
    exchange: Rc<Exchange>,
    index: ClientIndex,
    /// Kept only to time the server's confirmations.
    departures: Departures,
    unescaped: Unescaped,
    /// Messages since the last read ended, repeats apart.
    arrived: u64,
    /// The newest offset received since the last read ended.
    to_acknowledge: Option<u64>,
    ack_text: Vec<u8>,
}

impl PeerClient {
    fn new(exchange: Rc<Exchange>, index: ClientIndex) -> Self {
        Self {
            exchange,
            index,
            departures: Departures::default(),
            unescaped: Unescaped::default(),
            arrived: 0,
            to_acknowledge: None,
            ack_text: Vec::new(),
        }
    }

    fn queue(&mut self, due: Nanos, now: Nanos, outbox: &mut Outbox) {
        let exchange = &*self.exchange;
        let sequence = exchange.with_stream(self.index, Stream::send);
        let sequence = sequence.expect("the worker's own clients have streams");
        let late = u32::try_from(now.saturating_sub(due)).unwrap_or(u32::MAX);
        let stamp = Stamp { sender: self.index, sequence, due, late };
        outbox.text(exchange.template.borrow_mut().compose(stamp, peer_of(self.index)));
        if exchange.sender_acks == Acks::Requested {
            self.departures.push(Departure { due, sent: now });
        }
        exchange.desk.sent.set(exchange.desk.sent.get() + 1);
    }

    /// Enters a delivery into the ledger.
    fn account(&mut self, payload: Option<&str>, now: Nanos) {
        let exchange = &*self.exchange;
        let verified = payload.and_then(|payload| exchange.template.borrow().verify(payload.as_bytes()));
        let Some(Stamp { sender, sequence, due, late }) = verified else {
            exchange.desk.tally.borrow_mut().ledger.corrupt += 1;
            return;
        };
        if sender != peer_of(self.index) {
            exchange.desk.tally.borrow_mut().ledger.misdelivered += 1;
            return;
        }
        match exchange.with_stream(sender, |stream| stream.receive(sequence)).flatten() {
            None => exchange.desk.tally.borrow_mut().ledger.corrupt += 1,
            Some(Insert::Repeat) => {}
            Some(Insert::Newest | Insert::Behind) => {
                self.arrived += 1;
                let recorder = &mut *exchange.desk.recorder.borrow_mut();
                match exchange.pacing {
                    Pacing::OpenLoop => recorder.record_latency(due, due + u64::from(late), now),
                    Pacing::ClosedLoop => recorder.record_closed_latency(due, now),
                }
            }
        }
    }

    /// The server confirmed one of our messages.
    fn confirm(&mut self, msg_id: Option<&str>, now: Nanos) {
        let sequence = msg_id.and_then(|msg_id| sequence_of(msg_id.as_bytes(), self.index));
        let confirm = |sequence| self.exchange.with_stream(self.index, |stream| stream.accept(sequence)).flatten();
        if sequence.and_then(confirm).is_none() {
            count(&mut self.exchange.desk.tally.borrow_mut().error_replies, "ack of a message never sent");
            return;
        }
        if let Some(departure) = sequence.and_then(|sequence| self.departures.take(sequence)) {
            self.exchange.desk.recorder.borrow_mut().record_ack(departure.due, now);
        }
    }

    /// The server refused something.
    fn note_error(&mut self, code: Option<&str>, msg_id: Option<&str>) {
        let code = code.unwrap_or("without a code");
        count(&mut self.exchange.desk.tally.borrow_mut().error_replies, code);
        let sequence = msg_id.and_then(|msg_id| sequence_of(msg_id.as_bytes(), self.index));
        if let Some(sequence) = sequence
            && code != CODE_UNCONFIRMED
        {
            self.exchange.with_stream(self.index, |stream| stream.refuse(sequence));
        }
    }
}

impl Caller for PeerClient {
    fn send(&mut self, due: Nanos, now: Nanos, outbox: &mut Outbox) {
        self.queue(due, now, outbox);
        let recorder = &mut *self.exchange.desk.recorder.borrow_mut();
        match self.exchange.pacing {
            Pacing::OpenLoop => recorder.record_send(due, now),
            Pacing::ClosedLoop => recorder.record_closed_sends(1, now),
        }
    }

    fn receive(&mut self, message: Message<'_>, now: Nanos, _outbox: &mut Outbox) {
        let mut unescaped = std::mem::take(&mut self.unescaped);
        let incoming = match message {
            Message::Text(text) => envelope::read(text, &mut unescaped),
            Message::Binary(_) => None,
        };
        match incoming {
            Some(Incoming { kind: "message", payload, offset, .. }) => {
                self.account(payload, now);
                self.to_acknowledge = offset.max(self.to_acknowledge);
            }
            Some(Incoming { kind: "ack", msg_id, .. }) => self.confirm(msg_id, now),
            Some(Incoming { kind: "error", code, msg_id, .. }) => self.note_error(code, msg_id),
            // Advice to reconnect is followed by a close, which is counted.
            Some(Incoming { kind: "reconnect" | "pong", .. }) => {}
            Some(_) | None => self.exchange.desk.tally.borrow_mut().ledger.corrupt += 1,
        }
        self.unescaped = unescaped;
    }

    fn finish_read(&mut self, now: Nanos, outbox: &mut Outbox) {
        let to_acknowledge = self.to_acknowledge.take();
        if let (Acks::Requested, Some(offset)) = (self.exchange.receiver_acks, to_acknowledge) {
            // Cumulative: one for all that this read brought.
            self.ack_text.clear();
            write!(self.ack_text, r#"{{"type":"ack","offset":{offset}}}"#).expect("writing to a vector cannot fail");
            outbox.text(&self.ack_text);
        }
        let arrived = std::mem::take(&mut self.arrived);
        if arrived == 0 {
            return;
        }
        let desk = Rc::clone(&self.exchange.desk);
        desk.received.set(desk.received.get() + arrived);
        desk.recorder.borrow_mut().record_arrivals(arrived, now);
        if self.exchange.pacing == Pacing::ClosedLoop && now < desk.sends_until.get() {
            for _ in 0..arrived {
                self.queue(now, now, outbox);
            }
            desk.recorder.borrow_mut().record_closed_sends(arrived, now);
        }
    }
}
