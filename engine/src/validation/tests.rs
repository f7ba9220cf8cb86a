//! Behaviours one by one; at random against a naive oracle in [`oracle`].

mod oracle;

use std::ops::Bound;

use hamal_wal::Lsn;

use super::*;
use crate::catalog::CATALOG;

/// A limit that is never reached.
const LARGE: usize = 1 << 20;

type KeyRef<'k> = Bound<&'k [u8]>;

fn reads_of(fill: impl FnOnce(&mut ReadSet)) -> ReadSet {
    let mut reads = ReadSet::new(LARGE);
    fill(&mut reads);
    reads
}

fn published(writes: &[(u32, &[u8])], counts: &[u32]) -> Published {
    let mut set = WriteSet::new(LARGE);
    for (table, key) in writes {
        set.add(*table, key);
    }
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    set.publish(&counts)
}

/// What the read set has in common with a commit that wrote one key.
fn with_key(reads: &mut ReadSet, table: u32, key: &[u8]) -> Option<Overlap> {
    conflict(&reads.prepare(), &published(&[(table, key)], &[]))
}

fn key_part(key: &[u8]) -> Part {
    Part::Key(key.to_vec())
}

#[test]
fn a_key_that_was_read_and_written_conflicts_and_is_named() {
    let mut reads = reads_of(|reads| {
        reads.point(3, b"b");
        reads.point(3, b"a");
    });
    let overlap = with_key(&mut reads, 3, b"a").unwrap();
    assert_eq!(overlap, Overlap { table: Some(3), part: key_part(b"a"), exact: true });
    assert_eq!(overlap.part.to_string(), "the key 0x61");
}

#[test]
fn another_key_and_another_table_do_not_conflict() {
    let mut reads = reads_of(|reads| reads.point(3, b"b"));
    for (table, key) in [(3, &b"a"[..]), (3, b"c"), (3, b"b\0"), (3, b""), (2, b"b"), (4, b"b")] {
        assert_eq!(with_key(&mut reads, table, key), None, "{table} {key:?}");
    }
}

#[test]
fn the_empty_key_is_a_key() {
    let mut reads = reads_of(|reads| reads.point(0, b""));
    assert!(with_key(&mut reads, 0, b"").is_some());
    assert_eq!(with_key(&mut reads, 0, b"\0"), None);
}

#[test]
fn an_immediate_repeat_of_a_point_takes_no_room() {
    let mut reads = reads_of(|reads| reads.point(1, b"key"));
    let bytes = reads.bytes();
    reads.point(1, b"key");
    assert_eq!(reads.bytes(), bytes);
    reads.point(2, b"key");
    assert!(reads.bytes() > bytes);
}

#[test]
fn bounds_of_a_range_are_honoured_exactly() {
    use Bound::{Excluded, Included, Unbounded};
    let cases: [(KeyRef, KeyRef, [bool; 5]); 9] = [
        (Included(b"b"), Included(b"d"), [false, true, true, true, false]),
        (Included(b"b"), Excluded(b"d"), [false, true, true, false, false]),
        (Excluded(b"b"), Included(b"d"), [false, false, true, true, false]),
        (Excluded(b"b"), Excluded(b"d"), [false, false, true, false, false]),
        (Unbounded, Excluded(b"b"), [true, false, false, false, false]),
        (Excluded(b"d"), Unbounded, [false, false, false, false, true]),
        (Unbounded, Unbounded, [true; 5]),
        (Excluded(b"c"), Excluded(b"c"), [false; 5]),
        (Included(b"d"), Included(b"b"), [false; 5]),
    ];
    for (lower, upper, expected) in cases {
        let mut reads = ReadSet::new(LARGE);
        let id = reads.range(1, lower, upper);
        reads.narrow(id, Some(Unbounded), None);
        for (key, expected) in [b"a", b"b", b"c", b"d", b"e"].into_iter().zip(expected) {
            assert_eq!(with_key(&mut reads, 1, key).is_some(), expected, "{lower:?} {upper:?} {key:?}");
        }
        assert_eq!(with_key(&mut reads, 2, b"c"), None);
    }
}

