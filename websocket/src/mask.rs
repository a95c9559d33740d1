//! The masking of RFC 6455 §5.3: XOR with a four-byte key, many bytes at a time.
//!
//! Plain safe Rust: the loop over words compiles to vector instructions, and a word is a multiple of the key's four
//! bytes, so that neither the payload's alignment nor its length needs care.

/// Masks or unmasks `payload` in place; its first byte meets the first byte of `key`.
#[inline]
pub fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let key_u32 = u32::from_ne_bytes(key);
    let key_u64 = u64::from(key_u32) << 32 | u64::from(key_u32);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key_u64).to_ne_bytes();
    }
    let (halves, tail) = tail.as_chunks_mut::<4>();
    for half in halves {
        *half = (u32::from_ne_bytes(*half) ^ key_u32).to_ne_bytes();
    }
    for (byte, key_byte) in tail.iter_mut().zip(key) {
        *byte ^= key_byte;
    }
}

/// The key as it meets the byte that lies `offset` bytes into the payload, for payloads that arrive in parts.
#[inline]
pub const fn key_at(key: [u8; 4], offset: usize) -> [u8; 4] {
    let phase = offset % 4;
    [key[phase], key[(phase + 1) % 4], key[(phase + 2) % 4], key[(phase + 3) % 4]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition of §5.3, byte by byte.
    fn apply_mask_reference(payload: &mut [u8], key: [u8; 4]) {
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[index % 4];
        }
    }

    fn check(bytes: &[u8], start: usize, key: [u8; 4]) {
        let start = start.min(bytes.len());
        let mut expected = bytes.to_vec();
        apply_mask_reference(&mut expected[start..], key);
        let mut masked = bytes.to_vec();
        apply_mask(&mut masked[start..], key);
        assert_eq!(masked, expected);
    }

    #[test]
    fn every_length_and_alignment_matches_the_reference() {
        let bytes: Vec<u8> = (0..=255).collect();
        for start in 0..16 {
            for len in 0..bytes.len() - start {
                check(&bytes[..start + len], start, [0x37, 0xfa, 0x21, 0x3d]);
            }
        }
    }

    proptest! {
        #[test]
        fn any_payload_matches_the_reference(bytes: Vec<u8>, start in 0_usize..64, key: [u8; 4]) {
            check(&bytes, start, key);
        }

        #[test]
        fn parts_with_their_key_equal_the_whole(mut bytes: Vec<u8>, split: usize, key: [u8; 4]) {
            let split = split % (bytes.len() + 1);
            let mut whole = bytes.clone();
            apply_mask_reference(&mut whole, key);
            let (front, back) = bytes.split_at_mut(split);
            apply_mask(front, key);
            apply_mask(back, key_at(key, split));
            prop_assert_eq!(bytes, whole);
        }
    }
}
