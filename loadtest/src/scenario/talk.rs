//! The part that `echo` and `p2p` share: when messages leave.
//!
//! An open loop follows the schedule, whatever the server does. A closed loop starts with `depth` messages per
//! connection; from then on each arrival sends the next, in the same write as all else that one read gave rise to.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc, time::Duration};

use super::{Desk, GOODBYE_MAX, wait_until};
use crate::{
    client::{Answering, Conversation, Ending, Link, Message, Outbox, Sender, Waiting},
    clock::{Clock, Nanos},
    config::{Config, Load},
    recorder::Window,
    schedule::Schedule,
    tally::count,
    worker::Context,
};

/// Messages due within so short a time leave together.
const PACING_INTERVAL_MIN: Duration = Duration::from_micros(50);
/// How often the worker looks at its orders and shows its progress.
const PACING_INTERVAL_MAX: Duration = Duration::from_millis(2);
/// A connection that does not take its messages queues this much; then its slots are missed.
const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Departures remembered per connection; the latency of one that is answered later than that is not recorded.
const DEPARTURES_MAX: usize = 64 * 1024;

/// A virtual client that has messages to send.
pub(super) trait Caller: 'static {
    /// Queues its next message, which was due at `due`.
    fn send(&mut self, due: Nanos, now: Nanos, outbox: &mut Outbox);

    /// A message arrived.
    fn receive(&mut self, message: Message<'_>, now: Nanos, outbox: &mut Outbox);

    /// All messages of one read were received.
    fn finish_read(&mut self, now: Nanos, outbox: &mut Outbox);
}

/// A virtual client and its connection.
pub(super) struct Seat<C> {
    pub(super) caller: Rc<RefCell<C>>,
    sender: Rc<Sender>,
}

struct Listening<C>(Rc<RefCell<C>>);

impl<C: Caller> Conversation for Listening<C> {
    fn handle_message(&mut self, message: Message<'_>, now: Nanos, outbox: &mut Outbox) {
        self.0.borrow_mut().receive(message, now, outbox);
    }

    fn handle_read_end(&mut self, now: Nanos, outbox: &mut Outbox) {
        self.0.borrow_mut().finish_read(now, outbox);
    }
}

/// How the clients of this run answer.
pub(super) fn answering(config: &Config) -> Answering {
    let payload_bytes = u64::from(config.payload_bytes);
    Answering::for_bytes(match config.load {
        Load::Closed { depth } => Some(u64::from(depth) * payload_bytes),
        Load::Open { .. } | Load::Silent => None,
    })
}

/// Gives `caller` its connection and starts to read it.
pub(super) fn seat<C: Caller>(clock: Clock, answering: Answering, desk: &Rc<Desk>, link: Link, caller: C) -> Seat<C> {
    let caller = Rc::new(RefCell::new(caller));
    let sender = Rc::clone(&link.sender);
    let (desk, listening) = (Rc::clone(desk), Listening(Rc::clone(&caller)));
    desk.live.set(desk.live.get() + 1);
    monoio::spawn(async move {
        let ending = link.converse(listening, Waiting::Hot, answering, clock).await;
        desk.live.set(desk.live.get() - 1);
        if ending != Ending::Closed {
            count(&mut desk.tally.borrow_mut().endings, &ending.to_string());
        }
    });
    Seat { caller, sender }
}

/// Sends for the length of the run, waits for what is under way, and closes the connections.
pub(super) async fn talk<C: Caller>(
    context: &Context,
    desk: &Desk,
    seats: &[Seat<C>],
    window: Window,
    outstanding: impl Fn() -> u64,
) -> io::Result<()> {
    desk.open_window(window);
    wait_for_start(context, window).await?;
    match (context.config.load, context.config.load.rate()) {
        (Load::Closed { depth }, _) => {
            start_volleys(context, seats, depth);
            keep_watch(context, desk, window).await?;
        }
        (_, Some(rate)) => {
            let schedule = Schedule::new(rate, window.start, window.end, context.index, context.config.workers());
            follow_schedule(context, desk, seats, schedule).await?;
        }
        (_, None) => keep_watch(context, desk, window).await?,
    }
    if context.is_stopped() {
        desk.cut_short(context.clock.now());
    }
    wait_until(context, context.config.drain, || outstanding() == 0 || desk.live.get() == 0).await?;
    desk.publish(context);
    for seat in seats {
        seat.sender.close();
    }
    wait_until(context, GOODBYE_MAX, || desk.live.get() == 0).await
}