#[test]
fn a_range_counts_only_as_far_as_it_was_examined_from_either_end() {
    let mut reads = ReadSet::new(LARGE);
    let id = reads.range(1, Bound::Included(b"b"), Bound::Included(b"y"));
    reads.narrow(id, Some(Bound::Included(b"d")), Some(Bound::Excluded(b"v")));
    let examined = |reads: &mut ReadSet, key: &[u8]| with_key(reads, 1, key).is_some();
    let hits: Vec<_> = (b'a'..=b'z').filter(|key| examined(&mut reads, &[*key])).collect();
    assert_eq!(hits, b"bcdwxy");
}

#[test]
fn bounds_beyond_those_of_the_range_do_not_widen_it() {
    let mut reads = ReadSet::new(LARGE);
    let id = reads.range(1, Bound::Included(b"d"), Bound::Excluded(b"f"));
    reads.narrow(id, Some(Bound::Included(b"x")), Some(Bound::Included(b"a")));
    let hits: Vec<_> = (b'a'..=b'z').filter(|key| with_key(&mut reads, 1, &[*key]).is_some()).collect();
    assert_eq!(hits, b"de");
}

#[test]
fn a_range_of_which_nothing_was_examined_counts_for_nothing() {
    let mut reads = ReadSet::new(LARGE);
    let id = reads.range(1, Bound::Unbounded, Bound::Unbounded);
    assert!(!reads.is_empty());
    reads.narrow(id, None, None);
    assert!(reads.is_empty());
    assert_eq!(reads.bytes(), 0);
}

#[test]
fn a_range_that_never_ended_counts_whole() {
    let mut reads = ReadSet::new(LARGE);
    let leaked = reads.range(1, Bound::Included(b"b"), Bound::Excluded(b"d"));
    let overlap = with_key(&mut reads, 1, b"c").unwrap();
    assert!(!overlap.exact);
    reads.narrow(leaked, None, None); // Too late.
    assert!(with_key(&mut reads, 1, b"c").is_some());
}

#[test]
fn ranges_may_end_in_any_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
        let mut reads = ReadSet::new(LARGE);
        let starts = [b"a", b"h", b"p"];
        let ids = starts.map(|start| reads.range(1, Bound::Included(start), Bound::Unbounded));
        for index in order {
            reads.narrow(ids[index], Some(Bound::Included(starts[index])), None);
        }
        let hits: Vec<_> = (b'a'..=b'z').filter(|key| with_key(&mut reads, 1, &[*key]).is_some()).collect();
        assert_eq!(hits, b"ahp", "{order:?}");
    }
}

#[test]
fn the_number_of_rows_conflicts_with_a_changed_number_and_with_nothing_else() {
    let mut reads = reads_of(|reads| reads.count(5));
    assert_eq!(with_key(&mut reads, 5, b"a"), None);
    assert_eq!(conflict(&reads.prepare(), &published(&[(4, b"a")], &[4])), None);
    let overlap = conflict(&reads.prepare(), &published(&[(5, b"a")], &[7, 5])).unwrap();
    assert_eq!(overlap, Overlap { table: Some(5), part: Part::Count, exact: true });

    let mut reads = reads_of(|reads| reads.point(5, b"a"));
    assert_eq!(conflict(&reads.prepare(), &published(&[(5, b"b")], &[5])), None);
}

