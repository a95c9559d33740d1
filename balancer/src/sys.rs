//! The two questions to the Kafka library whose safe face panics on bytes that anyone may write: the only unsafe module
//! of this crate.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};

use rdkafka::TopicPartitionList;
use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_message_headers};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// The headers of a record, in order, by names that need not be text.
pub(crate) fn kafka_headers<'a>(message: &'a BorrowedMessage<'_>) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
    let mut headers = std::ptr::null_mut();
    // SAFETY: the message is alive while it is borrowed; the call reads its headers and stores a pointer to them, which
    // belong to the message.
    let result = unsafe { rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    let mut found = Vec::new();
    if result != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return found;
    }
    loop {
        let (mut name, mut value) = (std::ptr::null::<c_char>(), std::ptr::null::<c_void>());
        let mut len = 0_usize;
        // SAFETY: `headers` was just given to us and lives as long as the message; an index past the last is an error.
        let result =
            unsafe { rd_kafka_header_get_all(headers, found.len(), &raw mut name, &raw mut value, &raw mut len) };
        if result != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            return found;
        }
        // SAFETY: the library ends every name in a zero; it belongs to the message, borrowed for `'a`.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        let value = if value.is_null() {
            None
        } else {
            // SAFETY: the library says that `len` bytes stand at `value`, which belongs to the message, borrowed for `'a`.
            Some(unsafe { std::slice::from_raw_parts(value.cast::<u8>(), len) })
        };
        found.push((name, value));
    }
}

/// What was committed beside the offset of the `index`-th partition of a list.
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
