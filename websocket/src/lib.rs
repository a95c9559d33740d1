//! RFC 6455 as values: bytes in, events out; frames and handshakes as bytes. Both roles.
//!
//! Knows no sockets, clocks, threads or randomness: the caller reads, writes, times and brings the masking keys.
//! Extensions are not negotiated: a frame with reserved bits is refused.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | opcodes and the frame header, decoded and encoded |
//! | [`mask`] | the wide XOR of §5.3 |
//! | [`decoder`] | bytes → [`Event`]s: the hot path |
//! | `message` | a message that did not arrive whole: fragments, incremental UTF-8 |
//! | `utf8` | text validation of whole payloads; the one module with `unsafe` |
//! | [`encoder`] | payload → frames |
//! | [`close`] | close codes and the Close frame's payload |
//! | [`handshake`] | the upgrade request and its answers |
//! | [`error`] | what a peer can do wrong, grouped by what the caller does next |

pub mod close;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod mask;
mod message;
mod utf8;

pub use close::{CloseCode, CloseFrame};
pub use decoder::{Decoded, Decoder, Event};
pub use encoder::{begin_frame, encode_close, encode_frame, encode_masked_close, encode_masked_frame};
pub use error::{ProtocolError, QueryError, RequestError, ResponseError, UpgradeError};
pub use frame::{FrameHeader, Opcode, Role};
pub use mask::apply_mask;