#[test]
fn a_cleared_set_is_as_new() {
    let mut reads = ReadSet::new(2000);
    let stale = reads.range(1, Bound::Unbounded, Bound::Unbounded);
    (0..1000_u32).for_each(|n| reads.point(n, &n.to_be_bytes()));
    reads.count(1);
    reads.clear();
    assert!(reads.is_empty());
    assert_eq!(reads.bytes(), 0);
    reads.point(1, b"a");
    reads.range(1, Bound::Included(b"x"), Bound::Unbounded);
    reads.narrow(stale, None, None);
    assert!(with_key(&mut reads, 1, b"z").is_some(), "an id from before does not close a later range");
    assert!(with_key(&mut reads, 1, b"a").is_some());
    assert_eq!(with_key(&mut reads, 1, b"b"), None);

    let mut writes = WriteSet::new(100);
    (0..1000_u32).for_each(|n| writes.add(n, &n.to_be_bytes()));
    writes.clear();
    assert!(writes.is_empty());
    writes.add(1, b"a");
    let published = writes.publish(&[]);
    assert!(published.keys().is_exact());
    assert_eq!(conflict(&reads_of(|reads| reads.point(1, b"b")).prepare(), &published), None);
}

#[test]
fn repeats_within_the_limit_lose_nothing() {
    let mut reads = ReadSet::new(1600);
    for n in 0..100_000_u32 {
        reads.point(1, &[(n % 10) as u8 * 2]);
    }
    assert!(reads.bytes() <= 1600, "{}", reads.bytes());
    assert!(reads.prepare().keys().is_exact());
    assert!(with_key(&mut reads, 1, &[4]).is_some_and(|overlap| overlap.exact));
    assert_eq!(with_key(&mut reads, 1, &[5]), None);
}

#[test]
fn a_set_beyond_its_limit_keeps_what_resolution_it_can() {
    let mut reads = ReadSet::new(64 << 10);
    // Two stretches of keys far from one another, in an order that is not theirs.
    for n in 0..100_000_u64 {
        let place = n * 7919 % 100_000;
        let key = if place < 50_000 { place } else { place + (1 << 40) };
        reads.point(1, &key.to_be_bytes());
    }
    println!("100000 points of 8 bytes, limit 64 KiB: {} bytes", reads.bytes());
    assert!(reads.bytes() <= 64 << 10);
    assert!(with_key(&mut reads, 1, &777_u64.to_be_bytes()).is_some_and(|overlap| !overlap.exact));
    assert_eq!(with_key(&mut reads, 1, &(1_u64 << 50).to_be_bytes()), None);
    assert_eq!(with_key(&mut reads, 2, &777_u64.to_be_bytes()), None);
}

#[test]
fn very_many_tables_become_whole_tables_and_then_everything() {
    let mut reads = ReadSet::new(8 << 10);
    for table in 0..80 {
        (0..100_u32)
            .for_each(|n| reads.point(table, &[[n as u8; 100].as_slice(), &n.to_be_bytes()].concat()));
    }
    println!("8000 points of 104 bytes in 80 tables, limit 8 KiB: {} bytes", reads.bytes());
    assert!(reads.bytes() <= 8 << 10);
    assert!(!reads.prepare().keys().is_everything());
    assert!(with_key(&mut reads, 33, &[55; 104]).is_some());
    assert_eq!(with_key(&mut reads, 81, &[55; 104]), None);
    for table in 0..10_000 {
        reads.point(table, b"key");
    }
    assert!(reads.bytes() <= 8 << 10);
    let overlap = with_key(&mut reads, 1 << 20, b"").unwrap();
    assert_eq!(overlap, Overlap { table: None, part: Part::Something, exact: false });
    assert!(conflict(&reads.prepare(), &published(&[], &[7])).is_some());
    assert_eq!(conflict(&reads.prepare(), &published(&[], &[])), None);
}

#[test]
fn an_open_range_survives_coarsening_and_is_still_narrowed() {
    let mut reads = ReadSet::new(4 << 10);
    let id = reads.range(2, Bound::Included(b"b"), Bound::Unbounded);
    (0..10_000_u32).for_each(|n| reads.point(1, &n.to_be_bytes()));
    reads.narrow(id, Some(Bound::Included(b"c")), None);
    assert!(with_key(&mut reads, 2, b"c").is_some());
    assert_eq!(with_key(&mut reads, 2, b"d"), None);
}

