//! Any bytes, cut in two ways: the outcome is the same, and what is held stays within the limit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rtc_websocket::{Decoder, ProtocolError, Role};

const LIMIT: usize = 4096;
const CONTROL_BYTES_MAX: usize = 125;

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (is_server, size, bytes) = input;
    let role = if is_server {
        Role::Server
    } else {
        Role::Client
    };
    let parts = decode(role, bytes.chunks(usize::from(size).max(1)));
    assert_eq!(parts, decode(role, std::iter::once(bytes)));
});

fn decode<'a>(
    role: Role,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> (Vec<String>, Option<ProtocolError>) {
    let mut decoder = Decoder::new(role, LIMIT);
    let mut events = Vec::new();
    let mut failure = None;
    for chunk in chunks {
        let mut input = chunk.to_vec();
        let mut rest = &mut input[..];
        while !rest.is_empty() {
            let consumed = match decoder.decode(rest) {
                Ok(step) => {
                    events.extend(step.event.map(|event| format!("{event:?}")));
                    step.consumed
                }
                Err(error) => {
                    failure = Some(error);
                    0
                }
            };
            rest = &mut rest[consumed..];
            assert!(decoder.held_bytes() <= LIMIT + CONTROL_BYTES_MAX);
        }
    }
    (events, failure)
}
