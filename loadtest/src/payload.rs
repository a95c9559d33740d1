//! What the messages carry so that a recipient can account for them: who sent it, which one it is, when it was due,
//! and a checksum.
//!
//! Two shapes: the binary [`EchoStamp`] and the JSON [`MessageTemplate`] of the client protocol. Fixed widths
//! throughout, so that composing is copying and patching. No sockets, no clock.

use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Nanos;

/// The smallest echo payload: one word of identity, one of checksum.
pub(crate) const ECHO_BYTES_MIN: usize = 16;

/// Bits of the stamp's first word that hold the sequence; the connection has the rest.
const ECHO_SEQUENCE_BITS: u32 = 40;
/// Connections an echo stamp can tell apart.
pub(crate) const ECHO_CONNECTIONS_MAX: u32 = 1 << (64 - ECHO_SEQUENCE_BITS);

/// An echo payload: `connection << 40 | sequence: u64 LE`, a checksum of that word: `u64 LE`, a constant filling.
#[derive(Debug)]
pub(crate) struct EchoStamp {
    payload: Vec<u8>,
    seed: u64,
}

impl EchoStamp {
    /// Payloads of `bytes` (at least [`ECHO_BYTES_MIN`]) whose filling and checksums follow from `seed`.
    pub(crate) fn new(bytes: usize, seed: u64) -> Self {
        assert!(bytes >= ECHO_BYTES_MIN);
        let mut random = Random::new(seed);
        let mut payload = vec![0; bytes];
        payload[ECHO_BYTES_MIN..].fill_with(|| random.next_u64().to_le_bytes()[0]);
        Self { payload, seed }
    }

    /// The payload of message `sequence` of `connection`.
    pub(crate) fn compose(&mut self, connection: u32, sequence: u64) -> &[u8] {
        debug_assert!(connection < ECHO_CONNECTIONS_MAX);
        let word = u64::from(connection) << ECHO_SEQUENCE_BITS | sequence & ((1 << ECHO_SEQUENCE_BITS) - 1);
        self.payload[0..8].copy_from_slice(&word.to_le_bytes());
        self.payload[8..16].copy_from_slice(&finalize(word ^ self.seed).to_le_bytes());
        &self.payload
    }

    /// The connection and sequence of a payload that came back, or `None` if any byte of it changed.
    pub(crate) fn verify(&self, payload: &[u8]) -> Option<(u32, u64)> {
        let (&word, rest) = payload.split_first_chunk::<8>()?;
        let (&checksum, filling) = rest.split_first_chunk::<8>()?;
        let word = u64::from_le_bytes(word);
        let is_whole =
            u64::from_le_bytes(checksum) == finalize(word ^ self.seed) && filling == &self.payload[ECHO_BYTES_MIN..];
        let connection = u32::try_from(word >> ECHO_SEQUENCE_BITS).ok()?;
        is_whole.then_some((connection, word & ((1 << ECHO_SEQUENCE_BITS) - 1)))
    }
}

/// The finalizer of splitmix64: every bit of the result depends on every bit of `value`.
fn finalize(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Cheap repeatable randomness for fillings and mask keys (splitmix64). RFC 6455 §5.3 asks for unpredictable keys to
/// protect proxies from hostile scripts; a load generator's payloads are its own.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        finalize(self.0)
    }

    /// A number below `limit`, or 0 where that is 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        let product = u128::from(self.next_u64()) * u128::from(limit);
        u64::try_from(product >> 64).expect("below the limit")
    }

    /// The mask key of one frame.
    pub(crate) fn mask_key(&mut self) -> [u8; 4] {
        let bytes = self.next_u64().to_le_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3]]
    }
}

/// A virtual client: its place among all clients of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientIndex(pub(crate) u32);

/// Which run a message belongs to; part of every client id, so that nothing left by an earlier run can arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunId(pub(crate) u32);

impl RunId {
    /// The run's identity follows from its seed.
    pub(crate) fn from_seed(seed: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits will do")]
        Self(finalize(seed) as u32)
    }

    /// The id with which `client` connects: `lt-<run>-<index>`, both eight hexadecimal digits.
    pub(crate) fn client_id(self, client: ClientIndex) -> String {
        format!("lt-{:08x}-{:08x}", self.0, client.0)
    }
}

const CLIENT_ID_BYTES: usize = 20;
const SEQUENCE_DIGITS: usize = 10;
const MSG_ID_BYTES: usize = 8 + 1 + SEQUENCE_DIGITS;

// The message around its variable fields, each of fixed width:
// {"type":"message","msgId":"<sender>-<sequence>","toClientId":"<id>","payload":"<run>.<sender>.<sequence>.<due>.<late>.<filling>.<checksum>"}
const BEFORE_MSG_ID: &str = r#"{"type":"message","msgId":""#;
const BEFORE_TO: &str = r#"","toClientId":""#;
const BEFORE_PAYLOAD: &str = r#"","payload":""#;
const AFTER_PAYLOAD: &str = r#""}"#;

