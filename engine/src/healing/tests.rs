//! Pages damaged in every way, under a database that runs, and in one that is opened.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::{Attempt, PageNo, PartitionId, header};
use hamal_storage::sim::{CrashMode, Rng, SimStorage};

use crate::backup::{BackupOptions, DirectoryTarget};
use crate::engine::PartitionHandle;
use crate::{Database, ErrorKind, Maintenance, Options};

const PAGE_BYTES: usize = 4096;
const ROWS: u32 = 4000;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn options() -> Options {
    Options::new()
        .maintenance(Maintenance::Manual)
        .page_bytes(PAGE_BYTES)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(256 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(64 << 20)
}

/// With a log that goes back to the database's making.
fn keeping() -> Options {
    options().keep_log_bytes(1 << 40)
}

fn open(disk: &SimStorage) -> Database {
    keeping().open_on(Arc::new(disk.clone())).expect("open")
}

/// A database larger than its cache, and what it holds.
struct Grown {
    disk: SimStorage,
    db: Database,
    rng: Rng,
    rows: Rows,
}

impl Grown {
    fn on(disk: SimStorage, options: Options) -> Grown {
        Grown::with(disk, options, ROWS)
    }

    fn with(disk: SimStorage, options: Options, rows: u32) -> Grown {
        let db = options.open_on(Arc::new(disk.clone())).unwrap();
        db.transact(|tx| tx.open_bytes_table("t").map(drop)).unwrap();
        let mut grown = Grown { disk, db, rng: Rng::new(7), rows: Rows::new() };
        grown.write(0..rows);
        grown
    }

    /// Writes these rows, in some order, and all pages to the disk.
    fn write(&mut self, keys: std::ops::Range<u32>) {
        let mut keys: Vec<u32> = keys.collect();
        for at in (1..keys.len()).rev() {
            keys.swap(at, self.rng.index(at + 1));
        }
        for chunk in keys.chunks(200) {
            let rng = &mut self.rng;
            let rows: Vec<_> =
                chunk.iter().map(|key| (key.to_be_bytes(), vec![rng.below(256) as u8; 330])).collect();
            self.db
                .transact(|tx| {
                    let mut table = tx.open_bytes_table("t")?;
                    rows.iter().try_for_each(|(key, value)| table.put(key, value))
                })
                .unwrap();
            self.rows.extend(rows.into_iter().map(|(key, value)| (key.to_vec(), value)));
        }
        self.db.checkpoint().unwrap();
    }

    fn handle(&self) -> Arc<PartitionHandle> {
        handle(&self.db)
    }

    fn file(&self) -> String {
        format!("part/{}.dat", self.handle().partition.id())
    }

    /// Pages in use.
    fn in_use(&self) -> Vec<PageNo> {
        let handle = self.handle();
        let (geometry, bitmap) = (handle.space.geometry(), handle.space.bitmap(0).unwrap().bytes().to_vec());
        let used = |page: &PageNo| page.0 < 2 || geometry.is_set(&bitmap, page.0);
        (0..handle.partition.file_pages()).map(PageNo).filter(used).collect()
    }

    /// Pages in use that are not in memory.
    fn absent(&self) -> Vec<PageNo> {
        let handle = self.handle();
        let absent = |page: &PageNo| matches!(handle.partition.try_shared(*page), Attempt::Absent);
        self.in_use().into_iter().filter(absent).collect()
    }
}

fn handle(db: &Database) -> Arc<PartitionHandle> {
    let tables = db.tables().unwrap();
    let table = tables.iter().find(|table| table.name == "t").unwrap();
    db.handle.engine.partition(PartitionId(table.partitions[0])).unwrap()
}

fn image(disk: &SimStorage, file: &str, page: PageNo) -> Vec<u8> {
    disk.read_file(file).unwrap()[page.0 as usize * PAGE_BYTES..][..PAGE_BYTES].to_vec()
}

fn overwrite(disk: &SimStorage, file: &str, page: PageNo, image: &[u8]) {
    disk.overwrite(file, u64::from(page.0) * PAGE_BYTES as u64, image).unwrap();
}

fn assert_right(db: &Database, rows: &Rows) {
    let snapshot = db.snapshot().unwrap();
    let found: Rows = snapshot.open_bytes_table("t").unwrap().iter().unwrap().map(Result::unwrap).collect();
    assert!(found == *rows, "{} rows, not {}", found.len(), rows.len());
    drop(snapshot);
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.findings, []);
}

