//! The rules of RFC 6455 as a table: bytes on the wire, and what a decoder makes of them.

use rtc_websocket::decoder::EMPTY_FRAGMENTS_MAX;
use rtc_websocket::frame::HEADER_BYTES_MAX;
use rtc_websocket::{
    CloseCode, CloseFrame, Decoder, Event, FrameHeader, Opcode, ProtocolError, Role, apply_mask, encode_close,
    encode_masked_close,
};

const LIMIT: usize = 1 << 20;
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.into()),
            Event::Binary(bytes) => Self::Binary(bytes.into()),
            Event::Ping(bytes) => Self::Ping(bytes.into()),
            Event::Pong(bytes) => Self::Pong(bytes.into()),
            Event::Close(frame) => Self::Close(frame.map(|frame| (frame.code.number(), frame.reason.into()))),
        }
    }
}

fn text(text: &str) -> Owned {
    Owned::Text(text.into())
}

/// A whole or partial frame as its sender would write it; `first` holds FIN, reserved bits and opcode.
fn frame(role: Role, first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = (role == Role::Server).then_some(KEY);
    let header = FrameHeader { fin: true, opcode: Opcode::Binary, payload_bytes: payload.len() as u64, mask };
    let mut bytes = [0; HEADER_BYTES_MAX];
    let len = header.encode(&mut bytes);
    bytes[0] = first;
    let mut bytes = bytes[..len].to_vec();
    bytes.extend(payload);
    if let Some(key) = mask {
        apply_mask(&mut bytes[len..], key);
    }
    bytes
}

fn decode_all(decoder: &mut Decoder, input: &[u8]) -> (Vec<Owned>, Option<ProtocolError>) {
    let mut input = input.to_vec();
    let mut rest = &mut input[..];
    let mut events = Vec::new();
    while !rest.is_empty() {
        let consumed = match decoder.decode(rest) {
            Ok(step) => {
                events.extend(step.event.map(Owned::from));
                step.consumed
            }
            Err(error) => return (events, Some(error)),
        };
        rest = &mut rest[consumed..];
    }
    (events, None)
}

/// Decodes frames given as (first byte, payload), in both roles: whole, and byte by byte.
fn check(frames: &[(u8, &[u8])], expected_events: &[Owned], expected_error: Option<ProtocolError>) {
    for role in [Role::Server, Role::Client] {
        let bytes: Vec<u8> = frames.iter().flat_map(|(first, payload)| frame(role, *first, payload)).collect();
        check_bytes(role, &bytes, expected_events, expected_error);
    }
}

fn check_bytes(role: Role, bytes: &[u8], expected_events: &[Owned], expected_error: Option<ProtocolError>) {
    let mut decoder = Decoder::new(role, LIMIT);
    let whole = decode_all(&mut decoder, bytes);
    assert_eq!(whole, (expected_events.to_vec(), expected_error), "{role:?} {bytes:x?}");

    let mut decoder = Decoder::new(role, LIMIT);
    let mut events = Vec::new();
    let mut error = None;
    for byte in bytes {
        let (more, failed) = decode_all(&mut decoder, &[*byte]);
        events.extend(more);
        error = error.or(failed);
    }
    assert_eq!((events, error), whole, "byte by byte: {role:?} {bytes:x?}");
}

#[test]
fn whole_messages_are_events() {
    let long = vec![b'*'; 65_536];
    for (frames, expected) in [
        (&[(0x81, &b"Hello"[..])][..], vec![text("Hello")]),
        (&[(0x81, b"")], vec![text("")]),
        (&[(0x81, "κόσμε😀".as_bytes())], vec![text("κόσμε😀")]),
        (&[(0x82, b"")], vec![Owned::Binary(vec![])]),
        (&[(0x82, &[0xff; 126])], vec![Owned::Binary(vec![0xff; 126])]),
        (&[(0x82, &long)], vec![Owned::Binary(long.clone())]),
        (&[(0x89, b"")], vec![Owned::Ping(vec![])]),
        (&[(0x89, &[0xfe; 125])], vec![Owned::Ping(vec![0xfe; 125])]),
        (&[(0x8a, b"unasked")], vec![Owned::Pong(b"unasked".to_vec())]),
        (&[(0x81, b"a"), (0x89, b"b"), (0x81, b"c")], vec![text("a"), Owned::Ping(b"b".to_vec()), text("c")]),
    ] {
        check(frames, &expected, None);
    }
}

