//! The client protocol's JSON messages, as far as a recipient must read them.
//!
//! A strict scan takes what servers write; whatever it does not expect (an escape, a nested value) goes to a real JSON
//! parser, so that the two agree on every message and only the time differs.

use std::time::Duration;

use memchr::memchr2;
use serde::Deserialize;

/// Fields of a message from the server. Absent ones are `None`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incoming<'a> {
    pub(crate) kind: &'a str,
    pub(crate) msg_id: Option<&'a str>,
    pub(crate) from: Option<&'a str>,
    pub(crate) payload: Option<&'a str>,
    pub(crate) code: Option<&'a str>,
    pub(crate) offset: Option<u64>,
}

/// Where the strings of a message live that could not be taken from its text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Unescaped {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "msgId")]
    msg_id: Option<String>,
    from: Option<String>,
    payload: Option<sonic_rs::Value>,
    code: Option<String>,
    offset: Option<u64>,
}

/// Reads a message, or `None` if it is no JSON object of the protocol.
pub(crate) fn read<'a>(text: &'a str, unescaped: &'a mut Unescaped) -> Option<Incoming<'a>> {
    if let Some(incoming) = scan(text) {
        return Some(incoming);
    }
    parse(text, unescaped)
}

/// The first message of a session.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Welcome {
    #[serde(rename = "type")]
    kind: String,
    pub(crate) node_id: String,
    /// Delivery continues after this.
    pub(crate) offset: u64,
    /// True if everything after the client's position follows.
    pub(crate) recovered: bool,
    ping_interval_ms: Option<u64>,
}

impl Welcome {
    /// Reads `text`, or `None` if it is no welcome.
    pub(crate) fn read(text: &str) -> Option<Self> {
        parse_rare(text).filter(|welcome: &Self| welcome.kind == "welcome")
    }

    /// After this long without a sign of life a client asks for one.
    pub(crate) fn ping_interval(&self) -> Duration {
        const PING_INTERVAL_MS: u64 = 25_000;
        Duration::from_millis(self.ping_interval_ms.unwrap_or(PING_INTERVAL_MS))
    }
}

/// Advice to move to another node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Advice {
    #[serde(rename = "type")]
    kind: String,
    /// Empty: where the client is already.
    pub(crate) url: String,
    after_ms: u64,
}

impl Advice {
    /// Reads `text`, or `None` if it is no advice.
    pub(crate) fn read(text: &str) -> Option<Self> {
        parse_rare(text).filter(|advice: &Self| advice.kind == "reconnect")
    }

    /// How long to stay before moving.
    pub(crate) fn after(&self) -> Duration {
        Duration::from_millis(self.after_ms)
    }
}

/// What comes once per connection is not worth a scan of its own.
fn parse_rare<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    if is_nested_deeply(text) { None } else { sonic_rs::from_str(text).ok() }
}

#[cold]
fn parse<'a>(text: &str, unescaped: &'a mut Unescaped) -> Option<Incoming<'a>> {
    use sonic_rs::JsonValueTrait as _;
    if is_nested_deeply(text) {
        return None;
    }
    *unescaped = sonic_rs::from_str(text).ok()?;
    Some(Incoming {
        kind: &unescaped.kind,
        msg_id: unescaped.msg_id.as_deref(),
        from: unescaped.from.as_deref(),
        payload: unescaped.payload.as_ref().and_then(|payload| payload.as_str()),
        code: unescaped.code.as_deref(),
        offset: unescaped.offset,
    })
}

/// The JSON parser recurses: what could exhaust the stack is not shown to it.
fn is_nested_deeply(text: &str) -> bool {
    const NESTING_MAX: usize = 256;
    text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() > NESTING_MAX
}

/// Takes a flat object of plain strings and numbers apart. `None` for anything else, valid or not.
fn scan(text: &str) -> Option<Incoming<'_>> {
    let mut scanner = Scanner { text, at: 0 };
    let mut incoming = Incoming::default();
    scanner.expect(b'{')?;
    loop {
        let key = scanner.string()?;
        scanner.expect(b':')?;
        match scanner.peek()? {
            b'"' => {
                let value = scanner.string()?;
                match key {
                    "type" => incoming.kind = value,
                    "msgId" => incoming.msg_id = Some(value),
                    "from" => incoming.from = Some(value),
                    "payload" => incoming.payload = Some(value),
                    "code" => incoming.code = Some(value),
                    // A string where a number belongs: for the parser to refuse.
                    "offset" => return None,
                    _ => {}
                }
            }
            b'0'..=b'9' if key == "offset" => incoming.offset = Some(scanner.number()?),
            b'0'..=b'9' if !matches!(key, "type" | "msgId" | "from" | "payload" | "code") => {
                scanner.number()?;
            }
            _ => return None,
        }
        match scanner.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    (scanner.at == text.len()).then_some(incoming)
}

