//! Offsets: places in a recipient's stream. They follow the clock, so that a new holder of the stream starts above
//! all that an earlier one gave away, and stay below 2^53, so that every JSON reader holds them exactly.

/// Bits below the milliseconds: 4096 messages to one recipient in one millisecond before the clock is outrun.
const SEQUENCE_BITS: u32 = 12;
/// JSON numbers are exact up to here.
const OFFSET_MAX: u64 = (1 << 53) - 1;

/// The first offset of a moment.
pub fn at(now_ms: u64) -> u64 {
    now_ms.saturating_mul(1 << SEQUENCE_BITS).min(OFFSET_MAX)
}

/// The moment whose offsets include `offset`, in milliseconds since 1970.
pub fn moment(offset: u64) -> u64 {
    offset >> SEQUENCE_BITS
}

/// The offset after `last`: never below the moment's.
pub fn next_offset(last: u64, now_ms: u64) -> u64 {
    last.saturating_add(1).max(at(now_ms)).min(OFFSET_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_rise_whatever_the_clock_does() {
        let now = 1_800_000_000_000;
        let first = next_offset(0, now);
        assert_eq!(first, at(now));
        assert_eq!(next_offset(first, now), first + 1);
        assert_eq!(next_offset(first, now - 5000), first + 1);
        assert!(next_offset(first, now + 1) > first + 1);
        assert!(at(now * 1000) <= OFFSET_MAX);
    }
}
