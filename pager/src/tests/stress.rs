//! Many threads on one cache: no update is lost, no read is torn, the budget holds.
//!
//! Each page has a counter, kept aside and moved under the page's exclusive latch. A latched reader must find exactly it
//! in the page; an optimistic reader must find something between what it was before and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hamal_storage::Error;
use hamal_storage::sim::{Rng, SimStorage};
use hamal_wal::Lsn;
use parking_lot::Mutex;

use super::rig::{Rig, resident_pages, small, value};
use crate::{Attempt, OptimisticPage, PageClass, PageNo, PagerOptions, Partition, PartitionId, pin_epoch};

const P1: PartitionId = PartitionId(1);
const FRAMES_BYTES: u64 = (1 << 20) - 8 * 4096;

struct Stress {
    rig: Rig,
    partition: Arc<Partition>,
    counters: Vec<AtomicU64>,
    /// The LSNs of each page's records, in order.
    records: Vec<Mutex<Vec<Lsn>>>,
}

/// Every third page is inner.
fn is_inner(page: u32) -> bool {
    page % 3 == 2
}

impl Stress {
    fn new(sim: &SimStorage, pages: u32) -> Stress {
        let rig = Rig::new(Arc::new(sim.clone()), small());
        let partition = rig.pager.create_partition(P1).unwrap();
        rig.format_all(&partition, pages, 3);
        let counters = (0..pages).map(|page| AtomicU64::new(u64::from(page))).collect();
        let records = (0..pages).map(|_| Mutex::default()).collect();
        Stress { rig, partition, counters, records }
    }

    fn counter(&self, page: u32) -> &AtomicU64 {
        &self.counters[page as usize]
    }

    fn look(&self, page: u32) {
        let fixed = self.partition.fix_shared(PageNo(page)).unwrap();
        assert_eq!(value(fixed.bytes()), self.counter(page).load(Ordering::Relaxed));
    }

    fn change(&self, page: u32) {
        let mut fixed = self.partition.fix_exclusive(PageNo(page)).unwrap();
        let next = value(fixed.bytes()) + 1;
        assert_eq!(self.counter(page).fetch_add(1, Ordering::Relaxed) + 1, next);
        let lsn = self.rig.change(&mut fixed, next);
        self.records[page as usize].lock().push(lsn);
    }

    /// An optimistic read, upgraded to a change now and then.
    fn glance(&self, page: u32, random: &mut Rng) {
        loop {
            let before = self.counter(page).load(Ordering::SeqCst);
            let epoch = pin_epoch();
            match self.partition.optimistic(PageNo(page), &epoch) {
                Attempt::Busy => {}
                Attempt::Absent => {
                    drop(epoch);
                    self.partition.load(PageNo(page)).unwrap();
                }
                Attempt::Fixed(optimistic) => {
                    let Some(seen) = one_value(&optimistic) else { continue };
                    let after = self.counter(page).load(Ordering::SeqCst);
                    assert!((before..=after).contains(&seen), "{seen} is not in {before}..={after}");
                    let end = random.below(5);
                    if end == 0 {
                        let Some(mut fixed) = optimistic.upgrade_exclusive() else { continue };
                        assert_eq!(self.counter(page).fetch_add(1, Ordering::Relaxed), seen);
                        self.rig.change(&mut fixed, seen + 1);
                    } else if end == 1 {
                        let Some(fixed) = optimistic.upgrade_shared() else { continue };
                        assert_eq!(value(fixed.bytes()), seen);
                    }
                    return;
                }
            }
        }
    }

    fn work(&self, seed: u64, steps: u32) {
        let mut random = Rng::new(seed);
        let pages = self.counters.len() as u64;
        for _ in 0..steps {
            // A few pages are hot.
            let page = (if random.chance(1, 3) { random.below(6) } else { random.below(pages) }) as u32;
            match random.below(16) {
                0..5 => self.change(page),
                5 => drop(self.rig.pager.write_back(self.rig.log.tail(), 4).unwrap()),
                6 => assert!(self.rig.pager.dirty_pages().len() <= self.counters.len()),
                _ if is_inner(page) => self.glance(page, &mut random),
                _ => self.look(page),
            }
            assert!(self.rig.pager.stats().resident_bytes <= FRAMES_BYTES);
        }
    }
}

/// What an inner page holds everywhere, if the read was a consistent one.
fn one_value(page: &OptimisticPage<'_>) -> Option<u64> {
    let words: Vec<u64> = (5..page.words()).map(|index| page.word(index)).collect();
    page.validate().then(|| {
        assert!(words.iter().all(|&word| word == words[0]), "a validated read is torn");
        words[0]
    })
}

#[test]
fn threads_that_read_write_and_evict_lose_no_update_and_see_no_torn_page() {
    const PAGES: u32 = 700;
    let sim = SimStorage::new(1);
    let stress = Stress::new(&sim, PAGES);
    thread::scope(|scope| {
        for seed in 0..8 {
            let stress = &stress;
            scope.spawn(move || stress.work(seed, 3000));
        }
    });
    let stats = stress.rig.pager.stats();
    assert!(stats.evictions > 5000, "{stats:?}");
    assert!(resident_pages(&stress.partition, PAGES) * 4096 <= FRAMES_BYTES);
    stress.rig.clean();
    let Stress { rig, partition, counters, .. } = stress;
    drop((rig, partition));
    let rig = Rig::new(Arc::new(sim), small());
    let partition = rig.pager.open_partition(P1).unwrap();
    for (page, counter) in (0..).zip(&counters) {
        assert_eq!(super::rig::read(&partition, page), counter.load(Ordering::Relaxed));
    }
}

