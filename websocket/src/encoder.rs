//! Payloads into frames, appended to a buffer that the caller owns and writes.
//!
//! Servers send unmasked frames, clients masked ones whose keys the caller draws (§5.3: unpredictable). Messages are
//! sent whole; a caller that wants fragments lays them out with [`FrameHeader::encode`].

use crate::close::{CloseCode, ClosePayload};
use crate::frame::{FrameHeader, HEADER_BYTES_MAX, Opcode};
use crate::mask::apply_mask;

/// Appends one whole unmasked frame.
#[inline]
pub fn encode_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    begin_frame(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of a whole unmasked frame and makes room for its payload, of which the caller appends exactly
/// `payload_bytes`.
#[inline]
pub fn begin_frame(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    begin(out, opcode, payload_bytes, None);
}

/// Appends one whole masked frame.
#[inline]
pub fn encode_masked_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
    begin(out, opcode, payload.len(), Some(key));
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], key);
}

/// Appends an unmasked Close frame. The reason is cut to 123 bytes, between characters; a code that may not be sent
/// (1005, 1006, 1015, …) gives a Close frame without code.
pub fn encode_close(out: &mut Vec<u8>, code: CloseCode, reason: &str) {
    encode_frame(out, Opcode::Close, ClosePayload::new(code, reason).as_bytes());
}

/// Appends a masked Close frame, otherwise as [`encode_close`].
pub fn encode_masked_close(out: &mut Vec<u8>, code: CloseCode, reason: &str, key: [u8; 4]) {
    encode_masked_frame(out, Opcode::Close, ClosePayload::new(code, reason).as_bytes(), key);
}

#[inline]
fn begin(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize, mask: Option<[u8; 4]>) {
    out.reserve(HEADER_BYTES_MAX + payload_bytes);
    let mut header = [0; HEADER_BYTES_MAX];
    // Lossless: an allocation has less than 2^63 bytes.
    let header_len = FrameHeader { fin: true, opcode, payload_bytes: payload_bytes as u64, mask }.encode(&mut header);
    // Two constant lengths instead of one that varies: no call to copy two bytes.
    if header_len == 2 {
        out.extend_from_slice(&header[..2]);
    } else {
        out.extend_from_slice(&header[..header_len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_6455_section_5_7() {
        let mut out = Vec::new();
        encode_frame(&mut out, Opcode::Text, b"Hello");
        assert_eq!(out, b"\x81\x05Hello");

        out.clear();
        encode_masked_frame(&mut out, Opcode::Text, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);

        out.clear();
        begin_frame(&mut out, Opcode::Binary, 256);
        assert_eq!(out, [0x82, 0x7e, 0x01, 0x00]);

        out.clear();
        begin_frame(&mut out, Opcode::Binary, 65_536);
        assert_eq!(out, [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn frames_are_appended_behind_what_is_there() {
        let mut out = b"before".to_vec();
        encode_close(&mut out, CloseCode::GOING_AWAY, "shutdown");
        assert_eq!(out, b"before\x88\x0a\x03\xe9shutdown");
    }
}
