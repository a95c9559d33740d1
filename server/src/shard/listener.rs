//! The listening sockets: one per shard on the same address, so that the kernel spreads connections over the shards.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel holds for a shard that has not come round to accepting them.
const BACKLOG: i32 = 4096;

/// Binds one listener; further ones may bind the same address.
///
/// # Errors
/// When the address cannot be had.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    // A restarted node takes its port again while old connections still time out.
    socket.set_reuse_address(true)?;
    // Inherited by every accepted socket: what a turn has to say is one write already.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Tells whether `addr` could be bound by one process alone.
///
/// # Errors
/// When somebody listens there already, or the address cannot be had at all.
pub(crate) fn check_free(addr: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())
}

/// What accepting led to.
pub(super) enum Accept {
    /// A connection, non-blocking.
    Socket(OwnedFd),
    /// Nobody waits.
    Empty,
    /// The process or the system has no descriptor left.
    NoDescriptors,
}

/// Accepts one connection, without waiting.
pub(super) fn accept(listener: &TcpListener) -> Accept {
    use rustix::io::Errno;
    match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(fd) => Accept::Socket(fd),
        Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Accept::NoDescriptors,
        // A connection that went away while it waited is no reason to stop before the next event.
        Err(_) => Accept::Empty,
    }
}
