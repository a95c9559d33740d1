//! What a peer can do wrong. One type for each thing that the caller does next: close the connection with a code,
//! answer the request with a status, give the connection up.

use std::time::Duration;

use thiserror::Error;

use crate::close::CloseCode;

/// The peer broke RFC 6455: send [`ProtocolError::close_code`] and end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// §5.2: no extension was negotiated that gives them a meaning.
    #[error("reserved bits are set without an extension")]
    ReservedBitsSet,
    /// §5.2: 3–7 and 11–15 are reserved.
    #[error("opcode {0} is reserved")]
    UnknownOpcode(u8),
    /// §5.1: clients mask.
    #[error("frame from a client is not masked")]
    UnmaskedFrame,
    /// §5.1: servers do not.
    #[error("frame from a server is masked")]
    MaskedFrame,
    /// §5.5: control frames are whole.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// §5.5: control frames carry at most 125 bytes.
    #[error("control frame is longer than 125 bytes")]
    ControlTooLong,
    /// §5.2: the shortest form of the length must be used.
    #[error("payload length is not in its shortest form")]
    LengthNotMinimal,
    /// §5.2: the most significant bit of a 64-bit length must be 0.
    #[error("payload length is 2^63 bytes or more")]
    LengthTopBitSet,
    /// §5.4: a continuation needs a message that was begun.
    #[error("continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// §5.4: the fragments of two messages must not be interleaved.
    #[error("new message before the last fragment of the one before")]
    ExpectedContinuation,
    /// This end's limit for the assembled message.
    #[error("message is at least {bytes} bytes, limit {limit}")]
    MessageTooLong {
        /// Held already and announced by the frame's header.
        bytes: u64,
        /// What the decoder was made with.
        limit: usize,
    },
    /// Fragments that carry nothing cost work and bring no message nearer.
    #[error("more than {limit} empty fragments in a row")]
    TooManyEmptyFragments {
        /// [`crate::decoder::EMPTY_FRAGMENTS_MAX`].
        limit: u8,
    },
    /// §8.1: a text message or a close reason.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// §5.5.1: a code has two bytes.
    #[error("close frame carries half a code")]
    CloseTooShort,
    /// §7.4: reserved, or never to be sent.
    #[error("close code {0} must not be sent")]
    InvalidCloseCode(u16),
}

impl ProtocolError {
    /// The code of the Close frame that answers this.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::MessageTooLong { .. } => CloseCode::TOO_BIG,
            Self::InvalidUtf8 => CloseCode::INVALID_PAYLOAD,
            Self::TooManyEmptyFragments { .. } => CloseCode::POLICY_VIOLATION,
            Self::ReservedBitsSet
            | Self::UnknownOpcode(_)
            | Self::UnmaskedFrame
            | Self::MaskedFrame
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::LengthNotMinimal
            | Self::LengthTopBitSet
            | Self::UnexpectedContinuation
            | Self::ExpectedContinuation
            | Self::CloseTooShort
            | Self::InvalidCloseCode(_) => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// Not a request that can be read: answer [`RequestError::status`] and end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Not HTTP/1.x.
    #[error("request is not HTTP/1.x")]
    Malformed,
    /// More header lines than are read.
    #[error("request has more than {limit} header lines")]
    TooManyHeaders {
        /// [`crate::handshake::HEADERS_MAX`].
        limit: usize,
    },
    /// A header that must be there at most once.
    #[error("request has more than one {0} header")]
    DuplicateHeader(&'static str),
    /// A header whose value must be text.
    #[error("value of the {0} header is not text")]
    HeaderNotText(&'static str),
}

impl RequestError {
    /// The status to answer with.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::DuplicateHeader(_) | Self::HeaderNotText(_) => 400,
            Self::TooManyHeaders { .. } => 431,
        }
    }
}

/// A readable request that is not an upgrade to WebSocket (§4.2.1): answer [`UpgradeError::status`] with
/// [`UpgradeError::headers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UpgradeError {
    /// Only GET can upgrade.
    #[error("method is not GET")]
    MethodNotGet,
    /// HTTP/1.0 has no upgrade.
    #[error("version is not HTTP/1.1")]
    VersionNotHttp11,
    /// HTTP/1.1 asks for it, and so does §4.2.1.
    #[error("host header is missing")]
    MissingHost,
    /// No `Upgrade: websocket` with `Connection: upgrade`.
    #[error("request does not ask for an upgrade to websocket")]
    NotAnUpgrade,
    /// `Sec-WebSocket-Version` is missing or another than 13.
    #[error("sec-websocket-version is not 13")]
    UnsupportedVersion,
    /// A critical header more than once.
    #[error("request has more than one {0} header")]
    DuplicateHeader(&'static str),
    /// `Sec-WebSocket-Key` is missing or not base64 of 16 bytes.
    #[error("sec-websocket-key is not base64 of 16 bytes")]
    InvalidKey,
    /// A body would be read as frames.
    #[error("upgrade request announces a body")]
    HasBody,
}

impl UpgradeError {
    /// The status to answer with.
    pub const fn status(self) -> u16 {
        match self {
            Self::MethodNotGet => 405,
            Self::NotAnUpgrade | Self::UnsupportedVersion => 426,
            Self::VersionNotHttp11
            | Self::MissingHost
            | Self::DuplicateHeader(_)
            | Self::InvalidKey
            | Self::HasBody => 400,
        }
    }

    /// The headers that belong to that status.
    pub const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self.status() {
            405 => &[("Allow", "GET")],
            // RFC 9110 §15.5.22 and RFC 6455 §4.2.2: name what would be accepted.
            426 => &[("Connection", "close, upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            _ => &[],
        }
    }
}

/// A query string that cannot be read; the request is answered 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// `%` without two hexadecimal digits.
    #[error("query has a broken percent escape")]
    BrokenEscape,
    /// The decoded bytes are not UTF-8.
    #[error("query is not UTF-8")]
    NotUtf8,
    /// More pairs than are read.
    #[error("query has more than {limit} pairs")]
    TooManyPairs {
        /// [`crate::handshake::QUERY_PAIRS_MAX`].
        limit: usize,
    },
}

/// The server did not upgrade: give the connection up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// Not HTTP/1.x.
    #[error("response is not HTTP/1.x")]
    Malformed,
    /// More header lines than are read.
    #[error("response has more than {limit} header lines")]
    TooManyHeaders {
        /// [`crate::handshake::HEADERS_MAX`].
        limit: usize,
    },
    /// Another status than 101.
    #[error("server refused with status {status}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// How long the server asks to stay away, when it says so in seconds.
        retry_after: Option<Duration>,
    },
    /// Status 101 without `Upgrade: websocket` and `Connection: upgrade`.
    #[error("server switched to something else than websocket")]
    NotWebSocket,
    /// `Sec-WebSocket-Accept` is not the one that belongs to our key.
    #[error("sec-websocket-accept does not belong to our key")]
    WrongAccept,
    /// §4.1: an extension that we did not offer.
    #[error("server switched on an extension that was not offered")]
    UnexpectedExtension,
}
