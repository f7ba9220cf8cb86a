//! Trees against a model on a cache that is far too small; undo, redo, vacuum, full disks, damage.

mod stress;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hamal_pager::{PageNo, header};
use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, Rng, When};
use hamal_wal::{Lsn, Scanner};

use super::split::Wanted;
use super::testing::{Fixture, LOG};
use super::*;
use crate::change::PageChange;
use crate::change::Row;
use crate::ids::TxnId;
use crate::journal::Author;
use crate::node::{Builder, Key, Node, Shape, Target};
use crate::record::{Record, Undo};
use crate::{ErrorKind, Result};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keys with long common prefixes, short ones, and now and then a very long one.
fn random_key(rng: &mut Rng, page_bytes: usize) -> Vec<u8> {
    let number = rng.below(3000);
    match rng.below(20) {
        0 => {
            let mut key = vec![b'x'; node::max_key_bytes(page_bytes)];
            let end = key.len();
            key[end - 8..].copy_from_slice(&number.to_be_bytes());
            key
        }
        1 => vec![0xff; (number % 40) as usize],
        2..10 => format!("table/rows/{number:08}").into_bytes(),
        _ => number.to_be_bytes()[5..].to_vec(),
    }
}

fn random_value(rng: &mut Rng, page_bytes: usize, key: &[u8]) -> Vec<u8> {
    let most = Tree::max_inline_bytes(page_bytes, key.len());
    let bytes = if rng.chance(1, 10) { rng.below(most as u64 + 1) } else { rng.below(100) };
    vec![rng.below(256) as u8; (bytes as usize).min(most)]
}

/// Everything that scans in both directions see, ghosts apart.
fn scan(tree: &Tree) -> Model {
    let mut forward = Vec::new();
    let (mut copy, mut from) = (LeafCopy::default(), None::<Vec<u8>>);
    loop {
        tree.leaf_at(from.as_deref(), None, &mut copy).unwrap();
        forward.extend(rows(&copy));
        match copy.upper_fence() {
            None => break,
            Some(fence) => from = Some(fence.to_vec()),
        }
    }
    let (mut backward, mut below) = (Vec::new(), None::<Vec<u8>>);
    loop {
        tree.leaf_before(below.as_deref(), None, &mut copy).unwrap();
        backward.extend(rows(&copy).into_iter().rev());
        match copy.lower_fence() {
            None => break,
            Some(fence) => below = Some(fence.to_vec()),
        }
    }
    backward.reverse();
    assert_eq!(forward, backward);
    assert!(forward.is_sorted_by(|a, b| a.0 < b.0));
    forward.into_iter().collect()
}

fn rows(copy: &LeafCopy) -> Vec<(Vec<u8>, Vec<u8>)> {
    let live = (0..copy.len()).filter(|&index| !copy.row(index).ghost);
    live.map(|index| {
        let mut key = Vec::new();
        copy.key_into(index, &mut key);
        assert_eq!((copy.lower_bound(&key), copy.upper_bound(&key)), (index, index + 1));
        (key, copy.row(index).value.to_vec())
    })
    .collect()
}

#[test]
fn a_tree_holds_what_a_map_holds_though_the_cache_is_too_small() {
    for (seed, page_bytes) in [(1, 4096), (2, 8192), (3, 16384), (4, 65536)] {
        let mut rng = Rng::new(seed);
        let f = Fixture::new(page_bytes);
        let mut model = Model::new();
        for round in 0..30 {
            let txn = f.begin();
            for _ in 0..400 {
                let key = random_key(&mut rng, page_bytes);
                if rng.chance(3, 10) {
                    assert_eq!(
                        f.remove(&txn, &key),
                        model.remove(&key).is_some(),
                        "seed {seed} round {round}"
                    );
                } else {
                    let value = random_value(&mut rng, page_bytes, &key);
                    f.put(&txn, &key, &value);
                    model.insert(key, value);
                }
                let probe = random_key(&mut rng, page_bytes);
                assert_eq!(f.get(&probe).as_ref(), model.get(&probe), "seed {seed} round {round}");
            }
            f.end(&txn);
            if round % 5 == 4 {
                f.vacuum();
            }
            let report = f.verify();
            assert_eq!(report.rows, model.len() as u64);
        }
        assert_eq!(scan(&f.tree), model, "seed {seed}");
        f.vacuum();
        assert_eq!(f.verify().ghosts, 0, "all of them are settled");
    }
}

