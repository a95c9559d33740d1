//! A query string's names and values, percent-decoded (the `application/x-www-form-urlencoded` that browsers write).

use std::borrow::Cow;

use crate::error::QueryError;

/// Pairs read from one query.
pub const QUERY_PAIRS_MAX: usize = 64;

/// Iterates over the pairs of a raw query string.
pub fn query_pairs(query: &str) -> QueryPairs<'_> {
    QueryPairs { rest: query, pairs_left: QUERY_PAIRS_MAX }
}

/// The pairs of a query: `a=1&b` yields `("a", "1")` and `("b", "")`. Ends after the first error.
#[derive(Clone, Debug)]
pub struct QueryPairs<'a> {
    rest: &'a str,
    pairs_left: usize,
}

impl<'a> Iterator for QueryPairs<'a> {
    type Item = Result<(Cow<'a, str>, Cow<'a, str>), QueryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rest = self.rest.trim_start_matches('&');
        if self.rest.is_empty() {
            return None;
        }
        if self.pairs_left == 0 {
            self.rest = "";
            return Some(Err(QueryError::TooManyPairs { limit: QUERY_PAIRS_MAX }));
        }
        self.pairs_left -= 1;
        let (pair, rest) = self.rest.split_once('&').unwrap_or((self.rest, ""));
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = percent_decode(name).and_then(|name| Ok((name, percent_decode(value)?)));
        self.rest = if decoded.is_ok() { rest } else { "" };
        Some(decoded)
    }
}

/// Decodes `%XX`, and `+` as a space. Borrows when there is nothing to decode.
///
/// # Errors
///
/// A `%` without two hexadecimal digits, or bytes that are not UTF-8.
pub fn percent_decode(text: &str) -> Result<Cow<'_, str>, QueryError> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (&[high, low], after) = rest.split_first_chunk().ok_or(QueryError::BrokenEscape)?;
                rest = after;
                hex_digit(high)? << 4 | hex_digit(low)?
            }
            plain => plain,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| QueryError::NotUtf8)
}

fn hex_digit(byte: u8) -> Result<u8, QueryError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(QueryError::BrokenEscape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(query: &str, expected: Result<&[(&str, &str)], QueryError>) {
        let pairs: Result<Vec<_>, _> = query_pairs(query).collect();
        let expected =
            expected.map(|pairs| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
        assert_eq!(pairs, expected, "{query}");
    }

    #[test]
    fn pairs_are_split_and_decoded() {
        check("", Ok(&[]));
        check("&&", Ok(&[]));
        check("clientId=alice&resumeOffset=7", Ok(&[("clientId", "alice"), ("resumeOffset", "7")]));
        check("a&b=&=c&d=e=f", Ok(&[("a", ""), ("b", ""), ("", "c"), ("d", "e=f")]));
        check("clientId=J%C3%B6rg+%2B%31", Ok(&[("clientId", "Jörg +1")]));
        check("a=%", Err(QueryError::BrokenEscape));
        check("a=%4", Err(QueryError::BrokenEscape));
        check("a=%4g", Err(QueryError::BrokenEscape));
        check("a=%ff", Err(QueryError::NotUtf8));
    }

    #[test]
    fn the_number_of_pairs_is_limited() {
        let query = "a=b&".repeat(QUERY_PAIRS_MAX);
        assert_eq!(query_pairs(&query).flatten().count(), QUERY_PAIRS_MAX);
        let query = "a=b&".repeat(QUERY_PAIRS_MAX + 2);
        let last = query_pairs(&query).last();
        assert_eq!(last, Some(Err(QueryError::TooManyPairs { limit: QUERY_PAIRS_MAX })));
    }

    #[test]
    fn nothing_is_copied_when_there_is_nothing_to_decode() {
        assert!(matches!(percent_decode("alice"), Ok(Cow::Borrowed("alice"))));
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_its_escapes(text: String) {
            let escaped = text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
            prop_assert_eq!(percent_decode(&escaped), Ok(Cow::Owned::<str>(text)));
        }

        #[test]
        fn any_query_ends(query: String) {
            prop_assert!(query_pairs(&query).count() <= QUERY_PAIRS_MAX + 1);
        }
    }
}
