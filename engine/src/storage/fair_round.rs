//! One level of fair queueing: members with ready jobs, of which the one with the least time spent is next.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// The charge of a turn before its time is known, and the minimum charge of each.
const ESTIMATE: u64 = 100_000;
pub(super) const MIN_CHARGE: u64 = 5_000;
/// Beyond this number of members, the queue removes those that are idle and owe nothing.
pub(super) const MAX_IDLE: usize = 64;

/// Classes of ready jobs, by the resources that they need.
pub(super) const CLASSES: usize = 3;
/// A thread.
pub(super) const SHORT: usize = 0;
/// One of the threads for long jobs.
pub(super) const BEGUN: usize = 1;
/// That, and one of the places for long jobs that have begun.
pub(super) const PLACELESS: usize = 2;

/// One level: its members, and which of them have ready jobs.
#[derive(Debug)]
pub(super) struct Round<K, V> {
    pub members: HashMap<K, Member<V>>,
    pub ready: [BTreeSet<(u64, K)>; CLASSES],
    clock: u64,
    prune_at: usize,
}

#[derive(Debug)]
pub(super) struct Member<V> {
    spent: u64,
    pub running: usize,
    pub ready: [bool; CLASSES],
    pub value: V,
}

impl<K: Copy + Ord + Hash, V> Round<K, V> {
    pub fn new() -> Self {
        Round { members: HashMap::new(), ready: Default::default(), clock: 0, prune_at: MAX_IDLE }
    }

    /// The member; a new or idle one starts at the clock.
    pub fn enter(&mut self, key: K, new: impl FnOnce() -> V) -> &mut Member<V> {
        if self.members.len() >= self.prune_at && !self.members.contains_key(&key) {
            let clock = self.clock;
            self.members.retain(|_, member| !member.is_idle() || member.spent > clock);
            self.prune_at = MAX_IDLE.max(2 * self.members.len());
        }
        let clock = self.clock;
        let member = self.members.entry(key).or_insert_with(|| Member {
            spent: clock,
            running: 0,
            ready: [false; CLASSES],
            value: new(),
        });
        if member.is_idle() {
            member.spent = member.spent.max(clock);
        }
        member
    }

    pub fn set_ready(&mut self, key: K, now: [bool; CLASSES]) {
        let Some(member) = self.members.get_mut(&key) else { return };
        for (class, set) in self.ready.iter_mut().enumerate() {
            match (member.ready[class], now[class]) {
                (false, true) => _ = set.insert((member.spent, key)),
                (true, false) => _ = set.remove(&(member.spent, key)),
                _ => {}
            }
        }
        member.ready = now;
    }

    fn charge(&mut self, key: K, change: impl FnOnce(u64) -> u64) {
        let Some(before) = self.members.get(&key).map(|member| member.ready) else { return };
        self.set_ready(key, [false; CLASSES]);
        if let Some(member) = self.members.get_mut(&key) {
            member.spent = change(member.spent);
        }
        self.set_ready(key, before);
    }

    /// The next member that has an allowed ready job.
    pub fn first(&self, allowed: [bool; CLASSES]) -> Option<(u64, K)> {
        let sets = self.ready.iter().zip(allowed).filter(|(_, allowed)| *allowed);
        sets.filter_map(|(set, _)| set.first().copied()).min()
    }

    pub fn begin(&mut self, key: K) {
        if let Some(member) = self.members.get_mut(&key) {
            member.running += 1;
            self.clock = self.clock.max(member.spent);
        }
        self.charge(key, |spent| spent + ESTIMATE);
    }

    pub fn end(&mut self, key: K, cost: u64) {
        if let Some(member) = self.members.get_mut(&key) {
            member.running -= 1;
        }
        self.charge(key, |spent| (spent + cost).saturating_sub(ESTIMATE));
    }

    pub fn ready_classes(&self) -> [bool; CLASSES] {
        [SHORT, BEGUN, PLACELESS].map(|class| !self.ready[class].is_empty())
    }
}

impl<V> Member<V> {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.ready == [false; CLASSES]
    }
}
