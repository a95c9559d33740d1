//! `storm`: connections as fast as the server takes them, or at a given rate, each closed as soon as it is open, or
//! held to the end.
//!
//! What is "sent" here is a connection attempt and what "arrives" a 101, so that the plots and the CPU per unit mean
//! the same as elsewhere; the ledger stays empty.

use std::{cell::Cell, io, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{Desk, connect_query, idle::hold, opener, wait_until};
use crate::{
    client::{
        BufferPool,
        open::{Greeting, Leaving, Opener},
    },
    clock::Nanos,
    config::AfterHandshake,
    schedule::Schedule,
    tally::{Tally, count},
    worker::Context,
};

const TICK_MAX: Duration = Duration::from_millis(1);
const TICK_MIN: Duration = Duration::from_micros(50);

pub(super) async fn run(context: &Context) -> io::Result<Tally> {
    let desk = Desk::new();
    let Some(window) = context.ready().await? else {
        return Ok(desk.finish());
    };
    desk.open_window(window);
    let storm = Rc::new(Storm {
        desk: Rc::clone(&desk),
        opener: opener(context, Greeting::None, Leaving::Abruptly),
        progress: std::sync::Arc::clone(&context.progress),
        query: connect_query(context),
        pool: BufferPool::default(),
        after_handshake: context.config.after_handshake,
        next: Cell::new(context.index),
        step: context.config.workers(),
        left: Cell::new(context.clients().len()),
        under_way: Cell::new(0),
    });
    let now = context.clock.now();
    context.ticker.wait(Duration::from_nanos(window.start.saturating_sub(now))).await?;
    let rate = context.config.load.rate();
    let schedule = rate.map(|rate| Schedule::new(rate, window.start, window.end, context.index, storm.step));
    storm.rage(context, window.end, schedule).await?;
    if context.is_stopped() {
        desk.cut_short(context.clock.now());
    }
    wait_until(context, context.config.connect_timeout, || {
        storm.opener.interrupt_overdue();
        storm.under_way.get() == 0
    })
    .await?;
    desk.publish(context);
    let mut tally = desk.finish();
    tally.opened_in_window = tally.measures.received_in_window;
    Ok(tally)
}

struct Storm {
    desk: Rc<Desk>,
    opener: Rc<Opener>,
    progress: std::sync::Arc<crate::worker::Progress>,
    query: super::Query,
    pool: BufferPool,
    after_handshake: AfterHandshake,
    /// The next attempt's index among those of all workers.
    next: Cell<u32>,
    step: u32,
    /// Attempts still to be made.
    left: Cell<usize>,
    under_way: Cell<u32>,
}

impl Storm {
    /// Starts attempts until `end`.
    async fn rage(self: &Rc<Self>, context: &Context, end: Nanos, mut schedule: Option<Schedule>) -> io::Result<()> {
        let in_flight = context.config.in_flight;
        loop {
            let now = context.clock.now();
            if now >= end || context.is_stopped() || self.left.get() == 0 && self.under_way.get() == 0 {
                return Ok(());
            }
            let wait = if let Some(schedule) = &mut schedule {
                while let Some(due) = schedule.take_due(now) {
                    if self.under_way.get() < in_flight && self.left.get() > 0 {
                        self.desk.recorder.borrow_mut().record_send(due, now);
                        self.spawn_one(due);
                    } else {
                        self.desk.recorder.borrow_mut().record_missed(due);
                    }
                }
                schedule.peek().map_or(TICK_MAX, |due| Duration::from_nanos(due.saturating_sub(now)))
            } else {
                // A chain ends with the first attempt that fails: the next begins here, so that a server that
                // refuses at once does not keep this thread from everything else.
                while self.under_way.get() < in_flight && self.left.get() > 0 {
                    self.spawn_chain(end);
                }
                TICK_MAX
            };
            self.opener.interrupt_overdue();
            self.desk.publish(context);
            context.ticker.wait(wait.clamp(TICK_MIN, TICK_MAX)).await?;
        }
    }

    /// One attempt, which was due at `due`.
    fn spawn_one(self: &Rc<Self>, due: Nanos) {
        let storm = self.begin();
        let index = self.take_index();
        monoio::spawn(async move {
            storm.attempt(index, Some(due)).await;
            storm.under_way.set(storm.under_way.get() - 1);
        });
    }

    /// One attempt after the other for as long as they succeed.
    fn spawn_chain(self: &Rc<Self>, end: Nanos) {
        let storm = self.begin();
        let mut index = self.take_index();
        monoio::spawn(async move {
            loop {
                let now = storm.opener.clock.now();
                storm.desk.recorder.borrow_mut().record_closed_sends(1, now);
                let is_open = storm.attempt(index, None).await;
                if !is_open || storm.left.get() == 0 || storm.opener.clock.now() >= end {
                    break;
                }
                index = storm.take_index();
            }
            storm.under_way.set(storm.under_way.get() - 1);
        });
    }

    fn begin(self: &Rc<Self>) -> Rc<Self> {
        self.under_way.set(self.under_way.get() + 1);
        Rc::clone(self)
    }

    fn take_index(&self) -> u32 {
        self.left.set(self.left.get() - 1);
        self.desk.sent.set(self.desk.sent.get() + 1);
        self.next.replace(self.next.get().wrapping_add(self.step))
    }

    async fn attempt(&self, index: u32, due: Option<Nanos>) -> bool {
        let opened = self.opener.open(index, &(self.query)(index)).await;
        let now = self.opener.clock.now();
        match opened {
            Ok(opened) => {
                // With an intended time the wait for our own turn counts as well.
                let handshake = due.map_or(opened.handshake, |due| now.saturating_sub(due));
                let recorder = &mut *self.desk.recorder.borrow_mut();
                if recorder.window().is_measured(now) {
                    recorder.record_handshake(handshake);
                }
                recorder.record_arrivals(1, now);
                self.desk.received.set(self.desk.received.get() + 1);
                self.desk.tally.borrow_mut().opened += 1;
                self.progress.opened.fetch_add(1, Relaxed);
                match self.after_handshake {
                    AfterHandshake::Hold => {
                        hold(&self.desk, self.opener.link(opened), &self.pool, self.opener.clock);
                    }
                    AfterHandshake::Close => drop(opened),
                }
                true
            }
            Err(error) => {
                self.progress.failed.fetch_add(1, Relaxed);
                count(&mut self.desk.tally.borrow_mut().open_failures, &error.to_string());
                false
            }
        }
    }
}
