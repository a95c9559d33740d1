//! The quick way through a client's message: one pass over the text, checking all of it as JSON and noting where the
//! fields are. It gives up on whatever is unusual (an escaped key or id, `\u`, a field twice, `null`, deep nesting,
//! anything wrong): then the plain parser, slower and complete, decides. It never accepts what that one refuses.

use std::borrow::Cow;

use super::request::Fields;

/// Nesting that this pass follows: one bit each.
const DEPTH_MAX: u32 = 64;

/// The fields of `text`, or none where the plain parser must look at it.
pub(super) fn scan(text: &str) -> Option<Fields<'_>> {
    let mut cursor = Cursor { text, at: 0 };
    let mut fields = Fields::default();
    let mut has_kind = false;
    cursor.skip_space();
    cursor.expect(b'{')?;
    cursor.skip_space();
    loop {
        let key = cursor.plain_string()?;
        cursor.skip_space();
        cursor.expect(b':')?;
        cursor.skip_space();
        match key {
            "type" if !has_kind => {
                has_kind = true;
                fields.kind = Cow::Borrowed(cursor.plain_string()?);
            }
            "msgId" if fields.msg_id.is_none() => fields.msg_id = Some(Cow::Borrowed(cursor.plain_string()?)),
            "toClientId" if fields.to.is_none() => fields.to = Some(Cow::Borrowed(cursor.plain_string()?)),
            "payload" if fields.payload.is_none() => fields.payload = Some(Cow::Borrowed(cursor.value()?)),
            "payloadJson" if fields.payload_json.is_none() => {
                fields.payload_json = Some(Cow::Borrowed(cursor.value()?));
            }
            "offset" if fields.offset.is_none() => fields.offset = Some(cursor.whole_number()?),
            "ttlMs" if fields.ttl_ms.is_none() => fields.ttl_ms = Some(cursor.whole_number()?),
            "ack" if fields.ack.is_none() => fields.ack = Some(Cow::Borrowed(cursor.value()?)),
            "type" | "msgId" | "toClientId" | "payload" | "payloadJson" | "offset" | "ttlMs" | "ack" => return None,
            _ => _ = cursor.value()?,
        }
        cursor.skip_space();
        match cursor.next()? {
            b',' => cursor.skip_space(),
            b'}' => break,
            _ => return None,
        }
    }
    cursor.skip_space();
    (has_kind && cursor.at == text.len()).then_some(fields)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// A string without escapes, without its quotes.
    fn plain_string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let start = self.at;
        self.skip_plain();
        let string = self.text.get(start..self.at)?;
        self.expect(b'"')?;
        Some(string)
    }

    /// A string, escapes such as `\n` included.
    fn string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            self.skip_plain();
            match self.next()? {
                b'"' => return Some(()),
                b'\\' => match self.next()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    /// Goes on to the next quote, backslash or control character, eight bytes at a time.
    fn skip_plain(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(chunk) = bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let stops = stops(u64::from_le_bytes(*chunk));
            if stops != 0 {
                self.at += stops.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
        while let Some(byte) = self.peek()
            && byte >= 0x20
            && byte != b'"'
            && byte != b'\\'
        {
            self.at += 1;
        }
    }

    fn whole_number(&mut self) -> Option<u64> {
        let start = self.at;
        let mut value: u64 = 0;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            self.at += 1;
        }
        let digits = self.at - start;
        // A leading zero, a fraction or an exponent is for the plain parser.
        let is_plain = digits == 1 || (digits > 1 && self.text.as_bytes().get(start) != Some(&b'0'));
        (is_plain && !matches!(self.peek(), Some(b'.' | b'e' | b'E'))).then_some(value)
    }

    /// Any value, as it stands in the text.
    fn value(&mut self) -> Option<&'a str> {
        let start = self.at;
        // Bit n tells whether the n-th open bracket, from the innermost on, is an object's.
        let (mut objects, mut depth) = (0u64, 0u32);
        loop {
            // A value begins here.
            match self.peek()? {
                b'"' => self.string()?,
                open @ (b'{' | b'[') => {
                    self.at += 1;
                    if depth == DEPTH_MAX {
                        return None;
                    }
                    depth += 1;
                    objects = objects << 1 | u64::from(open == b'{');
                    self.skip_space();
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.peek()? != close {
                        if open == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b't' => self.word("true")?,
                b'f' => self.word("false")?,
                b'n' => self.word("null")?,
                _ => self.number()?,
            }
            // A value has ended, or an empty bracket is about to.
            loop {
                if depth == 0 {
                    return self.text.get(start..self.at);
                }
                self.skip_space();
                match (self.next()?, objects & 1) {
                    (b',', is_object) => {
                        self.skip_space();
                        if is_object == 1 {
                            self.key()?;
                        }
                        break;
                    }
                    (b'}', 1) | (b']', 0) => {
                        objects >>= 1;
                        depth -= 1;
                    }
                    _ => return None,
                }
            }
        }
    }

    /// A key, its colon, and the space up to its value.
    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        Some(())
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let found = self.text.get(self.at..)?.starts_with(word);
        self.at += word.len();
        found.then_some(())
    }

    /// RFC 8259 §6.
    fn number(&mut self) -> Option<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => _ = self.digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            (self.digits() > 0).then_some(())?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            (self.digits() > 0).then_some(())?;
        }
        Some(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }
}

