//! Random transactions and commits against a list of all that was read and written.

use std::ops::{Bound, RangeBounds};

use hamal_wal::Lsn;
use proptest::collection::vec;
use proptest::prelude::*;

use super::LARGE;
use crate::validation::*;

type KeyBound = Bound<Vec<u8>>;

/// What a transaction does.
#[derive(Clone, Debug)]
enum Step {
    Point(u32, Vec<u8>),
    Open(u32, KeyBound, KeyBound),
    /// Ends one of the open ranges.
    Close(prop::sample::Index, Option<KeyBound>, Option<KeyBound>),
    Count(u32),
    /// Asks in the middle, which closes what is open.
    Prepare,
}

/// What a transaction did, as the naive oracle keeps it.
#[derive(Clone, Debug)]
enum Read {
    Point(u32, Vec<u8>),
    Range {
        table: u32,
        whole: (KeyBound, KeyBound),
        /// Once it has ended: how far it was examined from either end.
        examined: Option<[Option<(KeyBound, KeyBound)>; 2]>,
    },
    Count(u32),
}

#[derive(Clone, Debug)]
struct Commit {
    keys: Vec<(u32, Vec<u8>)>,
    counts: Vec<u32>,
}

impl Read {
    fn meets(&self, commit: &Commit) -> bool {
        let wrote = |table: u32, hit: &dyn Fn(&Vec<u8>) -> bool| {
            commit.keys.iter().any(|(of, key)| *of == table && hit(key))
        };
        match self {
            Read::Point(table, key) => wrote(*table, &|written| written == key),
            Read::Range { table, whole, examined } => wrote(*table, &|written| {
                whole.contains(written)
                    && examined
                        .as_ref()
                        .is_none_or(|ends| ends.iter().flatten().any(|part| part.contains(written)))
            }),
            Read::Count(table) => commit.counts.contains(table),
        }
    }
}

fn run(steps: &[Step], reads: &mut ReadSet) -> Vec<Read> {
    let mut all = Vec::new();
    let mut open: Vec<(RangeId, usize)> = Vec::new();
    for step in steps {
        match step {
            Step::Point(table, key) => {
                reads.point(*table, key);
                all.push(Read::Point(*table, key.clone()));
            }
            Step::Open(table, lower, upper) => {
                let id = reads.range(*table, as_slice(lower), as_slice(upper));
                open.push((id, all.len()));
                all.push(Read::Range {
                    table: *table,
                    whole: (lower.clone(), upper.clone()),
                    examined: None,
                });
            }
            Step::Close(..) if open.is_empty() => {}
            Step::Close(which, front, back) => {
                let (id, at) = open.remove(which.index(open.len()));
                reads.narrow(id, front.as_ref().map(as_slice), back.as_ref().map(as_slice));
                if let Read::Range { examined, .. } = &mut all[at] {
                    let front = front.clone().map(|front| (Bound::Unbounded, front));
                    let back = back.clone().map(|back| (back, Bound::Unbounded));
                    *examined = Some([front, back]);
                }
            }
            Step::Count(table) => {
                reads.count(*table);
                all.push(Read::Count(*table));
            }
            Step::Prepare => {
                reads.prepare();
                open.clear();
            }
        }
    }
    all
}

fn as_slice(bound: &KeyBound) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![0..4_u8, Just(255)], 0..4)
}