/// Makes a page bad in one of the ways that do not need an older version of it.
fn damage(
    disk: &SimStorage,
    file: &str,
    page: PageNo,
    other: PageNo,
    foreign: &[u8],
    rng: &mut Rng,
) -> usize {
    let way = rng.index(4);
    let bad = match way {
        0 => {
            let mut bytes = image(disk, file, page);
            for _ in 0..=rng.below(9) {
                bytes[rng.index(PAGE_BYTES)] ^= 1 << rng.below(8);
            }
            bytes
        }
        1 => vec![0; PAGE_BYTES],
        2 => image(disk, file, other),
        _ => foreign.to_vec(),
    };
    overwrite(disk, file, page, &bad);
    way
}

#[test]
fn a_page_damaged_in_any_way_is_rebuilt_from_the_log_when_it_is_read_and_written_again_as_it_was() {
    let mut grown = Grown::on(SimStorage::new(1), keeping());
    let elsewhere = Grown::on(SimStorage::new(2), options());
    let (file, handle) = (grown.file(), grown.handle());
    let absent = grown.absent();
    assert!(absent.len() > 100, "{}", absent.len());
    let mut ways = [0; 4];
    for pair in absent.windows(2).step_by(3) {
        let (page, other) = (pair[0], pair[1]);
        let whole = image(&grown.disk, &file, page);
        let foreign = image(&elsewhere.disk, &file, page);
        ways[damage(&grown.disk, &file, page, other, &foreign, &mut grown.rng)] += 1;
        if image(&grown.disk, &file, page) == whole {
            continue;
        }
        let fixed = handle.partition.fix_shared(page).unwrap();
        assert!(fixed.bytes() == whole, "page {page}");
        drop(fixed);
        assert!(image(&grown.disk, &file, page) == whole, "page {page} on the disk");
    }
    assert!(ways.iter().all(|n| *n > 3), "{ways:?}");
    let stats = grown.db.stats();
    assert_eq!((stats.pages_healed, stats.pages_unhealed), (stats.pages_damaged, 0));
    assert!(stats.healed_from_log > 50, "{stats:?}");
}

#[test]
fn a_lost_write_is_found_when_the_page_is_read_again_and_rolled_forward() {
    let mut grown = Grown::on(SimStorage::new(1), options());
    // The log has what comes now, but not what made the pages.
    for _ in 0..2 {
        grown.db.checkpoint().unwrap();
    }
    let engine = &grown.db.handle.engine;
    let (_hold, from) = engine.retention.hold_oldest(engine.log.oldest());
    assert!(engine.log.tail().0 - from.0 < 10_000);
    let (file, handle) = (grown.file(), grown.handle());
    let old = grown.disk.read_file(&file).unwrap();
    grown.write(0..ROWS);
    let mut stale = 0;
    for page in grown.absent() {
        let whole = image(&grown.disk, &file, page);
        let Some(older) = old.chunks_exact(PAGE_BYTES).nth(page.0 as usize) else { continue };
        if *older == whole[..] || header::kind(older) == 0 {
            continue;
        }
        overwrite(&grown.disk, &file, page, older);
        assert!(handle.partition.fix_shared(page).unwrap().bytes() == whole, "page {page}");
        assert!(image(&grown.disk, &file, page) == whole, "page {page} on the disk");
        stale += 1;
    }
    assert!(stale > 50, "{stale}");
    assert_eq!(grown.db.stats().pages_healed, stale);
    assert!(grown.db.stats().healed_from_copies > 50, "{:?}", grown.db.stats());
    assert_right(&grown.db, &grown.rows);
}

