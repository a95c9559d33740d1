//! What must be known of a JSON text before the parser may see it, and how a string is written into one.
//! The parser recurses over nested values, so that depth is the only thing that could overflow its stack.

use std::borrow::Cow;
use std::fmt::Write as _;

use ring::nesting;

use super::scan::stops;

/// The deepest nesting a client's message may have.
pub const DEPTH_MAX: usize = 128;

/// True when `text` nests deeper than [`DEPTH_MAX`]. Says nothing of whether it is valid.
pub(crate) fn is_too_deep(text: &str) -> bool {
    // Nothing nests deeper than it has opening brackets, and counting those needs no look at strings.
    let openings: usize = text.bytes().map(|byte| usize::from(byte | 0x20 == b'{')).sum();
    openings > DEPTH_MAX && nesting::depth(text.as_bytes()) > DEPTH_MAX
}

/// True when an escape names one half of a surrogate pair without the other: no Unicode text, whatever the parser says.
pub(crate) fn has_lone_surrogate(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\\')) {
        at += found;
        match escaped_unit(bytes, at) {
            Some(0xd800..=0xdbff) => {
                if !matches!(escaped_unit(bytes, at + 6), Some(0xdc00..=0xdfff)) {
                    return true;
                }
                at += 12;
            }
            Some(0xdc00..=0xdfff) => return true,
            Some(_) => at += 6,
            None => at += 2,
        }
    }
    false
}

/// The UTF-16 unit of the escape `\uXXXX` at `at`, if there is one.
fn escaped_unit(bytes: &[u8], at: usize) -> Option<u32> {
    let escape = bytes.get(at..at.checked_add(6)?)?;
    let digits = escape.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

/// Appends `text` as a JSON string with its quotes.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(escape(text).as_bytes());
    out.push(b'"');
}

/// `text` as the inside of a JSON string.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !needs_escapes(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() * 2);
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\0'..='\x1f' => _ = write!(out, "\\u{:04x}", u32::from(character)),
            _ => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// The same for a text that was found in JSON: borrowed from there it had no escapes, and needs none.
#[expect(clippy::ptr_arg, reason = "whether it is borrowed is the point")]
pub(crate) fn escape_found<'a>(text: &'a Cow<'_, str>) -> Cow<'a, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text),
        Cow::Owned(text) => escape(text),
    }
}

fn needs_escapes(text: &str) -> bool {
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let is_special = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
    words.iter().any(|word| stops(u64::from_le_bytes(*word)) != 0) || rest.iter().any(is_special)
}

/// Appends `value` in decimal digits.
pub(crate) fn write_number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// How many digits [`write_number`] appends.
pub(crate) fn number_bytes(value: u64) -> usize {
    value.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_of_strings() {
        let deep = format!("{}1{}", "[".repeat(DEPTH_MAX + 1), "]".repeat(DEPTH_MAX + 1));
        assert!(is_too_deep(&deep));
        let quoted = format!("\"\\\"{}\"", "{".repeat(100_000));
        assert!(!is_too_deep(&quoted));
        let flat = "[],".repeat(100_000);
        assert!(!is_too_deep(&flat));
        assert!(is_too_deep(&"[".repeat(100_000)));
    }

    #[test]
    fn lone_surrogates_are_found() {
        for lone in [r"\ud800", r"x\udfff", r"\ud800\u0041", r"\ud83d \ude00", r"\\\ud800", r"\ude00\ud83d"] {
            assert!(has_lone_surrogate(lone), "{lone}");
        }
        for fine in [r"\ud83d\ude00", r"\\ud800", r"plain", r"\u0041\n", "\\", r"\u00", "😀"] {
            assert!(!has_lone_surrogate(fine), "{fine}");
        }
    }

    #[test]
    fn strings_and_numbers_are_written_as_measured() {
        for text in ["", "plain", "a\"b\\c", "\n\u{1f}\0", "zoë 😀"] {
            let mut quoted = Vec::new();
            write_string(&mut quoted, text);
            assert_eq!(sonic_rs::from_slice::<String>(&quoted).unwrap(), text);
        }
        for value in [0, 9, 10, 99, 100, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, value);
            assert_eq!(out, value.to_string().into_bytes());
            assert_eq!(out.len(), number_bytes(value));
        }
    }
}
