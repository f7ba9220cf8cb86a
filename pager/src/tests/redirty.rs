//! Hazard H3: pages that change, or are freed, while a batch with a copy of them is on its way.

use std::sync::{Arc, Weak};

use hamal_storage::sim::SimStorage;
use hamal_wal::Lsn;
use parking_lot::Mutex;

use super::rig::{Op, Rig, read, small};
use crate::core::Resident;
use crate::dirty::{DirtyPages, rec_lsn};
use crate::sync::AtomicU64;
use crate::{Attempt, PageClass, PageNo, Partition, PartitionId};

const PAGE: PageNo = PageNo(3);

/// One I/O of a batch: its file, and what it is.
type Step = (&'static str, fn(Op) -> bool);

/// The steps of a batch at which something else may happen, in order.
const STEPS: [Step; 4] = [
    ("doublewrite", |op| matches!(op, Op::Write { .. })),
    ("doublewrite", |op| op == Op::Sync),
    ("part/1.dat", |op| matches!(op, Op::Write { .. })),
    ("part/1.dat", |op| op == Op::Sync),
];

/// A rig with page 3 dirty, and `at_step` run once, at the given step of the next batch.
fn interrupted(
    step: usize,
    at_step: impl Fn(&Rig, &Partition) + Send + 'static,
) -> (Arc<Rig>, Arc<Partition>, Lsn) {
    let rig = Arc::new(Rig::new(Arc::new(SimStorage::new(1)), small()));
    let partition = rig.pager.create_partition(PartitionId(1)).unwrap();
    rig.format_all(&partition, 8, 4);
    rig.clean();
    let first = rig.change(&mut partition.fix_exclusive(PAGE).unwrap(), 100);
    let (weak, inside): (Weak<Rig>, _) = (Arc::downgrade(&rig), Arc::clone(&partition));
    let mut done = false;
    rig.storage.set_hook(move |name, op| {
        let (file, matches) = STEPS[step];
        if !done && name == file && matches(op) {
            done = true;
            at_step(&weak.upgrade().unwrap(), &inside);
        }
        Ok(())
    });
    (rig, partition, first)
}

#[test]
fn a_page_changed_at_any_step_of_its_write_back_stays_dirty_from_its_second_change() {
    for step in 0..STEPS.len() {
        let second = Arc::new(Mutex::new(Lsn::NEVER));
        let seen = Arc::clone(&second);
        let (rig, partition, first) = interrupted(step, move |rig, partition| {
            let rec_lsn = |when: &str| {
                let table = rig.pager.dirty_pages();
                assert_eq!(table.len(), 1, "{when}");
                table[0].rec_lsn
            };
            let unsettled = rec_lsn("in flight");
            *seen.lock() = rig.change(&mut partition.fix_exclusive(PAGE).unwrap(), 200);
            assert_eq!(rec_lsn("changed again"), unsettled, "the older of the two counts");
            assert_eq!(rig.pager.stats().dirty_pages, 1);
        });
        let file = || {
            let bytes = hamal_storage::Storage::open(&*rig.storage, "part/1.dat").unwrap();
            let mut image = vec![0; 4096];
            hamal_storage::read_exact_at(&*bytes, &mut image, 3 * 4096).unwrap();
            super::rig::value(&image)
        };
        assert_eq!(rig.write_back().unwrap(), 0, "written, but not clean");
        assert_eq!(file(), 100, "step {step}");
        assert_eq!(rig.pager.oldest_rec_lsn(), Some(*second.lock()));
        assert!(*second.lock() > first);
        assert_eq!(rig.write_back().unwrap(), 1);
        assert_eq!(file(), 200);
        assert_eq!(rig.pager.stats().dirty_pages, 0);
        assert_eq!(read(&partition, 3), 200);
    }
}

#[test]
fn a_page_in_flight_is_not_evicted() {
    for step in 0..STEPS.len() {
        let (rig, partition, _) = interrupted(step, |rig, partition| {
            // Far more pages than fit: everything that can leave does.
            let other = rig.pager.create_partition(PartitionId(2)).unwrap();
            other.ensure_file_pages(600).unwrap();
            for page in 0..600 {
                drop(other.fix_new(PageNo(page), PageClass::Plain).unwrap());
            }
            assert!(matches!(partition.try_shared(PageNo(2)), Attempt::Absent), "a clean page left");
            assert!(matches!(partition.try_shared(PAGE), Attempt::Fixed(_)), "the page in flight stayed");
        });
        assert_eq!(rig.write_back().unwrap(), 1);
        assert_eq!(read(&partition, 3), 100);
    }
}

#[test]
fn a_page_discarded_in_flight_leaves_when_its_batch_is_done() {
    for step in 0..STEPS.len() {
        let (rig, partition, first) = interrupted(step, |_, partition| {
            partition.fix_exclusive(PAGE).unwrap().discard();
            assert!(matches!(partition.try_shared(PAGE), Attempt::Absent));
        });
        assert_eq!(rig.write_back().unwrap(), 1);
        assert_eq!(rig.pager.stats().dirty_pages, 0);
        assert!(rig.pager.dirty_pages().is_empty());
        // What is read now comes from the file.
        assert_eq!(read(&partition, 3), 100);
        rig.format(&partition, PAGE, PageClass::Plain, 300);
        assert!(rig.pager.oldest_rec_lsn().unwrap() > first);
        rig.clean();
        assert_eq!(read(&partition, 3), 300);
    }
}

#[test]
fn a_page_discarded_in_a_batch_that_fails_does_not_become_dirty_again() {
    let (rig, partition, _) = interrupted(2, |_, partition| partition.fix_exclusive(PAGE).unwrap().discard());
    rig.log.set_broken(None);
    let storage = Arc::clone(&rig.storage);
    let inside = Arc::clone(&partition);
    storage.set_hook(move |name, op| {
        if name == "part/1.dat" && matches!(op, Op::Write { .. }) {
            inside.fix_exclusive(PAGE).unwrap().discard();
            return Err(std::io::ErrorKind::Other.into());
        }
        Ok(())
    });
    rig.write_back().unwrap_err();
    assert!(rig.pager.dirty_pages().is_empty());
    assert_eq!(rig.pager.stats().dirty_pages, 0);
    rig.storage.set_hook(|_, _| Ok(()));
    assert_eq!(read(&partition, 3), 3, "as the file has it");
}

#[test]
fn a_page_that_the_clock_met_twice_is_in_its_batch_once() {
    let (rig, partition, _) = interrupted(0, |_, _| {});
    let resident = || Resident { partition: Arc::clone(&partition), page: PAGE };
    assert_eq!(rig.pager.core.write_batch(vec![resident(), resident()]).unwrap(), 1);
    assert_eq!(rig.pager.stats().dirty_pages, 0);

    // And if a writer came between the two visits, the older lsn stays in the table.
    let (dirty, word, key) = (DirtyPages::new(1), AtomicU64::new(0), (PartitionId(1), PAGE));
    dirty.mark(0, &word, Lsn(100));
    assert_eq!(dirty.take(key, 0, &word), Some(Lsn(100)));
    dirty.mark(0, &word, Lsn(160));
    assert_eq!(dirty.take(key, 0, &word), None, "it is in the batch already");
    let array = || std::iter::once((key, rec_lsn(&word)));
    assert_eq!(dirty.scan(array).get(&key), Some(&Lsn(100)));
    assert!(!dirty.settle(key, &word), "changed again");
    assert_eq!((dirty.count(), dirty.scan(array).get(&key)), (1, Some(&Lsn(160))));
}

#[test]
fn a_freed_page_that_is_still_dirty_is_not_written_with_what_its_next_use_begins_with() {
    let (rig, partition, _) = interrupted(0, |_, _| {});
    // A split that takes a page and finds that it has no use for it.
    drop(partition.fix_new(PAGE, PageClass::Plain).unwrap());
    assert!(rig.pager.dirty_pages().is_empty(), "what was dirty is void");
    assert_eq!(rig.write_back().unwrap(), 0);
    let file = hamal_storage::Storage::open(&*rig.storage, "part/1.dat").unwrap();
    let mut image = vec![0; 4096];
    hamal_storage::read_exact_at(&*file, &mut image, 3 * 4096).unwrap();
    assert_eq!(super::rig::value(&image), 3, "as it was");
}