#[test]
fn without_the_log_or_a_backup_a_damaged_page_is_an_error_that_says_what_was_tried_and_nothing_else_is_hurt()
{
    let mut grown = Grown::on(SimStorage::new(1), options());
    grown.db.checkpoint().unwrap();
    grown.db.checkpoint().unwrap();
    let (file, page) = (grown.file(), grown.absent()[7]);
    let whole = image(&grown.disk, &file, page);
    damage(&grown.disk, &file, page, PageNo(2), &[1; PAGE_BYTES], &mut grown.rng);
    for _ in 0..2 {
        let error = crate::Error::from(grown.handle().partition.load(page).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let text = error.to_string();
        for part in [&*file, "could not be rebuilt", "no record of it is left", "no backups are known"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert_eq!((grown.db.stats().pages_damaged, grown.db.stats().pages_healed), (2, 0));
    let report = grown.db.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((report.healed.len(), report.damaged.len()), (0, 1), "{report:?}");
    assert_eq!(report.damaged[0].page, Some(page.0));
    overwrite(&grown.disk, &file, page, &whole);
    assert_right(&grown.db, &grown.rows);
}

#[test]
fn a_page_of_which_no_log_is_left_is_rebuilt_from_a_backup_and_the_log_since() {
    let vault = Arc::new(DirectoryTarget::within(Arc::new(SimStorage::new(50)), ""));
    let mut grown = Grown::on(SimStorage::new(1), options().archive(vault.clone()));
    let back_up = |db: &Database, since: Option<String>| {
        let options = since.map_or(BackupOptions::new(), |id| BackupOptions::new().since(id));
        db.backup(&*vault, &options, &mut |_| ControlFlow::Continue(())).unwrap().id
    };
    let full = back_up(&grown.db, None);
    grown.write(0..ROWS / 3);
    back_up(&grown.db, Some(full));
    grown.write(ROWS / 4..ROWS / 2);
    for _ in 0..3 {
        grown.db.archive().unwrap();
        grown.db.checkpoint().unwrap();
    }
    let (file, handle) = (grown.file(), grown.handle());
    let mut healed = 0;
    for page in grown.absent().into_iter().step_by(9) {
        let whole = image(&grown.disk, &file, page);
        overwrite(&grown.disk, &file, page, &[0; PAGE_BYTES]);
        assert!(handle.partition.fix_shared(page).unwrap().bytes() == whole, "page {page}");
        healed += 1;
    }
    assert!(healed > 10, "{healed}");
    assert_eq!(grown.db.stats().healed_from_backups, healed, "{:?}", grown.db.stats());
    // A gap in the archive, and the newest state cannot be told any more.
    let chunks = crate::backup::Target::list(&*vault, "log").unwrap();
    for name in crate::backup::Target::list(&*vault, &format!("log/{}", chunks.first().map_or("", |n| n)))
        .unwrap_or_default()
    {
        crate::backup::Target::remove(&*vault, &format!("log/{}/{name}", chunks[0])).unwrap();
    }
    let page = grown.absent()[3];
    overwrite(&grown.disk, &file, page, &[0; PAGE_BYTES]);
    let error = handle.partition.load(page).unwrap_err().to_string();
    assert!(error.contains("log is missing from"), "{error}");
}

#[test]
fn threads_that_want_the_same_bad_page_wait_for_the_one_that_heals_it() {
    let mut grown = Grown::on(SimStorage::new(1), keeping());
    let (file, page) = (grown.file(), grown.absent()[5]);
    damage(&grown.disk, &file, page, PageNo(3), &[9; PAGE_BYTES], &mut grown.rng);
    let handle = grown.handle();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| drop(handle.partition.fix_shared(page).unwrap()));
        }
    });
    assert_eq!((grown.db.stats().pages_damaged, grown.db.stats().pages_healed), (1, 1));
}

