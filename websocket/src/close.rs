//! Close codes (RFC 6455 §7.4) and the payload of a Close frame (§5.5.1).

use std::fmt;

use crate::error::ProtocolError;
use crate::frame::CONTROL_PAYLOAD_BYTES_MAX;

/// What is left for the reason beside the two bytes of the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;

/// Why a connection ends, as a number that both ends understand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The purpose was fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// The server goes down, or the page was left.
    pub const GOING_AWAY: Self = Self(1001);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// A kind of data that this end does not accept.
    pub const UNSUPPORTED: Self = Self(1003);
    /// Never on the wire: the Close frame carried no code.
    pub const NO_STATUS: Self = Self(1005);
    /// Never on the wire: the connection ended without a Close frame.
    pub const ABNORMAL: Self = Self(1006);
    /// Text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// Against this end's rules, and no other code fits.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// A message longer than this end takes.
    pub const TOO_BIG: Self = Self(1009);
    /// The server did not agree to an extension that the client needs.
    pub const MISSING_EXTENSION: Self = Self(1010);
    /// The server failed.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// The server restarts or moves the session: come back.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// Overloaded: come back later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);
    /// A gateway got no good answer from behind it.
    pub const BAD_GATEWAY: Self = Self(1014);
    /// Never on the wire: TLS failed.
    pub const TLS_FAILED: Self = Self(1015);

    /// The code with this number, whether or not it may be sent.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The code as a number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Whether a Close frame may carry this code: §7.4 and the codes registered since (1012–1014), and 3000–4999.
    pub const fn is_valid_on_the_wire(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CloseCode({})", self.0)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What a Close frame said, when it said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseFrame<'a> {
    /// A code that is valid on the wire.
    pub code: CloseCode,
    /// For people and logs; often empty.
    pub reason: &'a str,
}

impl<'a> CloseFrame<'a> {
    /// Reads the payload of a Close frame; an empty one is `None`.
    ///
    /// # Errors
    ///
    /// Half a code, a code that must not be sent, a reason that is not UTF-8.
    pub fn decode(payload: &'a [u8]) -> Result<Option<Self>, ProtocolError> {
        let Some((code, reason)) = payload.split_first_chunk::<2>() else {
            return if payload.is_empty() { Ok(None) } else { Err(ProtocolError::CloseTooShort) };
        };
        let code = CloseCode(u16::from_be_bytes(*code));
        if !code.is_valid_on_the_wire() {
            return Err(ProtocolError::InvalidCloseCode(code.0));
        }
        let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::InvalidUtf8)?;
        Ok(Some(Self { code, reason }))
    }
}

/// A Close frame's payload, ready to be framed.
pub(crate) struct ClosePayload {
    bytes: [u8; CONTROL_PAYLOAD_BYTES_MAX],
    len: usize,
}

impl ClosePayload {
    /// Cuts the reason at a character boundary. A code that may not be sent gives an empty payload, which reads as
    /// [`CloseCode::NO_STATUS`].
    pub(crate) fn new(code: CloseCode, reason: &str) -> Self {
        let mut bytes = [0; CONTROL_PAYLOAD_BYTES_MAX];
        if !code.is_valid_on_the_wire() {
            return Self { bytes, len: 0 };
        }
        let mut reason_len = reason.len().min(CLOSE_REASON_BYTES_MAX);
        while !reason.is_char_boundary(reason_len) {
            reason_len -= 1;
        }
        let len = 2 + reason_len;
        bytes[..2].copy_from_slice(&code.0.to_be_bytes());
        bytes[2..len].copy_from_slice(&reason.as_bytes()[..reason_len]);
        Self { bytes, len }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registered_and_private_codes_are_valid_on_the_wire() {
        for number in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4100, 4999] {
            assert!(CloseCode::new(number).is_valid_on_the_wire(), "{number}");
        }
        for number in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX] {
            assert!(!CloseCode::new(number).is_valid_on_the_wire(), "{number}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(CLOSE_REASON_BYTES_MAX);
        let payload = ClosePayload::new(CloseCode::NORMAL, &reason);
        let frame = CloseFrame::decode(payload.as_bytes()).unwrap().unwrap();
        assert_eq!(frame.reason.len(), CLOSE_REASON_BYTES_MAX - 1);
        assert!(reason.starts_with(frame.reason));
    }

    #[test]
    fn a_code_that_may_not_be_sent_gives_an_empty_close() {
        assert_eq!(CloseFrame::decode(ClosePayload::new(CloseCode::ABNORMAL, "lost").as_bytes()), Ok(None));
    }
}
