//! Fixing, evicting, writing back and reading again; the budget; damage on disk.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::process::{Command, Stdio};
use std::sync::Arc;

use hamal_storage::sim::SimStorage;
use hamal_storage::{Error, OsStorage, Storage, write_all_at};
use hamal_wal::Lsn;

use super::rig::{MockLog, Op, Rig, read, resident_pages, small, value};
use crate::{Attempt, HugePages, PageClass, PageNo, PagerOptions, PartitionId, header, pin_epoch};

const P1: PartitionId = PartitionId(1);

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home { directory: tempfile::tempdir().unwrap() }
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(OsStorage::new(self.directory.path()))
    }
}

#[test]
fn what_was_written_is_read_again_after_eviction_and_after_reopening() {
    let home = Home::new();
    write_and_read_again(|| home.storage(), 1500);
    // 64 MiB through a cache of 1 MiB.
    let sim = SimStorage::new(1);
    write_and_read_again(|| Arc::new(sim.clone()), 16_500);
}

fn write_and_read_again(storage: impl Fn() -> Arc<dyn Storage>, pages: u32) {
    let rig = Rig::new(storage(), PagerOptions { batch_pages: 64, ..small() });
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, pages, 50);
    for page in 0..pages {
        assert_eq!(read(&partition, page), u64::from(page));
    }
    let stats = rig.pager.stats();
    assert!(stats.resident_bytes <= 1 << 20, "{stats:?}");
    assert!(stats.evictions >= 2 * u64::from(pages - 256), "{stats:?}");
    assert_eq!(
        resident_pages(&partition, pages) * 4096,
        stats.resident_bytes,
        "what is counted is what is used"
    );
    rig.clean();
    drop((partition, rig));

    let rig = Rig::new(storage(), small());
    let partition = rig.pager.open_partition(P1).unwrap();
    assert!(partition.file_pages() >= pages);
    for page in (0..pages).rev() {
        assert_eq!(read(&partition, page), u64::from(page));
    }
    assert_eq!(rig.pager.stats().pages_written, 0);
}

#[test]
fn the_class_of_a_page_read_in_is_that_of_its_kind() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 600, 10);
    partition.load(PageNo(9)).unwrap();
    partition.load(PageNo(8)).unwrap();
    let epoch = pin_epoch();
    let Attempt::Fixed(inner) = partition.optimistic(PageNo(9), &epoch) else { panic!("an inner page") };
    assert_eq!(inner.word(511), 9);
    assert_eq!(inner.word(512), 0);
    assert!(inner.validate());
    assert!(matches!(partition.optimistic(PageNo(8), &epoch), Attempt::Busy));
    assert!(matches!(partition.optimistic(PageNo(9000), &epoch), Attempt::Absent));
}

#[test]
fn an_optimistic_read_ends_with_the_next_change() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format(&partition, PageNo(0), PageClass::Inner, 1);
    let epoch = pin_epoch();
    let optimistic = || match partition.optimistic(PageNo(0), &epoch) {
        Attempt::Fixed(page) => page,
        other => panic!("{other:?}"),
    };
    let (first, second, third) = (optimistic(), optimistic(), optimistic());
    let shared = first.upgrade_shared().unwrap();
    assert!(second.validate(), "a shared latch changes nothing");
    assert!(optimistic().upgrade_exclusive().is_none());
    drop(shared);
    let mut exclusive = second.upgrade_exclusive().unwrap();
    assert!(matches!(partition.optimistic(PageNo(0), &epoch), Attempt::Busy));
    assert!(matches!(partition.try_shared(PageNo(0)), Attempt::Busy));
    assert!(!third.validate());
    rig.change(&mut exclusive, 2);
    drop(exclusive);
    assert!(!third.validate());
    assert!(third.upgrade_shared().is_none());
    assert_eq!(optimistic().word(100), 2);
}

#[test]
fn the_dirty_page_table_holds_what_is_not_written_back_and_since_when() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    let lsns: Vec<Lsn> =
        (0..100).map(|page| rig.format(&partition, PageNo(page), PageClass::Plain, 0)).collect();
    rig.change(&mut partition.fix_exclusive(PageNo(0)).unwrap(), 5);
    let table = rig.pager.dirty_pages();
    assert_eq!(table.len(), 100);
    assert!(table.iter().all(|dirty| dirty.rec_lsn == lsns[dirty.page.0 as usize]));
    // Oldest first.
    assert_eq!(rig.pager.write_back(Lsn(u64::MAX >> 2), 10).unwrap(), 10);
    assert_eq!(rig.pager.oldest_rec_lsn(), Some(lsns[10]));
    assert_eq!(rig.pager.write_back(lsns[20], usize::MAX).unwrap(), 10);
    assert_eq!(rig.pager.oldest_rec_lsn(), Some(lsns[20]));
    assert_eq!(rig.pager.stats().dirty_pages, 80);
    rig.clean();
    assert_eq!(rig.pager.oldest_rec_lsn(), None);
}