#[test]
fn a_scrub_heals_bad_pages_in_memory_and_out_of_it_and_finds_nothing_the_second_time() {
    let mut grown = Grown::on(SimStorage::new(1), keeping());
    let file = grown.file();
    let in_use = grown.in_use();
    let whole = grown.disk.read_file(&file).unwrap();
    let mut bad = 0;
    for page in in_use.iter().copied().step_by(2) {
        damage(&grown.disk, &file, page, PageNo(page.0 ^ 1), &[3; PAGE_BYTES], &mut grown.rng);
        bad +=
            u64::from(image(&grown.disk, &file, page) != whole[page.0 as usize * PAGE_BYTES..][..PAGE_BYTES]);
    }
    let mut told = 0;
    let report = grown
        .db
        .scrub(&mut |progress| {
            assert!(progress.pages_done >= told && progress.pages_done <= progress.pages_total);
            told = progress.pages_done;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((report.healed.len() as u64, report.damaged.len()), (bad, 0), "{:?}", report.damaged);
    assert!(report.pages >= in_use.len() as u64, "{report:?}");
    assert!(grown.disk.read_file(&file).unwrap() == whole, "the file is as it was");
    let again = grown.db.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((again.healed, again.damaged), (vec![], vec![]));
    let stopped = grown.db.scrub(&mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Cancelled);
    assert_right(&grown.db, &grown.rows);
}

#[test]
fn a_scrub_after_a_restart_finds_a_lost_write_by_the_retained_log() {
    let mut grown = Grown::on(SimStorage::new(1), keeping());
    let file = grown.file();
    let old = grown.disk.read_file(&file).unwrap();
    grown.write(ROWS / 4..ROWS / 2);
    let new = grown.disk.read_file(&file).unwrap();
    let disk = grown.disk.crash_image(CrashMode::KeepAll, 1);
    let db = open(&disk);
    let mut stale = Vec::new();
    for (page, (older, newer)) in old.chunks_exact(PAGE_BYTES).zip(new.chunks_exact(PAGE_BYTES)).enumerate() {
        let page = PageNo(page as u32);
        let is_older = header::kind(older) != 0 && header::page_lsn(older) < header::page_lsn(newer);
        if is_older && matches!(handle(&db).partition.try_shared(page), Attempt::Absent) && page.0 > 1 {
            overwrite(&disk, &file, page, older);
            stale.push(page.0);
        }
    }
    assert!(stale.len() > 20, "{stale:?}");
    let report = db.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    let healed: Vec<u32> = report.healed.iter().filter_map(|finding| finding.page).collect();
    assert_eq!((healed, report.damaged), (stale, vec![]));
    assert_right(&db, &grown.rows);
}

/// As it was when the machine stopped, but for the pages of the table, which are older than what the log says was written.
fn with_lost_writes() -> (SimStorage, Rows) {
    let mut grown = Grown::on(SimStorage::new(1), keeping());
    let file = grown.file();
    let old = grown.disk.read_file(&file).unwrap();
    grown.write(0..ROWS);
    // Some more, which redo has to bring back.
    for key in 0..ROWS / 2 {
        let (key, value) = (key.to_be_bytes(), vec![1; 330]);
        grown.db.transact(|tx| tx.open_bytes_table("t")?.put(&key, &value)).unwrap();
        grown.rows.insert(key.to_vec(), value);
    }
    let disk = grown.disk.crash_image(CrashMode::KeepAll, 1);
    for (page, older) in
        old.chunks_exact(PAGE_BYTES).enumerate().filter(|(_, older)| header::kind(older) != 0)
    {
        overwrite(&disk, &file, PageNo(page as u32), older);
    }
    (disk, grown.rows)
}

#[test]
fn redo_heals_the_pages_whose_writes_were_lost_whoever_redoes_them() {
    let (image, rows) = with_lost_writes();
    for workers in [1, 2, 4] {
        let disk = image.crash_image(CrashMode::KeepAll, 1);
        let db = keeping().recovery_workers(workers).open_on(Arc::new(disk)).unwrap();
        assert!(db.stats().pages_healed > 20, "{:?}", db.stats());
        let report = db.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(report.damaged, []);
        assert_right(&db, &rows);
    }
}

#[test]
fn a_crash_at_any_io_of_a_healing_leaves_what_another_one_needs() {
    let mut grown = Grown::with(SimStorage::new(1), keeping(), 400);
    let file = grown.file();
    grown.write(0..100);
    let pages: Vec<PageNo> = grown.in_use().into_iter().step_by(5).take(6).collect();
    let broken = grown.disk.crash_image(CrashMode::KeepAll, 1);
    for (nth, page) in pages.iter().enumerate() {
        if nth % 2 == 0 {
            overwrite(&broken, &file, *page, &[0; PAGE_BYTES]);
        } else {
            broken.flip_bit(&file, (u64::from(page.0) * PAGE_BYTES as u64 + 999) * 8).unwrap();
        }
    }
    let rows = grown.rows.clone();
    let read_bad = |disk: &SimStorage| -> crate::Result<()> {
        let db = keeping().open_on(Arc::new(disk.clone()))?;
        let healed = pages.iter().try_for_each(|page| handle(&db).partition.load(*page));
        // As a killed process leaves it.
        std::mem::forget(db);
        Ok(healed?)
    };
    let whole_run = broken.crash_image(CrashMode::KeepAll, 1);
    read_bad(&whole_run).unwrap();
    let ios = whole_run.io_count();
    assert!(ios > 60, "{ios}");
    for at in 1..=ios {
        let disk = broken.crash_image(CrashMode::KeepAll, 1);
        disk.crash_at(at);
        let _stopped = read_bad(&disk);
        let after = disk.crash(CrashMode::Any, at);
        let db = open(&after);
        assert_right(&db, &rows);
        assert_eq!(db.stats().pages_unhealed, 0, "crash at {at}");
    }
}
