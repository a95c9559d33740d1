//! A message that did not arrive whole: parts of frames and fragments, appended to one buffer.
//!
//! Text is validated as it arrives, each byte once, and kept as a `String`; up to three bytes of a character that is
//! still incomplete wait beside it. The limit of the message is checked by the decoder, from the header.

use crate::decoder::Event;
use crate::error::ProtocolError;
use crate::utf8;

/// The buffer grows by at least this and by at most as much again as it holds: an announced length reserves nothing.
const GROWTH_BYTES_MIN: usize = 1024;

/// The message being assembled.
#[derive(Debug)]
pub(crate) enum Message {
    Text(TextBuffer),
    Binary(Vec<u8>),
}

impl Message {
    /// Bytes that have arrived.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(buffer) => buffer.text.len() + usize::from(buffer.partial_len),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Bytes of memory behind them.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Text(buffer) => buffer.text.capacity(),
            Self::Binary(bytes) => bytes.capacity(),
        }
    }

    /// Appends unmasked payload. The message will have at most `message_bytes_max` bytes when it is complete.
    pub(crate) fn append(&mut self, payload: &[u8], message_bytes_max: usize) -> Result<(), ProtocolError> {
        let growth = growth(self.len(), self.capacity(), payload.len(), message_bytes_max);
        match self {
            Self::Text(buffer) => {
                buffer.text.reserve_exact(growth);
                buffer.append(payload)
            }
            Self::Binary(bytes) => {
                bytes.reserve_exact(growth);
                bytes.extend_from_slice(payload);
                Ok(())
            }
        }
    }

    /// Judges what only the end can tell: whether the last character is complete.
    pub(crate) fn finish(&self) -> Result<(), ProtocolError> {
        match self {
            Self::Text(buffer) if buffer.partial_len > 0 => Err(ProtocolError::InvalidUtf8),
            Self::Text(_) | Self::Binary(_) => Ok(()),
        }
    }

    pub(crate) fn as_event(&self) -> Event<'_> {
        match self {
            Self::Text(buffer) => Event::Text(&buffer.text),
            Self::Binary(bytes) => Event::Binary(bytes),
        }
    }
}

/// How many bytes to reserve beyond `len`: doubling, so that appending stays linear however small the parts are, yet
/// never past the end of the message.
fn growth(len: usize, capacity: usize, incoming: usize, message_bytes_max: usize) -> usize {
    if capacity - len.min(capacity) >= incoming {
        return 0;
    }
    let room = message_bytes_max.saturating_sub(len);
    len.max(GROWTH_BYTES_MIN).min(room).max(incoming)
}

/// Text so far, all of it valid.
#[derive(Debug, Default)]
pub(crate) struct TextBuffer {
    text: String,
    // Invariant: `partial[..partial_len]` begins one character and does not end it.
    partial: [u8; 4],
    partial_len: u8,
}

impl TextBuffer {
    fn append(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        let payload = self.complete_partial(payload)?;
        let (whole, partial) = payload.split_at(payload.len() - incomplete_tail_len(payload));
        let whole = utf8::validate(whole).ok_or(ProtocolError::InvalidUtf8)?;
        self.text.push_str(whole);
        if !partial.is_empty() {
            // RFC 6455 §8.1: fail at the first byte that no continuation can mend, such as the surrogates' ED A0.
            if !is_character_prefix(partial) {
                return Err(ProtocolError::InvalidUtf8);
            }
            self.partial[..partial.len()].copy_from_slice(partial);
            self.partial_len = u8::try_from(partial.len()).expect("an incomplete character has at most three bytes");
        }
        Ok(())
    }

    /// Feeds the waiting character byte by byte; returns what is left of `payload`.
    fn complete_partial<'a>(&mut self, mut payload: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        while self.partial_len > 0 {
            let Some((&byte, rest)) = payload.split_first() else {
                break;
            };
            payload = rest;
            self.partial[usize::from(self.partial_len)] = byte;
            self.partial_len += 1;
            let partial = &self.partial[..usize::from(self.partial_len)];
            if let Ok(character) = std::str::from_utf8(partial) {
                self.text.push_str(character);
                self.partial_len = 0;
            } else if !is_character_prefix(partial) {
                return Err(ProtocolError::InvalidUtf8);
            }
        }
        Ok(payload)
    }
}

/// Whether further bytes could make `bytes` (one to three of them) a character.
fn is_character_prefix(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

/// Length of the character at the end of `bytes` that is begun there and not ended, or 0.
fn incomplete_tail_len(bytes: &[u8]) -> usize {
    for (index, byte) in bytes.iter().rev().take(3).enumerate() {
        let len = index + 1;
        let needed = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            // ASCII is complete; F8 and above are for the validator to refuse.
            _ => return 0,
        };
        return if needed > len { len } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many bytes of `bytes`, fed one at a time, are taken before the refusal; `None` when all are.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut buffer = TextBuffer::default();
        bytes.iter().position(|byte| buffer.append(&[*byte]).is_err())
    }

    #[test]
    fn a_bad_byte_is_refused_when_it_arrives() {
        for (bytes, expected) in [
            (&b"ascii"[..], None),
            ("\u{3ba}\u{1f78}\u{20ac}\u{10ffff}".as_bytes(), None),
            (b"\xff", Some(0)),
            (b"\x80", Some(0)),
            (b"\xc0", Some(0)),
            (b"\xf5", Some(0)),
            (b"a\xc3\x28", Some(2)),
            (b"\xe0\x80", Some(1)),
            (b"\xed\xa0\x80", Some(1)),
            (b"\xf4\x90\x80\x80", Some(1)),
            (b"\xf0\x80\x80\x80", Some(1)),
            (b"\xf0\x9f\x98\x28", Some(3)),
        ] {
            assert_eq!(refused_at(bytes), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn growth_doubles_and_stops_at_the_end_of_the_message() {
        assert_eq!(growth(0, 0, 1, usize::MAX), GROWTH_BYTES_MIN);
        assert_eq!(growth(0, 0, 1, 100), 100);
        assert_eq!(growth(4096, 4096, 1, usize::MAX), 4096);
        assert_eq!(growth(4096, 4096, 1, 5000), 904);
        assert_eq!(growth(10, 4096, 100, 5000), 0);
        assert_eq!(growth(10, 16, 100_000, 200_000), 100_000);
    }

    proptest! {
        #[test]
        fn parts_are_judged_as_the_whole(parts in prop::collection::vec(prop::collection::vec(
            prop_oneof![any::<u8>(), Just(b'a'), Just(0xe2), Just(0x82), Just(0xac), Just(0xf0), Just(0x9f)], 0..9), 0..9))
        {
            let whole = parts.concat();
            let mut buffer = TextBuffer::default();
            let result = parts.iter().try_for_each(|part| buffer.append(part));
            match std::str::from_utf8(&whole) {
                Ok(text) => {
                    prop_assert_eq!(result, Ok(()));
                    prop_assert_eq!(&buffer.text, text);
                    prop_assert_eq!(buffer.partial_len, 0);
                }
                Err(error) => {
                    prop_assert_eq!(result.is_err(), error.error_len().is_some());
                    if result.is_ok() {
                        prop_assert_eq!(buffer.text.as_bytes(), &whole[..error.valid_up_to()]);
                        prop_assert_eq!(usize::from(buffer.partial_len), whole.len() - error.valid_up_to());
                    }
                }
            }
        }
    }
}
