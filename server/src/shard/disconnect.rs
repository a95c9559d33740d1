//! Why a connection ends: the close code the client sees, and the counter it goes to.

use websocket::{CloseCode, ProtocolError};

use crate::metrics::{Counter, Counters};

/// An ended connection is not an exception: these are its reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disconnect {
    /// The peer sent a Close frame; it gets its own code back.
    PeerClosed(Option<CloseCode>),
    /// The peer's end of the socket is shut.
    PeerGone,
    /// The peer broke RFC 6455.
    Protocol(ProtocolError),
    /// The peer sent a binary message, and this protocol has none.
    Binary,
    /// A message was begun and not ended in time.
    MessageTimeout,
    /// The socket failed.
    Io,
    /// No answer to a ping.
    NoPong,
    /// The outbox was at its limit and did not move.
    SlowConsumer,
    /// The same client logged in again.
    Replaced,
    /// This node is being drained.
    Drain,
    /// Its client belongs to another node, and was advised to go there.
    Moved,
    /// This node stops now.
    Shutdown,
    /// It never became a WebSocket: refused, or a plain HTTP request that was answered.
    Handshake,
}

impl Disconnect {
    /// The Close frame to send, if one is due.
    pub fn close(self) -> Option<(CloseCode, &'static str)> {
        match self {
            Self::PeerClosed(code) => Some((code.unwrap_or(CloseCode::NORMAL), "")),
            Self::Protocol(error) => Some((error.close_code(), protocol_reason(error))),
            Self::Binary => Some((CloseCode::UNSUPPORTED, "binary")),
            Self::MessageTimeout => Some((CloseCode::POLICY_VIOLATION, "message-timeout")),
            Self::NoPong => Some((CloseCode::new(4202), "no-pong")),
            Self::SlowConsumer => Some((CloseCode::new(4100), "slow-consumer")),
            Self::Replaced => Some((CloseCode::new(4001), "replaced")),
            Self::Drain => Some((CloseCode::SERVICE_RESTART, "drain")),
            Self::Moved => Some((CloseCode::SERVICE_RESTART, "move")),
            Self::Shutdown => Some((CloseCode::GOING_AWAY, "shutdown")),
            Self::PeerGone | Self::Io | Self::Handshake => None,
        }
    }

    /// True when the peer has said its last word, so that the socket can be closed at once.
    pub fn is_final(self) -> bool {
        matches!(self, Self::PeerClosed(_) | Self::PeerGone | Self::Io)
    }

    /// Where it is counted.
    pub fn counter(self, counters: &Counters) -> &Counter {
        match self {
            Self::PeerClosed(_) | Self::PeerGone => &counters.closed_peer,
            Self::Protocol(_) | Self::Binary => &counters.closed_protocol,
            Self::Io => &counters.closed_io,
            Self::MessageTimeout => &counters.closed_message_timeout,
            Self::NoPong => &counters.closed_no_pong,
            Self::SlowConsumer => &counters.closed_slow,
            Self::Replaced => &counters.closed_replaced,
            Self::Drain => &counters.closed_drain,
            Self::Moved => &counters.closed_moved,
            Self::Shutdown => &counters.closed_shutdown,
            Self::Handshake => &counters.closed_handshake,
        }
    }
}

/// A stable word for each kind of breach.
fn protocol_reason(error: ProtocolError) -> &'static str {
    match error.close_code() {
        CloseCode::TOO_BIG => "too-large",
        CloseCode::INVALID_PAYLOAD => "invalid-utf8",
        _ => "protocol",
    }
}
