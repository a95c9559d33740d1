//! The wire has no edges: bytes cut anywhere give the same events, and never hold more than the limit.

use proptest::prelude::*;
use rtc_websocket::frame::{CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX};
use rtc_websocket::{
    Decoder, Event, FrameHeader, Opcode, ProtocolError, Role, apply_mask, encode_frame, encode_masked_frame,
};

const LIMIT: usize = 4096;

type Outcome = (Vec<(Opcode, Vec<u8>)>, Option<ProtocolError>);

/// One frame to write; `fin` false for all fragments but the last.
#[derive(Clone, Debug)]
struct Frame {
    fin: bool,
    opcode: Opcode,
    payload: Vec<u8>,
}

impl Frame {
    fn new(fin: bool, opcode: Opcode, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin, opcode, payload: payload.into() }
    }

    fn write(&self, role: Role, key: [u8; 4], out: &mut Vec<u8>) {
        let mask = (role == Role::Server).then_some(key);
        let header = FrameHeader { fin: self.fin, opcode: self.opcode, payload_bytes: self.payload.len() as u64, mask };
        let mut bytes = [0; HEADER_BYTES_MAX];
        let len = header.encode(&mut bytes);
        out.extend_from_slice(&bytes[..len]);
        let start = out.len();
        out.extend_from_slice(&self.payload);
        if let Some(key) = mask {
            apply_mask(&mut out[start..], key);
        }
    }
}

/// Every kind of frame, every form of length, characters and messages cut by frames.
fn script(role: Role) -> Vec<u8> {
    let frames = [
        Frame::new(true, Opcode::Text, "Hello"),
        Frame::new(true, Opcode::Binary, vec![0xa5; 16]),
        Frame::new(true, Opcode::Text, ""),
        Frame::new(false, Opcode::Text, b"\xce\xba\xe1\xbd".to_vec()),
        Frame::new(true, Opcode::Ping, "between"),
        Frame::new(false, Opcode::Continuation, ""),
        Frame::new(false, Opcode::Continuation, b"\xb9\xf0\x9f\x98".to_vec()),
        Frame::new(true, Opcode::Pong, vec![0xff; 125]),
        Frame::new(true, Opcode::Continuation, b"\x80.".to_vec()),
        Frame::new(true, Opcode::Binary, (0..=255).collect::<Vec<u8>>()),
        Frame::new(true, Opcode::Ping, ""),
        Frame::new(true, Opcode::Text, "€".repeat(50)),
        Frame::new(false, Opcode::Binary, "first"),
        Frame::new(true, Opcode::Continuation, ""),
        Frame::new(true, Opcode::Close, b"\x03\xe9bye".to_vec()),
        Frame::new(true, Opcode::Text, "too late"),
    ];
    let mut out = Vec::new();
    for (key_byte, frame) in (0..).zip(&frames) {
        frame.write(role, [7, 0x1f, 0xe0, key_byte], &mut out);
    }
    out
}

fn owned(event: Event<'_>) -> (Opcode, Vec<u8>) {
    match event {
        Event::Text(text) => (Opcode::Text, text.into()),
        Event::Binary(bytes) => (Opcode::Binary, bytes.into()),
        Event::Ping(bytes) => (Opcode::Ping, bytes.into()),
        Event::Pong(bytes) => (Opcode::Pong, bytes.into()),
        Event::Close(frame) => (Opcode::Close, frame.map_or(vec![], |frame| frame.reason.into())),
    }
}

/// Decodes `chunks` one after the other, as reads from a socket would bring them.
fn decode<'a>(role: Role, chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new(role, LIMIT);
    let mut outcome: Outcome = (Vec::new(), None);
    for chunk in chunks {
        let mut input = chunk.to_vec();
        let mut at = 0;
        while at < input.len() {
            let rest = input.len() - at;
            match decoder.decode(&mut input[at..]) {
                Ok(step) => {
                    assert!(step.consumed <= rest);
                    assert!(step.event.is_some() || step.consumed == rest);
                    at += step.consumed;
                    outcome.0.extend(step.event.map(owned));
                }
                Err(error) => {
                    assert_eq!(outcome.1, None, "a decoder fails once");
                    outcome.1 = Some(error);
                }
            }
            assert!(decoder.held_bytes() <= LIMIT + CONTROL_PAYLOAD_BYTES_MAX);
            if decoder.is_between_messages() {
                // Idle connections own no decoder: a new one must go on where this one stopped.
                decoder = Decoder::new(role, LIMIT);
            }
        }
    }
    outcome
}

/// Cuts `bytes` at `cuts`, each taken modulo the length.
fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut offsets: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    offsets.extend([0, bytes.len()]);
    offsets.sort_unstable();
    offsets.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

