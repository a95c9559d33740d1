//! A connection: the socket's state between turns, and the task that serves it while it is busy.
//!
//! An idle connection is one small record: its socket sits in the shard's poller and owns no task and no buffer. When
//! the socket turns readable, or something waits to be written, a task takes it, reads and writes until nothing is
//! left to do, lingers a moment for more, and parks it again.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};

use websocket::{Decoder, Role};

use super::Shard;
use super::clock::Tick;
use super::disconnect::Disconnect;
use super::handover::Handover;
use super::opening::Refusal;
use super::slab::Key;
use super::socket::Socket;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The upgrade request is still to come, or half here.
    Opening,
    /// Frames go back as they came.
    Echo,
    /// It carries this session.
    Session(Key),
}

/// One open socket.
pub(super) struct Connection {
    /// The socket while it is parked; a task has it otherwise.
    pub fd: Option<OwnedFd>,
    /// When the peer was last heard, or the connection was accepted, or its end began.
    pub heard_at: Tick,
    /// True while its task acts on input and has `active` in hand.
    pub is_in_hand: bool,
    /// True while a ping is unanswered.
    pub is_pinged: bool,
    /// What it is for.
    pub purpose: Purpose,
    /// What it needs while it is busy.
    pub active: Option<Box<Active>>,
}

/// How far along the end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It goes on.
    None,
    /// What is queued is still to be written, then the socket is closed.
    Flushing(Disconnect),
    /// The last byte is out; the peer's close is awaited, for a moment, so that it can read what was sent.
    Lingering,
}

/// Input that was read but cannot be acted on yet.
pub(super) struct Held {
    pub buf: Vec<u8>,
    pub start: usize,
    pub since: Tick,
}

/// A busy connection's belongings.
#[expect(clippy::struct_excessive_bools, reason = "facts that hold or not, in any combination")]
pub(super) struct Active {
    pub waker: Option<Waker>,
    pub decoder: Decoder,
    /// Since when a message is half here.
    pub half_since: Option<Tick>,
    /// The upgrade request so far.
    pub request: Vec<u8>,
    /// The node's own frames, and echoes, that are still to be written.
    pub replies: Vec<u8>,
    /// The rest of a write that the kernel did not take whole, and where it begins.
    pub unsent: Vec<u8>,
    pub unsent_start: usize,
    pub held: Option<Held>,
    pub ending: Ending,
    pub handover: Option<Box<Handover>>,
    pub refusal: Option<Refusal>,
    /// Bytes may be there to be read.
    pub is_readable: bool,
    /// The peer has shut its end: reads go on until they say so.
    pub is_hung_up: bool,
    /// The kernel takes no more until the poller says so.
    pub is_blocked: bool,
    /// The last read filled its buffer: the next one gets a larger one.
    pub reads_large: bool,
    /// A task serves this connection.
    pub has_task: bool,
    /// The sweep wants the task to end if nothing is left to do.
    pub must_park: bool,
    /// Bytes read and thrown away while lingering.
    pub lingered_bytes: usize,
}

impl Active {
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            waker: None,
            decoder: Decoder::new(Role::Server, message_bytes_max),
            half_since: None,
            request: Vec::new(),
            replies: Vec::new(),
            unsent: Vec::new(),
            unsent_start: 0,
            held: None,
            ending: Ending::None,
            handover: None,
            refusal: None,
            is_readable: false,
            is_hung_up: false,
            is_blocked: false,
            reads_large: false,
            has_task: false,
            must_park: false,
            lingered_bytes: 0,
        }
    }

    /// True when nothing would be lost with it.
    pub fn is_spent(&self) -> bool {
        self.decoder.is_between_messages()
            && self.request.is_empty()
            && self.replies.is_empty()
            && self.unsent.is_empty()
            && self.held.is_none()
            && self.ending == Ending::None
            && self.handover.is_none()
            && !self.is_readable
            && !self.is_blocked
    }

    /// Makes the task look again.
    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// What a connection's task does next.
pub(super) enum Step {
    /// Read into this buffer.
    Read(Vec<u8>),
    /// Write this from the given byte on.
    Write(Vec<u8>, usize),
    /// Say that no more will be written.
    ShutDown,
    /// Give the socket to the client's home shard.
    HandOver,
    /// Put the socket back.
    Park,
    /// Close the socket.
    Close,
}

/// Serves one connection until it is parked, handed over or closed.
pub(super) async fn serve(shard: Rc<Shard>, key: Key, fd: OwnedFd) {
    let Ok(mut socket) = Socket::attach(fd, shard.driver()) else {
        shard.with(|state| state.close(key, Disconnect::Io));
        return;
    };
    loop {
        let step = std::future::poll_fn(|context| {
            shard.with(|state| match state.next_step(key, context.waker()) {
                Some(step) => Poll::Ready(step),
                None => Poll::Pending,
            })
        })
        .await;
        match step {
            Step::Read(buf) => {
                let (result, buf) = socket.read(buf).await;
                // A request may have waited for this process to go on, and its client have gone elsewhere since: it must
                // not count as the newest login.
                let has_left = shard.with(|state| state.may_be_late(key)) && socket.has_peer_left();
                shard.with(|state| if has_left { state.give_up(key, buf) } else { state.on_read(key, result, buf) });
            }
            Step::Write(buf, start) => {
                let (result, buf) = socket.write(buf, start).await;
                shard.with(|state| state.on_written(key, result, buf, start));
            }
            Step::ShutDown => socket.shut_down_writes().await,
            Step::HandOver => {
                let fd = socket.detach();
                shard.hand_over(key, fd);
                return;
            }
            Step::Park => {
                let fd = socket.detach();
                shard.with(|state| state.park(key, fd));
                return;
            }
            Step::Close => {
                // Closed here and now, not through the ring: nothing of a closed connection is left behind.
                drop(socket.detach());
                shard.with(|state| state.forget(key));
                return;
            }
        }
        shard.settle();
    }
}
