//! The few system calls that have no safe face elsewhere: the only unsafe module of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// Takes the descriptor back from a stream that has no operation in flight.
pub(crate) fn take_fd(stream: monoio::net::TcpStream) -> OwnedFd {
    let fd = stream.into_raw_fd();
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, and nothing else holds it:
    // monoio panics there if an operation still had a share in it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Switches transparent huge pages off for this process: they double the memory of an idle session,
/// because the allocator's sparse pages get rounded up to 2 MiB each.
///
/// # Errors
/// Where the kernel has no such option; the node runs all the same.
pub(crate) fn disable_huge_pages() -> io::Result<()> {
    // SAFETY: the option takes plain integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
