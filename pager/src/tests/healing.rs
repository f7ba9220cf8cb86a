//! Bad pages: who notices, what the healer is given, and where a rebuilt page goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_storage::sim::{CrashMode, SimStorage};
use hamal_storage::{Error, Result};
use hamal_wal::Lsn;
use parking_lot::Mutex;

use super::rig::{MockLog, Op, Rig, read, small, value};
use crate::header::{self, Identity};
use crate::{
    Attempt, BadPage, Copied, CopyPlace, Healer, Healing, PageCopy, PageNo, Partition, PartitionId, Scrubbed,
};

const P1: PartitionId = PartitionId(1);
const BYTES: usize = 4096;
/// More than the cache has frames for.
const PAGES: u32 = 400;

/// A bad page as the healer was told of it.
#[derive(Clone, Debug)]
struct Asked {
    page: PageNo,
    known_lsn: Lsn,
    copies: Vec<PageCopy>,
}

/// Rebuilds pages out of the images it was given, if there is one for the page.
#[derive(Debug, Default)]
struct Images {
    whole: Mutex<Vec<(PageNo, Vec<u8>)>>,
    asked: Mutex<Vec<Asked>>,
    kept: Arc<AtomicU64>,
}

/// Counts itself as long as it is there.
#[derive(Debug)]
struct Kept(Arc<AtomicU64>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Healer for Images {
    fn rebuild(&self, bad: &BadPage<'_>, out: &mut [u8]) -> Result<Healing> {
        assert!(out.iter().all(|byte| *byte == 0));
        let (page, known_lsn) = (bad.page, bad.known_lsn);
        self.asked.lock().push(Asked { page, known_lsn, copies: bad.copies.to_vec() });
        let whole = self.whole.lock();
        match whole.iter().find(|(of, _)| *of == page) {
            Some((_, image)) => {
                out.copy_from_slice(image);
                // What the pager writes itself may be missing.
                out[..4].fill(0);
                out[8..24].fill(0);
                self.kept.fetch_add(1, Ordering::Relaxed);
                Ok(Healing::Rebuilt(Box::new(Kept(Arc::clone(&self.kept)))))
            }
            None => Ok(Healing::Impossible("nobody knows it".to_owned())),
        }
    }
}

/// A partition larger than the cache, page p at value p, all clean; its healer; and what the file holds.
struct Sick {
    sim: SimStorage,
    rig: Rig,
    partition: Arc<Partition>,
    healer: Arc<Images>,
}

impl Sick {
    fn new() -> Sick {
        let sim = SimStorage::new(1);
        let rig = Rig::new(Arc::new(sim.clone()), small());
        let healer = Arc::new(Images::default());
        rig.pager.set_healer(Arc::clone(&healer) as _);
        let partition = rig.pager.create_partition(P1).unwrap();
        rig.format_all(&partition, PAGES, 7);
        rig.clean();
        Sick { sim, rig, partition, healer }
    }

    fn image(&self, page: u32) -> Vec<u8> {
        self.sim.read_file("part/1.dat").unwrap()[page as usize * BYTES..][..BYTES].to_vec()
    }

    fn overwrite(&self, page: u32, image: &[u8]) {
        self.sim.overwrite("part/1.dat", u64::from(page) * BYTES as u64, image).unwrap();
    }

    /// Reads others until the page is not in memory.
    fn evict(&self, page: u32) {
        // To look for it is to use it, so only now and then.
        while !matches!(self.partition.try_shared(PageNo(page)), Attempt::Absent) {
            (0..2 * PAGES).filter(|other| other % PAGES != page).for_each(|other| {
                read(&self.partition, other % PAGES);
            });
        }
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.healer.asked.lock())
    }
}

