#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::storage::fair_round::MAX_IDLE;
use proptest::prelude::*;
use std::collections::HashMap;

const LIMITS: LongLimits = LongLimits { threads: 2, begun: 3 };
/// No limit of threads.
const ALL: Shares = Shares { connection: 1_000, user: 1_000 };
const MS: Duration = Duration::from_millis(1);

fn client(uid: u32, connection: u64) -> Client {
    Client { user: User::Uid(uid), connection }
}

/// Runs the next job for `cost`, and returns its client and value.
fn one(turns: &mut Turns<u32>, cost: Duration) -> (Client, u32) {
    let taken = turns.pop().expect("work");
    turns.end(&taken, cost);
    (taken.client, taken.job)
}

#[test]
fn a_light_client_comes_before_the_backlog_of_a_heavy_one() {
    let mut turns = Turns::new(LIMITS, ALL);
    for job in 0..1000 {
        turns.push(client(1, 1), Kind::Short, job);
    }
    for _ in 0..10 {
        assert_eq!(one(&mut turns, MS).0, client(1, 1));
    }
    turns.push(client(1, 2), Kind::Short, 7);
    assert_eq!(one(&mut turns, MS), (client(1, 2), 7));
    turns.push(client(2, 3), Kind::Short, 8);
    assert_eq!(one(&mut turns, MS), (client(2, 3), 8));
}

#[test]
fn users_get_equal_time_whatever_their_connections_and_job_sizes() {
    let mut turns = Turns::new(LIMITS, ALL);
    let mut spent = HashMap::<Client, u32>::new();
    for _ in 0..400 {
        for connection in 0..9 {
            turns.push(client(1, connection), Kind::Short, 10);
        }
        (0..4).for_each(|_| turns.push(client(2, 9), Kind::Short, 1));
    }
    for _ in 0..500 {
        let taken = turns.pop().expect("work");
        turns.end(&taken, MS * taken.job);
        *spent.entry(taken.client).or_default() += taken.job;
    }
    let of_one: u32 = (0..9).filter_map(|connection| spent.get(&client(1, connection))).sum();
    let of_two = spent[&client(2, 9)];
    assert!(of_one.abs_diff(of_two) <= 40, "{of_one} and {of_two}");
    assert!((0..9).all(|connection| spent[&client(1, connection)].abs_diff(of_one / 9) <= 20), "{spent:?}");
}

#[test]
fn unused_time_is_not_saved_up() {
    let mut turns = Turns::new(LIMITS, ALL);
    turns.push(client(2, 2), Kind::Short, 0);
    for job in 0..200 {
        turns.push(client(1, 1), Kind::Short, job);
    }
    for _ in 0..100 {
        one(&mut turns, MS);
    }
    for job in 0..100 {
        turns.push(client(2, 2), Kind::Short, job);
    }
    let of_two = (0..40).filter(|_| one(&mut turns, MS).0 == client(2, 2)).count();
    assert!((19..=22).contains(&of_two), "{of_two} of 40");
}

#[test]
fn long_work_takes_turns_with_the_short_work_of_the_same_connection() {
    let mut turns = Turns::new(LIMITS, ALL);
    turns.push(client(1, 1), Kind::Long, 1000);
    for job in 0..10 {
        turns.push(client(1, 1), Kind::Short, job);
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        let mut taken = turns.pop().expect("work");
        order.push(taken.job == 1000);
        match taken.kind {
            Kind::Long => {
                assert_eq!(turns.place(&mut taken), Place::Kept);
                turns.put_back(taken, MS);
            }
            _ => turns.end(&taken, MS),
        }
    }
    assert_eq!(order, [false, true, false, true, false, true, false, true]);
}

#[test]
fn a_connection_has_one_piece_of_long_work_begun_and_all_together_few() {
    let mut turns = Turns::new(LIMITS, ALL);
    for (uid, connection) in (0..6).zip(0..6) {
        turns.push(client(uid, connection), Kind::Long, 0);
        turns.push(client(uid, connection), Kind::Long, 1);
    }
    let taken: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
    assert!(taken.len() == 6 && taken.iter().all(|taken| taken.job == 0), "one of each connection");
    let mut places = Vec::new();
    for mut taken in taken {
        places.push(turns.place(&mut taken));
        turns.put_back(taken, MS);
    }
    assert_eq!(places.iter().filter(|place| **place == Place::Kept).count(), LIMITS.begun);
    // As many begun jobs go on as there are threads; those without a place wait for one.
    let going_on: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
    assert_eq!(going_on.len(), LIMITS.threads);
    // A new short job has its turn all the same.
    turns.push(client(1, 9), Kind::Long, 2);
    assert_eq!(one(&mut turns, MS), (client(1, 9), 2));
    for taken in going_on {
        turns.end(&taken, MS);
    }
    let mut rest = 0;
    while let Some(taken) = turns.pop() {
        turns.end(&taken, MS);
        rest += 1;
    }
    assert_eq!((rest, turns.begun, turns.continuing, turns.running), (10, 0, 0, 0));
}