#[test]
fn fragments_are_one_message_and_control_frames_pass_between_them() {
    check(&[(0x01, b"Hel"), (0x80, b"lo")], &[text("Hello")], None);
    check(&[(0x02, b"a"), (0x00, b"b"), (0x80, b"c")], &[Owned::Binary(b"abc".to_vec())], None);
    check(&[(0x01, b""), (0x00, b""), (0x80, b"")], &[text("")], None);
    check(
        &[(0x01, b"a"), (0x89, b"1"), (0x8a, b""), (0x00, b"b"), (0x89, b"2"), (0x80, b"c"), (0x81, b"d")],
        &[Owned::Ping(b"1".to_vec()), Owned::Pong(vec![]), Owned::Ping(b"2".to_vec()), text("abc"), text("d")],
        None,
    );
    // A character may be cut by a fragment's end, with a control frame inside it.
    check(
        &[(0x01, b"\xf0\x9f"), (0x89, b"\xff"), (0x00, b"\x98"), (0x80, b"\x80")],
        &[Owned::Ping(b"\xff".to_vec()), text("😀")],
        None,
    );
    check(&[(0x01, b"a"), (0x88, b"")], &[Owned::Close(None)], None);
}

#[test]
fn what_the_rfc_forbids_fails_with_its_close_code() {
    use ProtocolError as E;

    let long = vec![0; 65_536];
    let protocol = CloseCode::PROTOCOL_ERROR;
    let invalid = CloseCode::INVALID_PAYLOAD;
    for (frames, error, code) in [
        // §5.2: reserved bits, alone and with others, on data and control frames.
        (&[(0xc1, &b"a"[..])][..], E::ReservedBitsSet, protocol),
        (&[(0xa1, b"a")], E::ReservedBitsSet, protocol),
        (&[(0x91, b"a")], E::ReservedBitsSet, protocol),
        (&[(0xf9, b"")], E::ReservedBitsSet, protocol),
        // §5.2: reserved opcodes.
        (&[(0x83, b"")], E::UnknownOpcode(3), protocol),
        (&[(0x87, b"a")], E::UnknownOpcode(7), protocol),
        (&[(0x8b, b"")], E::UnknownOpcode(11), protocol),
        (&[(0x8f, b"a")], E::UnknownOpcode(15), protocol),
        // §5.5: control frames.
        (&[(0x09, b"a")], E::FragmentedControl, protocol),
        (&[(0x08, b"")], E::FragmentedControl, protocol),
        (&[(0x89, &[0; 126])], E::ControlTooLong, protocol),
        (&[(0x88, &long)], E::ControlTooLong, protocol),
        // §5.4: fragments.
        (&[(0x80, b"a")], E::UnexpectedContinuation, protocol),
        (&[(0x00, b"a")], E::UnexpectedContinuation, protocol),
        (&[(0x01, b"a"), (0x81, b"b")], E::ExpectedContinuation, protocol),
        (&[(0x01, b"a"), (0x02, b"b")], E::ExpectedContinuation, protocol),
        // §8.1: text.
        (&[(0x81, b"\xff")], E::InvalidUtf8, invalid),
        (&[(0x81, b"\xed\xa0\x80")], E::InvalidUtf8, invalid),
        (&[(0x81, b"\xc0\xaf")], E::InvalidUtf8, invalid),
        (&[(0x81, b"\xf4\x90\x80\x80")], E::InvalidUtf8, invalid),
        (&[(0x81, b"cut \xe2\x82")], E::InvalidUtf8, invalid),
        (&[(0x01, b"\xe2"), (0x80, b"\x82")], E::InvalidUtf8, invalid),
        (&[(0x01, b"\xe2"), (0x80, b"")], E::InvalidUtf8, invalid),
        // §5.5.1 and §7.4: close frames.
        (&[(0x88, b"\x03")], E::CloseTooShort, protocol),
        (&[(0x88, b"\x00\x00")], E::InvalidCloseCode(0), protocol),
        (&[(0x88, b"\x03\xe7")], E::InvalidCloseCode(999), protocol),
        (&[(0x88, b"\x03\xec")], E::InvalidCloseCode(1004), protocol),
        (&[(0x88, b"\x03\xed")], E::InvalidCloseCode(1005), protocol),
        (&[(0x88, b"\x03\xee")], E::InvalidCloseCode(1006), protocol),
        (&[(0x88, b"\x03\xf7")], E::InvalidCloseCode(1015), protocol),
        (&[(0x88, b"\x0b\xb7")], E::InvalidCloseCode(2999), protocol),
        (&[(0x88, b"\x13\x88")], E::InvalidCloseCode(5000), protocol),
        (&[(0x88, b"\x03\xe8\xff")], E::InvalidUtf8, invalid),
    ] {
        check(frames, &[], Some(error));
        assert_eq!(error.close_code(), code, "{error}");
    }
}

