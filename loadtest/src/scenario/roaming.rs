//! `resume`, `churn`, and `p2p` with faults: virtual clients in pairs as in `p2p`, which outlive their connections.
//!
//! Each behaves as `docs/protocol.md` asks of a client and `client.js` does: it comes back after a back-off with its
//! position, drops repeats, keeps what is not confirmed and sends it again. The ledger judges what is left after that.
//!
//! Here is the course of a run; the clients are in `fleet.rs`, what they decide in `inbox.rs`, `outgoing.rs` and
//! `backoff.rs`.

mod backoff;
mod fleet;
mod inbox;
mod outgoing;

use std::{io, rc::Rc, time::Duration};

use self::fleet::Fleet;
use super::{Desk, GOODBYE_MAX, SWEEP_INTERVAL};
use crate::{clock::nanos, recorder::Window, schedule::Schedule, tally::Tally, worker::Context};

/// Messages due within so short a time leave together.
const PACING_INTERVAL_MIN: Duration = Duration::from_micros(50);
/// How late an alarm of a client may ring.
const PACING_INTERVAL_MAX: Duration = Duration::from_millis(2);
/// How often it is looked whether everything has arrived.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

pub(super) async fn run(context: &Context) -> io::Result<Tally> {
    let desk = Desk::new();
    let fleet = Fleet::new(context, &desk);
    let started = context.clock.now();
    fleet.open_all();
    while !fleet.is_open(context.clock.now()) && !context.is_stopped() {
        fleet.turn(context.clock.now());
        context.ticker.wait(SWEEP_INTERVAL).await?;
    }
    desk.tally.borrow_mut().opening = context.clock.now() - started;
    let Some(window) = context.ready().await? else {
        return Ok(fleet.finish());
    };
    if !fleet.is_anyone_welcome() {
        fleet.close();
        return Ok(fleet.finish());
    }
    desk.open_window(window);
    fleet.begin(window, context.config.drain);
    send(context, &desk, &fleet, window).await?;
    if context.is_stopped() {
        desk.cut_short(context.clock.now());
    }
    fleet.settle();
    drain(context, &desk, &fleet).await?;
    fleet.close();
    super::wait_until(context, GOODBYE_MAX, || desk.live.get() == 0).await?;
    Ok(fleet.finish())
}

/// Sends every message at its intended time; a client without a connection keeps it until it has one.
async fn send(context: &Context, desk: &Desk, fleet: &Rc<Fleet>, window: Window) -> io::Result<()> {
    let rate = context.config.load.rate().expect("roaming clients send by the clock");
    let mut schedule = Schedule::new(rate, window.start, window.end, context.index, context.config.workers());
    let mut turns = (0..fleet.len()).cycle();
    loop {
        let now = context.clock.now();
        if now >= window.end || context.is_stopped() {
            return Ok(());
        }
        while let Some(due) = schedule.take_due(now) {
            let is_taken = turns.next().is_some_and(|client| fleet.take(client, due, now));
            let recorder = &mut *desk.recorder.borrow_mut();
            if is_taken { recorder.record_send(due, now) } else { recorder.record_missed(due) }
        }
        fleet.turn(now);
        desk.publish(context);
        let next = schedule.peek().unwrap_or(window.end).min(window.end);
        let wait = Duration::from_nanos(next.saturating_sub(now));
        context.ticker.wait(wait.clamp(PACING_INTERVAL_MIN, PACING_INTERVAL_MAX)).await?;
    }
}

/// Until everyone is back and everything has arrived, or the time for it is over.
async fn drain(context: &Context, desk: &Desk, fleet: &Rc<Fleet>) -> io::Result<()> {
    let deadline = context.clock.now().saturating_add(nanos(context.config.drain));
    let mut looks_at = 0;
    loop {
        let now = context.clock.now();
        if now >= deadline || now >= looks_at && fleet.is_settled() {
            return Ok(());
        }
        if now >= looks_at {
            looks_at = now + nanos(DRAIN_INTERVAL);
        }
        fleet.turn(now);
        desk.publish(context);
        context.ticker.wait(PACING_INTERVAL_MAX).await?;
    }
}