#[test]
fn a_damaged_page_is_named_and_the_others_go_on() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 8, 4);
    rig.clean();
    drop((partition, rig));
    let file = home.storage().open("part/1.dat").unwrap();
    write_all_at(&*file, b"rot", 2 * 4096 + 100).unwrap();
    let mut misdirected = vec![0; 4096];
    hamal_storage::read_exact_at(&*file, &mut misdirected, 4096).unwrap();
    write_all_at(&*file, &misdirected, 3 * 4096).unwrap();
    write_all_at(&*file, &[0; 4096], 4 * 4096).unwrap();

    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.open_partition(P1).unwrap();
    let found = |page: u32| match partition.fix_shared(PageNo(page)).unwrap_err() {
        Error::Corrupt { file, offset, expected, found } => {
            assert_eq!(file, "part/1.dat");
            assert_eq!(offset / 4096, u64::from(page));
            format!("expected {expected}, found {found}")
        }
        other => panic!("{other}"),
    };
    assert!(found(2).contains("checksum"));
    assert_eq!(found(3), "expected page 3, found page 1");
    assert!(found(4).contains("never written"));
    assert!(found(63).contains("never written"));
    assert!(found(64).contains("a file of 64 pages"));
    assert!(found(u32::MAX).contains("a file of 64 pages"));
    for page in [0, 1, 5, 6, 7] {
        assert_eq!(read(&partition, page), u64::from(page));
    }
    assert_eq!(rig.pager.stats().resident_bytes, 5 * 4096, "nothing of a bad page is kept");
}

#[test]
fn a_page_of_another_database_is_refused() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    rig.format(&rig.pager.create_partition(P1).unwrap(), PageNo(0), PageClass::Plain, 1);
    rig.clean();
    drop(rig);
    let rig = Rig::new(home.storage(), PagerOptions { database_id: 8, ..small() });
    let partition = rig.pager.open_partition(P1).unwrap();
    let error = partition.fix_shared(PageNo(0)).unwrap_err().to_string();
    assert!(error.contains("database 0x0000000000000008") && error.contains("0x0000000000000007"), "{error}");
}

#[test]
fn a_read_error_fails_that_read_alone() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 8, 4);
    rig.clean();
    drop((partition, rig));
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.open_partition(P1).unwrap();
    rig.storage.fail(|_, op| op == Op::Read, 1, 1, io::ErrorKind::Other);
    assert!(matches!(partition.fix_exclusive(PageNo(3)), Err(Error::Io { action: "read", .. })));
    assert_eq!(rig.pager.stats().resident_bytes, 0);
    assert_eq!(read(&partition, 3), 3);
    rig.storage.fail(|_, op| op == Op::Read, 1, 3, io::ErrorKind::Interrupted);
    assert_eq!(read(&partition, 4), 4);
}

#[test]
fn a_cache_too_small_is_refused_with_the_minimum_named() {
    let home = Home::new();
    for (page_bytes, minimum) in [(4096, 1_048_576), (16384, 1_048_576), (65536, 4_194_304)] {
        let open = |cache_bytes| {
            let options = PagerOptions { page_bytes, cache_bytes, ..small() };
            crate::Pager::open(home.storage(), MockLog::new(), options)
        };
        let error = open(minimum - 1).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)));
        assert!(error.to_string().contains(&minimum.to_string()), "{error}");
        open(minimum).unwrap();
    }
    for page_bytes in [0, 512, 4095, 5000, 131_072] {
        let options = PagerOptions { page_bytes, ..small() };
        assert!(matches!(
            crate::Pager::open(home.storage(), MockLog::new(), options),
            Err(Error::Invalid(_))
        ));
    }
}

