//! Opcodes and the frame header of RFC 6455 §5.2, decoded and encoded.
//!
//! Rules that one header can break alone are checked here; those that need the frames before it are the decoder's.

use crate::error::ProtocolError;

/// The longest header: two bytes, eight of length, four of masking key.
pub const HEADER_BYTES_MAX: usize = 14;

/// RFC 6455 §5.5: what a control frame may carry.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

const FIN_BIT: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0f;
const MASK_BIT: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7f;
/// In the seven length bits: the length follows in two bytes.
const LENGTH_IS_U16: u8 = 126;
/// In the seven length bits: the length follows in eight bytes.
const LENGTH_IS_U64: u8 = 127;

/// Which end of the connection this is: a server refuses unmasked frames, a client masked ones (§5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads masked frames, writes unmasked ones.
    Server,
    /// Reads unmasked frames, writes masked ones.
    Client,
}

/// What a frame is (§5.2). Opcodes 3–7 and 11–15 are reserved and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message begun before.
    Continuation = 0x0,
    /// A text message, or its first fragment.
    Text = 0x1,
    /// A binary message, or its first fragment.
    Binary = 0x2,
    /// The last frame of its direction.
    Close = 0x8,
    /// To be answered by a Pong with the same payload.
    Ping = 0x9,
    /// The answer, or an unasked heartbeat.
    Pong = 0xa,
}

impl Opcode {
    /// Close, Ping and Pong: whole, short, and allowed between fragments.
    #[inline]
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    #[inline]
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }
}

/// One frame's header as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Last (or only) fragment of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Announced payload length in bytes, below 2^63.
    pub payload_bytes: u64,
    /// The masking key; frames from client to server carry one, others do not.
    pub mask: Option<[u8; 4]>,
}

