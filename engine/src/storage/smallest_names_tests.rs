#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeSet;

/// Adds the keys in the order of a directory, in turns of one step each. Returns the keys held at the end,
/// whether keys were dropped, and the number of turns.
fn gather(keys: &[Vec<u8>], limits: BatchLimits, call: usize) -> (Vec<Vec<u8>>, bool, usize) {
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
    let kept = (0..).map_while(|at| smallest.sorted.get(at).map(<[u8]>::to_vec)).collect();
    (kept, smallest.greatest.is_some(), turns)
}

proptest! {
    #[test]
    fn the_smallest_keys_are_kept_once_each_without_a_gap(
        keys in proptest::collection::vec(proptest::collection::vec(97u8..101, 1..6), 0..600),
        names in 1usize..200,
        bytes in 1usize..800,
        call in 1usize..100,
    ) {
        let limits = BatchLimits { names, bytes };
        let (kept, is_cut, _) = gather(&keys, limits, call);
        let all: BTreeSet<_> = keys.into_iter().collect();
        let expected: Vec<_> = all.iter().take(kept.len()).cloned().collect();
        prop_assert_eq!(&kept, &expected);
        if is_cut {
            prop_assert!(!kept.is_empty() && kept.len() <= names);
        } else {
            prop_assert_eq!(kept.len(), all.len());
        }
    }
}

#[test]
fn a_hundred_thousand_keys_are_merged_in_many_short_steps() {
    let keys: Vec<_> =
        (0..100_000u32).map(|number| format!("{:08}", number * 7919 % 100_003).into_bytes()).collect();
    let (kept, is_cut, turns) = gather(&keys, BatchLimits::default(), 2_000);
    assert!(kept.is_sorted() && kept.len() == 100_000 && !is_cut);
    assert!(turns >= 100_000 / STEP, "{turns} turns");
}

#[test]
fn a_merge_checks_the_end_of_its_turn_often() {
    let mut smallest = SmallestNames::new(BatchLimits::default());
    (0..10_000u32).for_each(|number| smallest.offer(&number.to_be_bytes()));
    smallest.begin_merge();
    let checks = Cell::new(0);
    let is_over = || {
        checks.set(checks.get() + 1);
        false
    };
    assert!(smallest.merge_on(&is_over));
    assert_eq!(checks.get(), 10_000 / STEP);
}

#[test]
fn duplicate_keys_are_kept_once() {
    let keys: Vec<_> =
        (0..3u32).flat_map(|_| (0..5_000u32).map(|number| format!("{number:04}").into_bytes())).collect();
    let (kept, is_cut, _) = gather(&keys, BatchLimits::default(), 3_000);
    assert!(kept.is_sorted() && !is_cut);
    assert_eq!(kept.len(), 5_000);
}
