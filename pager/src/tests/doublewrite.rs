//! The doublewrite area after a restart: which copies count (hazard H13).

use std::sync::Arc;

use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operation, Repeat, SimStorage, When};
use hamal_wal::Lsn;

use super::rig::{MockLog, Rig, read, small};
use crate::header::{self, Identity, kind};
use crate::{Mending, PageNo, PagerOptions, PartitionId, RestoredPage};

const P1: PartitionId = PartitionId(1);
const BYTES: usize = 4096;
const ALL: Lsn = Lsn(u64::MAX);

/// A page's image of the given LSN, holding that LSN everywhere.
fn image(page: u32, lsn: u64) -> Vec<u8> {
    let mut image = lsn.to_le_bytes().repeat(BYTES / 8);
    image[..header::HEADER_BYTES].fill(0);
    header::set_kind(&mut image, kind::LEAF);
    header::set_page_lsn(&mut image, Lsn(lsn));
    Identity { partition: P1, page: PageNo(page), database_id: small().database_id }.seal(&mut image);
    image
}

/// A machine whose partition 1 has pages 0..4 at LSN 500, and whose doublewrite area holds these images.
fn machine(copies: &[Vec<u8>]) -> SimStorage {
    let sim = SimStorage::new(1);
    let rig = Rig::new(Arc::new(sim.clone()), small());
    rig.pager.create_partition(P1).unwrap().ensure_file_pages(4).unwrap();
    for page in 0..4 {
        sim.overwrite("part/1.dat", u64::from(page) * BYTES as u64, &image(page, 500)).unwrap();
    }
    sim.overwrite("doublewrite", 0, &copies.concat()).unwrap();
    sim
}

fn rot(sim: &SimStorage, page: u64) {
    sim.flip_bit("part/1.dat", (page * BYTES as u64 + 1000) * 8).unwrap();
}

fn restore(sim: &SimStorage, oldest: Lsn, end: Lsn) -> (Rig, Vec<RestoredPage>) {
    let rig = Rig::with_log(Arc::new(sim.clone()), MockLog::ending_at(Lsn(1000)), small());
    let restored =
        rig.pager.restore_torn_pages(oldest, end, &|_| Mending::Must, &|_, _, _| true).unwrap().restored;
    (rig, restored)
}

fn restored(page: u32, lsn: u64) -> RestoredPage {
    RestoredPage { partition: P1, page: PageNo(page), page_lsn: Lsn(lsn) }
}

#[test]
fn a_sound_page_is_left_alone_whatever_the_area_holds() {
    let sim = machine(&[image(1, 300), image(2, 900)]);
    let (rig, found) = restore(&sim, Lsn(1), ALL);
    assert_eq!(found, []);
    let partition = rig.pager.open_partition(P1).unwrap();
    assert_eq!((read(&partition, 1), read(&partition, 2)), (500, 500));
}

#[test]
fn a_stale_copy_is_reported_with_its_lsn_and_refused_where_the_log_does_not_reach_back() {
    let sim = machine(&[image(1, 300)]);
    rot(&sim, 1);
    // Nothing would replay 300..500.
    let (rig, found) = restore(&sim, Lsn(301), ALL);
    assert_eq!(found, []);
    assert!(rig.pager.open_partition(P1).unwrap().fix_shared(PageNo(1)).is_err());
    drop(rig);
    // Redo must start at 300 for this page.
    let (rig, found) = restore(&sim, Lsn(300), ALL);
    assert_eq!(found, [restored(1, 300)]);
    assert_eq!(read(&rig.pager.open_partition(P1).unwrap(), 1), 300);
}

#[test]
fn a_copy_beyond_the_end_of_the_log_is_refused() {
    let sim = machine(&[image(1, 800)]);
    rot(&sim, 1);
    assert_eq!(restore(&sim, Lsn(1), Lsn(800)).1, []);
    assert_eq!(restore(&sim, Lsn(1), Lsn(801)).1, [restored(1, 800)]);
}

#[test]
fn of_several_copies_the_latest_valid_one_counts() {
    let mut torn = image(1, 900);
    torn[2000] ^= 1;
    for copies in [
        [image(1, 600), image(1, 700), torn.clone()],
        [image(1, 700), torn.clone(), image(1, 600)],
        [torn.clone(), image(1, 700), image(1, 700)],
    ] {
        let sim = machine(&copies);
        rot(&sim, 1);
        let (rig, found) = restore(&sim, Lsn(1), ALL);
        assert_eq!(found, [restored(1, 700)]);
        assert_eq!(read(&rig.pager.open_partition(P1).unwrap(), 1), 700);
    }
}

#[test]
fn a_latest_copy_outside_the_log_does_not_make_way_for_an_older_one() {
    let sim = machine(&[image(1, 400), image(1, 900)]);
    rot(&sim, 1);
    assert_eq!(restore(&sim, Lsn(1), Lsn(800)).1, []);
}