#[test]
fn more_threads_than_cores_share_the_smallest_cache_of_large_pages() {
    // 64 frames less 8 for copies; 24 threads with one or two pages each.
    let options = PagerOptions { page_bytes: 65536, cache_bytes: 4 << 20, ..small() };
    let rig = Rig::new(Arc::new(SimStorage::new(1)), options);
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 200, 3);
    thread::scope(|scope| {
        for seed in 0..24 {
            let (rig, partition) = (&rig, &partition);
            scope.spawn(move || {
                let mut random = Rng::new(seed);
                for _ in 0..60 {
                    let (first, second) = (random.below(200) as u32, random.below(200) as u32);
                    let shared = partition.fix_shared(PageNo(first)).unwrap();
                    if let Attempt::Fixed(mut exclusive) = partition.try_exclusive(PageNo(second)) {
                        rig.change(&mut exclusive, u64::from(second));
                    }
                    assert_eq!(value(shared.bytes()), u64::from(first));
                }
            });
        }
    });
    assert!(rig.pager.stats().evictions > 200);
}

/// Pages go back and forth between inner and plain while others read them optimistically: what is validated belongs to
/// one life of the page.
#[test]
fn a_page_reused_as_the_other_class_is_never_seen_half_and_half() {
    let rig = Rig::new(Arc::new(SimStorage::new(1)), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    for page in 0..4 {
        rig.format(&partition, PageNo(page), PageClass::Inner, 0);
    }
    let lives = AtomicU64::new(0);
    let validated = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while lives.load(Ordering::Relaxed) < 400 {
                    for page in 0..4 {
                        let epoch = pin_epoch();
                        match partition.optimistic(PageNo(page), &epoch) {
                            Attempt::Fixed(optimistic) => {
                                let seen = one_value(&optimistic);
                                assert!(
                                    seen.is_none_or(|seen| seen % 2 == 0),
                                    "a plain page, read optimistically"
                                );
                                validated.fetch_add(u64::from(seen.is_some()), Ordering::Relaxed);
                            }
                            Attempt::Busy => {}
                            Attempt::Absent => {
                                drop(epoch);
                                match partition.load(PageNo(page)) {
                                    Ok(()) | Err(Error::Corrupt { .. }) => {}
                                    Err(e) => panic!("{e}"),
                                }
                            }
                        }
                        thread::yield_now();
                    }
                }
            });
        }
        let mut random = Rng::new(1);
        for life in 0..400 {
            let page = PageNo(random.below(4) as u32);
            match random.below(3) {
                // Freed and made anew, made anew in place, or pushed to disk and back in between.
                0 => partition.fix_exclusive(page).unwrap().discard(),
                1 => rig.clean(),
                _ => {}
            }
            let class = if random.chance(1, 2) { PageClass::Inner } else { PageClass::Plain };
            rig.format(&partition, page, class, 2 * life + u64::from(class == PageClass::Plain));
            thread::yield_now();
            lives.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(validated.load(Ordering::Relaxed) > 0);
}

/// The checkpointer's view while everything moves: what a page misses on disk is in the table, from early enough on.
#[test]
fn a_checkpoint_taken_while_pages_are_written_back_misses_none() {
    const PAGES: u32 = 64;
    let sim = SimStorage::new(1);
    let stress = Stress::new(&sim, PAGES);
    stress.rig.clean();
    let running = AtomicU64::new(3);
    thread::scope(|scope| {
        for seed in 0..3 {
            let (stress, running) = (&stress, &running);
            scope.spawn(move || {
                let mut random = Rng::new(seed);
                for _ in 0..3000 {
                    stress.change(random.below(u64::from(PAGES)) as u32);
                    if random.chance(1, 16) {
                        stress.rig.pager.write_back(stress.rig.log.tail(), 8).unwrap();
                    }
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while running.load(Ordering::Relaxed) > 0 {
            let begin = stress.rig.log.append();
            let table = stress.rig.pager.dirty_pages();
            let file = sim.read_file("part/1.dat").unwrap();
            for (page, image) in (0..PAGES).zip(file.chunks_exact(4096)) {
                let rec_lsn =
                    table.iter().find(|dirty| dirty.page == PageNo(page)).map(|dirty| dirty.rec_lsn);
                // The first record below BEGIN that is not in this image: redo must get to it.
                let on_disk = crate::header::page_lsn(image);
                let records = stress.records[page as usize].lock();
                if let Some(missing) = records.iter().find(|&&lsn| lsn > on_disk && lsn < begin) {
                    assert!(
                        rec_lsn.is_some_and(|from| from <= *missing),
                        "page {page}: {missing} is neither on disk ({on_disk}) nor behind {rec_lsn:?}"
                    );
                }
            }
        }
    });
}
