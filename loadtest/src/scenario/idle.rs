//! `idle`: sessions that are opened and held, and answer nothing but pings.

use std::{io, rc::Rc, time::Duration};

use super::{Desk, GOODBYE_MAX, connect_query, is_session, open_clients, wait_until};
use crate::{
    client::{Answering, BufferPool, Conversation, Ending, Link, Message, Outbox, Sender, Waiting, open::Greeting},
    clock::{Clock, Nanos},
    tally::{Tally, count},
    worker::Context,
};

const WATCH_INTERVAL: Duration = Duration::from_millis(20);

pub(super) async fn run(context: &Context) -> io::Result<Tally> {
    let desk = Desk::new();
    let pool = BufferPool::default();
    let senders: Rc<std::cell::RefCell<Vec<Rc<Sender>>>> = Rc::default();
    let greeting = if is_session(context) { Greeting::Welcome } else { Greeting::None };
    let each = {
        let (desk, senders, clock) = (Rc::clone(&desk), Rc::clone(&senders), context.clock);
        move |_, link: Link, _| {
            senders.borrow_mut().push(Rc::clone(&link.sender));
            hold(&desk, link, &pool, clock);
        }
    };
    open_clients(context, &desk, greeting, connect_query(context), each).await?;
    let Some(window) = context.ready().await? else {
        return Ok(desk.finish());
    };
    desk.open_window(window);
    while context.clock.now() < window.end && !context.is_stopped() {
        desk.publish(context);
        context.ticker.wait(WATCH_INTERVAL).await?;
    }
    if context.is_stopped() {
        desk.cut_short(context.clock.now());
    }
    for sender in senders.borrow().iter() {
        sender.close();
    }
    wait_until(context, GOODBYE_MAX, || desk.live.get() == 0).await?;
    Ok(desk.finish())
}

/// Keeps `link` open, and its pings answered, until one side closes it.
pub(super) fn hold(desk: &Rc<Desk>, link: Link, pool: &BufferPool, clock: Clock) {
    desk.live.set(desk.live.get() + 1);
    let (desk, waiting) = (Rc::clone(desk), Waiting::Cold(pool.clone()));
    monoio::spawn(async move {
        let ending = link.converse(Silence(Rc::clone(&desk)), waiting, Answering::Apart, clock).await;
        desk.live.set(desk.live.get() - 1);
        if ending != Ending::Closed {
            count(&mut desk.tally.borrow_mut().endings, &ending.to_string());
        }
    });
}

/// Hears and says nothing; what arrives unasked is counted as received.
struct Silence(Rc<Desk>);

impl Conversation for Silence {
    fn handle_message(&mut self, _message: Message<'_>, now: Nanos, _outbox: &mut Outbox) {
        self.0.received.set(self.0.received.get() + 1);
        self.0.recorder.borrow_mut().record_arrivals(1, now);
    }
}