#[test]
fn each_role_insists_on_its_masking() {
    check_bytes(Role::Server, b"\x81\x05Hello", &[], Some(ProtocolError::UnmaskedFrame));
    check_bytes(Role::Client, &frame(Role::Server, 0x81, b"Hello"), &[], Some(ProtocolError::MaskedFrame));
}

#[test]
fn lengths_are_refused_from_the_header_with_nothing_held() {
    for (header, expected, code) in [
        (&b"\x82\x7f\x80\0\0\0\0\0\0\0"[..], ProtocolError::LengthTopBitSet, 1002),
        (b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", ProtocolError::LengthTopBitSet, 1002),
        (b"\x82\x7f\0\0\0\0\0\0\xff\xff", ProtocolError::LengthNotMinimal, 1002),
        (b"\x82\x7f\0\0\0\0\0\0\0\x01", ProtocolError::LengthNotMinimal, 1002),
        (b"\x82\x7e\0\x7d", ProtocolError::LengthNotMinimal, 1002),
        (
            b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
            ProtocolError::MessageTooLong { bytes: (1 << 63) - 1, limit: LIMIT },
            1009,
        ),
        (
            b"\x82\x7f\0\0\0\0\0\x10\0\x01",
            ProtocolError::MessageTooLong { bytes: LIMIT as u64 + 1, limit: LIMIT },
            1009,
        ),
    ] {
        check_bytes(Role::Client, header, &[], Some(expected));
        assert_eq!(expected.close_code().number(), code);
        let mut decoder = Decoder::new(Role::Client, LIMIT);
        let _ = decode_all(&mut decoder, header);
        assert_eq!(decoder.held_bytes(), 0);
    }
}

#[test]
fn an_announced_length_reserves_nothing() {
    let mut decoder = Decoder::new(Role::Client, LIMIT);
    let (events, error) = decode_all(&mut decoder, b"\x82\x7f\0\0\0\0\0\x10\0\0");
    assert_eq!((events.len(), error, decoder.held_bytes()), (0, None, 0));
    let _ = decode_all(&mut decoder, b"*");
    assert!(decoder.held_bytes() <= 4096, "{}", decoder.held_bytes());
}

#[test]
fn the_limit_counts_all_fragments_of_a_message_and_no_control_frame() {
    let half = vec![b'a'; LIMIT / 2];
    let whole = "a".repeat(LIMIT);
    check(&[(0x81, whole.as_bytes())], &[text(&whole)], None);
    let ping = Owned::Ping(b"ping".to_vec());
    for role in [Role::Server, Role::Client] {
        let frames =
            |last: &[u8]| [frame(role, 0x01, &half), frame(role, 0x89, b"ping"), frame(role, 0x80, last)].concat();
        let mut decoder = Decoder::new(role, LIMIT);
        assert_eq!(decode_all(&mut decoder, &frames(&half)), (vec![ping.clone(), text(&whole)], None));
        let too_long = ProtocolError::MessageTooLong { bytes: LIMIT as u64 + 1, limit: LIMIT };
        let one_more = vec![b'a'; LIMIT / 2 + 1];
        let mut decoder = Decoder::new(role, LIMIT);
        assert_eq!(decode_all(&mut decoder, &frames(&one_more)), (vec![ping.clone()], Some(too_long)));
        assert_eq!(decoder.held_bytes(), 0);
    }
    // A control frame is taken even where no message would be.
    let mut decoder = Decoder::new(Role::Client, 0);
    assert_eq!(decode_all(&mut decoder, b"\x89\x04ping"), (vec![ping.clone()], None));
    assert_eq!(decode_all(&mut decoder, b"\x89"), (vec![], None));
    assert_eq!(decode_all(&mut decoder, b"\x04ping"), (vec![ping], None));
}

#[test]
fn empty_fragments_are_limited_only_in_a_row() {
    let limit = usize::from(EMPTY_FRAGMENTS_MAX);
    let empty = vec![(0x00, &b""[..]); limit];
    let too_many = ProtocolError::TooManyEmptyFragments { limit: EMPTY_FRAGMENTS_MAX };
    check(
        &[&[(0x01, &b"a"[..])], &empty[..], &[(0x00, b"b")], &empty[..], &[(0x80, b"c")]].concat(),
        &[text("abc")],
        None,
    );
    check(&[&[(0x01, &b"a"[..])], &empty[..], &[(0x80, b"")]].concat(), &[], Some(too_many));
    check(&[&[(0x01, &b""[..])], &empty[..]].concat(), &[], Some(too_many));
}

#[test]
fn a_bad_byte_fails_before_its_frame_ends() {
    for (announced, arrived) in
        [(b"\x81\x7d", &b"ok\xff"[..]), (b"\x01\x7d", b"ok\xed\xa0"), (b"\x81\x7d", b"\xf4\x90")]
    {
        let mut decoder = Decoder::new(Role::Client, LIMIT);
        let (events, error) = decode_all(&mut decoder, &[&announced[..], arrived].concat());
        assert_eq!((events, error), (vec![], Some(ProtocolError::InvalidUtf8)));
    }
}

#[test]
fn after_a_close_or_an_error_everything_is_ignored() {
    for (last, is_error) in [(&b"\x88\x02\x03\xe8"[..], false), (b"\x83\x00", true)] {
        let mut decoder = Decoder::new(Role::Client, LIMIT);
        let (events, error) = decode_all(&mut decoder, last);
        assert_eq!((events.len(), error.is_some()), (usize::from(!is_error), is_error));
        assert!(decoder.is_closed() && !decoder.is_between_messages());
        assert_eq!(decode_all(&mut decoder, b"\x81\x05Hello\xff\xff"), (vec![], None));
        assert_eq!(decoder.held_bytes(), 0);
    }
}

#[test]
fn a_close_frame_carries_code_and_reason_both_ways() {
    let expected =
        Event::Close(Some(CloseFrame { code: CloseCode::SERVICE_RESTART, reason: "drain;delay=1830;node=n7" }));
    let mut out = Vec::new();
    encode_close(&mut out, CloseCode::SERVICE_RESTART, "drain;delay=1830;node=n7");
    assert_eq!(Decoder::new(Role::Client, 0).decode(&mut out).unwrap().event, Some(expected));
    out.clear();
    encode_masked_close(&mut out, CloseCode::SERVICE_RESTART, "drain;delay=1830;node=n7", KEY);
    assert_eq!(Decoder::new(Role::Server, 0).decode(&mut out).unwrap().event, Some(expected));
}

#[test]
fn a_decoder_between_messages_holds_nothing() {
    let mut decoder = Decoder::new(Role::Client, LIMIT);
    for (input, is_between) in [
        (&b""[..], true),
        (b"\x81\x05Hello", true),
        (b"\x81", false),
        (b"\x02", false),
        (b"He", true),
        (b"\x01\x01a", false),
        (b"\x89\x01", false),
        (b"b", false),
        (b"\x80\x01c", true),
        (b"\x89\x04pi", false),
        (b"ng", true),
    ] {
        let _ = decode_all(&mut decoder, input);
        assert_eq!(decoder.is_between_messages(), is_between, "{input:x?}");
    }
    // What was delivered last is freed by the next call.
    let _ = decoder.decode(&mut []);
    assert_eq!(decoder.held_bytes(), 0);
}
