//! Scrubs beside work, and in the background. What they find and heal: `crate::healing::tests`.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use hamal_pager::PartitionId;
use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, SimStorage, When};

use crate::{Database, Maintenance, Options, Scrub, ScrubReport};

fn options() -> Options {
    Options::new().page_bytes(4096).cache_bytes(1 << 20).maintenance(Maintenance::Manual)
}

fn scrub(db: &Database) -> ScrubReport {
    db.scrub(&mut |_| ControlFlow::Continue(())).unwrap()
}

/// Scrubs the database each time a piece of it is asked for.
struct Scrubbing<'d> {
    db: &'d Database,
    left: usize,
    scrubs: u64,
}

impl Read for Scrubbing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = buffer.len().min(self.left).min(30_000);
        buffer[..bytes].fill(7);
        self.left -= bytes;
        let report = scrub(self.db);
        assert!(report.healed.is_empty() && report.damaged.is_empty(), "{report:?}");
        self.scrubs += 1;
        Ok(bytes)
    }
}

#[test]
fn pages_that_are_allocated_and_not_filled_yet_are_not_bad() {
    let disk = SimStorage::new(1);
    let db = options().open_on(Arc::new(disk)).unwrap();
    // What a run of pages takes has been something else before, and is not what is going to be there either.
    for round in 0..3 {
        let tx = db.begin().unwrap();
        let mut source = Scrubbing { db: &db, left: 400_000, scrubs: 0 };
        let mut table = tx.open_bytes_table("t").unwrap();
        table.insert_from(b"big", &mut source).unwrap();
        assert!(source.scrubs > 10, "{}", source.scrubs);
        if round == 0 {
            table.delete(b"big").unwrap();
        }
        drop(table);
        tx.commit().unwrap();
        while db.maintain().unwrap() {}
        assert_eq!(scrub(&db).damaged, []);
    }
}

#[test]
fn the_background_scrub_heals_what_nobody_reads_and_closing_does_not_wait_for_its_end() {
    let disk = SimStorage::new(1);
    let background = |period| {
        let options = options().maintenance(Maintenance::Background).keep_log_bytes(1 << 40);
        options.scrub(Scrub::Every(period)).open_on(Arc::new(disk.clone())).unwrap()
    };
    let db = background(Duration::from_hours(1000));
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..2000_u32).try_for_each(|key| table.put(&key.to_be_bytes(), &[3; 300]))
    })
    .unwrap();
    let file = format!("part/{}.dat", PartitionId(db.tables().unwrap()[0].partitions[0]));
    db.close().unwrap();
    let whole = disk.read_file(&file).unwrap();
    for page in [7, 50, 90] {
        disk.flip_bit(&file, (page * 4096 + 77) * 8).unwrap();
    }
    let db = background(Duration::ZERO);
    // It may have begun before the first of them was healed.
    while db.stats().pages_healed < 3 || db.stats().scrubs < 2 {
        std::thread::yield_now();
    }
    assert_eq!((db.stats().pages_healed, db.stats().pages_unhealed), (3, 0));
    db.close().unwrap();
    assert!(disk.read_file(&file).unwrap() == whole);
    // Longer than a test can last.
    background(Duration::from_hours(1000)).close().unwrap();
}

#[test]
fn a_page_that_the_system_refuses_to_read_is_told_and_the_others_are_scrubbed() {
    let disk = SimStorage::new(1);
    let db = options().open_on(Arc::new(disk.clone())).unwrap();
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
    db.checkpoint().unwrap();
    let pages = scrub(&db).pages;
    let mut refused = 0;
    for nth in 1.. {
        let fault = Fault::new(FaultKind::Eio, When::Nth(nth), Repeat::Once);
        disk.inject(fault.only(&[Operation::Read]).on("part/*"));
        let fired = disk.fired().len();
        let report = scrub(&db);
        if disk.fired().len() == fired {
            break;
        }
        assert_eq!((report.pages, report.damaged.len()), (pages, 1), "{report:?}");
        refused += 1;
        disk.clear_faults();
    }
    assert_eq!(refused, pages, "each is read once");
    disk.clear_faults();
    assert_eq!(scrub(&db).damaged, []);
}