#[test]
fn the_cache_is_smaller_than_the_tree_and_dirty_pages_are_stolen() {
    let f = Fixture::new(4096);
    let txn = f.begin();
    for number in 0_u64..30_000 {
        f.put(&txn, &number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), &[number as u8; 100]);
    }
    for number in 0_u64..30_000 {
        let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        assert_eq!(f.get(&key), Some(vec![number as u8; 100]));
    }
    let stats = f.pager.stats();
    assert!(stats.evictions > 1000 && stats.pages_written > 1000, "{stats:?}");
    let report = f.verify();
    assert!(report.height >= 3, "{report:?}");
    assert_eq!(report.rows, 30_000);
}

#[test]
fn ascending_loads_fill_pages_and_random_ones_two_thirds_of_them() {
    let fill = |key: &dyn Fn(u64) -> u64| {
        let f = Fixture::with_cache(4096, 16 << 20);
        let txn = f.begin();
        for number in 0..20_000 {
            f.put(&txn, &key(number).to_be_bytes(), &[1; 60]);
        }
        let report = f.verify();
        report.used_bytes * 100 / ((report.leaves + report.inner_nodes) * 4096)
    };
    let ascending = fill(&|number| number);
    assert!(ascending >= 90, "{ascending} % full");
    let rng = std::cell::RefCell::new(Rng::new(5));
    let random = fill(&|_| rng.borrow_mut().next_u64());
    assert!((60..80).contains(&random), "{random} % full");
}

#[test]
fn vacuum_gives_back_the_pages_of_removed_rows() {
    let f = Fixture::new(4096);
    let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let mut file_pages = 0;
    for round in 0..3 {
        let txn = f.begin();
        for number in 0..10_000 {
            f.put(&txn, &key(number), &[round; 100]);
        }
        for number in 0..10_000 {
            assert!(f.remove(&txn, &key(number)));
        }
        f.vacuum();
        assert_eq!(f.verify().ghosts, 10_000, "an active transaction may still need them");
        f.end(&txn);
        f.vacuum();
        f.vacuum();
        let report = f.verify();
        assert_eq!((report.rows, report.ghosts), (0, 0));
        assert!(report.leaves <= 2, "{report:?}");
        let pages = f.space.partition().file_pages();
        assert!(round == 0 || pages == file_pages, "the file grows though its pages are free");
        file_pages = pages;
    }
    assert!(f.space.merges.load(std::sync::atomic::Ordering::Relaxed) > 500);
}

#[test]
fn settled_ghosts_are_purged_before_a_leaf_is_split() {
    let f = Fixture::new(4096);
    for number in 0_u64..5000 {
        let txn = f.begin();
        f.put(&txn, &number.to_be_bytes(), &[1; 100]);
        f.end(&txn);
        let txn = f.begin();
        assert!(f.remove(&txn, &number.to_be_bytes()));
        f.end(&txn);
    }
    let report = f.verify();
    assert!(report.leaves <= 2, "a queue needs no more than its live rows: {report:?}");
}

