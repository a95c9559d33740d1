//! A shard's pool of I/O buffers: a connection borrows one for the length of a turn and an idle one owns none.
//! The pool is capped, and trimmed to what the last interval needed. It knows nothing of what is in a buffer.

/// What a read asks for at first. Not a power of two: buffers that lie a page apart would share cache sets.
pub const READ_BYTES: usize = 5 * 1024 - 64;
/// What a read asks for once a whole small buffer came back full.
pub const LARGE_READ_BYTES: usize = 64 * 1024;
/// A buffer that grew past this is freed, not kept.
const KEPT_BYTES_MAX: usize = 80 * 1024;
/// How many bytes of spare buffers a shard keeps.
const POOL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Spare buffers, the latest used first: it is the warm one.
#[derive(Default)]
pub struct Pool {
    small: Shelf,
    large: Shelf,
}

#[derive(Default)]
struct Shelf {
    spare: Vec<Vec<u8>>,
    bytes: usize,
    // The fewest spare buffers since the last trim: that many were never needed.
    unused: usize,
}

impl Pool {
    /// An empty buffer of at least [`READ_BYTES`].
    pub fn take(&mut self) -> Vec<u8> {
        self.small.take(READ_BYTES)
    }

    /// An empty buffer of at least [`LARGE_READ_BYTES`].
    pub fn take_large(&mut self) -> Vec<u8> {
        self.large.take(LARGE_READ_BYTES)
    }

    /// Takes a buffer home, or frees it when the pool has enough.
    pub fn put(&mut self, buf: Vec<u8>) {
        match buf.capacity() {
            READ_BYTES..LARGE_READ_BYTES => self.small.put(buf),
            LARGE_READ_BYTES..=KEPT_BYTES_MAX => self.large.put(buf),
            _ => {}
        }
    }

    /// Frees what has not been needed since the last call.
    pub fn trim(&mut self) {
        self.small.trim();
        self.large.trim();
    }
}

impl Shelf {
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let Some(buf) = self.spare.pop() else {
            self.unused = 0;
            return Vec::with_capacity(bytes);
        };
        self.bytes -= buf.capacity();
        self.unused = self.unused.min(self.spare.len());
        buf
    }

    fn put(&mut self, mut buf: Vec<u8>) {
        if self.bytes + buf.capacity() > POOL_BYTES_MAX {
            return;
        }
        buf.clear();
        self.bytes += buf.capacity();
        self.spare.push(buf);
    }

    fn trim(&mut self) {
        let unused = self.unused.min(self.spare.len());
        for buf in self.spare.drain(..unused) {
            self.bytes -= buf.capacity();
        }
        if self.spare.is_empty() {
            self.spare = Vec::new();
        }
        self.unused = self.spare.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_the_unused_ones_are_trimmed() {
        let mut pool = Pool::default();
        let bufs: Vec<_> = (0..8).map(|_| pool.take()).collect();
        for mut buf in bufs {
            buf.push(1);
            pool.put(buf);
        }
        pool.trim();
        let busy = pool.take();
        assert!(busy.is_empty());
        assert!(busy.capacity() >= READ_BYTES);
        pool.put(busy);
        pool.trim();
        assert_eq!(pool.small.spare.len(), 1);
        pool.trim();
        assert_eq!(pool.small.spare.len(), 0);
        assert_eq!(pool.small.bytes, 0);
    }

    #[test]
    fn the_pool_is_capped() {
        let mut pool = Pool::default();
        for _ in 0..(2 * POOL_BYTES_MAX / READ_BYTES) {
            pool.put(Vec::with_capacity(READ_BYTES));
        }
        assert!(pool.small.bytes <= POOL_BYTES_MAX);
        pool.put(Vec::with_capacity(KEPT_BYTES_MAX * 2));
        assert!(pool.large.spare.is_empty());
    }
}
