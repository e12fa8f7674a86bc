#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeSet;

/// Adds the keys in the order of a directory, in turns of one step each. Returns the keys held at the end,
/// whether keys were dropped, and the number of turns.
fn gather(keys: &[Vec<u8>], limits: RunLimits, call: usize) -> (Vec<Vec<u8>>, bool, usize) {
    let mut smallest = SmallestNames::new(limits);
    let mut turns = 0;
    let mut merge = |smallest: &mut SmallestNames| {
        smallest.begin_merge();
        turns += 1;
        while !smallest.merge_on(&|| true) {
            turns += 1;
        }
    };
    for call in keys.chunks(call) {
        call.iter().for_each(|key| smallest.offer(key));
        assert!(smallest.merge_on(&|| true), "nothing is to be merged between two calls");
        if smallest.has_too_many() {
            merge(&mut smallest);
            assert!(smallest.sorted.ends.len() <= limits.names);
        }
    }
    merge(&mut smallest);
    let held = (0..).map_while(|at| smallest.sorted.get(at).map(<[u8]>::to_vec)).collect();
    (held, smallest.greatest.is_some(), turns)
}

proptest! {
    #[test]
    fn the_smallest_keys_are_held_each_once_and_without_a_gap(
        keys in proptest::collection::vec(proptest::collection::vec(97u8..101, 1..6), 0..600),
        names in 1usize..200,
        bytes in 1usize..800,
        call in 1usize..100,
    ) {
        let limits = RunLimits { names, bytes };
        let (held, is_cut, _) = gather(&keys, limits, call);
        let all: BTreeSet<_> = keys.into_iter().collect();
        let expected: Vec<_> = all.iter().take(held.len()).cloned().collect();
        prop_assert_eq!(&held, &expected);
        if is_cut {
            prop_assert!(!held.is_empty() && held.len() <= names);
        } else {
            prop_assert_eq!(held.len(), all.len());
        }
    }
}

#[test]
fn a_hundred_thousand_keys_are_merged_in_many_short_steps() {
    let keys: Vec<_> =
        (0..100_000u32).map(|number| format!("{:08}", number * 7919 % 100_003).into_bytes()).collect();
    let (held, is_cut, turns) = gather(&keys, RunLimits::default(), 2_000);
    assert!(held.is_sorted() && held.len() == 100_000 && !is_cut);
    assert!(turns >= 100_000 / STEP, "{turns} turns");
}

#[test]
fn a_merge_that_is_asked_whether_its_turn_is_over_is_asked_often() {
    let mut smallest = SmallestNames::new(RunLimits::default());
    (0..10_000u32).for_each(|number| smallest.offer(&number.to_be_bytes()));
    smallest.begin_merge();
    let asked = Cell::new(0);
    let is_over = || {
        asked.set(asked.get() + 1);
        false
    };
    assert!(smallest.merge_on(&is_over));
    assert_eq!(asked.get(), 10_000 / STEP);
}

#[test]
fn keys_that_come_again_are_held_once() {
    let keys: Vec<_> =
        (0..3u32).flat_map(|_| (0..5_000u32).map(|number| format!("{number:04}").into_bytes())).collect();
    let (held, is_cut, _) = gather(&keys, RunLimits::default(), 3_000);
    assert!(held.is_sorted() && !is_cut);
    assert_eq!(held.len(), 5_000);
}