#[test]
fn taking_back_never_splits_and_leaves_what_was_there_before() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let f = Fixture::new(4096);
        let mut model = Model::new();
        let base = f.begin();
        for _ in 0..300 {
            let key = random_key(&mut rng, 4096);
            let value = random_value(&mut rng, 4096, &key);
            f.put(&base, &key, &value);
            model.insert(key, value);
        }
        f.end(&base);
        // One transaction shrinks, grows, removes, inserts; the others fill all the space that gives. (H5)
        let mine = f.begin();
        let mut undo = Vec::new();
        for _ in 0..1500 {
            let key = random_key(&mut rng, 4096);
            if rng.chance(1, 3) {
                let before = f.tree.get(&key, |row| (row.value.to_vec(), row.stamp.0, row.ghost)).unwrap();
                let value = random_value(&mut rng, 4096, &key);
                f.put(&mine, &key, &value);
                let (value, stamp, ghost) =
                    before.map_or((None, 0, true), |(value, stamp, ghost)| (Some(value), stamp, ghost));
                undo.push((key, value, stamp, ghost));
            } else if !undo.iter().any(|(locked, ..)| *locked == key) {
                let other = f.begin();
                let value = random_value(&mut rng, 4096, &key);
                f.put(&other, &key, &value);
                f.end(&other);
                model.insert(key, value);
            }
            if rng.chance(1, 200) {
                f.vacuum();
            }
        }
        let splits = f.space.splits.load(std::sync::atomic::Ordering::Relaxed);
        for (key, value, stamp, ghost) in undo.into_iter().rev() {
            let stamp = TxnId(stamp);
            let before = value.as_deref().map(|value| Row { stamp, ghost, overflow: false, value });
            f.tree.undo_row(&f.journal, Author::Rollback(&mine, Lsn::NEVER), &key, before, || ()).unwrap();
        }
        assert_eq!(f.space.splits.load(std::sync::atomic::Ordering::Relaxed), splits, "seed {seed}");
        f.end(&mine);
        f.verify();
        assert_eq!(scan(&f.tree), model, "seed {seed}");
        f.vacuum();
        f.verify();
        assert_eq!(scan(&f.tree), model, "seed {seed}");
    }
}

