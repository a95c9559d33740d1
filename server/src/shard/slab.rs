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

struct Slot<T> {
    life: u32,
    value: Option<T>,
}

/// Values by [`Key`].
pub struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
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
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK_SLOTS + last.len())
    }

    /// Puts `value` into a free slot.
    pub fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slot_mut(index)
        {
            slot.value = Some(value);
            return Key { index, life: slot.life };
        }
        let index = new_index(self.slots());
        let slot = Slot { life: 0, value: Some(value) };
        if let Some(last) = self.chunks.last_mut().filter(|last| last.len() < CHUNK_SLOTS) {
            last.push(slot);
        } else {
            let mut chunk = Vec::with_capacity(CHUNK_SLOTS);
            chunk.push(slot);
            self.chunks.push(chunk);
        }
        Key { index, life: 0 }
    }

    /// Takes the value out; its key is stale from here on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot_mut(key.index)?;
        if slot.life != key.life {
            return None;
        }
        let value = slot.value.take()?;
        slot.life = slot.life.wrapping_add(1);
        self.free.push(key.index);
        self.len -= 1;
        Some(value)
    }

    /// The value of a key that is not stale.
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slot(key.index)?;
        if slot.life == key.life { slot.value.as_ref() } else { None }
    }

    /// The value of a key that is not stale.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slot_mut(key.index)?;
        if slot.life == key.life { slot.value.as_mut() } else { None }
    }

    /// The key and value in slot `index`, if it is used: for sweeps.
    pub fn at(&mut self, index: usize) -> Option<(Key, &mut T)> {
        let index = u32::try_from(index).ok()?;
        let slot = self.slot_mut(index)?;
        let life = slot.life;
        slot.value.as_mut().map(|value| (Key { index, life }, value))
    }

    /// The key and value in slot `index`, if it is used.
    pub fn peek(&self, index: u32) -> Option<(Key, &T)> {
        let slot = self.slot(index)?;
        slot.value.as_ref().map(|value| (Key { index, life: slot.life }, value))
    }

    /// The keys in use, in order of their slots.
    pub fn keys(&mut self) -> Vec<Key> {
        (0..self.slots()).filter_map(|index| self.at(index).map(|(key, _)| key)).collect()
    }

    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        let index = index as usize;
        self.chunks.get(index / CHUNK_SLOTS)?.get(index % CHUNK_SLOTS)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        let index = index as usize;
        self.chunks.get_mut(index / CHUNK_SLOTS)?.get_mut(index % CHUNK_SLOTS)
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
