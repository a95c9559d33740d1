//! A connection's socket for the length of its turns. Sockets are non-blocking, so that a read or a write through the
//! ring completes in the same submission: with bytes, or with `WouldBlock`. Nothing is ever left in flight, which is
//! why a socket may be closed, handed over or parked between two turns without cancelling anything.
//! It does not wait for readiness: the poller does.

use std::io;
use std::os::fd::OwnedFd;

use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;
use rustix::net::{RecvFlags, SendFlags};

use crate::sys;

/// How this shard's sockets are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Through `io_uring`: all reads and writes of a turn leave in one system call.
    Ring,
    /// By a system call each, where the kernel refuses `io_uring`.
    Direct,
}

impl Driver {
    /// The word for it in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Direct => "direct",
        }
    }
}

/// An attached socket.
pub enum Socket {
    /// Driven by the ring.
    Ring(TcpStream),
    /// Driven by plain system calls.
    Direct(OwnedFd),
}

impl Socket {
    /// Attaches a connected, non-blocking socket to this thread's driver.
    pub fn attach(fd: OwnedFd, driver: Driver) -> io::Result<Self> {
        match driver {
            Driver::Ring => TcpStream::from_std(std::net::TcpStream::from(fd)).map(Self::Ring),
            Driver::Direct => Ok(Self::Direct(fd)),
        }
    }

    /// Gives the descriptor back.
    pub fn detach(self) -> OwnedFd {
        match self {
            Self::Ring(stream) => sys::take_fd(stream),
            Self::Direct(fd) => fd,
        }
    }

    /// Reads what there is into the whole capacity of `buf`, from its start.
    pub async fn read(&mut self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Ring(stream) => stream.read(buf).await,
            Self::Direct(fd) => {
                buf.clear();
                let result = rustix::net::recv(fd, rustix::buffer::spare_capacity(&mut buf), RecvFlags::empty());
                (result.map(|(count, _)| count).map_err(io::Error::from), buf)
            }
        }
    }

    /// Writes what the kernel takes of `buf` from `start` on.
    pub async fn write(&mut self, buf: Vec<u8>, start: usize) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Ring(stream) if start == 0 => stream.write(buf).await,
            Self::Ring(stream) => {
                let (result, rest) = stream.write(monoio::buf::IoBuf::slice(buf, start..)).await;
                (result, rest.into_inner())
            }
            Self::Direct(fd) => {
                let result = rustix::net::send(fd, buf.get(start..).unwrap_or_default(), SendFlags::NOSIGNAL);
                (result.map_err(io::Error::from), buf)
            }
        }
    }

    /// True when the peer has closed its end.
    pub fn has_peer_left(&self) -> bool {
        match self {
            Self::Ring(stream) => sys::has_peer_left(stream),
            Self::Direct(fd) => sys::has_peer_left(fd),
        }
    }

    /// Tells the peer that nothing more will come. A socket that is gone already needs no telling.
    pub async fn shut_down_writes(&mut self) {
        match self {
            Self::Ring(stream) => _ = stream.shutdown().await,
            Self::Direct(fd) => _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write),
        }
    }
}
