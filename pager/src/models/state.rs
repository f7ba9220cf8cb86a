//! The state word: exclusion, versions, optimistic reads, upgrades.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::explore;
use crate::state::{Clock, Latch, Loaded, PageClass, StateWord, store_words};
use crate::sync::{AtomicU64, Mistake, Ordering, plant};

/// An inner page of two words, in memory, both 0.
struct Page {
    word: AtomicU64,
    /// What optimistic readers read.
    words: [AtomicU64; 2],
    /// What loom watches for access without exclusion.
    bytes: UnsafeCell<u64>,
}

// SAFETY: loom checks each access to `bytes`; a missing exclusion fails the model.
unsafe impl Sync for Page {}

impl Page {
    fn new() -> Arc<Page> {
        let page = Page {
            word: AtomicU64::new(0),
            words: [AtomicU64::new(0), AtomicU64::new(0)],
            bytes: UnsafeCell::new(0),
        };
        assert!(page.state().begin_load());
        page.state().finish_load(PageClass::Inner, Loaded::Unlocked);
        Arc::new(page)
    }

    fn state(&self) -> StateWord<'_> {
        StateWord::new(&self.word)
    }

    fn read_words(&self) -> [u64; 2] {
        [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)]
    }

    /// Adds 1 to both words, and to the bytes, if the latch is to be had.
    fn try_change(&self) {
        if self.state().try_exclusive() == Latch::Taken {
            self.change_latched();
        }
    }

    fn change_latched(&self) {
        // SAFETY: loom checks that nobody else is there.
        self.bytes.with_mut(|bytes| unsafe { *bytes += 1 });
        let [first, second] = self.read_words();
        assert_eq!(first, second, "a latched page is whole");
        store_words(&self.words, &[first + 1, second + 1]);
        self.state().unlock_exclusive();
    }

    fn try_look(&self) {
        if self.state().try_shared() == Latch::Taken {
            // SAFETY: loom checks that nobody writes.
            self.bytes.with(|bytes| unsafe { *bytes });
            self.state().unlock_shared();
        }
    }
}

fn latches_exclude() {
    let page = Page::new();
    let (writer, looker) = (Arc::clone(&page), Arc::clone(&page));
    let writer = thread::spawn(move || writer.try_change());
    let looker = thread::spawn(move || looker.try_look());
    page.state().visit();
    page.try_change();
    page.try_look();
    writer.join().unwrap();
    looker.join().unwrap();
    assert_eq!(page.state().try_exclusive(), Latch::Taken, "all latches were given back");
}

#[test]
fn exclusive_excludes_everybody_and_shared_excludes_writers() {
    explore(3, latches_exclude);
}

/// Without the release the next holder does not see the last one's bytes: loom reports the race.
#[test]
#[should_panic(expected = "Causality violation")]
fn exclusion_needs_a_release_at_unlatching() {
    plant(Mistake::RelaxedUnlock);
    explore(3, latches_exclude);
}

/// The writer is the model's main thread, so that loom runs it first and then looks for earlier places for the reader:
/// it keeps one access per atomic, and would take the writer's own load before its compare-and-swap for the last
/// one if the reader came first.
fn optimistic_reads_are_whole() {
    let page = Page::new();
    let reader = Arc::clone(&page);
    let reader = thread::spawn(move || {
        if let Ok(seen) = reader.state().begin_read() {
            let [first, second] = reader.read_words();
            if reader.state().unchanged(seen) {
                assert_eq!(first, second, "torn");
            }
        }
    });
    page.try_change();
    page.try_change();
    reader.join().unwrap();
}

#[test]
fn an_optimistic_reader_never_accepts_a_torn_pair() {
    explore(4, optimistic_reads_are_whole);
}

/// The reader sees the writer's word but an older state word: nothing orders the latching before the store.
#[test]
#[should_panic(expected = "torn")]
fn optimistic_reads_need_the_writers_release_fence() {
    plant(Mistake::NoWriterFence);
    explore(4, optimistic_reads_are_whole);
}

/// The second look at the state word may happen before the words are read.
#[test]
#[should_panic(expected = "torn")]
fn optimistic_reads_need_the_readers_acquire_fence() {
    plant(Mistake::NoReaderFence);
    explore(4, optimistic_reads_are_whole);
}

/// A writer that came and went between the two words leaves no trace.
#[test]
#[should_panic(expected = "torn")]
fn optimistic_reads_need_a_new_version_at_unlatching() {
    plant(Mistake::NoVersionBump);
    explore(4, optimistic_reads_are_whole);
}

/// A reader that began with a version must find exactly that content under the latch it upgrades to.
fn upgrades_hold_what_was_read() {
    let page = Page::new();
    let writer = Arc::clone(&page);
    let writer = thread::spawn(move || writer.try_change());
    if let Ok(seen) = page.state().begin_read() {
        let before = page.read_words();
        if page.state().upgrade_exclusive(seen) {
            assert_eq!(before, page.read_words(), "upgraded to other content");
            page.change_latched();
        } else if page.state().upgrade_shared(seen) {
            assert_eq!(before, page.read_words(), "upgraded to other content");
            page.state().unlock_shared();
        }
    }
    writer.join().unwrap();
}

#[test]
fn an_upgrade_succeeds_only_on_the_version_that_was_read() {
    explore(4, upgrades_hold_what_was_read);
}

/// A writer gets in between the check and the latch.
#[test]
#[should_panic(expected = "upgraded to other content")]
fn an_upgrade_must_not_check_and_then_latch() {
    plant(Mistake::CheckThenLatch);
    explore(4, upgrades_hold_what_was_read);
}

/// Eviction and reading in again (of another content) are changes like any other to an optimistic reader, whose memory
/// is kept from being dropped meanwhile by the grace period; here the words simply change in between.
fn a_page_leaves_and_comes_back() {
    let page = Page::new();
    let reader = Arc::clone(&page);
    let reader = thread::spawn(move || {
        if let Ok(seen) = reader.state().begin_read() {
            let [first, second] = reader.read_words();
            if reader.state().unchanged(seen) {
                assert_eq!(first, second, "torn");
            }
        }
    });
    let state = page.state();
    state.visit();
    if matches!(state.visit(), Clock::Cold(_)) && state.try_exclusive_marked() {
        state.leave();
        state.evicted();
        assert!(state.begin_load());
        store_words(&page.words, &[7, 7]);
        state.finish_load(PageClass::Inner, Loaded::Unlocked);
    }
    reader.join().unwrap();
}

#[test]
fn a_page_that_left_and_came_back_is_another_version() {
    explore(4, a_page_leaves_and_comes_back);
}

/// The page that came back has the old version and other content.
#[test]
#[should_panic(expected = "torn")]
fn eviction_needs_a_new_version() {
    plant(Mistake::NoVersionBump);
    explore(4, a_page_leaves_and_comes_back);
}

/// Of all who find a page absent, one reads it in; the others see it whole or wait.
#[test]
fn a_page_is_read_in_by_one_thread() {
    explore(3, || {
        let page = Page::new();
        assert_eq!(page.state().try_exclusive(), Latch::Taken);
        page.state().evicted();
        let read_in = |page: &Page| {
            if page.state().begin_load() {
                // SAFETY: loom checks that nobody else is there.
                page.bytes.with_mut(|bytes| unsafe { *bytes = 9 });
                page.state().finish_load(PageClass::Plain, Loaded::Unlocked);
            }
            page.try_look();
        };
        let other = Arc::clone(&page);
        let other = thread::spawn(move || read_in(&other));
        read_in(&page);
        other.join().unwrap();
    });
}