const MSG_ID_AT: usize = BEFORE_MSG_ID.len();
const TO_AT: usize = MSG_ID_AT + MSG_ID_BYTES + BEFORE_TO.len();
const PAYLOAD_AT: usize = TO_AT + CLIENT_ID_BYTES + BEFORE_PAYLOAD.len();

// Within the payload.
const RUN_AT: usize = 0;
const SENDER_AT: usize = RUN_AT + 8 + 1;
const SEQUENCE_AT: usize = SENDER_AT + 8 + 1;
const DUE_AT: usize = SEQUENCE_AT + SEQUENCE_DIGITS + 1;
const DUE_DIGITS: usize = 14;
const LATE_AT: usize = DUE_AT + DUE_DIGITS + 1;
const LATE_DIGITS: usize = 8;
const FILLING_AT: usize = LATE_AT + LATE_DIGITS + 1;
const CHECKSUM_DIGITS: usize = 8;
const STAMP_BYTES_MIN: usize = FILLING_AT + 1 + CHECKSUM_DIGITS;

/// The smallest p2p message: the envelope around an empty filling.
pub(crate) const MESSAGE_BYTES_MIN: usize = PAYLOAD_AT + STAMP_BYTES_MIN + AFTER_PAYLOAD.len();

/// What a p2p payload says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) sender: ClientIndex,
    pub(crate) sequence: u64,
    /// When the message was due, on the sender's clock.
    pub(crate) due: Nanos,
    /// How long after that it left; saturates at 4.3 s.
    pub(crate) late: u32,
}

/// Composes the JSON messages of a worker and verifies what arrives.
#[derive(Debug)]
pub(crate) struct MessageTemplate {
    text: Vec<u8>,
    run: RunId,
}

impl MessageTemplate {
    /// Messages of `bytes` (at least [`MESSAGE_BYTES_MIN`]) in all.
    pub(crate) fn new(bytes: usize, run: RunId, seed: u64) -> Self {
        assert!(bytes >= MESSAGE_BYTES_MIN);
        let mut random = Random::new(seed);
        let mut text = Vec::with_capacity(bytes);
        text.extend_from_slice(BEFORE_MSG_ID.as_bytes());
        text.extend_from_slice(b"00000000-0000000000");
        text.extend_from_slice(BEFORE_TO.as_bytes());
        text.extend_from_slice(run.client_id(ClientIndex(0)).as_bytes());
        text.extend_from_slice(BEFORE_PAYLOAD.as_bytes());
        text.extend_from_slice(format!("{:08x}.00000000.0000000000.00000000000000.00000000.", run.0).as_bytes());
        let filling_bytes = bytes - MESSAGE_BYTES_MIN;
        // Letters only: they need no escape, and a shifted or torn copy does not look like the original.
        text.extend((0..filling_bytes).map(|_| b'a' + random.next_u64().to_le_bytes()[0] % 26));
        text.extend_from_slice(b".00000000");
        text.extend_from_slice(AFTER_PAYLOAD.as_bytes());
        debug_assert_eq!(text.len(), bytes);
        Self { text, run }
    }

    /// The message with this stamp to `recipient`.
    pub(crate) fn compose(&mut self, stamp: Stamp, recipient: ClientIndex) -> &[u8] {
        let text = self.text.as_mut_slice();
        write_hex(&mut text[MSG_ID_AT..MSG_ID_AT + 8], u64::from(stamp.sender.0));
        write_hex(&mut text[MSG_ID_AT + 9..MSG_ID_AT + MSG_ID_BYTES], stamp.sequence);
        let index_at = TO_AT + CLIENT_ID_BYTES - 8;
        write_hex(&mut text[index_at..index_at + 8], u64::from(recipient.0));
        let end = text.len() - AFTER_PAYLOAD.len();
        let payload = &mut text[PAYLOAD_AT..end];
        write_hex(&mut payload[SENDER_AT..SENDER_AT + 8], u64::from(stamp.sender.0));
        write_hex(&mut payload[SEQUENCE_AT..SEQUENCE_AT + SEQUENCE_DIGITS], stamp.sequence);
        write_hex(&mut payload[DUE_AT..DUE_AT + DUE_DIGITS], stamp.due);
        write_hex(&mut payload[LATE_AT..LATE_AT + LATE_DIGITS], u64::from(stamp.late));
        let (body, checksum) = payload.split_at_mut(payload.len() - CHECKSUM_DIGITS);
        write_hex(checksum, checksum_of(body));
        &self.text
    }

