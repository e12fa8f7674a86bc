//! Slots for the sessions of a model, by key. A key names one occupant of its slot: an event, a wake-up or a due time
//! that was meant for an earlier occupant finds nothing.

use slab::Slab;

/// The key of one session: its slot and the slot's generation. It repeats only after 2^32 sessions in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    fn new(generation: u32, slot: usize) -> Self {
        Key(u64::from(generation) << 32 | slot as u64)
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    /// As a number; generations begin at 1, so the smallest is 2^32.
    pub fn number(self) -> u64 {
        self.0
    }

    pub fn from_number(number: u64) -> Self {
        Key(number)
    }
}

#[derive(Debug)]
pub struct SessionSlab<T> {
    slab: Slab<(u32, T)>,
    generation: u32,
}

impl<T> SessionSlab<T> {
    pub fn new() -> Self {
        SessionSlab { slab: Slab::new(), generation: 0 }
    }

    /// The key that the next [`insert`](Self::insert) returns.
    pub fn next_key(&self) -> Key {
        Key::new(self.next_generation(), self.slab.vacant_key())
    }

    fn next_generation(&self) -> u32 {
        self.generation.wrapping_add(1).max(1)
    }

    pub fn insert(&mut self, value: T) -> Key {
        self.generation = self.next_generation();
        Key::new(self.generation, self.slab.insert((self.generation, value)))
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let (generation, value) = self.slab.get(key.slot())?;
        (*generation == key.generation()).then_some(value)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, value) = self.slab.get_mut(key.slot())?;
        (*generation == key.generation()).then_some(value)
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        self.slab.try_remove(key.slot()).map(|(_, value)| value)
    }

    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slab.iter().map(|(_, (_, value))| value)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slab.iter_mut().map(|(slot, (generation, value))| (Key::new(*generation, slot), value))
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        self.slab.retain(|_, (_, value)| keep(value));
    }

    pub fn clear(&mut self) {
        self.slab.clear();
    }

    /// Takes all sessions out.
    pub fn take_all(&mut self) -> Vec<T> {
        self.slab.drain().map(|(_, value)| value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_own_session_and_no_later_one() {
        let mut sessions = SessionSlab::new();
        let first = sessions.insert("first");
        assert_eq!(sessions.get(first), Some(&"first"));
        assert_eq!(sessions.remove(first), Some("first"));
        let next = sessions.next_key();
        let second = sessions.insert("second");
        assert_eq!((first.slot(), next), (second.slot(), second));
        assert_eq!(sessions.get(first), None);
        assert_eq!(sessions.get_mut(first), None);
        assert_eq!(sessions.remove(first), None);
        assert_eq!(sessions.get(Key::from_number(second.number())), Some(&"second"));
    }

    #[test]
    fn a_key_equals_no_named_token() {
        let mut sessions = SessionSlab { slab: Slab::new(), generation: u32::MAX };
        assert!(sessions.insert(()).number() >= 1 << 32);
    }
}
