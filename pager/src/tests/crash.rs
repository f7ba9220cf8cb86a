//! A power cut at every single I/O of a write-back, and at every single I/O of the restoration after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use hamal_storage::sim::{CrashMode, SimStorage};
use hamal_wal::Lsn;

use super::rig::{MockLog, Rig, small};
use crate::{Mending, PageNo, PartitionId, header};

const P1: PartitionId = PartitionId(1);
const PAGES: u32 = 30;
const OLD: u64 = 1;
const NEW: u64 = 2;

/// A machine that stops at the nth I/O of a write-back that makes [`PAGES`] pages NEW that are OLD; the pages that became
/// clean before. `None` if the write-back has fewer I/Os.
fn stopped_at(nth: u64) -> Option<(SimStorage, Arc<MockLog>, BTreeSet<PageNo>)> {
    let sim = SimStorage::new(nth);
    let rig = Rig::new(Arc::new(sim.clone()), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    for value in [OLD, NEW] {
        for page in 0..PAGES {
            let class = if page % 4 == 0 { crate::PageClass::Inner } else { crate::PageClass::Plain };
            if value == OLD {
                rig.format(&partition, PageNo(page), class, OLD);
            } else {
                rig.change(&mut partition.fix_exclusive(PageNo(page)).unwrap(), NEW);
            }
        }
        if value == OLD {
            rig.clean();
        }
    }
    sim.crash_at(sim.io_count() + nth);
    if rig.write_back().is_ok() {
        return None;
    }
    let dirty: BTreeSet<PageNo> = rig.pager.dirty_pages().iter().map(|dirty| dirty.page).collect();
    let clean = (0..PAGES).map(PageNo).filter(|page| !dirty.contains(page)).collect();
    Some((sim, Arc::clone(&rig.log), clean))
}

/// Restores, and checks that every page is whole, and NEW if it was clean. How many pages were restored.
fn check(sim: SimStorage, log: &Arc<MockLog>, clean: &BTreeSet<PageNo>, what: &str) -> usize {
    let rig = Rig::with_log(Arc::new(sim), Arc::clone(log), small());
    let restored = rig
        .pager
        .restore_torn_pages(Lsn(1), log.tail(), &|_| Mending::Must, &|_, _, _| true)
        .unwrap()
        .restored;
    let partition = rig.pager.open_partition(P1).unwrap();
    for page in (0..PAGES).map(PageNo) {
        let fixed = partition.fix_shared(page).unwrap_or_else(|e| panic!("{what}: {e}"));
        let value = super::rig::value(fixed.bytes());
        assert!(
            value == NEW || (value == OLD && !clean.contains(&page)),
            "{what}: page {page} holds {value}"
        );
        let torn = restored.iter().find(|restored| restored.page == page);
        assert!(torn.is_none_or(|torn| torn.page_lsn == header::page_lsn(fixed.bytes())), "{what}");
    }
    restored.len()
}

#[test]
fn after_a_power_cut_at_any_io_of_a_write_back_every_page_is_whole() {
    let (mut stops, mut torn) = (0, 0);
    for nth in 1.. {
        let Some((sim, log, clean)) = stopped_at(nth) else { break };
        stops += 1;
        for mode in [CrashMode::Kill, CrashMode::KeepAll, CrashMode::LoseAll] {
            check(sim.crash_image(mode, nth), &log, &clean, &format!("I/O {nth}, {mode:?}"));
        }
        for seed in 0..20 {
            let image = sim.crash_image(CrashMode::Subset, seed);
            torn += check(image, &log, &clean, &format!("I/O {nth}, seed {seed}"));
        }
    }
    assert!(stops >= 16, "four batches of four I/Os at least, not {stops}");
    assert!(torn > 20, "only {torn} torn pages: the test does not see what it is for");
}

#[test]
fn after_another_power_cut_at_any_io_of_the_restoration_it_starts_over() {
    let mut stops = 0;
    for nth in 1.. {
        let Some((sim, log, clean)) = stopped_at(nth) else { break };
        let cut = sim.crash_image(CrashMode::Subset, nth);
        for second in 1.. {
            let sim = cut.crash_image(CrashMode::KeepAll, 0);
            sim.crash_at(second);
            let rig = crate::Pager::open(Arc::new(sim.clone()), Arc::clone(&log) as _, small());
            if rig
                .and_then(|pager| {
                    pager.restore_torn_pages(Lsn(1), log.tail(), &|_| Mending::Must, &|_, _, _| true)
                })
                .is_ok()
            {
                break;
            }
            stops += 1;
            for seed in 0..4 {
                let what = format!("I/O {nth}, then {second}, seed {seed}");
                check(sim.crash_image(CrashMode::Subset, seed), &log, &clean, &what);
            }
        }
    }
    assert!(stops > 100, "{stops}");
}