#[test]
fn a_page_older_than_the_one_that_left_memory_is_not_read_in_and_the_healer_knows_by_how_much() {
    let sick = Sick::new();
    for page in [3, 6] {
        sick.evict(page);
        let older = sick.image(page);
        sick.rig.rewrite(&sick.partition, page, 77);
        sick.rig.clean();
        let newer = sick.image(page);
        sick.evict(page);
        sick.overwrite(page, &older);
        let error = sick.partition.fix_shared(PageNo(page)).unwrap_err();
        assert!(error.to_string().contains("a write has been lost"), "{error}");
        assert!(error.to_string().contains("nobody knows it"), "{error}");
        // It is not forgotten because it failed.
        sick.healer.whole.lock().push((PageNo(page), newer.clone()));
        assert_eq!(value(sick.partition.fix_shared(PageNo(page)).unwrap().bytes()), 77);
        assert!(sick.image(page) == newer, "written again, identity and checksum too");
        let asked = sick.asked();
        assert_eq!(asked.len(), 2);
        for asked in asked {
            assert_eq!((asked.page, asked.known_lsn), (PageNo(page), header::page_lsn(&newer)));
            let in_place = asked.copies.iter().find(|copy| copy.found == CopyPlace::InPlace).unwrap();
            assert!(in_place.image == older);
        }
        let stats = sick.rig.pager.stats();
        assert_eq!(stats.damaged, stats.healed + stats.unhealed);
    }
    assert_eq!(sick.healer.kept.load(Ordering::Relaxed), 0, "let go of");
}

#[test]
fn a_page_made_anew_has_no_past() {
    let sick = Sick::new();
    sick.evict(3);
    let older = sick.image(3);
    sick.rig.rewrite(&sick.partition, 3, 77);
    sick.rig.clean();
    sick.evict(3);
    sick.rig.format(&sick.partition, PageNo(3), crate::PageClass::Plain, 5);
    let fixed = sick.partition.fix_exclusive(PageNo(3)).unwrap();
    fixed.discard();
    sick.overwrite(3, &older);
    assert_eq!(read(&sick.partition, 3), 3, "freed, so any version of it will do");
    assert!(sick.asked().is_empty());
}

#[test]
fn a_copy_for_a_backup_is_never_a_stale_one() {
    let sick = Sick::new();
    sick.evict(3);
    let older = sick.image(3);
    sick.rig.rewrite(&sick.partition, 3, 77);
    sick.rig.clean();
    let newer = sick.image(3);
    sick.evict(3);
    sick.overwrite(3, &older);
    let mut out = vec![0; BYTES];
    assert!(sick.partition.copy_page(PageNo(3), &mut out).is_err());
    sick.healer.whole.lock().push((PageNo(3), newer));
    assert_eq!(sick.partition.copy_page(PageNo(3), &mut out).unwrap(), Copied::Page);
    assert_eq!(value(&out), 77);
}

#[test]
fn a_rebuilt_page_goes_beside_the_older_copy_in_the_area_and_not_over_it() {
    let sick = Sick::new();
    let (older, newer) = (sick.image(3), {
        sick.rig.rewrite(&sick.partition, 3, 77);
        sick.rig.clean();
        sick.image(3)
    });
    sick.evict(3);
    sick.rig.clean();
    for slot in [0_usize, 1, 2] {
        let mut area = sick.sim.read_file("doublewrite").unwrap();
        area.fill(0);
        area[slot * BYTES..][..BYTES].copy_from_slice(&older);
        sick.sim.overwrite("doublewrite", 0, &area).unwrap();
        sick.evict(3);
        sick.overwrite(3, &[0; BYTES]);
        *sick.healer.whole.lock() = vec![(PageNo(3), newer.clone())];
        read(&sick.partition, 3);
        let asked = sick.asked();
        assert!(asked[0].copies.iter().any(|c| c.found == CopyPlace::Doublewrite && c.image == older));
        let area = sick.sim.read_file("doublewrite").unwrap();
        assert!(area[slot * BYTES..][..BYTES] == older, "slot {slot}");
        assert!(area.chunks_exact(BYTES).take(2).any(|image| image == newer), "slot {slot}");
    }
}

