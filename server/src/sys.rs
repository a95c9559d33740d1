//! The few system calls that have no safe face elsewhere: the only unsafe module of this crate.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rdkafka::bindings::{rd_kafka_brokers_add, rd_kafka_header_get_last, rd_kafka_message_headers};
use rdkafka::client::Client;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Takes the descriptor back from a stream that has no operation in flight.
pub(crate) fn take_fd(stream: monoio::net::TcpStream) -> OwnedFd {
    let fd = stream.into_raw_fd();
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, and nothing else holds it:
    // monoio panics there if an operation still had a share in it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// True when the peer of an open socket has closed its end.
pub(crate) fn has_peer_left(socket: &impl AsRawFd) -> bool {
    // SAFETY: whoever lends the socket keeps it open for the length of this call, and the borrow ends with it.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&at_once)).is_ok()
        && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
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

/// The last header of a record with this name. The safe face of the library panics on a record of which any header's name
/// is not UTF-8, and anyone who may write to a topic can write such a record.
pub(crate) fn kafka_header<'a>(message: &'a BorrowedMessage<'_>, name: &CStr) -> Option<&'a [u8]> {
    let mut headers = std::ptr::null_mut();
    // SAFETY: the message is alive while it is borrowed; the call reads its headers and stores a pointer to them, which
    // belong to the message.
    let result = unsafe { rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if result != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return None;
    }
    let (mut value, mut len) = (std::ptr::null::<c_void>(), 0usize);
    // SAFETY: `headers` was just given to us and lives as long as the message; the name ends in a zero.
    let result = unsafe { rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut len) };
    if result != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    if value.is_null() || len == 0 {
        return Some(&[]);
    }
    // SAFETY: the library says that `len` bytes stand at `value`, which belongs to the message, borrowed for `'a`.
    Some(unsafe { std::slice::from_raw_parts(value.cast::<u8>(), len) })
}

/// Gives a client these brokers (`HOST:PORT,…`). One that it has already stays one.
pub(crate) fn add_kafka_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client is alive while it is borrowed, and any thread may do this to it; the text ends in a zero and is
    // copied.
    unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}

/// What was committed beside the offset of the `index`-th partition of a list. The safe face of the library panics where
/// that is not UTF-8.
pub(crate) fn committed_metadata(list: &TopicPartitionList, index: usize) -> &[u8] {
    if index >= list.count() {
        return &[];
    }
    // SAFETY: the list is alive while it is borrowed, and has more than `index` elements.
    let element = unsafe { &*(*list.ptr()).elems.add(index) };
    if element.metadata.is_null() || element.metadata_size == 0 {
        return &[];
    }
    // SAFETY: the library says that so many bytes stand there; they belong to the list.
    unsafe { std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size) }
}