#[test]
fn a_job_whose_place_others_need_is_asked_to_end() {
    let mut turns = Turns::new(LongLimits { threads: 2, begun: 4 }, ALL);
    let begin = |turns: &mut Turns<u32>, uid, connection| {
        turns.push(client(uid, connection), Kind::Long, uid);
        let mut taken = turns.pop().expect("work");
        assert_eq!(taken.client, client(uid, connection));
        (turns.place(&mut taken), taken)
    };
    let places: Vec<_> = (0..3).map(|connection| begin(&mut turns, 1, connection)).collect();
    let [(Place::Kept, first), (Place::Kept, second), (Place::Refused, third)] =
        <[_; 3]>::try_from(places).unwrap()
    else {
        panic!("half of the places are one user's");
    };
    turns.put_back(first, MS);
    let mut taken = turns.pop().expect("it goes on");
    assert_eq!(turns.place(&mut taken), Place::Kept, "none waits");
    turns.put_back(taken, MS);
    turns.put_back(third, MS * 9);
    let mut taken = turns.pop().expect("it goes on");
    assert_eq!(taken.client, client(1, 0));
    assert_eq!(turns.place(&mut taken), Place::Wanted, "the third waits");
    // Other users do not want it before all places are taken.
    let (place, mut other) = begin(&mut turns, 2, 9);
    assert_eq!((place, turns.place(&mut other)), (Place::Kept, Place::Kept));
    turns.end(&taken, MS);
    turns.end(&other, MS);
    assert_eq!(turns.pop().expect("the third has a place").client, client(1, 2));
    turns.end(&second, MS);
}

#[test]
fn one_user_leaves_places_for_the_long_work_of_others() {
    let mut turns = Turns::new(LongLimits { threads: 2, begun: 8 }, ALL);
    let begin = |turns: &mut Turns<u32>, uid, connection| {
        turns.push(client(uid, connection), Kind::Long, uid);
        let mut taken = turns.pop().expect("work");
        assert_eq!(taken.client, client(uid, connection));
        let place = turns.place(&mut taken);
        // The first user owes so much that any other user goes first.
        turns.put_back(taken, if uid == 1 { MS * 1000 } else { Duration::ZERO });
        place
    };
    let of_one = (0..20).filter(|&connection| begin(&mut turns, 1, connection) == Place::Kept).count();
    assert_eq!(of_one, 4, "half of the places");
    let of_two = (20..40).filter(|&connection| begin(&mut turns, 2, connection) == Place::Kept).count();
    assert_eq!(of_two, 2, "half of those that are left");
    let of_others = (3..9).filter(|&uid| begin(&mut turns, uid, uid.into()) == Place::Kept).count();
    assert_eq!(of_others, 2, "one of the rest each");
    // All jobs finish, and the places are free again.
    let mut done = 0;
    while let Some(taken) = turns.pop() {
        turns.end(&taken, MS);
        done += 1;
    }
    assert_eq!((done, turns.begun, turns.continuing), (46, 0, 0));
}

#[test]
fn an_ended_connection_drops_its_waiting_jobs_except_writes() {
    let mut turns = Turns::new(LIMITS, ALL);
    for (kind, job) in [(Kind::Short, 1), (Kind::Write, 2), (Kind::Long, 3), (Kind::Urgent, 4)] {
        turns.push(client(1, 1), kind, job);
        turns.push(client(1, 2), kind, job + 10);
    }
    let mut left = turns.cancel(client(1, 1));
    left.sort_unstable();
    assert_eq!(left, [1, 3, 4]);
    let mut rest: Vec<_> = (0..5).map(|_| one(&mut turns, MS).1).collect();
    rest.sort_unstable();
    assert_eq!(rest, [2, 11, 12, 13, 14]);
    assert!(turns.pop().is_none());
}

