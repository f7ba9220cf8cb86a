//! The dirty page table against writers and write-back: a checkpoint misses no dirty page (hazard H3, design section 7).
//!
//! One page, whose content is the LSN of its last record; a log, which is a counter; a disk, which holds the page's
//! last durable content. The writer marks, reserves, changes, all under the latch; the write-back copies under a shared
//! latch; the checkpointer reserves BEGIN and scans. Then: each record below BEGIN is on the disk, or the table tells
//! recovery to start at it or before it.

use loom::sync::Arc;
use loom::thread;

use super::explore;
use crate::dirty::{DirtyPages, Key, rec_lsn};
use crate::state::{Latch, Loaded, PageClass, StateWord};
use crate::sync::{AtomicU64, Mistake, Ordering, plant};
use crate::{PageNo, PartitionId};
use hamal_wal::Lsn;

const KEY: Key = (PartitionId(1), PageNo(1));
const SLOT: u32 = 0;

struct World {
    state: AtomicU64,
    rec_lsn: AtomicU64,
    content: AtomicU64,
    disk: AtomicU64,
    log: AtomicU64,
    dirty: DirtyPages,
}

/// How the writer and the checkpointer go about it; the default is right.
#[derive(Clone, Copy)]
struct Steps {
    mark_first: bool,
    begin_first: bool,
    reserve: Ordering,
}

const RIGHT: Steps = Steps { mark_first: true, begin_first: true, reserve: Ordering::AcqRel };

impl World {
    fn new() -> Arc<World> {
        let world = World {
            state: AtomicU64::new(0),
            rec_lsn: AtomicU64::new(0),
            content: AtomicU64::new(0),
            disk: AtomicU64::new(0),
            log: AtomicU64::new(1),
            dirty: DirtyPages::new(1),
        };
        assert!(world.latch().begin_load());
        world.latch().finish_load(PageClass::Plain, Loaded::Unlocked);
        Arc::new(world)
    }

    fn latch(&self) -> StateWord<'_> {
        StateWord::new(&self.state)
    }

    /// One record; its LSN, if the latch was to be had.
    fn write(&self, steps: Steps) -> Option<Lsn> {
        if self.latch().try_exclusive() != Latch::Taken {
            return None;
        }
        let tail = Lsn(self.log.load(Ordering::Acquire));
        if steps.mark_first {
            self.dirty.mark(SLOT, &self.rec_lsn, tail);
        }
        let lsn = Lsn(self.log.fetch_add(1, steps.reserve));
        if !steps.mark_first {
            self.dirty.mark(SLOT, &self.rec_lsn, tail);
        }
        self.content.store(lsn.get(), Ordering::Relaxed);
        self.latch().unlock_exclusive();
        Some(lsn)
    }

    fn write_back(&self) {
        if self.latch().try_shared() != Latch::Taken {
            return;
        }
        let taken = self.dirty.take(KEY, SLOT, &self.rec_lsn);
        let copy = self.content.load(Ordering::Relaxed);
        self.latch().unlock_shared();
        if taken.is_some() {
            self.disk.store(copy, Ordering::Release);
            self.dirty.settle(KEY, &self.rec_lsn);
        }
    }

    /// A write-back that comes to nothing: the full disk did not take the copy.
    fn write_back_in_vain(&self) {
        if self.latch().try_shared() != Latch::Taken {
            return;
        }
        let taken = self.dirty.take(KEY, SLOT, &self.rec_lsn);
        self.latch().unlock_shared();
        if let Some(lsn) = taken {
            self.dirty.put_back(KEY, SLOT, &self.rec_lsn, lsn);
        }
    }

    /// BEGIN's LSN, the page's entry in the table, and what is on the disk when the scan is over.
    fn checkpoint(&self, steps: Steps) -> (Lsn, Option<Lsn>, Lsn) {
        let begin = || Lsn(self.log.fetch_add(1, steps.reserve));
        let early = steps.begin_first.then(begin);
        let table = self.dirty.scan(|| {
            let slots = self.dirty.slots().map(|_| rec_lsn(&self.rec_lsn));
            slots.filter(|&lsn| lsn > Lsn::NEVER).map(|lsn| (KEY, lsn)).collect::<Vec<_>>().into_iter()
        });
        let begin = early.unwrap_or_else(begin);
        (begin, table.get(&KEY).copied(), Lsn(self.disk.load(Ordering::Acquire)))
    }
}

