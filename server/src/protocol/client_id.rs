//! Client ids: what may be one, checked once and trusted after.

use std::borrow::Borrow;
use std::fmt;

use thiserror::Error;

/// The longest client id, in bytes of UTF-8.
pub const CLIENT_ID_BYTES_MAX: usize = 128;

/// A client id: 1–128 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Box<str>);

/// Why a text is no client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidClientId {
    /// It is empty.
    #[error("client id is empty, give 1 to {CLIENT_ID_BYTES_MAX} bytes")]
    Empty,
    /// It is too long.
    #[error("client id is {0} bytes, limit {CLIENT_ID_BYTES_MAX}")]
    TooLong(usize),
    /// It has a control character in it.
    #[error("client id has a control character")]
    ControlCharacter,
}

impl ClientId {
    /// Checks `text` without keeping it.
    pub fn check(text: &str) -> Result<(), InvalidClientId> {
        match text.len() {
            0 => return Err(InvalidClientId::Empty),
            1..=CLIENT_ID_BYTES_MAX => {}
            len => return Err(InvalidClientId::TooLong(len)),
        }
        // Plain ASCII is nearly all of them, and cheap to tell.
        let is_plain = text.bytes().fold(true, |plain, byte| plain & (0x20..0x7f).contains(&byte));
        if !is_plain && text.chars().any(char::is_control) {
            return Err(InvalidClientId::ControlCharacter);
        }
        Ok(())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ClientId {
    type Error = InvalidClientId;

    fn try_from(text: &str) -> Result<Self, InvalidClientId> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for ClientId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        assert!(ClientId::try_from("alice").is_ok());
        assert!(ClientId::try_from("zoë {1}:%").is_ok());
        assert!(ClientId::try_from("x".repeat(128).as_str()).is_ok());
        assert_eq!(ClientId::try_from(""), Err(InvalidClientId::Empty));
        assert_eq!(ClientId::try_from("x".repeat(129).as_str()), Err(InvalidClientId::TooLong(129)));
        for bad in ["a\nb", "\u{7f}", "\u{85}", "\0"] {
            assert_eq!(ClientId::try_from(bad), Err(InvalidClientId::ControlCharacter), "{bad:?}");
        }
    }
}