#[test]
fn too_many_open_ranges_are_taken_as_read_whole() {
    let mut reads = ReadSet::new(4 << 10);
    let ids: Vec<_> =
        (0..1000_u32).map(|n| reads.range(n, Bound::Included(b"b"), Bound::Excluded(b"d"))).collect();
    assert!(reads.bytes() <= 4 << 10, "{}", reads.bytes());
    for id in ids {
        reads.narrow(id, None, None);
    }
    assert!((0..900).all(|table| with_key(&mut reads, table, b"c").is_some()));
}

#[test]
fn too_many_counts_become_everything() {
    let mut reads = ReadSet::new(4 << 10);
    (0..50_000_u32).for_each(|n| reads.count(n % 50));
    assert!(reads.prepare().keys().is_exact());
    assert_eq!(conflict(&reads.prepare(), &published(&[], &[100])), None);
    (0..1000).for_each(|table| reads.count(table));
    assert!(reads.bytes() <= 4 << 10);
    assert!(conflict(&reads.prepare(), &published(&[], &[5])).is_some());
}

#[test]
fn a_coarsened_write_set_covers_what_was_written() {
    let mut writes = WriteSet::new(1000);
    (0..10_000_u32).for_each(|n| writes.add(1, &(2 * n).to_be_bytes()));
    assert!(writes.bytes() <= 1000);
    let published = writes.publish(&[1]);
    for key in [0, 2, 9998, 19_998_u32] {
        let mut reads = reads_of(|reads| reads.point(1, &key.to_be_bytes()));
        assert!(conflict(&reads.prepare(), &published).is_some_and(|overlap| !overlap.exact), "{key}");
    }
    let mut outside = reads_of(|reads| reads.point(1, &20_000_u32.to_be_bytes()));
    assert_eq!(conflict(&outside.prepare(), &published), None);
}

#[test]
fn a_key_larger_than_the_limit_is_covered() {
    let mut reads = ReadSet::new(200);
    reads.point(1, &[7; 1000]);
    assert!(reads.bytes() <= 200);
    assert!(with_key(&mut reads, 1, &[7; 1000]).is_some());
    assert_eq!(with_key(&mut reads, 2, &[7; 1000]), None);
    let mut reads = ReadSet::new(0);
    reads.point(1, b"");
    assert!(with_key(&mut reads, 2, b"").is_some());
}

fn push(history: &mut History, lsn: u64, writes: &[(u32, &[u8])], counts: &[u32]) {
    let mut set = WriteSet::new(LARGE);
    for (table, key) in writes {
        set.add(*table, key);
    }
    let mut publication = Publication::default();
    publication.leave(&mut set, counts, history, Lsn(lsn));
}

/// What a transaction with this snapshot would be told.
fn verdict(history: &History, reads: &mut ReadSet, since: u64) -> Result<(), Overlap> {
    let reads = reads.prepare();
    history.after(&reads, Lsn(since))?.check(&reads)
}

#[test]
fn only_commits_after_the_snapshot_are_checked() {
    let mut history = History::new(LARGE);
    push(&mut history, 10, &[(1, b"a")], &[]);
    push(&mut history, 20, &[(1, b"b")], &[]);
    push(&mut history, 30, &[], &[]);
    let mut reads = reads_of(|reads| reads.point(1, b"b"));
    assert!(verdict(&history, &mut reads, 19).is_err());
    assert_eq!(verdict(&history, &mut reads, 20), Ok(()));
    assert_eq!(history.after(&reads.prepare(), Lsn(10)).unwrap().seen_up_to, Lsn(30));
    assert_eq!(history.after(&reads.prepare(), Lsn(40)).unwrap().seen_up_to, Lsn(40));
}