/// The high bit of every byte that is a quote, a backslash or below 0x20; exact up to and with the lowest such byte.
///
/// Source: Bit Twiddling Hacks, "Determine if a word has a byte less than n" and "a zero byte".
pub(super) fn stops(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
    below_space | zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::plain_fields;
    use super::*;

    /// What the quick way accepts, the plain parser reads the same.
    fn check(text: &str) {
        if let Some(quick) = scan(text) {
            assert_eq!(Some(quick), plain_fields(text), "{text}");
        }
    }

    #[test]
    fn ordinary_messages_take_the_quick_way() {
        for text in [
            r#"{"type":"message","msgId":"m1","toClientId":"b","payload":"text"}"#,
            r#" { "toClientId" : "zoë" , "payload" : {"a":[1,-2.5e+3,{}],"b":[],"c":null} , "type":"message" } "#,
            r#"{"type":"message","toClientId":"b","payloadJson":"{\"a\":1}","ack":true,"ttlMs":0,"x":[[[]]]}"#,
            r#"{"type":"ack","offset":7354266539950080}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"message","toClientId":"b","payload":null,"ack":null,"payloadJson":null}"#,
        ] {
            assert!(scan(text).is_some(), "{text}");
            check(text);
        }
    }

    #[test]
    fn what_is_unusual_or_wrong_is_left_to_the_plain_parser() {
        for text in [
            "",
            "{",
            "{}",
            r#"{"type":"ping"}x"#,
            r#"{"type":"ping",}"#,
            r#"{"type":"pi\u006eg"}"#,
            r#"{"type":"ping","type":"ping"}"#,
            r#"{"type":"message","payload":01}"#,
            r#"{"type":"message","payload":[1,]}"#,
            r#"{"type":"message","payload":{"a"}}"#,
            r#"{"type":"message","payload":{"a":1]}"#,
            r#"{"type":"message","payload":tru}"#,
            r#"{"type":"message","payload":1.}"#,
            r#"{"type":"message","payload":-}"#,
            r#"{"type":"message","payload":1e}"#,
            r#"{"type":"message","payload":"\x"}"#,
            "{\"type\":\"message\",\"payload\":\"a\nb\"}",
            r#"{"type":"ack","offset":01}"#,
            r#"{"type":"ack","offset":18446744073709551616}"#,
            r#"{"type":"ack","offset":null}"#,
        ] {
            assert!(scan(text).is_none(), "{text}");
        }
        let deep = format!(r#"{{"type":"message","payload":{}{}}}"#, "[".repeat(65), "]".repeat(65));
        assert!(scan(&deep).is_none());
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,2})?([eE][+-]?[0-9]{1,2})?",
            r#""([a-zé😀 ]|\\n|\\"|\\\\){0,12}""#,
        ];
        leaf.prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" ,"))),
                proptest::collection::vec(("[a-c]{0,2}", inner), 0..4).prop_map(|items| {
                    let items: Vec<_> = items.iter().map(|(key, value)| format!("\"{key}\" :{value}")).collect();
                    format!("{{{}}}", items.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn quick_and_plain_agree_on_valid_messages(payload in value(), other in value(), id in "[a-zé\"]{1,12}") {
            let id = sonic_rs::to_string(&id).unwrap();
            check(&format!(r#"{{"type":"message","msgId":{id},"x":{other},"toClientId":{id},"payload":{payload}}}"#));
        }

        #[test]
        fn quick_and_plain_agree_on_broken_messages(payload in value(), at in 0usize..400, byte in "[ -~]|\\PC|\n") {
            let mut text = format!(r#"{{"type":"message","toClientId":"b","payload":{payload},"offset":12}}"#);
            let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(at, &byte);
            check(&text);
            text.truncate(at);
            check(&text);
        }

        #[test]
        fn plain_runs_end_where_they_should(text in "[ -~é\n\"\\\\]{0,40}") {
            let mut cursor = Cursor { text: &text, at: 0 };
            cursor.skip_plain();
            let end = text.bytes().position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\').unwrap_or(text.len());
            prop_assert_eq!(cursor.at, end);
        }
    }
}
