//! What clients do by the clock, apart from sending: one heap for all of them.

use std::{cmp::Reverse, rc::Rc, time::Duration};

use super::{Alarm, Fleet, LOOK_INTERVAL, Phase, SILENCE_MAX, SILENCE_MIN, connections::Parting};
use crate::{
    clock::{Nanos, nanos},
    scenario::roaming::backoff::jitter,
    tally::count,
};

/// From our ping to any sign of life.
const PONG_WITHIN: Duration = Duration::from_secs(10);

impl Fleet {
    pub(super) fn set_alarm(&self, client: usize, at: Nanos, alarm: Alarm) {
        self.alarms.borrow_mut().push(Reverse((at, client, alarm)));
    }

    pub(super) fn ring(self: &Rc<Self>, client: usize, alarm: Alarm, now: Nanos) {
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
}
