//! Messages as fields of a stream, and replies of the scripts as answers. Whatever comes back is foreign input.

use std::str;

use redis::Value;
use ring::NodeId;
use thiserror::Error;

use crate::bus::Holder;
use crate::store::bounds::UNRELEASED_MAX;
use crate::store::request::StoreAnswer;
use crate::store::{BufferFull, Kept};

/// The longest body that is taken for one: larger than any message limit that may be configured.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest meta: four numbers.
pub const META_BYTES_MAX: usize = 4 * 20 + 3;

/// A reply that no script of ours gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a reply that no script of ours gives")]
pub struct ForeignReply;

/// What a script has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// For whoever asked.
    pub outcome: Outcome,
    /// Messages it dropped for their age.
    pub expired: u64,
    /// Values it refused.
    pub malformed: u64,
}

/// For whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The answer to a request.
    Answer(StoreAnswer),
    /// None of a page's messages can be delivered: go on after this offset.
    PageOn(u64),
    /// A sweep is done; the next message expires then, 0 for none.
    Swept(u64),
}

/// A message's numbers as they stand beside its body.
pub fn meta(message: &Kept) -> String {
    format!("{} {} {} {}", message.identity, message.sender, message.ts_ms, message.expires_ms)
}

/// Reads a script's reply.
///
/// # Errors
/// When it is none.
pub fn reply(value: Value) -> Result<Reply, ForeignReply> {
    let Value::Array(items) = value else { return Err(ForeignReply) };
    let mut items = Items(items.into_iter());
    let (tag, expired, mut malformed) = (items.number()?, items.number()?, items.number()?);
    let answer = match tag {
        1 => {
            let (generation, last_offset, lost_offset) = (items.number()?, items.number()?, items.number()?);
            let (is_known, has_messages) = (items.number()? == 1, items.number()? == 1);
            let unreleased = items.holders()?;
            StoreAnswer::Claimed { generation, unreleased, last_offset, lost_offset, is_known, has_messages }
        }
        2 => StoreAnswer::Elsewhere(items.holder()?),
        3 => StoreAnswer::Appended { last_offset: items.number()? },
        4 => StoreAnswer::Refused(BufferFull::Recipient),
        6 => {
            let (page, last) = items.page(&mut malformed)?;
            if let (true, Some(last)) = (page.is_empty(), last) {
                return Ok(Reply { outcome: Outcome::PageOn(last), expired, malformed });
            }
            StoreAnswer::Page(page)
        }
        7 => StoreAnswer::Done,
        8 => return Ok(Reply { outcome: Outcome::Swept(items.number()?), expired, malformed }),
        _ => return Err(ForeignReply),
    };
    Ok(Reply { outcome: Outcome::Answer(answer), expired, malformed })
}

struct Items(std::vec::IntoIter<Value>);

impl Items {
    fn number(&mut self) -> Result<u64, ForeignReply> {
        match self.0.next() {
            Some(Value::Int(number)) => u64::try_from(number).map_err(|_| ForeignReply),
            _ => Err(ForeignReply),
        }
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, ForeignReply> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes)),
            None => Ok(None),
            _ => Err(ForeignReply),
        }
    }

    fn holder(&mut self) -> Result<Holder, ForeignReply> {
        let node = self.bytes()?.ok_or(ForeignReply)?;
        let (incarnation, generation) = (self.number()?, self.number()?);
        let node = str::from_utf8(&node).ok().and_then(|node| NodeId::new(node).ok()).ok_or(ForeignReply)?;
        Ok(Holder { node, incarnation, generation })
    }

    /// All that follow.
    fn holders(&mut self) -> Result<Vec<Holder>, ForeignReply> {
        if self.0.len() > 3 * UNRELEASED_MAX {
            return Err(ForeignReply);
        }
        let mut holders = Vec::with_capacity(self.0.len() / 3);
        while self.0.len() > 0 {
            holders.push(self.holder()?);
        }
        Ok(holders)
    }

    /// The good messages, and the offset of the last one whether it is good or not.
    fn page(&mut self, malformed: &mut u64) -> Result<(Vec<Kept>, Option<u64>), ForeignReply> {
        let (mut page, mut last) = (Vec::with_capacity(self.0.len() / 3), None);
        while let Some(offset) = self.bytes()? {
            let offset = number(&offset).ok_or(ForeignReply)?;
            let (meta, body) = (self.bytes()?.ok_or(ForeignReply)?, self.bytes()?.ok_or(ForeignReply)?);
            last = Some(offset);
            match kept(offset, &meta, body) {
                Some(message) => page.push(message),
                None => *malformed += 1,
            }
        }
        Ok((page, last))
    }
}

