//! The one set of descriptors a shard waits for: its idle sockets, its mailbox, its timer, its listener.
//! The set itself is one descriptor, and that is what the runtime waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use monoio::net::TcpStream;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::slab::Key;

/// Events taken in one go. As many sockets are read in one submission, each into a buffer of its own: few enough that what
/// the kernel holds of them is still in the cache when they are written, many enough that system calls hardly count.
pub(super) const EVENTS_MAX: usize = 64;

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const MAILBOX: u64 = u64::MAX - 2;

/// What is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// Connections wait to be accepted.
    Listener,
    /// A tick has passed.
    Timer,
    /// There is mail.
    Mailbox,
    /// A socket.
    Socket { key: Key, is_readable: bool, is_writable: bool, is_hung_up: bool },
}

/// A shard's set of descriptors.
pub(super) struct Poller {
    set: OwnedFd,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { set: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// A second handle on the set, for the runtime to wait on.
    pub fn waiter(&self) -> io::Result<TcpStream> {
        // The runtime only ever asks whether it is readable; what kind of descriptor it is makes no difference to that.
        TcpStream::from_std(std::net::TcpStream::from(self.set.try_clone()?))
    }

    /// Watches the listener; it is told again until all are accepted.
    pub fn add_listener(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.set, fd, EventData::new_u64(LISTENER), EventFlags::IN)?)
    }

    /// Watches the listener no more.
    pub fn remove_listener(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.set, fd);
    }

    /// Watches the timer.
    pub fn add_timer(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.set, fd, EventData::new_u64(TIMER), EventFlags::IN)?)
    }

    /// Watches the mailbox.
    pub fn add_mailbox(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.set, fd, EventData::new_u64(MAILBOX), EventFlags::IN)?)
    }

    /// Watches a socket for as long as it is open here: each change is told once, and nothing need be armed again.
    pub fn add_socket(&self, fd: impl AsFd, key: Key) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.set, fd, EventData::new_u64(key.to_u64()), flags)?)
    }

    /// Watches a socket no more.
    pub fn remove_socket(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.set, fd)?)
    }

    /// Takes what is ready now, without waiting.
    pub fn take(&self, events: &mut Vec<Event>) {
        events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Interrupted or not: the next turn asks again.
        let _ = epoll::wait(&self.set, rustix::buffer::spare_capacity(events), Some(&now));
    }
}

/// What an event says.
pub(super) fn ready(event: &Event) -> Ready {
    let data = event.data;
    let flags = event.flags;
    match data.u64() {
        LISTENER => Ready::Listener,
        TIMER => Ready::Timer,
        MAILBOX => Ready::Mailbox,
        key => Ready::Socket {
            key: Key::from_u64(key),
            is_readable: flags.contains(EventFlags::IN),
            is_writable: flags.contains(EventFlags::OUT),
            is_hung_up: flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
        },
    }
}
