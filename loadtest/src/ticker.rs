//! A timer that is finer than the runtime's (which counts whole milliseconds): a timerfd awaited through the ring.
//!
//! One per worker, for pacing and sweeping. Connections have no timers of their own.

use std::{io, net::TcpStream as StdStream, os::fd::OwnedFd, time::Duration};

use monoio::net::TcpStream;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// Waits, one length of time after the other.
pub(crate) struct Ticker {
    timer: OwnedFd,
    /// The same timer as something the runtime can await: it polls descriptors only through its socket types, and
    /// polling asks nothing of a descriptor but that it can be polled. Never read or written.
    pollable: TcpStream,
}

impl Ticker {
    /// # Errors
    /// No descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let pollable = TcpStream::from_std(StdStream::from(timer.try_clone()?))?;
        Ok(Self { timer, pollable })
    }

    /// Waits for `duration`, at least a microsecond.
    ///
    /// # Errors
    /// The runtime cannot poll.
    pub(crate) async fn wait(&self, duration: Duration) -> io::Result<()> {
        // A zero would disarm the timer.
        let duration = duration.max(Duration::from_micros(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(duration.subsec_nanos()),
            },
        };
        // Arming again also clears what has expired, so that nothing is ever read from the timer.
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.pollable.readable(false).await
    }
}