    /// Reads a payload that arrived, or `None` if it is not as it was sent.
    pub(crate) fn verify(&self, payload: &[u8]) -> Option<Stamp> {
        let sent_bytes = self.text.len() - PAYLOAD_AT - AFTER_PAYLOAD.len();
        if payload.len() != sent_bytes {
            return None;
        }
        let (body, checksum) = payload.split_at(payload.len() - CHECKSUM_DIGITS);
        let is_whole =
            read_hex(checksum)? == checksum_of(body) && read_hex(&body[RUN_AT..RUN_AT + 8])? == u64::from(self.run.0);
        if !is_whole {
            return None;
        }
        Some(Stamp {
            sender: ClientIndex(read_hex_u32(&body[SENDER_AT..SENDER_AT + 8])?),
            sequence: read_hex(&body[SEQUENCE_AT..SEQUENCE_AT + SEQUENCE_DIGITS])?,
            due: read_hex(&body[DUE_AT..DUE_AT + DUE_DIGITS])?,
            late: read_hex_u32(&body[LATE_AT..LATE_AT + LATE_DIGITS])?,
        })
    }
}

/// The sequence in a `msgId` of `sender`, or `None` if it is no message of theirs.
pub(crate) fn sequence_of(msg_id: &[u8], sender: ClientIndex) -> Option<u64> {
    if msg_id.len() != MSG_ID_BYTES || msg_id[8] != b'-' || read_hex_u32(&msg_id[..8])? != sender.0 {
        return None;
    }
    read_hex(&msg_id[9..])
}

fn checksum_of(body: &[u8]) -> u64 {
    xxh3_64(body) & 0xFFFF_FFFF
}

/// Fills `digits` with the low digits of `value`.
fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

fn read_hex_u32(digits: &[u8]) -> Option<u32> {
    read_hex(digits).and_then(|value| u32::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 42;

    proptest! {
        #[test]
        fn an_echo_reads_back(bytes in ECHO_BYTES_MIN..200, connection in 0..ECHO_CONNECTIONS_MAX, sequence in 0u64..1 << 40) {
            let mut stamp = EchoStamp::new(bytes, SEED);
            let payload = stamp.compose(connection, sequence).to_vec();
            prop_assert_eq!(payload.len(), bytes);
            prop_assert_eq!(stamp.verify(&payload), Some((connection, sequence)));
        }

        #[test]
        fn an_echo_with_a_changed_byte_is_noticed(bytes in ECHO_BYTES_MIN..200, at: prop::sample::Index, flip in 1u8..) {
            let mut stamp = EchoStamp::new(bytes, SEED);
            let mut payload = stamp.compose(3, 4).to_vec();
            payload[at.index(bytes)] ^= flip;
            prop_assert_eq!(stamp.verify(&payload), None);
        }

        #[test]
        fn a_message_reads_back(bytes in MESSAGE_BYTES_MIN..400, sender: u32, sequence in 0u64..1 << 40, due in 0u64..1 << 56, late: u32) {
            let mut template = MessageTemplate::new(bytes, RunId(7), SEED);
            let stamp = Stamp { sender: ClientIndex(sender), sequence, due, late };
            let text = template.compose(stamp, ClientIndex(9)).to_vec();
            prop_assert_eq!(text.len(), bytes);
            let json: sonic_rs::Value = sonic_rs::from_slice(&text).unwrap();
            let field = |name: &str| sonic_rs::JsonValueTrait::as_str(&json[name]).unwrap().to_owned();
            prop_assert_eq!(field("toClientId"), RunId(7).client_id(ClientIndex(9)));
            prop_assert_eq!(sequence_of(field("msgId").as_bytes(), ClientIndex(sender)), Some(sequence));
            prop_assert_eq!(template.verify(field("payload").as_bytes()), Some(stamp));
        }

        #[test]
        fn a_message_with_a_changed_byte_is_noticed(at: prop::sample::Index, flip in 1u8..) {
            let mut template = MessageTemplate::new(200, RunId(7), SEED);
            let stamp = Stamp { sender: ClientIndex(1), sequence: 2, due: 3, late: 4 };
            let text = template.compose(stamp, ClientIndex(0)).to_vec();
            let mut payload = text[PAYLOAD_AT..text.len() - AFTER_PAYLOAD.len()].to_vec();
            let at = at.index(payload.len());
            payload[at] ^= flip;
            prop_assert_eq!(template.verify(&payload), None);
        }

        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            EchoStamp::new(64, SEED).verify(&payload);
            MessageTemplate::new(MESSAGE_BYTES_MIN, RunId(7), SEED).verify(&payload);
            sequence_of(&payload, ClientIndex(1));
        }
    }

    #[test]
    fn a_message_of_another_run_is_not_ours() {
        let stamp = Stamp { sender: ClientIndex(1), sequence: 2, due: 3, late: 4 };
        let mut other = MessageTemplate::new(200, RunId(8), SEED);
        let text = other.compose(stamp, ClientIndex(0)).to_vec();
        let payload = &text[PAYLOAD_AT..text.len() - AFTER_PAYLOAD.len()];
        assert_eq!(MessageTemplate::new(200, RunId(7), SEED).verify(payload), None);
    }

    #[test]
    fn two_hundred_bytes_are_enough_for_a_message() {
        const { assert!(MESSAGE_BYTES_MIN <= 200) }
    }
}
