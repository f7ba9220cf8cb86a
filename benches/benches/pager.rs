//! The page cache alone: a fix and latch that hits, an optimistic read, and eviction under pressure, clean and dirty.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should end, and say where")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hamal_benches::place::fresh_directory;
use hamal_benches::rows::{Picks, Seed};
use hamal_pager::{
    Attempt, HugePages, PageClass, PageNo, Pager, PagerOptions, Partition, PartitionId, WriteAhead, header,
    pin_epoch,
};
use hamal_storage::{OsStorage, Result};
use hamal_wal::Lsn;
use tempfile::TempDir;

const PAGE_BYTES: usize = 8192;
/// Pages of the benchmark's partition.
const PAGES: u32 = 8192;

/// A log that is always durable: here the pager alone is measured.
#[derive(Debug)]
struct NoLog;

impl WriteAhead for NoLog {
    fn make_durable(&self, _lsn: Lsn) -> Result<()> {
        Ok(())
    }
}

/// LSNs for page changes; they only ever grow.
static NEXT_LSN: AtomicU64 = AtomicU64::new(4096);

fn next_lsn() -> Lsn {
    Lsn(NEXT_LSN.fetch_add(8, Ordering::Relaxed))
}

struct Bed {
    pager: Arc<Pager>,
    partition: Arc<Partition>,
    _directory: TempDir,
}

/// A partition of [`PAGES`] pages of one class, all written, under a cache of `cache_pages` pages.
fn bed(class: PageClass, cache_pages: u32) -> Bed {
    bed_of(class, cache_pages, PAGES, HugePages::default())
}

fn bed_of(class: PageClass, cache_pages: u32, pages: u32, huge_pages: HugePages) -> Bed {
    let directory = fresh_directory().unwrap();
    let options = PagerOptions {
        page_bytes: PAGE_BYTES,
        cache_bytes: u64::from(cache_pages) * PAGE_BYTES as u64,
        database_id: 7,
        batch_pages: 64,
    };
    let pager = Pager::open(Arc::new(OsStorage::new(directory.path())), Arc::new(NoLog), options).unwrap();
    pager.set_huge_pages(huge_pages);
    let partition = pager.create_partition(PartitionId(1)).unwrap();
    partition.ensure_file_pages(pages).unwrap();
    for page in 0..pages {
        let mut page = partition.fix_new(PageNo(page), class).unwrap();
        let lsn = next_lsn();
        page.mark_dirty(|| lsn);
        page.edit(|bytes| {
            header::set_kind(
                bytes,
                match class {
                    PageClass::Inner => header::kind::INNER,
                    PageClass::Plain => header::kind::LEAF,
                },
            );
            header::set_page_lsn(bytes, lsn);
        });
    }
    while pager.write_back(Lsn(u64::MAX), 1024).unwrap() > 0 {}
    Bed { pager, partition, _directory: directory }
}

fn hit(c: &mut Criterion) {
    let plain = bed(PageClass::Plain, 2 * PAGES);
    let inner = bed(PageClass::Inner, 2 * PAGES);
    let mut group = c.benchmark_group("page hit");
    let mut picks = Picks::new(Seed(1), u64::from(PAGES));
    let mut pick = move || PageNo(picks.pick() as u32);
    group.bench_function("fix shared, read a word, release", |b| {
        b.iter(|| plain.partition.fix_shared(pick()).unwrap().bytes()[64]);
    });
    group.bench_function("try shared, read a word, release", |b| {
        b.iter(|| match plain.partition.try_shared(pick()) {
            Attempt::Fixed(page) => page.bytes()[64],
            other => panic!("not resident: {other:?}"),
        });
    });
    group.bench_function("fix exclusive, release", |b| {
        b.iter(|| plain.partition.fix_exclusive(pick()).unwrap().page_no());
    });
    group.bench_function("fix exclusive, change a byte, release", |b| {
        b.iter(|| {
            let mut page = plain.partition.fix_exclusive(pick()).unwrap();
            page.mark_dirty(next_lsn);
            page.edit(|bytes| bytes[100] = bytes[100].wrapping_add(1));
        });
    });
    group.bench_function("optimistic, read a word, validate", |b| {
        let epoch = pin_epoch();
        b.iter(|| match inner.partition.optimistic(pick(), &epoch) {
            Attempt::Fixed(page) => {
                let word = page.word(8);
                assert!(page.validate());
                word
            }
            other => panic!("not resident: {other:?}"),
        });
    });
    group.bench_function("pin the epoch", |b| b.iter(pin_epoch));
}

/// A working set that small pages' address translation does not cover: what huge pages are worth.
fn huge_pages(c: &mut Criterion) {
    // `--test` runs every benchmark once, to see that it works: a small working set does.
    let many = if std::env::args().any(|a| a == "--test") { PAGES } else { 16 * PAGES };
    let mut group = c.benchmark_group("page hit, 1 GiB at random");
    for huge in [HugePages::Never, HugePages::WhenAllFits] {
        let bed = bed_of(PageClass::Plain, many + many / 8, many, huge);
        let mut picks = Picks::new(Seed(1), u64::from(many));
        group.bench_function(format!("fix shared, read a word, huge pages {huge:?}"), |b| {
            b.iter(|| bed.partition.fix_shared(PageNo(picks.pick() as u32)).unwrap().bytes()[4096]);
        });
    }
}

fn pressure(c: &mut Criterion) {
    // One page in eight fits.
    let bed = bed(PageClass::Plain, PAGES / 8);
    let mut group = c.benchmark_group("page miss under pressure");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    let mut picks = Picks::new(Seed(2), u64::from(PAGES));
    group.bench_function("clean: read in, evict another", |b| {
        b.iter(|| black_box(bed.partition.fix_shared(PageNo(picks.pick() as u32)).unwrap().bytes()[64]));
    });
    group.bench_function("dirty: read in, change, write another back", |b| {
        b.iter(|| {
            let mut page = bed.partition.fix_exclusive(PageNo(picks.pick() as u32)).unwrap();
            let lsn = next_lsn();
            page.mark_dirty(|| lsn);
            page.edit(|bytes| {
                bytes[100] = bytes[100].wrapping_add(1);
                header::set_page_lsn(bytes, lsn);
            });
        });
    });
    group.finish();
    let stats = bed.pager.stats();
    assert!(stats.evictions > 0 && stats.pages_written > 0, "nothing was evicted: {stats:?}");
}

criterion_group!(benches, hit, huge_pages, pressure);
criterion_main!(benches);
