//! UTF-8 of a whole payload. The crate's one place with `unsafe`: ASCII is judged many bytes at a time, and what was
//! judged need not be judged again.
//!
//! For a short ASCII payload, which is what most messages are, the validators of the standard library and of simdutf8
//! cost as much as the rest of the decoder: 17 ns for a masked frame of 16 bytes, 9 ns this way.

#![allow(unsafe_code, reason = "the one audited place")]

/// Longer payloads go to the vector validator at once, which has its own quick way through ASCII: reading twice what
/// turns out to hold an accent would cost more than it saves.
const ASCII_FIRST_BYTES_MAX: usize = 512;

/// The payload as text, or `None` when it is not UTF-8.
#[inline]
pub(crate) fn validate(payload: &[u8]) -> Option<&str> {
    if payload.len() <= ASCII_FIRST_BYTES_MAX && is_ascii(payload) {
        // SAFETY: every byte is below 0x80 (`is_ascii`), and each such byte is a character of UTF-8 by itself.
        return Some(unsafe { std::str::from_utf8_unchecked(payload) });
    }
    simdutf8::basic::from_utf8(payload).ok()
}

/// As `<[u8]>::is_ascii`, without its search for the first other byte: all are read, eight at a time.
#[inline]
fn is_ascii(payload: &[u8]) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = payload.as_chunks::<8>();
    let words = words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word));
    let tail = tail.iter().fold(0, |all, byte| all | byte);
    words & HIGH_BITS == 0 && tail < 0x80
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_other_byte_anywhere_is_no_ascii() {
        for len in 0..=ASCII_FIRST_BYTES_MAX + 1 {
            let mut payload = vec![0x7f; len];
            assert_eq!(validate(&payload).map(str::len), Some(len));
            assert!(is_ascii(&payload));
            for index in (0..len).step_by(len / 16 + 1).chain(len.checked_sub(1)) {
                payload[index] = 0x80;
                assert!(!is_ascii(&payload), "{index} of {len}");
                assert_eq!(validate(&payload), None, "{index} of {len}");
                payload[index] = 0x7f;
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_as_the_standard_library_does(
            bytes in prop::collection::vec(prop_oneof![9 => 0_u8..0x80, 1 => any::<u8>()], 0..600),
        ) {
            prop_assert_eq!(validate(&bytes), std::str::from_utf8(&bytes).ok());
        }

        #[test]
        fn any_text_is_text(text: String) {
            prop_assert_eq!(validate(text.as_bytes()), Some(&*text));
        }
    }
}