#[test]
fn a_power_cut_anywhere_in_a_healing_leaves_the_page_bad_or_whole_and_a_whole_copy_of_some_age() {
    let make = || {
        let sick = Sick::new();
        let older = sick.image(3);
        sick.rig.rewrite(&sick.partition, 3, 77);
        sick.rig.clean();
        let newer = sick.image(3);
        sick.evict(3);
        let mut area = sick.sim.read_file("doublewrite").unwrap();
        area.fill(0);
        area[..BYTES].copy_from_slice(&older);
        sick.sim.overwrite("doublewrite", 0, &area).unwrap();
        sick.overwrite(3, &[0; BYTES]);
        sick.healer.whole.lock().push((PageNo(3), newer.clone()));
        (sick, older, newer)
    };
    let identity = Identity { partition: P1, page: PageNo(3), database_id: small().database_id };
    let mut whole = 0;
    for io in 1.. {
        let (sick, older, newer) = make();
        let from = sick.sim.io_count();
        sick.sim.crash_at(from + io);
        let healed = sick.partition.load(PageNo(3));
        for seed in 0..8 {
            let after = sick.sim.crash_image(CrashMode::Subset, seed);
            let page = after.read_file("part/1.dat").unwrap()[3 * BYTES..4 * BYTES].to_vec();
            if identity.check(&page, "", 0).is_ok() {
                assert!(page == newer, "crash at {io}: nothing old is put in place");
                whole += 1;
            } else {
                let area = after.read_file("doublewrite").unwrap();
                let is_copy = |image: &[u8]| image == older || image == newer;
                assert!(area.chunks_exact(BYTES).any(is_copy), "crash at {io}: no copy is left");
            }
        }
        if healed.is_ok() {
            break;
        }
    }
    assert!(whole > 3);
}

#[test]
fn a_poisoned_cache_rebuilds_in_memory_alone() {
    let sick = Sick::new();
    sick.evict(3);
    let whole = sick.image(3);
    sick.healer.whole.lock().push((PageNo(3), whole));
    sick.rig.rewrite(&sick.partition, 300, 1);
    sick.rig.storage.fail(|_, op| op == Op::Sync, 1, 1, io::ErrorKind::Other);
    sick.rig.write_back().unwrap_err();
    sick.evict(3);
    sick.overwrite(3, &[0; BYTES]);
    sick.rig.storage.set_hook(|_, op| match op {
        Op::Write { .. } | Op::Sync => panic!("a poisoned cache writes nothing"),
        _ => Ok(()),
    });
    for _ in 0..2 {
        assert_eq!(read(&sick.partition, 3), 3);
        sick.evict(3);
    }
    assert_eq!(sick.asked().len(), 2);
}

#[test]
fn what_the_system_refuses_to_read_is_not_rebuilt() {
    let sick = Sick::new();
    sick.evict(3);
    sick.healer.whole.lock().push((PageNo(3), sick.image(3)));
    sick.rig.storage.fail(|name, op| name.starts_with("part/") && op == Op::Read, 1, 1, io::ErrorKind::Other);
    assert!(matches!(sick.partition.fix_shared(PageNo(3)).unwrap_err(), Error::Io { .. }));
    assert_eq!(read(&sick.partition, 3), 3);
    assert!(sick.asked().is_empty());
}