fn check(records: impl IntoIterator<Item = Option<Lsn>>, (begin, rec_lsn, disk): (Lsn, Option<Lsn>, Lsn)) {
    for lsn in records.into_iter().flatten().filter(|&lsn| lsn < begin) {
        assert!(lsn <= disk || rec_lsn.is_some_and(|from| from <= lsn), "missed a dirty page");
    }
}

/// One record races with a checkpoint.
fn one_record(steps: Steps) {
    let world = World::new();
    let writer = Arc::clone(&world);
    let writer = thread::spawn(move || writer.write(steps));
    let checkpoint = world.checkpoint(steps);
    check([writer.join().unwrap()], checkpoint);
}

/// The page is dirty; it is changed again, written back, and a checkpoint is taken, all at once.
fn redirtied_in_flight() {
    let world = World::new();
    let first = world.write(RIGHT);
    let (writer, flusher) = (Arc::clone(&world), Arc::clone(&world));
    let writer = thread::spawn(move || writer.write(RIGHT));
    let flusher = thread::spawn(move || flusher.write_back());
    let checkpoint = world.checkpoint(RIGHT);
    check([first, writer.join().unwrap()], checkpoint);
    flusher.join().unwrap();
    // At rest: what is dirty is known, and nothing else is.
    let newest = Lsn(world.content.load(Ordering::Relaxed));
    let disk = Lsn(world.disk.load(Ordering::Relaxed));
    assert_eq!(rec_lsn(&world.rec_lsn) == Lsn::NEVER, newest == disk, "the page is taken for what it is not");
    assert_eq!(world.dirty.count(), u64::from(newest != disk));
}

/// The page is dirty; a batch takes it and puts it back, and a checkpoint is taken.
fn put_back() {
    let world = World::new();
    let first = world.write(RIGHT);
    let flusher = Arc::clone(&world);
    let flusher = thread::spawn(move || flusher.write_back_in_vain());
    let checkpoint = world.checkpoint(RIGHT);
    check([first], checkpoint);
    flusher.join().unwrap();
    assert_eq!(Some(rec_lsn(&world.rec_lsn)), first, "the page is dirty as before");
    assert_eq!(world.dirty.count(), 1);
}

#[test]
fn a_checkpoint_misses_no_record_below_its_begin() {
    explore(4, || one_record(RIGHT));
}

/// The record is below BEGIN, its page not yet marked when the scan comes by.
#[test]
#[should_panic(expected = "missed a dirty page")]
fn marking_must_come_before_the_reservation() {
    explore(4, || one_record(Steps { mark_first: false, ..RIGHT }));
}

/// The scan is over when the page is dirtied, and BEGIN comes after its record.
#[test]
#[should_panic(expected = "missed a dirty page")]
fn begin_must_be_reserved_before_the_scan() {
    explore(4, || one_record(Steps { begin_first: false, ..RIGHT }));
}

/// BEGIN is behind the record, but the scan reads the array as it was before the mark.
#[test]
#[should_panic(expected = "missed a dirty page")]
fn reservations_must_be_acquire_release() {
    explore(4, || one_record(Steps { reserve: Ordering::Relaxed, ..RIGHT }));
}

#[test]
fn a_page_changed_again_while_it_is_written_back_is_never_missed() {
    explore(2, redirtied_in_flight);
}

/// The scan finds the array empty already and the table empty still.
#[test]
#[should_panic(expected = "missed a dirty page")]
fn the_page_must_be_in_the_table_before_it_leaves_the_array() {
    plant(Mistake::GapBeforeInFlight);
    explore(2, redirtied_in_flight);
}

/// The scan looks into the table before the page is there, and into the array when it has left.
#[test]
#[should_panic(expected = "missed a dirty page")]
fn the_array_must_be_scanned_before_the_table() {
    plant(Mistake::InFlightFirst);
    explore(2, redirtied_in_flight);
}

/// The write-back ends and takes the record for written that came after its copy.
#[test]
#[should_panic(expected = "the page is taken for what it is not")]
fn a_page_changed_again_must_stay_dirty() {
    plant(Mistake::ForgetRedirtied);
    explore(2, redirtied_in_flight);
}

#[test]
fn a_page_put_back_is_never_missed() {
    explore(3, put_back);
}

/// The scan finds the array empty and then the table: the page has gone round behind it.
#[test]
#[should_panic(expected = "missed a dirty page")]
fn a_scan_must_hear_of_pages_put_back() {
    plant(Mistake::PutBackUncounted);
    explore(3, put_back);
}