async fn wait_for_start(context: &Context, window: Window) -> io::Result<()> {
    let now = context.clock.now();
    if now < window.start {
        context.ticker.wait(Duration::from_nanos(window.start - now)).await?;
    }
    Ok(())
}

fn start_volleys<C: Caller>(context: &Context, seats: &[Seat<C>], depth: u32) {
    for seat in seats.iter().filter(|seat| seat.sender.is_open()) {
        let now = context.clock.now();
        {
            let (mut caller, mut outbox) = (seat.caller.borrow_mut(), seat.sender.outbox());
            for _ in 0..depth {
                caller.send(now, now, &mut outbox);
            }
        }
        seat.sender.flush_soon();
    }
}

/// Until the run is over, with nothing to do but look.
async fn keep_watch(context: &Context, desk: &Desk, window: Window) -> io::Result<()> {
    loop {
        let now = context.clock.now();
        if now >= window.end || context.is_stopped() {
            return Ok(());
        }
        desk.publish(context);
        context.ticker.wait(PACING_INTERVAL_MAX.min(Duration::from_nanos(window.end - now))).await?;
    }
}

/// Sends every message at its intended time, or as soon after it as this thread gets to it.
async fn follow_schedule<C: Caller>(
    context: &Context,
    desk: &Desk,
    seats: &[Seat<C>],
    mut schedule: Schedule,
) -> io::Result<()> {
    let mut turns = (0..seats.len()).cycle();
    while let Some(next_due) = schedule.peek() {
        if context.is_stopped() {
            return Ok(());
        }
        let now = context.clock.now();
        while let Some(due) = schedule.take_due(now) {
            let seat = turns.next().map(|turn| &seats[turn]);
            match seat {
                Some(seat) if seat.sender.is_open() && seat.sender.outbox().queued_bytes() < OUTBOX_BYTES_MAX => {
                    seat.caller.borrow_mut().send(due, now, &mut seat.sender.outbox());
                    seat.sender.flush_soon();
                }
                _ => desk.recorder.borrow_mut().record_missed(due),
            }
        }
        desk.publish(context);
        let wait = Duration::from_nanos(next_due.saturating_sub(now));
        context.ticker.wait(wait.clamp(PACING_INTERVAL_MIN, PACING_INTERVAL_MAX)).await?;
    }
    Ok(())
}

/// When the messages of one sender left that are still to be answered.
#[derive(Debug, Default)]
pub(super) struct Departures {
    first: u64,
    // Answered ones that are not the first are `None`, so that the index stays the sequence less `first`.
    times: VecDeque<Option<Departure>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Departure {
    pub(super) due: Nanos,
    pub(super) sent: Nanos,
}

impl Departures {
    /// The next message leaves.
    pub(super) fn push(&mut self, departure: Departure) {
        if self.times.len() == DEPARTURES_MAX {
            self.times.pop_front();
            self.first += 1;
        }
        self.times.push_back(Some(departure));
    }

    /// What was not answered, oldest first, with its sequence.
    pub(super) fn left(&self) -> impl Iterator<Item = (u64, Departure)> + '_ {
        (self.first..).zip(&self.times).filter_map(|(sequence, departure)| Some((sequence, (*departure)?)))
    }

    /// Message `sequence` was answered: when it left, unless that is forgotten or was asked before.
    pub(super) fn take(&mut self, sequence: u64) -> Option<Departure> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        if index > 0 {
            return self.times.get_mut(index)?.take();
        }
        let departure = self.times.pop_front()?;
        self.first += 1;
        while let Some(None) = self.times.front() {
            self.times.pop_front();
            self.first += 1;
        }
        departure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departures(count: u64) -> Departures {
        let mut departures = Departures::default();
        for time in 0..count {
            departures.push(Departure { due: time, sent: time });
        }
        departures
    }

    #[test]
    fn departures_are_found_in_any_order_and_once() {
        let mut departures = departures(5);
        for (sequence, expected) in
            [(2, true), (2, false), (0, true), (0, false), (1, true), (9, false), (3, true), (4, true)]
        {
            let found = departures.take(sequence);
            assert_eq!(found.map(|departure| departure.due), expected.then_some(sequence), "{sequence}");
        }
        assert!(departures.times.is_empty());
        assert_eq!(departures.left().count(), 0);
    }

    #[test]
    fn the_oldest_departures_are_forgotten() {
        let mut departures = departures(DEPARTURES_MAX as u64 + 1);
        assert_eq!(departures.take(0), None);
        assert!(departures.take(1).is_some());
    }
}