#[test]
fn a_removal_is_taken_back_with_its_stamp() {
    let f = Fixture::new(4096);
    let base = f.begin();
    f.put(&base, b"k", b"value");
    f.end(&base);
    let txn = f.begin();
    assert!(f.remove(&txn, b"k"));
    assert_eq!(f.get(b"k"), None);
    let mut copy = LeafCopy::default();
    f.tree.leaf_at(Some(b"k"), None, &mut copy).unwrap();
    assert_eq!((copy.row(0).ghost, copy.row(0).value, copy.max_txn()), (true, &b"value"[..], txn.txn()));
    f.tree
        .undo_mark(&f.journal, Author::Rollback(&txn, Lsn::NEVER), b"k", (base.txn(), false), || ())
        .unwrap();
    let row = f.tree.get(b"k", |row| (row.stamp, row.ghost, row.value.to_vec())).unwrap();
    assert_eq!(row, Some((base.txn(), false, b"value".to_vec())));
    let missing = f.tree.undo_row(&f.journal, Author::Rollback(&txn, Lsn::NEVER), b"other", None, || ());
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// What is copied into a place of before has an old stamp, so a purge takes its cell's spare bytes though its transaction may yet be taken
/// back.
#[test]
fn a_row_written_anew_over_a_ghost_is_taken_back_though_its_cell_has_shrunk() {
    let f = Fixture::new(4096);
    let old = f.begin();
    f.put(&old, b"k", &[1; 700]);
    assert!(f.remove(&old, b"k"));
    f.end(&old);
    let txn = f.begin();
    let row = Row { stamp: old.txn(), ghost: false, overflow: false, value: &[2; 20] };
    let write = &mut |_: Option<Row<'_>>| Ok(Decision::WriteAnew(row));
    f.tree.update(&f.journal, Author::Transaction(&txn), b"k", 20, write).unwrap();
    assert_eq!(f.get(b"k"), Some(vec![2; 20]));
    f.vacuum();
    f.journal.log.flush().unwrap();
    let mut scanner = Scanner::open(Arc::new(f.storage.clone()), &LOG, Lsn::FIRST, Lsn::FIRST).unwrap();
    let (mut undone, mut is_purged) = (false, false);
    while let Some(frame) = scanner.next_frame().unwrap() {
        match Record::decode(frame.payload).unwrap() {
            Record::Update { txn: writer, undo: Undo::Row { before, .. }, .. } if writer == txn.txn() => {
                let author = Author::Rollback(&txn, Lsn::NEVER);
                f.tree.undo_row(&f.journal, author, b"k", before, || ()).unwrap();
                undone = true;
            }
            Record::Structure { parts } => {
                is_purged |= parts.iter().any(|part| matches!(part.change, PageChange::Purge { .. }));
            }
            _ => {}
        }
    }
    assert!(undone && is_purged, "{undone} {is_purged}");
    assert_eq!(f.get(b"k"), None);
    f.end(&txn);
    f.verify();
}

/// Redo is the forward change again: replaying the log onto empty pages gives the very pages.
#[test]
fn replaying_the_log_makes_the_same_pages() {
    let mut rng = Rng::new(11);
    let f = Fixture::new(4096);
    for _ in 0..20 {
        let txn = f.begin();
        for _ in 0..400 {
            let key = random_key(&mut rng, 4096);
            if rng.chance(4, 10) {
                f.remove(&txn, &key);
            } else {
                f.put(&txn, &key, &random_value(&mut rng, 4096, &key));
            }
        }
        f.end(&txn);
        f.vacuum();
    }
    f.journal.log.flush().unwrap();
    let mut pages: HashMap<PageNo, Vec<u8>> = HashMap::new();
    let mut scanner = Scanner::open(Arc::new(f.storage.clone()), &LOG, Lsn::FIRST, Lsn::FIRST).unwrap();
    let mut kinds = BTreeMap::new();
    while let Some(frame) = scanner.next_frame().unwrap() {
        let parts = match Record::decode(frame.payload).unwrap() {
            Record::Update { parts, .. }
            | Record::Structure { parts }
            | Record::Compensation { parts, .. } => parts,
            other => panic!("{other:?}"),
        };
        for part in parts {
            let page = pages.entry(part.page).or_insert_with(|| vec![0; 4096]);
            assert!(
                part.change.is_blind() || header::page_lsn(page) == part.page_prev_lsn,
                "{} of page {} at {}",
                part.page_prev_lsn,
                part.page,
                frame.lsn
            );
            part.change.check(page).unwrap();
            part.change.apply(page);
            header::set_page_lsn(page, frame.lsn);
            let name = format!("{:?}", part.change);
            *kinds.entry(name.split([' ', '(']).next().unwrap().to_string()).or_insert(0) += 1;
        }
    }
    for kind in [
        "Row",
        "Mark",
        "Purge",
        "Image",
        "TruncateRight",
        "InsertSeparator",
        "RemoveSeparator",
        "SetBits",
        "ClearBits",
    ] {
        assert!(kinds.contains_key(kind), "{kind} is missing: {kinds:?}");
    }
    let mut reachable = PageSet::default();
    f.tree.verify(&mut reachable, &mut |_, _| Ok(())).unwrap();
    for (number, replayed) in pages {
        if reachable.contains(number) || number.0 < 6 {
            let page = f.tree.partition.fix_shared(number).unwrap();
            let (live, replayed) = (page.bytes(), &replayed[..]);
            assert_eq!(live[4..6], replayed[4..6], "kind and level of page {number}");
            assert_eq!(live[24..40], replayed[24..40], "page LSN and max_txn of page {number}");
            assert!(live[40..] == replayed[40..], "content of page {number}");
        }
    }
}

#[test]
fn a_full_disk_fails_one_insert_and_nothing_else() {
    let f = Fixture::new(4096);
    let txn = f.begin();
    let put = |number: u64| {
        let row = Row { stamp: txn.txn(), ghost: false, overflow: false, value: &[5; 200] };
        f.tree.update(&f.journal, Author::Transaction(&txn), &number.to_be_bytes(), 200, &mut |_: Option<
            Row<'_>,
        >| {
            Ok(Decision::Write(row))
        })
    };
    put(0).unwrap();
    f.storage.set_capacity_bytes(Some(f.storage.used_bytes()));
    let mut rows = 1;
    let error = loop {
        match put(rows) {
            Ok(_) => rows += 1,
            Err(error) => break error,
        }
        assert!(rows < 100_000, "the disk never fills");
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(f.verify().rows, rows);
    assert_eq!(f.get(&(rows - 1).to_be_bytes()), Some(vec![5; 200]));
    assert_eq!(f.get(&rows.to_be_bytes()), None);
    f.storage.set_capacity_bytes(None);
    put(rows).unwrap();
    assert_eq!(f.verify().rows, rows + 1);
}

/// What is dirty in a poisoned cache never leaves it. Where that is nearly everything, the pages of one path push each other out: a
/// descent must come to an end, with an answer or an error.
#[test]
fn a_poisoned_cache_full_of_dirty_pages_ends_every_descent() {
    let f = Fixture::new(16384);
    let txn = f.begin();
    let put = |number: u64| {
        let row = Row { stamp: txn.txn(), ghost: false, overflow: false, value: &[5; 900] };
        let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        f.tree.update(&f.journal, Author::Transaction(&txn), &key, 900, &mut |_: Option<Row<'_>>| {
            Ok(Decision::Write(row))
        })
    };
    (0..2_000).for_each(|number| assert_eq!(put(number).unwrap(), Updated::Written));
    while f.pager.write_back(f.journal.log.tail(), 1_000).unwrap() > 0 {}
    let fault = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever);
    f.storage.inject(fault.only(&[Operation::Write]).on("doublewrite"));
    // Rows are replaced in place, so that leaves become dirty and the root does not.
    let refused = (0..2_000).map(put).filter(Result::is_err).take(200).count();
    assert_eq!(refused, 200, "nothing can be written back");
    let mut answers = BTreeMap::new();
    for number in 0..200_u64 {
        let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let answer = match f.tree.get(&key, |row| row.value.len()) {
            Ok(found) => {
                assert_eq!(found, Some(900));
                None
            }
            Err(error) => Some(error.kind() == ErrorKind::Poisoned),
        };
        *answers.entry(answer).or_insert(0) += 1;
    }
    assert_eq!(answers.get(&Some(false)), None, "{answers:?}: an error, and not Poisoned");
    assert!(answers.contains_key(&Some(true)), "{answers:?}: the paths never crowded each other out");
}

