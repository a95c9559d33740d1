//! The bounds of a replay buffer that is elsewhere, shared by whoever keeps one: what a message costs, and how far back
//! and how far at once the store looks.

use super::Kept;

/// What a message costs beside its bytes.
pub const MESSAGE_OVERHEAD_BYTES: usize = 128;
/// How many of the latest messages are compared with a new one, beside as many as come with it: so a batch that is sent
/// again finds itself.
pub const REPEAT_WINDOW: usize = 64;
/// How many expired messages an append clears away at the front of the buffer; the sweep does the rest.
pub const EXPIRED_PER_APPEND_MAX: usize = 128;
/// The highest offset, generation and incarnation: what a JSON number, and one in a script, holds exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The bounds of one recipient's buffer.
#[derive(Debug, Clone, Copy)]
pub struct BufferLimits {
    /// Bytes kept for one recipient.
    pub recipient_bytes: usize,
    /// Messages kept for one recipient.
    pub recipient_messages: usize,
}

/// What keeping `message` costs.
pub fn cost(message: &Kept) -> usize {
    message.body.len() + MESSAGE_OVERHEAD_BYTES
}
