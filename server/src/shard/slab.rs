//! A growing table of slots with keys that know when they are stale. Slots never move: growth adds a chunk,
//! so that a table of many thousand idle sessions costs neither copies nor doubled memory.
//! It does not shrink; freed slots are used again, the latest freed first.

/// Slots a chunk holds.
const CHUNK_SLOTS: usize = 256;

/// Names one life of one slot: the key of a removed value never finds its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The slot.
    pub index: u32,
    /// Which of the slot's lives.
    pub life: u32,
}

impl Key {
    /// The key as one number, for the kernel to carry.
    pub fn to_u64(self) -> u64 {
        u64::from(self.life) << 32 | u64::from(self.index)
    }

    /// The inverse of [`Key::to_u64`].
    pub fn from_u64(value: u64) -> Self {
        let index = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let life = u32::try_from(value >> 32).unwrap_or(u32::MAX);
        Self { index, life }
    }
}

/// Lives apart from values: together they would be padded to the values' alignment.
struct Chunk<T> {
    lives: Vec<u32>,
    values: Vec<Option<T>>,
}

/// Values by [`Key`].
pub struct Slab<T> {
    // Invariant: all chunks but the last are full.
    chunks: Vec<Chunk<T>>,
    // Invariant: holds exactly the indexes of the slots without a value.
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many slots exist, used or free: the end of the range of indexes.
    pub fn slots(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK_SLOTS + last.values.len())
    }

    /// Puts `value` into a free slot.
    pub fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if let Some(index) = self.free.pop()
            && let Some((life, slot)) = self.slot_mut(index)
        {
            *slot = Some(value);
            return Key { index, life: *life };
        }
        let index = new_index(self.slots());
        if self.chunks.last().is_none_or(|last| last.values.len() == CHUNK_SLOTS) {
            let chunk = Chunk { lives: Vec::with_capacity(CHUNK_SLOTS), values: Vec::with_capacity(CHUNK_SLOTS) };
            self.chunks.push(chunk);
        }
        if let Some(last) = self.chunks.last_mut() {
            last.lives.push(0);
            last.values.push(Some(value));
        }
        Key { index, life: 0 }
    }

    /// Takes the value out; its key is stale from here on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let (life, slot) = self.slot_mut(key.index)?;
        if *life != key.life {
            return None;
        }
        let value = slot.take()?;
        *life = life.wrapping_add(1);
        self.free.push(key.index);
        self.len -= 1;
        Some(value)
    }

    /// The value of a key that is not stale.
    pub fn get(&self, key: Key) -> Option<&T> {
        let (life, slot) = self.slot(key.index)?;
        if life == key.life { slot.as_ref() } else { None }
    }

    /// The value of a key that is not stale.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (life, slot) = self.slot_mut(key.index)?;
        if *life == key.life { slot.as_mut() } else { None }
    }

    /// The key and value in slot `index`, if it is used.
    pub fn at(&self, index: u32) -> Option<(Key, &T)> {
        let (life, slot) = self.slot(index)?;
        slot.as_ref().map(|value| (Key { index, life }, value))
    }

    /// The key and value in slot `index`, if it is used.
    pub fn at_mut(&mut self, index: u32) -> Option<(Key, &mut T)> {
        let (life, slot) = self.slot_mut(index)?;
        let key = Key { index, life: *life };
        slot.as_mut().map(|value| (key, value))
    }

    /// The keys in use, in order of their slots.
    pub fn keys(&self) -> Vec<Key> {
        (0..new_index(self.slots())).filter_map(|index| self.at(index).map(|(key, _)| key)).collect()
    }

    fn slot(&self, index: u32) -> Option<(u32, &Option<T>)> {
        let index = index as usize;
        let chunk = self.chunks.get(index / CHUNK_SLOTS)?;
        Some((*chunk.lives.get(index % CHUNK_SLOTS)?, chunk.values.get(index % CHUNK_SLOTS)?))
    }

    fn slot_mut(&mut self, index: u32) -> Option<(&mut u32, &mut Option<T>)> {
        let index = index as usize;
        let chunk = self.chunks.get_mut(index / CHUNK_SLOTS)?;
        Some((chunk.lives.get_mut(index % CHUNK_SLOTS)?, chunk.values.get_mut(index % CHUNK_SLOTS)?))
    }
}

/// Goes round the slots of a slab, a share of them at a time.
#[derive(Debug, Default)]
pub struct Round {
    next: u32,
}

impl Round {
    /// The next index to look at in a slab of `slots` slots.
    pub fn step(&mut self, slots: usize) -> u32 {
        if self.next as usize >= slots {
            self.next = 0;
        }
        self.next += 1;
        self.next - 1
    }
}

fn new_index(slots: usize) -> u32 {
    u32::try_from(slots).expect("descriptors run out long before 2^32 slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn slots_are_used_again_and_keys_survive_the_kernel() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..1000).map(|value| slab.insert(value)).collect();
        for key in &keys[100..200] {
            slab.remove(*key);
        }
        for value in 0..100 {
            slab.insert(value);
        }
        assert_eq!(slab.slots(), 1000);
        assert_eq!(slab.keys().len(), 1000);
        for key in keys {
            assert_eq!(Key::from_u64(key.to_u64()), key);
        }
    }
}
