//! `echo`: binary frames to `/ws/echo`, which must come back unchanged and in order.

use std::{cell::RefCell, io, rc::Rc};

use super::{
    Desk, open_clients,
    talk::{Caller, Departure, Departures, Seat, answering, seat, talk},
};
use crate::{
    client::{Message, Outbox, open::Greeting},
    clock::Nanos,
    ledger::{Acks, Promise, Stream},
    payload::EchoStamp,
    tally::Tally,
    targets::Pacing,
    worker::Context,
};

pub(super) async fn run(context: &Context) -> io::Result<Tally> {
    let desk = Desk::new();
    let config = &context.config;
    let stamp = Rc::new(RefCell::new(EchoStamp::new(config.payload_bytes as usize, config.seed)));
    let seats: Rc<RefCell<Vec<Seat<EchoClient>>>> = Rc::default();
    let answering = answering(&context.config);
    let each = {
        let (desk, seats, clock, pacing) = (Rc::clone(&desk), Rc::clone(&seats), context.clock, config.load.pacing());
        move |index, link, _| {
            let client = EchoClient::new(Rc::clone(&desk), Rc::clone(&stamp), index, pacing);
            seats.borrow_mut().push(seat(clock, answering, &desk, link, client));
        }
    };
    open_clients(context, &desk, Greeting::None, Rc::new(|_| String::new()), each).await?;
    let Some(window) = context.ready().await? else {
        return Ok(desk.finish());
    };
    let seats = seats.take();
    let outstanding = || seats.iter().map(|seat| seat.caller.borrow().stream.outstanding()).sum();
    talk(context, &desk, &seats, window, outstanding).await?;
    let mut tally = desk.finish();
    for seat in &seats {
        seat.caller.borrow().stream.close_into(&mut tally.ledger, Acks::None, Promise::Sent);
    }
    Ok(tally)
}

/// One connection to `/ws/echo`: sender and recipient in one.
struct EchoClient {
    desk: Rc<Desk>,
    stamp: Rc<RefCell<EchoStamp>>,
    index: u32,
    pacing: Pacing,
    stream: Stream,
    departures: Departures,
    /// Since the last read ended.
    arrived: u64,
}

impl EchoClient {
    fn new(desk: Rc<Desk>, stamp: Rc<RefCell<EchoStamp>>, index: u32, pacing: Pacing) -> Self {
        Self { desk, stamp, index, pacing, stream: Stream::default(), departures: Departures::default(), arrived: 0 }
    }

    /// Enters an arrival into the ledger.
    fn account(&mut self, payload: &[u8], now: Nanos) {
        let verified = self.stamp.borrow().verify(payload);
        let Some((index, sequence)) = verified else {
            self.desk.tally.borrow_mut().ledger.corrupt += 1;
            return;
        };
        if index != self.index {
            self.desk.tally.borrow_mut().ledger.misdelivered += 1;
            return;
        }
        if self.stream.receive(sequence).is_none() {
            self.desk.tally.borrow_mut().ledger.corrupt += 1;
            return;
        }
        if let Some(Departure { due, sent }) = self.departures.take(sequence) {
            let recorder = &mut *self.desk.recorder.borrow_mut();
            match self.pacing {
                Pacing::OpenLoop => recorder.record_latency(due, sent, now),
                Pacing::ClosedLoop => recorder.record_closed_latency(sent, now),
            }
        }
    }

    fn queue(&mut self, due: Nanos, now: Nanos, outbox: &mut Outbox) {
        let sequence = self.stream.send();
        self.departures.push(Departure { due, sent: now });
        outbox.binary(self.stamp.borrow_mut().compose(self.index, sequence));
        self.desk.sent.set(self.desk.sent.get() + 1);
    }
}

impl Caller for EchoClient {
    fn send(&mut self, due: Nanos, now: Nanos, outbox: &mut Outbox) {
        self.queue(due, now, outbox);
        let recorder = &mut *self.desk.recorder.borrow_mut();
        match self.pacing {
            Pacing::OpenLoop => recorder.record_send(due, now),
            Pacing::ClosedLoop => recorder.record_closed_sends(1, now),
        }
    }

    fn receive(&mut self, message: Message<'_>, now: Nanos, _outbox: &mut Outbox) {
        self.arrived += 1;
        match message {
            Message::Binary(payload) => self.account(payload, now),
            // Never sent, so not what was sent.
            Message::Text(_) => self.desk.tally.borrow_mut().ledger.corrupt += 1,
        }
    }

    fn finish_read(&mut self, now: Nanos, outbox: &mut Outbox) {
        let arrived = std::mem::take(&mut self.arrived);
        if arrived == 0 {
            return;
        }
        self.desk.received.set(self.desk.received.get() + arrived);
        self.desk.recorder.borrow_mut().record_arrivals(arrived, now);
        if self.pacing == Pacing::ClosedLoop && now < self.desk.sends_until.get() {
            for _ in 0..arrived {
                self.queue(now, now, outbox);
            }
            self.desk.recorder.borrow_mut().record_closed_sends(arrived, now);
        }
    }
}