#[test]
fn a_commit_leaves_the_same_in_short_and_in_full() {
    // Keys by table, tables that are counted, and whether that goes into a cache line.
    type Case<'c> = (&'c [(u32, &'c [u8])], &'c [u32], bool);
    let long = [7; 48];
    let cases: [Case<'_>; 12] = [
        (&[(5, b"b")], &[], true),
        (&[(5, b"b")], &[5], true),
        (&[(5, b"")], &[5], true),
        (&[(5, b"d"), (5, b"b")], &[5], true),
        (&[(5, b"b"), (5, b"")], &[], true),
        (&[(5, b"b"), (5, b"b"), (5, b"b")], &[], true),
        (&[(5, &long)], &[], true),
        (&[(5, &long), (5, b"b")], &[], false),
        (&[(5, b"b"), (5, b"c"), (5, b"d")], &[], false),
        (&[(5, b"b"), (6, b"b")], &[], false),
        (&[(5, b"b")], &[6], false),
        (&[], &[5], false),
    ];
    for (writes, counts, is_brief) in cases {
        let mut history = History::new(LARGE);
        push(&mut history, 10, writes, counts);
        assert_eq!(history.bytes() == 128, is_brief, "{writes:?} {counts:?}");
        let full = published(writes, counts);
        let keys = [&b""[..], b"a", b"b", b"b\0", b"c", b"d", b"e", &long];
        for (table, key) in [4, 5, 6].into_iter().flat_map(|table| keys.map(|key| (table, key))) {
            let mut point = reads_of(|reads| reads.point(table, key));
            let mut count = reads_of(|reads| reads.count(table));
            let mut above = reads_of(|reads| {
                let range = reads.range(table, Bound::Excluded(key), Bound::Unbounded);
                reads.narrow(range, Some(Bound::Unbounded), None);
            });
            let mut everything = ReadSet::new(0);
            everything.point(table, key);
            for reads in [&mut point, &mut count, &mut above, &mut everything] {
                let in_full = conflict(&reads.prepare(), &full);
                assert_eq!(verdict(&history, reads, 9).err(), in_full, "{writes:?} {counts:?} {reads:?}");
            }
        }
    }
}

#[test]
fn who_has_read_in_the_catalog_alone_misses_no_commit_there() {
    let catalog = CATALOG.0;
    let mut history = History::new(LARGE);
    push(&mut history, 10, &[(catalog, b"a")], &[]);
    push(&mut history, 20, &[(5, b"a")], &[5]);
    push(&mut history, 30, &[(catalog, b"b"), (5, b"a")], &[]);
    push(&mut history, 40, &[(5, b"b")], &[]);
    let conflicts = |key: &[u8], since| {
        let mut reads = reads_of(|reads| reads.point(catalog, key));
        verdict(&history, &mut reads, since).is_err()
    };
    assert_eq!([9, 10, 29, 30, 40].map(|since| conflicts(b"a", since)), [true, false, false, false, false]);
    assert_eq!([9, 10, 29, 30, 40].map(|since| conflicts(b"b", since)), [true, true, true, false, false]);
    let mut both = reads_of(|reads| [catalog, 5].iter().for_each(|table| reads.point(*table, b"b")));
    assert!(verdict(&history, &mut both, 30).is_err(), "who has read elsewhere too is checked there");
}

#[test]
fn a_forgotten_commit_conflicts_with_reads_of_its_tables_only() {
    let mut history = History::new(0);
    push(&mut history, 10, &[(1, b"a"), (2, b"a")], &[2]);
    push(&mut history, 20, &[(2, b"b")], &[]);
    assert_eq!(history.bytes(), 0);
    let reads = |table| reads_of(|reads| reads.point(table, b"other"));
    let overlap = verdict(&history, &mut reads(1), 9).unwrap_err();
    assert_eq!(overlap, Overlap { table: Some(1), part: Part::Something, exact: false });
    assert_eq!(verdict(&history, &mut reads(1), 10), Ok(()));
    assert!(verdict(&history, &mut reads(2), 19).is_err());
    assert_eq!(verdict(&history, &mut reads(2), 20), Ok(()));
    assert_eq!(verdict(&history, &mut reads(3), 0), Ok(()));
    let counts = |table| reads_of(|reads| reads.count(table));
    assert!(verdict(&history, &mut counts(2), 9).is_err());
    assert_eq!(verdict(&history, &mut counts(2), 10), Ok(()));
    assert_eq!(verdict(&history, &mut counts(1), 0), Ok(()));
}

#[test]
fn a_commit_checked_before_it_was_forgotten_does_not_conflict_later() {
    let one = bytes_of_one_key();
    let mut history = History::new(one);
    push(&mut history, 10, &[(1, b"a")], &[]);
    let mut reads = reads_of(|reads| reads.point(1, b"z"));
    let later = history.after(&reads.prepare(), Lsn(5)).unwrap();
    assert_eq!(later.check(&reads.prepare()), Ok(()));
    push(&mut history, 20, &[(1, b"b")], &[]);
    assert_eq!(history.bytes(), one, "the first is forgotten");
    assert_eq!(verdict(&history, &mut reads, later.seen_up_to.0), Ok(()));
    push(&mut history, 30, &[(1, b"c")], &[]);
    assert!(verdict(&history, &mut reads, later.seen_up_to.0).is_err(), "20 was never checked");
}

/// What a commit of one key of one byte takes in a history.
fn bytes_of_one_key() -> usize {
    let mut history = History::new(LARGE);
    push(&mut history, 1, &[(1, b"a")], &[]);
    history.bytes()
}

#[test]
fn pruning_drops_commits_and_low_waters_that_nobody_asks_for() {
    let mut history = History::new(0);
    for n in 1..=10 {
        push(&mut history, n * 10, &[(n as u32, b"a")], &[n as u32]);
    }
    assert_eq!(history.low_water_tables(), 20);
    history.prune(Lsn(50), &mut Garbage::default());
    assert_eq!(history.low_water_tables(), 10);
    assert!(verdict(&history, &mut reads_of(|reads| reads.point(6, b"")), 50).is_err());
    history.prune(Lsn(100), &mut Garbage::default());
    assert_eq!(history.low_water_tables(), 0);

    let mut history = History::new(LARGE);
    (1..=10).for_each(|n| push(&mut history, n * 10, &[(1, b"a")], &[]));
    history.prune(Lsn(100), &mut Garbage::default());
    assert_eq!((history.bytes(), history.newest()), (0, Lsn(100)));
    let mut reads = reads_of(|reads| reads.point(1, b"z"));
    assert_eq!(verdict(&history, &mut reads, 100), Ok(()));
    assert!(verdict(&history, &mut reads, 50).is_err(), "who asks all the same is not told that all is well");
}

#[test]
fn too_many_low_waters_collapse_into_one() {
    let mut history = History::new(0);
    for n in 1..=5000 {
        push(&mut history, n * 10, &[(n as u32, b"a")], &[]);
    }
    println!("low-water tables after 5000: {}", history.low_water_tables());
    assert!(history.low_water_tables() <= 4096);
    let reads = |table| reads_of(|reads| reads.point(table, b""));
    assert!(verdict(&history, &mut reads(1), 9).is_err());
    assert!(verdict(&history, &mut reads(7000), 9).is_err());
    assert!(verdict(&history, &mut reads(5000), 49_990).is_err());
    assert_eq!(verdict(&history, &mut reads(7000), 49_990), Ok(()));

    let tables: Vec<_> = (0..5000_u32).map(|table| (table, &b"a"[..])).collect();
    push(&mut history, 60_000, &tables, &[]);
    assert_eq!(history.low_water_tables(), 0);
    assert!(verdict(&history, &mut reads(4999), 50_000).is_err());
    history.prune(Lsn(60_000), &mut Garbage::default());
    assert_eq!(verdict(&history, &mut reads(4999), 60_000), Ok(()));
}

#[test]
fn messages_say_what_overlapped() {
    let keys = |lower, upper| Part::Keys { lower, upper };
    let key = |byte: u8| vec![byte];
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded).to_string(), "some key");
    assert_eq!(
        keys(Bound::Included(key(1)), Bound::Excluded(key(2))).to_string(),
        "a key from 0x01 below 0x02"
    );
    assert_eq!(
        keys(Bound::Excluded(key(1)), Bound::Included(key(2))).to_string(),
        "a key above 0x01 up to 0x02"
    );
    assert!(Part::Key(vec![0; 1000]).to_string().len() < 100);
}