impl FrameHeader {
    /// Reads a header from the front of `bytes`, as received by `role`: the header and its length in bytes, or `None`
    /// until more bytes arrive.
    ///
    /// # Errors
    ///
    /// Whatever the header alone proves wrong, as soon as the bytes that prove it are there.
    #[inline]
    pub fn decode(bytes: &[u8], role: Role) -> Result<Option<(Self, usize)>, ProtocolError> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & RESERVED_BITS != 0 {
            return Err(ProtocolError::ReservedBitsSet);
        }
        let opcode_bits = first & OPCODE_BITS;
        let opcode = Opcode::from_bits(opcode_bits).ok_or(ProtocolError::UnknownOpcode(opcode_bits))?;
        let fin = first & FIN_BIT != 0;
        let is_masked = second & MASK_BIT != 0;
        match role {
            Role::Server if !is_masked => return Err(ProtocolError::UnmaskedFrame),
            Role::Client if is_masked => return Err(ProtocolError::MaskedFrame),
            Role::Server | Role::Client => {}
        }
        let length_bits = second & LENGTH_BITS;
        if opcode.is_control() {
            // RFC 6455 §5.5: control frames are whole and at most 125 bytes.
            if !fin {
                return Err(ProtocolError::FragmentedControl);
            }
            if usize::from(length_bits) > CONTROL_PAYLOAD_BYTES_MAX {
                return Err(ProtocolError::ControlTooLong);
            }
        }
        let (payload_bytes, rest) = match length_bits {
            LENGTH_IS_U16 => {
                let Some((length, rest)) = rest.split_first_chunk::<2>() else {
                    return Ok(None);
                };
                let length = u16::from_be_bytes(*length);
                if length < u16::from(LENGTH_IS_U16) {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                (u64::from(length), rest)
            }
            LENGTH_IS_U64 => {
                let Some((length, rest)) = rest.split_first_chunk::<8>() else {
                    return Ok(None);
                };
                let length = u64::from_be_bytes(*length);
                if length >> 63 != 0 {
                    return Err(ProtocolError::LengthTopBitSet);
                }
                if u16::try_from(length).is_ok() {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                (length, rest)
            }
            short => (u64::from(short), rest),
        };
        let (mask, rest) = if is_masked {
            let Some((key, rest)) = rest.split_first_chunk::<4>() else {
                return Ok(None);
            };
            (Some(*key), rest)
        } else {
            (None, rest)
        };
        let header = Self { fin, opcode, payload_bytes, mask };
        Ok(Some((header, bytes.len() - rest.len())))
    }

    /// The same for the header of most frames there are: a whole data message of less than 64 KiB, masked as `role`
    /// expects. `None` says nothing; ask [`FrameHeader::decode`].
    #[inline]
    pub(crate) fn decode_message(bytes: &[u8], role: Role) -> Option<MessageHeader> {
        const TEXT: u8 = FIN_BIT | Opcode::Text as u8;
        const BINARY: u8 = FIN_BIT | Opcode::Binary as u8;
        let ([first @ (TEXT | BINARY), second], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let mask_bit = match role {
            Role::Server => MASK_BIT,
            Role::Client => 0,
        };
        // Wraps beyond every length where the bit is not as it should be.
        let (payload_bytes, rest) = match second ^ mask_bit {
            length @ 0..LENGTH_IS_U16 => (usize::from(length), rest),
            LENGTH_IS_U16 => {
                let (length, rest) = rest.split_first_chunk()?;
                let length = u16::from_be_bytes(*length);
                if length < u16::from(LENGTH_IS_U16) {
                    return None;
                }
                (usize::from(length), rest)
            }
            _ => return None,
        };
        let (mask, rest) = match role {
            Role::Server => {
                let (key, rest) = rest.split_first_chunk()?;
                (Some(*key), rest)
            }
            Role::Client => (None, rest),
        };
        let header_bytes = bytes.len() - rest.len();
        Some(MessageHeader { is_text: *first == TEXT, mask, header_bytes, payload_bytes })
    }

    /// Writes the header to the front of `out` and returns its length in bytes.
    ///
    /// # Panics
    ///
    /// In debug builds, when the payload has 2^63 bytes or more.
    #[inline]
    pub fn encode(&self, out: &mut [u8; HEADER_BYTES_MAX]) -> usize {
        debug_assert!(self.payload_bytes >> 63 == 0);
        let mask_bit = if self.mask.is_some() { MASK_BIT } else { 0 };
        out[0] = self.opcode as u8 | if self.fin { FIN_BIT } else { 0 };
        let mut len = 2;
        match (u8::try_from(self.payload_bytes), u16::try_from(self.payload_bytes)) {
            (Ok(short), _) if short < LENGTH_IS_U16 => out[1] = mask_bit | short,
            (_, Ok(medium)) => {
                out[1] = mask_bit | LENGTH_IS_U16;
                out[2..4].copy_from_slice(&medium.to_be_bytes());
                len = 4;
            }
            (_, Err(_)) => {
                out[1] = mask_bit | LENGTH_IS_U64;
                out[2..10].copy_from_slice(&self.payload_bytes.to_be_bytes());
                len = 10;
            }
        }
        if let Some(key) = self.mask {
            out[len..len + 4].copy_from_slice(&key);
            len += 4;
        }
        len
    }
}

/// See [`FrameHeader::decode_message`].
pub(crate) struct MessageHeader {
    pub(crate) is_text: bool,
    pub(crate) mask: Option<[u8; 4]>,
    pub(crate) header_bytes: usize,
    pub(crate) payload_bytes: usize,
}

/// Length in bytes of the header of an unmasked frame with this payload, for callers that leave room for it.
pub const fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..126 => 2,
        126..65_536 => 4,
        _ => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back_from_its_shortest_header() {
        for payload_bytes in [0, 1, 125, 126, 127, 65_535, 65_536, u64::from(u32::MAX), (1 << 63) - 1] {
            for (mask, role) in [(None, Role::Client), (Some([1, 2, 3, 4]), Role::Server)] {
                let header = FrameHeader { fin: true, opcode: Opcode::Binary, payload_bytes, mask };
                let mut out = [0; HEADER_BYTES_MAX];
                let len = header.encode(&mut out);
                let unmasked = header_bytes(usize::try_from(payload_bytes).unwrap());
                assert_eq!(len, unmasked + mask.map_or(0, |key| key.len()));
                assert_eq!(FrameHeader::decode(&out[..len], role), Ok(Some((header, len))));
                for short in 0..len {
                    assert_eq!(FrameHeader::decode(&out[..short], role), Ok(None));
                }
            }
        }
    }

    #[test]
    fn opcodes_come_back_from_their_bits() {
        for bits in 0..=OPCODE_BITS {
            if let Some(opcode) = Opcode::from_bits(bits) {
                assert_eq!(opcode as u8, bits);
                assert_eq!(opcode.is_control(), bits >= 8);
            }
        }
    }
}