#[test]
fn a_page_discarded_is_neither_written_nor_kept() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    for (page, class, next) in
        [(0, PageClass::Inner, PageClass::Plain), (1, PageClass::Plain, PageClass::Inner)]
    {
        rig.format(&partition, PageNo(page), class, 1);
        partition.fix_exclusive(PageNo(page)).unwrap().discard();
        assert!(rig.pager.dirty_pages().is_empty());
        assert!(partition.fix_shared(PageNo(page)).unwrap_err().to_string().contains("never written"));
        rig.format(&partition, PageNo(page), next, 2);
        partition.fix_exclusive(PageNo(page)).unwrap().discard();
        let fresh = partition.fix_new(PageNo(page), class).unwrap();
        assert_eq!(value(fresh.bytes()), 0);
        assert_eq!(header::page_lsn(fresh.bytes()), Lsn::NEVER);
        assert_eq!(header::partition(fresh.bytes()), P1);
        drop(fresh);
        rig.format(&partition, PageNo(page), class, 3);
        rig.clean();
    }
    assert_eq!((read(&partition, 0), read(&partition, 1)), (3, 3));
    assert_eq!(rig.pager.stats().pages_written, 2);
}

#[test]
fn a_closed_partition_leaves_no_page_and_no_dirty_entry() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), small());
    let (kept, gone) =
        (rig.pager.create_partition(P1).unwrap(), rig.pager.create_partition(PartitionId(2)).unwrap());
    rig.format_all(&kept, 20, 5);
    rig.format_all(&gone, 20, 5);
    gone.fix_exclusive(PageNo(3)).unwrap().discard();
    assert!(rig.pager.open_partition(PartitionId(2)).is_err());
    rig.pager.close_partition(PartitionId(2), true).unwrap();
    assert_eq!(rig.pager.stats().resident_bytes, 20 * 4096);
    assert!(rig.pager.dirty_pages().iter().all(|dirty| dirty.partition == P1));
    assert_eq!(rig.pager.stats().dirty_pages, 20);
    assert!(!rig.storage.exists("part/2.dat").unwrap());
    let error = rig.pager.open_partition(PartitionId(2)).unwrap_err();
    assert!(matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound));
    rig.pager.close_partition(PartitionId(2), true).unwrap();
    drop(gone);
    rig.clean();
    assert_eq!(read(&kept, 7), 7);
}

#[test]
fn when_all_frames_are_latched_the_next_fix_says_so() {
    let home = Home::new();
    let rig = Rig::new(home.storage(), PagerOptions { page_bytes: 16384, ..small() });
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 64, 7);
    rig.clean();
    let frames = 64 - 8;
    let latched: Vec<_> = (0..frames).map(|page| partition.fix_shared(PageNo(page)).unwrap()).collect();
    assert!(matches!(partition.fix_shared(PageNo(60)), Err(Error::Limit { .. })));
    drop(latched);
    assert_eq!(read(&partition, 60), 60);
}

/// Where the system has no huge pages this shows little, but it must hold.
#[test]
fn huge_pages_are_given_up_when_the_maps_outgrow_the_cache() {
    let home = Home::new();
    for huge_pages in [HugePages::WhenAllFits, HugePages::Never] {
        let rig = Rig::new(home.storage(), PagerOptions { cache_bytes: 96 << 20, ..small() });
        rig.pager.set_huge_pages(huge_pages);
        let partition = rig.pager.create_partition(P1).unwrap();
        partition.ensure_file_pages(20_000).unwrap();
        // 48 MiB in chunks 1 and 2, one page in each 2 MiB of them.
        for page in (4096..16384).step_by(512) {
            rig.format(&partition, PageNo(page), PageClass::Plain, u64::from(page));
        }
        let before = resident_pages(&partition, 16384);
        assert!(before >= 24);
        assert!(huge_pages == HugePages::WhenAllFits || before == 24, "{before} pages");
        // Chunk 3 makes the maps 128 MiB.
        rig.format(&partition, PageNo(16384), PageClass::Plain, 16384);
        assert_eq!(resident_pages(&partition, 20_000), 25, "of {before} before");
        for page in (4096..16384).step_by(512) {
            assert_eq!(read(&partition, page), u64::from(page));
        }
        rig.pager.close_partition(P1, true).unwrap();
    }
}

/// Half-changed, unlogged bytes must not live on, let alone reach the disk. Runs itself again in a child process.
#[test]
fn a_panic_inside_a_change_aborts_the_process() {
    const CHILD: &str = "HAMAL_PAGER_PANICS_INSIDE_A_CHANGE";
    if std::env::var_os(CHILD).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "tests::basics::a_panic_inside_a_change_aborts_the_process"]).env(CHILD, "1");
        let status = child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), Some(6), "{status}: not SIGABRT");
        return;
    }
    let rig = Rig::new(Arc::new(SimStorage::new(1)), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format(&partition, PageNo(0), PageClass::Plain, 1);
    let mut page = partition.fix_exclusive(PageNo(0)).unwrap();
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| page.edit(|_| panic!("half way"))));
}