#[test]
fn clients_that_have_gone_leave_nothing_behind() {
    let mut turns = Turns::new(LIMITS, ALL);
    // One job always waits, so that the rounds are never empty.
    turns.push(client(0, 0), Kind::Short, 0);
    for connection in 1..10_000 {
        turns.push(client(connection as u32, connection), Kind::Short, 0);
        turns.push(client(0, connection), Kind::Short, 0);
        one(&mut turns, MS);
        one(&mut turns, MS);
        one(&mut turns, MS / 1000);
        turns.push(client(0, 0), Kind::Short, 0);
    }
    let flows = turns.users.members.values().map(|user| user.value.round.members.len()).max();
    assert!(turns.users.members.len() <= 3 * MAX_IDLE, "{}", turns.users.members.len());
    assert!(flows <= Some(3 * MAX_IDLE), "{flows:?}");
}

proptest! {
    /// For any sequence, each job is done once or dropped, and the counts end at 0.
    #[test]
    fn no_job_is_lost_or_repeated_and_the_counts_end_at_zero(steps in prop::collection::vec((0u8..5, 0u32..3, 0u64..3, 0u8..4), 0..200)) {
        let mut turns = Turns::new(LIMITS, ALL);
        let mut under_way = Vec::new();
        let (mut pushed, mut finished) = (0u32, Vec::new());
        for (step, uid, connection, kind) in steps {
            match step {
                0 | 1 => {
                    let kind = [Kind::Short, Kind::Urgent, Kind::Write, Kind::Long][usize::from(kind)];
                    turns.push(client(uid, connection), kind, pushed);
                    pushed += 1;
                }
                2 => under_way.extend(turns.pop()),
                3 => finished.extend(turns.cancel(client(uid, connection))),
                _ => if let Some(mut taken) = under_way.pop() {
                    if taken.kind == Kind::Long && kind > 0 {
                        turns.place(&mut taken);
                        turns.put_back(taken, MS * kind.into());
                    } else {
                        turns.end(&taken, MS * kind.into());
                        finished.push(taken.job);
                    }
                }
            }
            prop_assert!(turns.begun <= LIMITS.begun && turns.continuing <= LIMITS.threads);
        }
        for taken in under_way {
            turns.end(&taken, MS);
            finished.push(taken.job);
        }
        while let Some(taken) = turns.pop() {
            turns.end(&taken, MS);
            finished.push(taken.job);
        }
        finished.sort_unstable();
        prop_assert_eq!(finished, (0..pushed).collect::<Vec<_>>());
        prop_assert_eq!((turns.begun, turns.continuing, turns.running), (0, 0, 0));
    }
}

#[test]
fn a_client_whose_disk_does_not_answer_leaves_threads_for_others() {
    let shares = Shares::new(4, 0);
    let mut turns = Turns::new(LIMITS, shares);
    for connection in [1, 2] {
        (0..64).for_each(|job| turns.push(client(1, connection), Kind::Short, job));
    }
    let stuck: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
    assert_eq!(stuck.len(), 3, "a user leaves one of four");
    for connection in [1, 2] {
        let of_one = stuck.iter().filter(|taken| taken.client.connection == connection).count();
        assert!(of_one <= 2, "and a connection one for others of its user");
    }
    assert!(!turns.has_next());
    turns.push(client(2, 3), Kind::Short, 7);
    assert_eq!(one(&mut turns, MS), (client(2, 3), 7));
    turns.set_shares(Shares::new(4, 2));
    let more = std::iter::from_fn(|| turns.pop()).count();
    assert_eq!(
        more, 1,
        "two threads more: one for the connection that has the smaller part, none beyond its share"
    );
    turns.push(client(1, 4), Kind::Short, 8);
    assert_eq!(one(&mut turns, MS), (client(1, 4), 8));
    turns.end(&stuck[0], MS);
    let next = turns.pop().expect("its thread is free for what waited").client;
    assert_eq!(next, stuck[0].client);
}

#[test]
fn one_connection_leaves_a_thread_wherever_there_are_two() {
    for threads in 2..9 {
        let mut turns = Turns::new(LongLimits { threads, begun: 99 }, Shares::new(threads, 0));
        (0..64).for_each(|job| turns.push(client(1, 1), Kind::Short, job));
        (0..64).for_each(|job| turns.push(client(1, 1), Kind::Long, job));
        let stuck: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert!((1..threads).contains(&stuck.len()), "{} of {threads}", stuck.len());
        turns.push(client(1, 2), Kind::Short, 7);
        assert_eq!(one(&mut turns, MS), (client(1, 2), 7));
    }
}
