//! How shards talk: a bounded queue into each shard, with one wake-up per batch.
//! A full mailbox is an answer, never a wait: the sender keeps the message and tells its source to pause.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

struct Shared<T> {
    queue: ArrayQueue<T>,
    // True from the first push after a drain until the next drain begins: then the reader knows already.
    is_woken: AtomicBool,
    event: OwnedFd,
}

/// The end that posts. Cheap to clone.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// The end that drains: one per mailbox.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// Makes a mailbox for `capacity` messages.
///
/// # Errors
/// When the process has no descriptor left for the wake-up.
pub fn mailbox<T>(capacity: usize) -> io::Result<(Sender<T>, Receiver<T>)> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let shared = Arc::new(Shared { queue: ArrayQueue::new(capacity), is_woken: AtomicBool::new(false), event });
    Ok((Sender { shared: Arc::clone(&shared) }, Receiver { shared }))
}

impl<T> Sender<T> {
    /// Posts `message`, waking the reader if it does not know yet that there is mail.
    ///
    /// # Errors
    /// Gives the message back when the mailbox is full.
    pub fn post(&self, message: T) -> Result<(), T> {
        self.shared.queue.push(message)?;
        // The push above must be visible before the flag is read, and the reader clears the flag before it drains:
        // so either this side sees `false` and wakes, or the reader's drain sees the message.
        if !self.shared.is_woken.swap(true, Ordering::AcqRel) {
            // An eventfd at its limit (2^64 - 2 wakes) is readable all the same.
            let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The descriptor that is readable while there is mail.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Begins a drain: from here on the next post wakes again. Then call [`Receiver::next`] until it is empty.
    pub fn begin(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.shared.event, &mut count);
        self.shared.is_woken.swap(false, Ordering::AcqRel);
    }

    /// The oldest message.
    pub fn next(&self) -> Option<T> {
        self.shared.queue.pop()
    }

    /// Asks to be woken again at once: for a reader that stops before the mailbox is empty.
    pub fn wake_again(&self) {
        if !self.shared.is_woken.swap(true, Ordering::AcqRel) {
            let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        }
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// True when no message waits.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, receiver) = mailbox(2).unwrap();
        assert_eq!(sender.post(1), Ok(()));
        assert_eq!(sender.post(2), Ok(()));
        assert_eq!(sender.post(3), Err(3));
        receiver.begin();
        assert_eq!(receiver.next(), Some(1));
        assert_eq!(sender.post(3), Ok(()));
    }

    #[test]
    fn no_message_is_lost_between_threads_and_every_one_wakes_in_time() {
        const MESSAGES: u32 = 20_000;
        let (sender, receiver) = mailbox(64).unwrap();
        let producer = std::thread::spawn(move || {
            for message in 0..MESSAGES {
                let mut message = message;
                while let Err(back) = sender.post(message) {
                    message = back;
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < MESSAGES {
            let event = receiver.event();
            let mut fds = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
            let ready = rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 }));
            assert_eq!(ready, Ok(1), "a post was not followed by a wake");
            receiver.begin();
            while let Some(message) = receiver.next() {
                assert_eq!(message, expected);
                expected += 1;
            }
        }
        producer.join().unwrap();
    }
}