/// Two threads split one leaf at the same key. The second found the parent full, let go, and comes back to split it for a
/// separator that is there by now: nothing is left to do, and nothing is damaged.
#[test]
fn a_separator_that_somebody_else_has_inserted_is_no_damage() {
    let f = Fixture::new(4096);
    let txn = f.begin();
    for number in 0_u64..3000 {
        // Long keys, so that the tree has three levels; they differ early, so that separators are as long.
        let key = [&number.to_le_bytes()[..2], &[b'k'; 300]].concat();
        f.put(&txn, &key, &[1; 200]);
    }
    let mut there = Vec::new();
    f.tree
        .verify(&mut PageSet::default(), &mut |_, node| {
            for index in 0..if node.level() == 0 { 0 } else { node.len() } {
                there.push((node.level(), node.key(index).unwrap().to_vec()));
            }
            Ok(())
        })
        .unwrap();
    assert!(there.iter().any(|(level, _)| *level == 2), "the tree has three levels");
    let splits = f.space.splits.load(std::sync::atomic::Ordering::Relaxed);
    for (level, separator) in there {
        // What is a separator above is the lower fence on the levels below.
        for level in 1..=level {
            f.tree.split(&f.journal, Wanted::Separator(&separator), level, 0).unwrap();
        }
    }
    assert_eq!(f.space.splits.load(std::sync::atomic::Ordering::Relaxed), splits);
    f.verify();
}

#[test]
fn keys_and_values_out_of_range_are_refused() {
    let f = Fixture::new(4096);
    let txn = f.begin();
    let author = Author::Transaction(&txn);
    let decide = &mut |_: Option<Row<'_>>| Ok(Decision::Keep);
    let long = vec![1; Tree::max_key_bytes(4096) + 1];
    let refused = f.tree.update(&f.journal, author, &long, 0, decide).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let most = Tree::max_inline_bytes(4096, 3);
    let refused = f.tree.update(&f.journal, author, b"key", most + 1, decide).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert_eq!(f.get(&long), None);
}