#[test]
fn the_script_is_read_as_written() {
    use Opcode::{Binary, Close, Ping, Pong, Text};
    for role in [Role::Server, Role::Client] {
        let (events, error) = decode(role, [&script(role)[..]]);
        assert_eq!(error, None);
        let opcodes: Vec<Opcode> = events.iter().map(|(opcode, _)| *opcode).collect();
        assert_eq!(opcodes, [Text, Binary, Text, Ping, Pong, Text, Binary, Ping, Text, Binary, Close]);
        assert_eq!(events[5].1, "κ\u{1f79}😀.".as_bytes());
    }
}

#[test]
fn every_split_gives_the_same_events() {
    for role in [Role::Server, Role::Client] {
        let bytes = script(role);
        let whole = decode(role, [&bytes[..]]);
        for at in 0..=bytes.len() {
            let (front, back) = bytes.split_at(at);
            assert_eq!(decode(role, [front, back]), whole, "{role:?} split at {at}");
        }
        for size in 1..20 {
            assert_eq!(decode(role, bytes.chunks(size)), whole, "{role:?} in chunks of {size}");
        }
    }
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let opcode = prop_oneof![
        4 => Just(Opcode::Continuation),
        2 => Just(Opcode::Text),
        2 => Just(Opcode::Binary),
        1 => Just(Opcode::Ping),
        1 => Just(Opcode::Pong),
    ];
    let byte = prop_oneof![any::<u8>(), Just(b'a'), Just(0xe2), Just(0x82), Just(0xac)];
    let payload = prop_oneof![prop::collection::vec(byte, 0..8), "[a-zé€😀]{0,60}".prop_map(String::into_bytes)];
    (any::<bool>(), opcode, payload).prop_map(|(fin, opcode, payload)| Frame { fin, opcode, payload })
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_script_in_any_cuts_gives_the_same_events(role in any_role(), cuts: Vec<prop::sample::Index>) {
        let bytes = script(role);
        prop_assert_eq!(decode(role, cut(&bytes, &cuts)), decode(role, [&bytes[..]]));
    }

    /// Most such sequences break a rule: the refusal must not depend on the cuts either.
    #[test]
    fn frames_in_any_order_and_any_cuts_have_one_outcome(
        role in any_role(),
        frames in prop::collection::vec(any_frame(), 0..12),
        key: [u8; 4],
        cuts: Vec<prop::sample::Index>,
    ) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(role, key, &mut bytes);
        }
        prop_assert_eq!(decode(role, cut(&bytes, &cuts)), decode(role, [&bytes[..]]));
    }

    /// `decode` asserts the bounds of what is held.
    #[test]
    fn no_bytes_panic_and_cuts_do_not_change_their_outcome(
        role in any_role(),
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80..0x8b_u8, 0_u8..3], 0..300),
        cuts: Vec<prop::sample::Index>,
    ) {
        prop_assert_eq!(decode(role, cut(&bytes, &cuts)), decode(role, [&bytes[..]]));
    }

    #[test]
    fn messages_come_back_as_they_were_sent(
        messages in prop::collection::vec((any::<bool>(), "\\PC{0,200}", any::<[u8; 4]>()), 0..8),
        cuts: Vec<prop::sample::Index>,
    ) {
        let mut to_server = Vec::new();
        let mut to_client = Vec::new();
        let mut expected = Vec::new();
        for (is_text, text, key) in &messages {
            let opcode = if *is_text { Opcode::Text } else { Opcode::Binary };
            encode_masked_frame(&mut to_server, opcode, text.as_bytes(), *key);
            encode_frame(&mut to_client, opcode, text.as_bytes());
            expected.push((opcode, text.clone().into_bytes()));
        }
        prop_assert_eq!(decode(Role::Server, cut(&to_server, &cuts)), (expected.clone(), None));
        prop_assert_eq!(decode(Role::Client, cut(&to_client, &cuts)), (expected, None));
    }

    /// A message that comes in many small fragments is held once, within the limit.
    #[test]
    fn fragments_up_to_the_limit_are_held_within_it(sizes in prop::collection::vec(1_usize..600, 1..30)) {
        let mut bytes = Vec::new();
        let mut total = 0;
        for (index, size) in sizes.iter().enumerate() {
            let opcode = if index == 0 { Opcode::Binary } else { Opcode::Continuation };
            Frame::new(index + 1 == sizes.len(), opcode, vec![0x55; *size]).write(Role::Client, [0; 4], &mut bytes);
            total += size;
        }
        let (events, error) = decode(Role::Client, bytes.chunks(97));
        if total <= LIMIT {
            prop_assert_eq!((events, error), (vec![(Opcode::Binary, vec![0x55; total])], None));
        } else {
            prop_assert!(matches!(error, Some(ProtocolError::MessageTooLong { limit: LIMIT, .. })), "{:?}", error);
        }
    }
}
