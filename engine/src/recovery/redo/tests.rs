//! What the pass refuses, and what only the order of the log makes possible.

use std::sync::Arc;

use hamal_pager::space::Geometry;
use hamal_pager::{PageNo, PartitionId};
use hamal_storage::sim::{CrashMode, SimStorage};
use hamal_wal::Lsn;

use crate::change::PageChange;
use crate::record::{PagePart, Record};
use crate::{Database, Maintenance, Options};

fn options() -> Options {
    Options::new().page_bytes(4096).maintenance(Maintenance::Manual)
}

/// A database whose log ends with an overflow page on each of these pages of its only table.
fn with_overflow_pages(pages: &[u32]) -> SimStorage {
    let disk = SimStorage::new(1);
    let db: Database = options().open_on(Arc::new(disk.clone())).unwrap();
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
    let partition = PartitionId(db.tables().unwrap()[0].partitions[0]);
    for page in pages {
        let change = PageChange::Overflow { data: &[1, 2, 3] };
        let part = PagePart { partition, page: PageNo(*page), page_prev_lsn: Lsn::NEVER, change };
        db.handle.engine.journal.append(&Record::Structure { parts: smallvec::smallvec![part] }).unwrap();
    }
    db.flush().unwrap();
    disk.crash_image(CrashMode::KeepAll, 1)
}

#[test]
fn a_page_number_far_behind_the_file_is_damage_and_takes_no_disk_space() {
    for (page, workers) in [(1 << 20, 1), (1 << 31, 1), (u32::MAX, 1), (1 << 20, 3), (u32::MAX, 3)] {
        let image = with_overflow_pages(&[page]);
        let used = image.used_bytes();
        let db = options().recovery_workers(workers).open_on(Arc::new(image.clone())).unwrap();
        let causes: Vec<String> = db.partitions().unwrap().into_iter().filter_map(|p| p.cause).collect();
        assert!(causes.len() == 1 && causes[0].contains("expected a page below"), "{causes:?}");
        assert!(image.used_bytes() < used + (4 << 20), "page {page}: {}", image.used_bytes());
    }
}

#[test]
fn a_page_may_be_as_far_behind_the_file_as_the_records_before_it_have_made_possible() {
    // Each is in the reach of the one before it, and only of that one. With many threads they have different ones.
    let coverage = Geometry::new(4096).coverage();
    let pages: Vec<u32> = (1..=6).map(|n| n * (coverage - 200)).collect();
    for workers in [1, 2, 7] {
        let image = with_overflow_pages(&pages);
        let db = options().recovery_workers(workers).open_on(Arc::new(image)).unwrap();
        let file_pages = db.handle.engine.open_partitions().iter().map(|h| h.partition.file_pages()).max();
        assert!(file_pages > pages.last().copied(), "{file_pages:?}");
    }
}