#[test]
fn an_empty_copy_has_no_rows_and_no_fences() {
    let copy = LeafCopy::default();
    assert_eq!(
        (copy.len(), copy.lower_bound(b"k"), copy.upper_fence(), copy.lower_fence()),
        (0, 0, None, None)
    );
}

/// Whatever a structure change or a reader may meet on a page whose checksum is right: an answer or an error.
#[test]
fn damaged_pages_give_errors_never_panics_or_endless_descents() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let f = Fixture::new(4096);
        let txn = f.begin();
        for number in 0..600_u64 {
            f.put(&txn, &rng.below(5000).to_be_bytes(), &vec![number as u8; rng.below(150) as usize]);
        }
        let file_pages = u64::from(f.space.partition().file_pages());
        for _ in 0..=rng.below(3) {
            let number = PageNo(rng.below(file_pages.min(40)) as u32);
            let Ok(mut page) = f.tree.partition.fix_exclusive(number) else { continue };
            page.edit(|bytes| {
                for _ in 0..=rng.below(4) {
                    let at = if rng.chance(2, 3) { 4 + rng.index(300) } else { rng.index(4096) };
                    bytes[at] = rng.below(256) as u8;
                }
            });
        }
        let mut copy = LeafCopy::default();
        for _ in 0..200 {
            let key = rng.below(5000).to_be_bytes();
            let row = Row { stamp: txn.txn(), ghost: false, overflow: false, value: &[9; 120] };
            let results = [
                f.tree.get(&key, |_| ()).map(|_| ()),
                f.tree.leaf_at(Some(&key), None, &mut copy),
                f.tree.leaf_before(Some(&key), None, &mut copy),
                f.tree
                    .update(&f.journal, Author::Transaction(&txn), &key, 120, &mut |_: Option<Row<'_>>| {
                        Ok(Decision::Write(row))
                    })
                    .map(|_| ()),
                f.tree.vacuum(&f.journal, Some(&key), 3).map(|_| ()),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "seed {seed}: {error}");
            }
        }
        let (mut pages, mut faults) = (PageSet::default(), 0);
        let _ = f.tree.check(&mut pages, &mut |_, _| Ok(()), &mut |_| {
            faults += 1;
            Ok(())
        });
    }
}

/// A lost write or a false separator may lead to a leaf that knows nothing of the key, not even its first bytes.
#[test]
fn a_leaf_does_not_answer_for_keys_beyond_its_fences() {
    let f = Fixture::new(4096);
    let txn = f.begin();
    let key = |number: u32| format!("apple-{number:04}").into_bytes();
    for number in 0..400 {
        f.put(&txn, &key(number), &[1; 60]);
    }
    let mut root = f.tree.partition.fix_exclusive(ROOT).unwrap();
    let node = Node::inner(root.bytes()).unwrap();
    let second = node.child(1).unwrap();
    root.edit(|page| page[60..64].copy_from_slice(&second.0.to_le_bytes()));
    drop(root);
    let leaf = f.tree.partition.fix_shared(second).unwrap();
    let row = Node::leaf(leaf.bytes()).unwrap().key(0).unwrap().to_vec();
    drop(leaf);
    // But for the leaf's prefix it is a row of the leaf.
    let alike = [b"aaaaa", &row[5..]].concat();
    let corrupt = |result: Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("fences about the key"), "{error}");
    };
    let undo = Author::Rollback(&txn, Lsn::NEVER);
    for key in [alike, key(0), b"apple".to_vec()] {
        corrupt(f.tree.get(&key, |_| ()).map(|_| ()));
        let keep = &mut |_: Option<Row<'_>>| Ok(Decision::Keep);
        corrupt(f.tree.update(&f.journal, Author::Transaction(&txn), &key, 9, keep).map(|_| ()));
        corrupt(f.tree.undo_row(&f.journal, undo, &key, None, || ()));
        corrupt(f.tree.undo_mark(&f.journal, undo, &key, (txn.txn(), false), || ()));
    }
    assert_eq!(f.get(&row), Some(vec![1; 60]));
    assert_eq!(f.get(&key(399)), Some(vec![1; 60]));
}