#[test]
fn a_scrub_tells_sound_changing_and_bad_pages_apart_and_writes_bad_ones_again_from_memory() {
    let sick = Sick::new();
    let mut image = vec![0; BYTES];
    // Not in memory: sound, damaged, stale.
    sick.evict(3);
    let whole = sick.image(3);
    let lsn = header::page_lsn(&whole);
    assert!(
        matches!(sick.partition.scrub_page(PageNo(3), &mut image).unwrap(), Scrubbed::Sound(found) if found == lsn)
    );
    assert!(matches!(sick.partition.try_shared(PageNo(3)), Attempt::Absent), "it goes past the cache");
    sick.overwrite(3, &[7; BYTES]);
    let scrubbed = sick.partition.scrub_page(PageNo(3), &mut image).unwrap();
    assert!(matches!(scrubbed, Scrubbed::Bad { is_known: true, .. }), "{scrubbed:?}");
    sick.overwrite(3, &whole);
    sick.rig.rewrite(&sick.partition, 3, 77);
    // In memory, changed: what the disk has does not matter, as long as it is sound.
    assert!(matches!(sick.partition.scrub_page(PageNo(3), &mut image).unwrap(), Scrubbed::Changing));
    sick.overwrite(3, &[7; BYTES]);
    assert!(matches!(sick.partition.scrub_page(PageNo(3), &mut image).unwrap(), Scrubbed::Rewritten(_)));
    assert_eq!(value(&sick.image(3)), 77, "the log first, then the page");
    assert_eq!(sick.rig.pager.stats().dirty_pages, 1, "nobody has said that it is clean");
    sick.rig.clean();
    // In memory, clean: damaged, or stale.
    let newer = sick.image(3);
    for bad in [vec![7; BYTES], whole.clone(), vec![0; BYTES], sick.image(4)] {
        sick.overwrite(3, &bad);
        assert!(matches!(sick.partition.scrub_page(PageNo(3), &mut image).unwrap(), Scrubbed::Rewritten(_)));
        assert!(sick.image(3) == newer);
        assert!(matches!(sick.partition.scrub_page(PageNo(3), &mut image).unwrap(), Scrubbed::Sound(_)));
    }
    sick.evict(3);
    sick.overwrite(3, &whole);
    let scrubbed = sick.partition.scrub_page(PageNo(3), &mut image).unwrap();
    assert!(matches!(scrubbed, Scrubbed::Bad { is_known: true, .. }), "{scrubbed:?}");
}

#[test]
fn a_page_that_was_scrubbed_or_announced_is_known_without_having_been_in_memory() {
    let sick = Sick::new();
    let (older, newer) = (sick.image(3), {
        sick.rig.rewrite(&sick.partition, 3, 77);
        sick.rig.clean();
        sick.image(3)
    });
    for announced in [true, false] {
        let log = MockLog::ending_at(Lsn(1 << 30));
        let rig = Rig::with_log(Arc::new(sick.sim.crash_image(CrashMode::KeepAll, 1)), log, small());
        let partition = rig.pager.open_partition(P1).unwrap();
        // Somebody uses this part of the file.
        read(&partition, 0);
        if announced {
            assert!(partition.expect_page(PageNo(3), header::page_lsn(&newer)).unwrap());
        } else {
            let mut image = vec![0; BYTES];
            assert!(matches!(partition.scrub_page(PageNo(3), &mut image).unwrap(), Scrubbed::Sound(_)));
        }
        rig.storage.set_hook(|_, _| Ok(()));
        let file = hamal_storage::Storage::open(&*rig.storage, "part/1.dat").unwrap();
        file.write_at(&older, 3 * BYTES as u64).unwrap();
        let error = partition.fix_shared(PageNo(3)).unwrap_err();
        assert!(error.to_string().contains("a write has been lost"), "{error}");
        assert!(!partition.expect_page(PageNo(PAGES * 2), Lsn(5)).unwrap(), "the file has no such page");
    }
}

#[test]
fn scrubs_beside_writers_call_nothing_bad() {
    let sick = Sick::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..40_u64 {
                for page in (0..PAGES).step_by(3) {
                    sick.rig.rewrite(&sick.partition, page, round);
                }
                sick.rig.write_back().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut image = vec![0; BYTES];
        while !stop.load(Ordering::Relaxed) {
            for page in 0..PAGES {
                let scrubbed = sick.partition.scrub_page(PageNo(page), &mut image).unwrap();
                assert!(
                    matches!(scrubbed, Scrubbed::Sound(_) | Scrubbed::Changing),
                    "page {page}: {scrubbed:?}"
                );
            }
        }
    });
    assert_eq!(sick.rig.pager.stats().damaged, 0);
}
