//! Two things about sockets that the libraries do not offer: waiting for bytes without a buffer on a connection whose
//! writing half is in other hands, and leaving the choice of the port to `connect`.
//!
//! The one module of this program with `unsafe`.
#![expect(unsafe_code, reason = "the read half hides the stream that can be polled; socket2 lacks the option")]

use std::{io, os::fd::AsRawFd as _};

use monoio::{io::OwnedReadHalf, net::TcpStream};
use socket2::Socket;

/// Waits until a read would not block. Takes no buffer.
pub(super) async fn readable(reader: &OwnedReadHalf<TcpStream>) -> io::Result<()> {
    // SAFETY: the cell is alive as long as `reader`, which this future borrows, and all its users are on this thread.
    // `readable` touches the stream only when first polled, to clone its descriptor: no other half runs in between, and
    // after that nothing goes through this reference. The halves' own `read` and `write` do the same mutably.
    let stream = unsafe { &*reader.0.get() };
    stream.readable(false).await
}

/// Lets `bind` fix only the address: `connect` then picks a port that is free towards its peer (`ip(7)`).
///
/// # Errors
/// Those of `setsockopt`.
pub(super) fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let on_bytes = libc::socklen_t::try_from(size_of_val(&on)).expect("an int is small");
    // SAFETY: the descriptor is open as long as `socket`; the pointer is to an int that outlives the call, whose size is
    // the one given; the kernel only reads it.
    let result = unsafe {
        let option = libc::IP_BIND_ADDRESS_NO_PORT;
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, (&raw const on).cast(), on_bytes)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