#[test]
fn verification_names_the_page_and_what_is_wrong_with_it() {
    let f = Fixture::new(4096);
    let txn = f.begin();
    for number in 0_u64..200 {
        f.put(&txn, &number.to_be_bytes(), &[1; 100]);
    }
    let mut leaves = Vec::new();
    f.tree
        .verify(&mut PageSet::default(), &mut |page, node| {
            if node.level() == 0 {
                leaves.push(page);
            }
            Ok(())
        })
        .unwrap();
    let spoil = |page: PageNo, change: &dyn Fn(&mut [u8])| {
        let mut fixed = f.tree.partition.fix_exclusive(page).unwrap();
        let before = fixed.bytes().to_vec();
        fixed.edit(|bytes| change(bytes));
        drop(fixed);
        let mut faults = Vec::new();
        let mut pages = PageSet::default();
        let collect = &mut |fault| {
            faults.push(fault);
            Ok(())
        };
        f.tree.check(&mut pages, &mut |_, _| Ok(()), collect).unwrap();
        let error = f.tree.verify(&mut PageSet::default(), &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        f.tree.partition.fix_exclusive(page).unwrap().edit(|bytes| bytes.copy_from_slice(&before));
        f.verify();
        (faults, error.to_string())
    };
    let (faults, error) = spoil(leaves[1], &|page| page[48] ^= 1);
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].page, leaves[1]);
    assert!(error.contains("live bytes") && error.contains("part/7.dat"), "{error}");
    // Every leaf's upper fence is its right neighbour's lower one, so a leaf that lies about its own is found.
    let (faults, _) = spoil(leaves[2], &|page| {
        PageChange::TruncateRight { separator: &[0, 0, 0, 0, 0, 0, 0, 62] }.apply(page);
    });
    assert!(faults[0].expected.contains("upper fence"), "{faults:?}");
    let (faults, _) = spoil(ROOT, &|page| {
        let second = Node::inner(page).unwrap().child(2).unwrap();
        page[60..64].copy_from_slice(&second.0.to_le_bytes());
    });
    assert!(faults.iter().any(|fault| fault.expected.contains("one parent")), "{faults:?}");
    let (faults, _) = spoil(ROOT, &|page| page[60..64].copy_from_slice(&u32::MAX.to_le_bytes()));
    assert!(faults[0].expected.contains("within the file"), "{faults:?}");
}

#[test]
fn a_page_that_is_its_own_child_or_a_childs_twin_is_damage_and_not_waited_for() {
    let level_1 = |f: &Fixture, page: PageNo, children: [PageNo; 2]| {
        let mut page = f.space.partition().fix_exclusive(page).unwrap();
        page.edit(|bytes| {
            let shape = Shape::Inner { level: 1, leftmost: children[0] };
            let mut builder = Builder::new(bytes, shape, [b"", b""]).unwrap();
            builder.push_child(Key::whole(b"m"), children[1]).unwrap();
            builder.finish();
        });
    };
    let corrupt = |result: Result<bool>| assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
    let f = Fixture::new(4096);
    let chain = f.begin();
    f.put(&chain, b"a", b"1");
    let leaf = f.tree.leaf_shared(Target::At(b"a")).unwrap().page_no();
    let update = |value_bytes| {
        let keep = &mut |_: Option<Row<'_>>| Ok(Decision::Keep);
        f.tree.update(&f.journal, Author::Transaction(&chain), b"a", value_bytes, keep)
    };

    level_1(&f, ROOT, [ROOT, leaf]);
    corrupt(update(1).map(|_| true));
    corrupt(f.tree.split(&f.journal, Wanted::Row { key: b"a", value_bytes: 4000 }, 0, 0).map(|()| true));

    level_1(&f, ROOT, [leaf, leaf]);
    corrupt(f.tree.vacuum(&f.journal, None, 100).map(|_| true));
}