/// A message that can be delivered: its body begins an object in UTF-8.
fn kept(offset: u64, meta: &[u8], body: Vec<u8>) -> Option<Kept> {
    if meta.len() > META_BYTES_MAX || body.len() > BODY_BYTES_MAX || body.first() != Some(&b'{') {
        return None;
    }
    str::from_utf8(&body).ok()?;
    let mut numbers = meta.split(|byte| *byte == b' ').map(number);
    let (identity, sender, ts_ms, expires_ms) =
        (numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??);
    let is_whole = numbers.next().is_none();
    is_whole.then(|| Kept { offset, identity, sender, ts_ms, expires_ms, body: body.into() })
}

fn number(digits: &[u8]) -> Option<u64> {
    // `parse` alone would take a sign.
    let is_plain = digits.first().is_some_and(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(bytes: impl AsRef<[u8]>) -> Value {
        Value::BulkString(bytes.as_ref().to_vec())
    }

    fn page_of(entries: &[(&str, &str, &[u8])]) -> Result<Reply, ForeignReply> {
        let mut items = vec![Value::Int(6), Value::Int(0), Value::Int(0)];
        for (offset, meta, body) in entries {
            items.extend([bulk(offset), bulk(meta), bulk(body)]);
        }
        reply(Value::Array(items))
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let message = Kept { offset: 9, identity: u64::MAX, sender: 2, ts_ms: 3, expires_ms: 4, body: (*b"{").into() };
        assert!(meta(&message).len() <= META_BYTES_MAX);
        let answer = page_of(&[("9", &meta(&message), b"{")]);
        let outcome = Outcome::Answer(StoreAnswer::Page(vec![message]));
        assert_eq!(answer, Ok(Reply { outcome, expired: 0, malformed: 0 }));
    }

    #[test]
    fn foreign_messages_are_left_out_and_counted() {
        let large = vec![b'{'; BODY_BYTES_MAX + 1];
        for (meta, body) in [
            ("1 2 3", &b"{"[..]),
            ("1 2 3 4 5", b"{"),
            ("1 2 3 +4", b"{"),
            ("1 2 3 99999999999999999999", b"{"),
            ("1 2 3 4", b""),
            ("1 2 3 4", b"x"),
            ("1 2 3 4", b"{\xff"),
            ("1 2 3 4", &large),
        ] {
            let answer = page_of(&[("9", meta, body)]);
            assert_eq!(answer, Ok(Reply { outcome: Outcome::PageOn(9), expired: 0, malformed: 1 }), "{meta}");
            let Ok(Reply { outcome: Outcome::Answer(StoreAnswer::Page(page)), malformed: 1, .. }) =
                page_of(&[("9", meta, body), ("10", "1 2 3 4", b"{")])
            else {
                panic!("the good one is gone with the bad one")
            };
            assert_eq!(page.len(), 1);
        }
    }

    fn claimed(unreleased: &[Value]) -> Vec<Value> {
        [1, 0, 0, 5, 6, 7, 1, 0].map(Value::Int).into_iter().chain(unreleased.iter().cloned()).collect()
    }

    #[test]
    fn former_holders_come_back_in_their_order() {
        let lives = (0..UNRELEASED_MAX as u64).map(|at| (format!("n{at}"), at, at + 3));
        let items: Vec<Value> = lives
            .clone()
            .flat_map(|(node, life, generation)| {
                [bulk(node), Value::Int(life.cast_signed()), Value::Int(generation.cast_signed())]
            })
            .collect();
        let expected: Vec<Holder> = lives
            .map(|(node, incarnation, generation)| Holder {
                node: NodeId::new(&node).unwrap(),
                incarnation,
                generation,
            })
            .collect();
        let Ok(Reply { outcome: Outcome::Answer(StoreAnswer::Claimed { unreleased, .. }), .. }) =
            reply(Value::Array(claimed(&items)))
        else {
            panic!("not claimed")
        };
        assert_eq!(unreleased, expected);
    }

    #[test]
    fn foreign_replies_are_told_as_such() {
        let number = Value::Int;
        for items in [
            vec![],
            vec![number(7)],
            vec![number(99), number(0), number(0)],
            vec![number(3), number(0), number(-1), number(5)],
            vec![number(2), number(0), number(0), bulk("no node!"), number(1), number(1)],
            vec![number(2), number(0), number(0), bulk(""), number(1), number(1)],
            claimed(&[bulk("n0"), number(1)]),
            claimed(&[bulk(""), number(0), number(0)]),
            claimed(&[bulk("n0"), number(1), number(2)].repeat(UNRELEASED_MAX + 1)),
            vec![number(6), number(0), number(0), bulk("5")],
            vec![number(6), number(0), number(0), bulk("x"), bulk(""), bulk("")],
        ] {
            assert_eq!(reply(Value::Array(items.clone())), Err(ForeignReply), "{items:?}");
        }
        assert_eq!(reply(Value::Nil), Err(ForeignReply));
    }
}