struct Scanner<'a> {
    text: &'a str,
    // Invariant: on a character boundary, at most `text.len()`.
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Takes one ASCII byte.
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek().filter(u8::is_ascii)?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A string without escapes or control characters.
    fn string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let rest = &self.text[self.at..];
        let len = memchr2(b'"', b'\\', rest.as_bytes())?;
        let value = &rest[..len];
        if rest.as_bytes()[len] == b'\\' || value.bytes().any(|byte| byte < 0x20) {
            return None;
        }
        self.at += len + 1;
        Some(value)
    }

    /// A whole number without sign, fraction, exponent or leading zero.
    fn number(&mut self) -> Option<u64> {
        let digits = self.text[self.at..].bytes().take_while(u8::is_ascii_digit).count();
        let value = &self.text[self.at..self.at + digits];
        if digits > 1 && value.starts_with('0') {
            return None;
        }
        self.at += digits;
        value.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELIVERED: &str =
        r#"{"type":"message","msgId":"m1","from":"a","toClientId":"b","payload":"p.1","offset":77,"ts":1700000000000}"#;

    fn check(text: &str, is_scanned: bool) {
        let mut unescaped = Unescaped::default();
        let parsed = parse(text, &mut unescaped);
        let scanned = scan(text);
        assert_eq!(scanned.is_some(), is_scanned, "{text}");
        if is_scanned {
            assert_eq!(scanned, parsed, "{text}");
        }
    }

    #[test]
    fn what_servers_write_is_scanned() {
        check(DELIVERED, true);
        check(r#"{"type":"ack","msgId":"m1","status":"delivered"}"#, true);
        check(r#"{"type":"error","code":"too_large","reason":"message is 9 bytes","msgId":"ü"}"#, true);
        check(r#"{"type":"welcome","nodeId":"n","offset":0}"#, true);
    }

    #[test]
    fn the_unexpected_goes_to_the_parser() {
        for text in [
            r#"{"type":"message","payload":"a\"b"}"#,
            r#"{"type":"message","payload":{"x":[1]}}"#,
            r#"{ "type" : "message" }"#,
            r#"{"type":"welcome","recovered":true}"#,
            r#"{"offset":-1}"#,
            r#"{"offset":1.5}"#,
            r#"{"offset":"7"}"#,
            r#"{"msgId":7}"#,
            "{}",
            "",
            "[]",
            r#"{"type":"x"} "#,
            r#"{"type":"x"}}"#,
            r#"{"type":"x","#,
        ] {
            check(text, false);
        }
    }

    #[test]
    fn escapes_are_read_all_the_same() {
        let mut unescaped = Unescaped::default();
        let text = r#"{"type":"message","msgId":"a\u0062","payload":"c","offset":3}"#;
        let incoming = read(text, &mut unescaped).unwrap();
        assert_eq!((incoming.msg_id, incoming.payload, incoming.offset), (Some("ab"), Some("c"), Some(3)));
    }

    #[test]
    fn a_welcome_and_advice_are_read_with_what_they_leave_out() {
        let welcome = Welcome::read(r#"{"type":"welcome","nodeId":"n1","offset":5,"recovered":true,"x":[1]}"#).unwrap();
        assert_eq!((welcome.node_id.as_str(), welcome.offset, welcome.recovered), ("n1", 5, true));
        assert_eq!(welcome.ping_interval(), Duration::from_secs(25));
        assert_eq!(Welcome::read(r#"{"type":"message","offset":5}"#), None);
        assert_eq!(Welcome::read(&"[".repeat(200_000)), None);
        let advice = Advice::read(r#"{"type":"reconnect","reason":"drain","url":"ws://h:1","afterMs":1830}"#).unwrap();
        assert_eq!((advice.url.as_str(), advice.after()), ("ws://h:1", Duration::from_millis(1830)));
        assert_eq!(Advice::read("{}"), None);
    }

    #[test]
    fn nesting_without_end_is_refused() {
        assert_eq!(read(&"[".repeat(200_000), &mut Unescaped::default()), None);
    }

    proptest! {
        /// A text cut or changed anywhere never makes the scan differ from the parser.
        #[test]
        fn the_scan_never_contradicts_the_parser(at: prop::sample::Index, with in "[\"{}:,0-9a\\\\ \n]{0,3}") {
            let at = at.index(DELIVERED.len());
            let text = format!("{}{with}{}", &DELIVERED[..at], &DELIVERED[at + 1..]);
            if let Some(scanned) = scan(&text) {
                let mut unescaped = Unescaped::default();
                prop_assert_eq!(Some(scanned), parse(&text, &mut unescaped));
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = read(&text, &mut Unescaped::default());
        }
    }
}