#[test]
fn copies_of_other_databases_of_no_kind_or_of_partitions_that_are_gone_are_passed_over() {
    let mut foreign = image(1, 600);
    Identity { partition: P1, page: PageNo(1), database_id: 8 }.seal(&mut foreign);
    let mut kindless = image(1, 600);
    header::set_kind(&mut kindless, 6);
    Identity { partition: P1, page: PageNo(1), database_id: 7 }.seal(&mut kindless);
    let mut gone = image(1, 600);
    Identity { partition: PartitionId(9), page: PageNo(1), database_id: 7 }.seal(&mut gone);
    let sim = machine(&[foreign, kindless, gone]);
    rot(&sim, 1);
    let (_rig, found) = restore(&sim, Lsn(1), ALL);
    assert_eq!(found, []);
    assert_eq!(sim.files(), ["doublewrite", "part/1.dat"]);
}

#[test]
fn a_page_beyond_the_end_of_a_shortened_file_is_put_back() {
    let sim = machine(&[image(70, 600)]);
    let (rig, found) = restore(&sim, Lsn(1), ALL);
    assert_eq!(found, [restored(70, 600)]);
    let partition = rig.pager.open_partition(P1).unwrap();
    assert_eq!(partition.file_pages(), 71);
    assert_eq!(read(&partition, 70), 600);
}

#[test]
fn an_area_of_another_size_is_read_whole_and_keeps_what_it_holds() {
    let sim = machine(&[image(0, 600), image(1, 600), image(2, 600), image(3, 600)]);
    (0..4).for_each(|page| rot(&sim, page));
    for batch_pages in [2, 16] {
        let options = PagerOptions { batch_pages, ..small() };
        drop(crate::Pager::open(Arc::new(sim.clone()), MockLog::new(), options).unwrap());
    }
    assert_eq!(sim.read_file("doublewrite").unwrap().len(), 16 * BYTES);
    assert_eq!(restore(&sim, Lsn(1), ALL).1.len(), 4);
}

/// The process is killed between the in-place write and its sync: the page cache shows a sound page, the disk may have a
/// torn one. Before the area is overwritten the page must be made sure of, or the next power cut finds neither.
#[test]
fn a_batch_cut_short_by_a_kill_is_made_durable_before_its_copies_are_overwritten() {
    for seed in 0..40 {
        let sim = SimStorage::new(seed);
        let rig = Rig::new(Arc::new(sim.clone()), small());
        let partition = rig.pager.create_partition(P1).unwrap();
        rig.format_all(&partition, 16, 4);
        rig.clean();
        for page in 0..8 {
            rig.rewrite(&partition, page, 100);
        }
        // Copies written and synced, then one write in place.
        sim.crash_at(sim.io_count() + 4);
        rig.write_back().unwrap_err();
        let killed = sim.crash(CrashMode::Kill, seed);
        let rig = Rig::with_log(Arc::new(killed.clone()), Arc::clone(&rig.log), small());
        rig.pager.restore_torn_pages(Lsn(1), rig.log.tail(), &|_| Mending::Must, &|_, _, _| true).unwrap();
        let partition = rig.pager.open_partition(P1).unwrap();
        for page in 8..16 {
            rig.rewrite(&partition, page, 100);
        }
        rig.clean();
        let cut = killed.crash(CrashMode::Subset, seed);
        let rig = Rig::with_log(Arc::new(cut), Arc::clone(&rig.log), small());
        rig.pager.restore_torn_pages(Lsn(1), rig.log.tail(), &|_| Mending::Must, &|_, _, _| true).unwrap();
        let partition = rig.pager.open_partition(P1).unwrap();
        for page in 0..16 {
            assert!([100, u64::from(page)].contains(&read(&partition, page)), "seed {seed}");
        }
    }
}

/// The in-place sync fails, which marks the pages clean; the process ends. Reopened, the page cache shows sound pages
/// that the disk never got (Rebello et al.): syncing again would do nothing, only writing again helps.
#[test]
fn a_batch_whose_sync_failed_is_written_again_after_reopening() {
    for seed in 0..40 {
        let sim = SimStorage::new(seed);
        let rig = Rig::new(Arc::new(sim.clone()), small());
        let partition = rig.pager.create_partition(P1).unwrap();
        rig.format_all(&partition, 16, 4);
        rig.clean();
        for page in 0..8 {
            rig.rewrite(&partition, page, 100);
        }
        let fault = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Once);
        sim.inject(fault.only(&[Operation::Sync]).on("part/1.dat"));
        rig.write_back().unwrap_err();
        drop((partition, rig.pager));
        let rig = Rig::with_log(Arc::new(sim.clone()), rig.log, small());
        rig.pager.restore_torn_pages(Lsn(1), rig.log.tail(), &|_| Mending::Must, &|_, _, _| true).unwrap();
        let partition = rig.pager.open_partition(P1).unwrap();
        for page in 8..16 {
            rig.rewrite(&partition, page, 100);
        }
        rig.clean();
        drop((partition, rig.pager));
        sim.drop_clean_cache();
        let rig = Rig::with_log(Arc::new(sim), rig.log, small());
        rig.pager.restore_torn_pages(Lsn(1), rig.log.tail(), &|_| Mending::Must, &|_, _, _| true).unwrap();
        let partition = rig.pager.open_partition(P1).unwrap();
        for page in 0..16 {
            assert_eq!(read(&partition, page), 100, "seed {seed}");
        }
    }
}