fn any_bound() -> impl Strategy<Value = KeyBound> {
    prop_oneof![
        4 => any_key().prop_map(Bound::Included),
        4 => any_key().prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>();
    prop_oneof![
        20 => (0..3_u32, any_key()).prop_map(|(table, key)| Step::Point(table, key)),
        6 => (0..3_u32, any_bound(), any_bound()).prop_map(|(table, lower, upper)| Step::Open(table, lower, upper)),
        6 => (index, proptest::option::of(any_bound()), proptest::option::of(any_bound()))
            .prop_map(|(index, front, back)| Step::Close(index, front, back)),
        2 => (0..3_u32).prop_map(Step::Count),
        1 => Just(Step::Prepare),
    ]
}

fn any_commit(keys: usize) -> impl Strategy<Value = Commit> {
    (vec((0..4_u32, any_key()), 0..keys), vec(0..4_u32, 0..2))
        .prop_map(|(keys, counts)| Commit { keys, counts })
}

/// Runs everything against the oracle: the read set against each commit, then both stages of a commit against a history of them.
fn check(
    steps: &[Step],
    commits: &[Commit],
    since: usize,
    split: usize,
    prune: usize,
    [read_limit, write_limit, history_limit]: [usize; 3],
) -> Result<(), TestCaseError> {
    let mut set = ReadSet::new(read_limit);
    let all = run(steps, &mut set);
    prop_assert!(set.bytes() <= read_limit);
    let reads = set.prepare();
    let mut writes = WriteSet::new(write_limit);
    let mut publication = Publication::default();
    let mut history = History::new(history_limit);
    let mut reference = History::new(LARGE);
    let mut stage: Option<Result<Lsn, Overlap>> = None;
    let mut expected = false;
    // Ranges left open make a set inexact, but the oracle takes them as read whole too.
    let exact_reads = reads.keys().is_exact() || read_limit == LARGE;
    let mut sharp = exact_reads;
    for (n, commit) in commits.iter().enumerate() {
        writes.clear();
        commit.keys.iter().for_each(|(table, key)| writes.add(*table, key));
        prop_assert!(writes.bytes() <= write_limit);
        let mut counts = commit.counts.clone();
        counts.sort_unstable();
        counts.dedup();
        let published = writes.publish(&counts);
        let truth = all.iter().any(|read| read.meets(commit));
        let found = conflict(&reads, &published);
        prop_assert!(found.is_some() || !truth, "missed: {commit:?}");
        if exact_reads && published.keys().is_exact() {
            prop_assert_eq!(found.is_some(), truth, "{:?}", found);
        }
        if let Some(Overlap { table: Some(table), part: Part::Key(key), exact: true }) = found {
            let named = Commit { keys: vec![(table, key)], counts: vec![] };
            prop_assert!(commit.keys.contains(&named.keys[0]));
            prop_assert!(all.iter().any(|read| read.meets(&named)));
        }
        sharp &= published.keys().is_exact();
        expected |= n >= since && truth;

        if n == split.max(since) {
            let first = history.after(&reads, Lsn(since as u64));
            stage = Some(first.and_then(|later| later.check(&reads).map(|()| later.seen_up_to)));
        }
        publication.clear();
        publication.leave(&mut writes, &counts, &mut history, Lsn(n as u64 + 1));
        publication.leave(&mut writes, &counts, &mut reference, Lsn(n as u64 + 1));
        if n == prune {
            history.prune(Lsn(since.min(n + 1) as u64), &mut Garbage::default());
        }
        prop_assert!(history.bytes() <= history_limit);
    }
    sharp &= history.bytes() == reference.bytes() || history_limit == LARGE;
    let seen = stage.unwrap_or(Ok(Lsn(since as u64)));
    let outcome = seen.and_then(|seen| history.after(&reads, seen)?.check(&reads));
    prop_assert!(outcome.is_err() || !expected, "missed");
    if sharp {
        prop_assert_eq!(outcome.is_err(), expected, "{:?}", outcome);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn sets_within_their_limits_find_every_conflict_and_no_other(
        steps in vec(any_step(), 0..40), commits in vec(any_commit(6), 0..12),
        (since, split, prune) in (0..12_usize, 0..12_usize, 0..12_usize),
    ) {
        check(&steps, &commits, since, split, prune, [LARGE; 3])?;
    }

    #[test]
    fn coarsened_sets_find_every_conflict(
        steps in vec(any_step(), 0..200), commits in vec(any_commit(40), 0..12),
        (since, split, prune) in (0..12_usize, 0..12_usize, 0..12_usize),
        limits in [0..6000_usize, 0..900_usize, 0..4000_usize],
    ) {
        check(&steps, &commits, since, split, prune, limits)?;
    }

    #[test]
    fn tiny_sets_find_every_conflict(
        steps in vec(any_step(), 0..60), commits in vec(any_commit(20), 0..6),
        since in 0..6_usize, limits in [0..600_usize, 0..200_usize, 0..600_usize],
    ) {
        check(&steps, &commits, since, since, since, limits)?;
    }
}
