//! A slab with generation-checked keys: the key of a removed value does not find a later value at
//! the same index (until an index was reused 2^32 times).

/// The index in the low half, and the generation in the high half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    /// Returns the key as a number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Returns the key with this number.
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }

    fn new(index: u32, uses: u32) -> Self {
        Self(u64::from(uses) << 32 | u64::from(index))
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low half is meant")]
    fn index(self) -> u32 {
        self.0 as u32
    }

    fn uses(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The slab.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    uses: u32,
    value: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns whether all slots are free.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a value.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.insert_with(|_| value)
    }

    /// Adds a value that contains its own key.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { uses: 0, value: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        let key = Key::new(index, slot.uses);
        slot.value = Some(make(key));
        key
    }

    /// Returns the value with this key, if it has not been removed.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index() as usize)?;
        if slot.uses == key.uses() { slot.value.as_mut() } else { None }
    }

    /// Removes the value with this key.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index() as usize)?;
        if slot.uses != key.uses() {
            return None;
        }
        let value = slot.value.take()?;
        slot.uses = slot.uses.wrapping_add(1);
        self.free.push(key.index());
        Some(value)
    }

    /// Returns all values with their keys.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slots.iter_mut().zip(0u32..).filter_map(|(slot, index)| {
            let key = Key::new(index, slot.uses);
            slot.value.as_mut().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn stale_key_does_not_find_a_later_value() {
        let mut slots = Slots::default();
        let (a, b) = (slots.insert('a'), slots.insert('b'));
        assert_eq!(slots.remove(a), Some('a'));
        let c = slots.insert('c');
        assert_eq!(c.index(), a.index());
        assert_eq!((slots.remove(a), slots.get_mut(a)), (None, None));
        assert_eq!(slots.get_mut(c).copied(), Some('c'));
        assert_eq!(Key::from_number(b.number()), b);
        let kept: Vec<_> = slots.iter_mut().map(|(key, &mut value)| (key, value)).collect();
        assert_eq!(kept, [(c, 'c'), (b, 'b')]);
        assert_eq!(slots.len(), 2);
    }
}
