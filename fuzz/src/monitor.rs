//! The write-ahead monitor: fails a run in which a page reaches the disk before its log does.
//!
//! It watches the simulated disk from outside and believes nothing the engine says of itself. From the writes and syncs of
//! `wal/*` it works out how far the log is durable; in every page image that goes to `part/*.dat` or `doublewrite` it looks up the
//! page LSN.
//!
//! M1. `page_lsn < frontier` for every page image written. `frontier`: every byte of the log below it has been written and
//!     then synced. A segment's name is its first LSN, so the LSN of a byte is name plus offset. What is written before a file
//!     has such a name is not log: segments are filled with zeros under another. Nor are zeros at the end of a write: blocks
//!     are filled up with them.
//! M2. A page goes to its place only after the same bytes went to the doublewrite area and were synced there.
//! M3. A page image in place says which page it is, and says the truth.
//! M4. After a crash nothing is certain but what was durable: [`Monitor::restart`] forgets the rest. What recovery relies on
//!     beyond that it must write and sync again.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use hamal_storage::sim::Observer;

use crate::value::Value;

const HEADER_BYTES: usize = 40;

/// The monitor of one simulated disk and its images. See the module's documentation.
#[derive(Debug)]
pub struct Monitor {
    page_bytes: usize,
    state: Mutex<Watch>,
}

#[derive(Clone, Debug, Default)]
struct Watch {
    log: LogWatch,
    doublewrite: ShadowWatch,
    pages: u64,
    recycled: u64,
    violations: Vec<String>,
}

/// Stream bytes [start, end) that were written; `solid_end`: behind the last byte that is not zero.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u64,
    end: u64,
    solid_end: u64,
}

/// How far the log is durable.
#[derive(Clone, Debug, Default)]
struct LogWatch {
    /// Written, not synced.
    pending: Vec<(String, Extent)>,
    /// Synced, but something before is not.
    detached: Vec<Extent>,
    durable_end: u64,
    frontier: u64,
}

/// What the doublewrite area holds, and which page images are durable there.
#[derive(Clone, Debug, Default)]
struct ShadowWatch {
    area: Vec<u8>,
    /// Bytes of the area written since its last sync.
    changed: Option<(usize, usize)>,
    synced: HashMap<PageKey, u64>,
    /// Images from before a restart: restoring puts any of them in place.
    earlier: HashSet<(PageKey, u64)>,
}

type PageKey = (u32, u32);

#[derive(Clone, Copy, Debug)]
struct PageHead {
    page: u32,
    partition: u32,
    page_lsn: u64,
}

/// The start of the log stream: no record lies below.
const FIRST_LSN: u64 = 4096;

impl Monitor {
    /// Watches a disk that holds no log yet.
    pub fn new(page_bytes: usize) -> Monitor {
        let mut watch = Watch::default();
        watch.log.durable_end = FIRST_LSN;
        watch.log.frontier = FIRST_LSN;
        Monitor { page_bytes, state: Mutex::new(watch) }
    }

    /// A monitor that knows what this one knows and goes its own way from here, for another image of the same disk.
    #[must_use]
    pub fn fork(&self) -> Monitor {
        Monitor { page_bytes: self.page_bytes, state: Mutex::new(self.lock().clone()) }
    }

    /// The machine crashed, or the database is opened again after a failure.
    pub fn restart(&self) {
        let mut watch = self.lock();
        watch.log.pending.clear();
        watch.log.detached.clear();
        watch.doublewrite.restart(self.page_bytes);
    }

    /// What was found wrong, and forgets it.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().violations)
    }

    /// Page images checked.
    pub fn pages(&self) -> u64 {
        self.lock().pages
    }

    /// Log segments recycled.
    pub fn recycled(&self) -> u64 {
        self.lock().recycled
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl LogWatch {
    fn write(&mut self, file: &str, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        let solid_bytes = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.pending.push((file.to_owned(), Extent { start, end, solid_end: start + solid_bytes as u64 }));
    }

    fn sync(&mut self, file: &str) {
        let (synced, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|(name, _)| name == file);
        self.pending = pending;
        let synced: Vec<(String, Extent)> = synced;
        self.detached.extend(synced.into_iter().map(|(_, extent)| extent));
        // Extends the durable stretch by every extent that touches it, until none does.
        loop {
            let before = self.detached.len();
            let (mut end, mut frontier) = (self.durable_end, self.frontier);
            self.detached.retain(|extent| {
                let touches = extent.start <= end;
                if touches {
                    end = end.max(extent.end);
                    frontier = frontier.max(extent.solid_end);
                }
                !touches
            });
            (self.durable_end, self.frontier) = (end, frontier);
            if self.detached.len() == before {
                return;
            }
        }
    }
}

impl ShadowWatch {
    /// A batch may arrive in several pieces, none of which need be a page.
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.area.resize(self.area.len().max(end), 0);
        self.area[offset..end].copy_from_slice(bytes);
        let (from, to) = self.changed.unwrap_or((offset, end));
        self.changed = Some((from.min(offset), to.max(end)));
    }

    /// The images that were written since the last sync.
    fn fresh(&mut self, page_bytes: usize) -> Vec<(PageKey, u64)> {
        let (from, to) = self.changed.take().unwrap_or_default();
        let whole = from / page_bytes * page_bytes..to.next_multiple_of(page_bytes).min(self.area.len());
        let image = |image| Some((PageHead::decode(image)?.key(), Value::of(image).hash));
        self.area[whole].chunks_exact(page_bytes).filter_map(image).collect()
    }

    fn sync(&mut self, page_bytes: usize) {
        let fresh = self.fresh(page_bytes);
        self.synced.extend(fresh);
    }

    fn restart(&mut self, page_bytes: usize) {
        let fresh = self.fresh(page_bytes);
        self.earlier.extend(fresh.into_iter().chain(self.synced.drain()));
    }

    fn covers(&self, key: PageKey, image: u64) -> bool {
        self.synced.get(&key) == Some(&image) || self.earlier.contains(&(key, image))
    }
}

fn segment_start(file: &str) -> Option<u64> {
    file.strip_prefix("wal/")?.strip_suffix(".log")?.parse().ok()
}

fn partition_of(file: &str) -> Option<u32> {
    file.strip_prefix("part/")?.strip_suffix(".dat")?.parse().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

impl PageHead {
    /// `None` for zeros: a hole being filled.
    fn decode(page: &[u8]) -> Option<PageHead> {
        if page.len() < HEADER_BYTES || page[4] == 0 {
            return None;
        }
        Some(PageHead { page: u32_at(page, 8), partition: u32_at(page, 12), page_lsn: u64_at(page, 24) })
    }

    fn key(self) -> PageKey {
        (self.partition, self.page)
    }
}

impl Watch {
    /// M1, for a page image going anywhere.
    fn check_page(&mut self, head: PageHead, place: &str) {
        self.pages += 1;
        if head.page_lsn >= self.log.frontier {
            self.violations.push(format!(
                "page {} of partition {} at LSN {} reached {place} while the log is durable only below {}",
                head.page, head.partition, head.page_lsn, self.log.frontier
            ));
        }
    }

    fn write_pages(&mut self, file: &str, partition: u32, offset: u64, bytes: &[u8], page_bytes: usize) {
        // The rest of a short transfer starts inside a page: its header has been seen already.
        let skip = (offset.next_multiple_of(page_bytes as u64) - offset) as usize;
        let Some(aligned) = bytes.get(skip..) else { return };
        let first = (offset + skip as u64) / page_bytes as u64;
        for (page, number) in aligned.chunks(page_bytes).zip(first..) {
            let Some(head) = PageHead::decode(page) else { continue };
            self.check_page(head, file);
            if u64::from(head.page) != number || head.partition != partition {
                self.violations.push(format!("{file}: page {number} was written with the header {head:?}"));
            }
            if page.len() == page_bytes && !self.doublewrite.covers(head.key(), Value::of(page).hash) {
                self.violations.push(format!(
                    "{file}: page {number} at LSN {} was written before the doublewrite area had it",
                    head.page_lsn
                ));
            }
        }
    }

    /// The doublewrite area is a plain sequence of page images.
    fn write_shadows(&mut self, offset: u64, bytes: &[u8], page_bytes: usize) {
        let skip = (offset.next_multiple_of(page_bytes as u64) - offset) as usize;
        for head in bytes.get(skip..).unwrap_or_default().chunks(page_bytes).filter_map(PageHead::decode) {
            self.check_page(head, "doublewrite");
        }
        self.doublewrite.write(offset as usize, bytes);
    }
}

impl Observer for Monitor {
    fn write(&self, file: &str, offset: u64, bytes: &[u8]) {
        let mut watch = self.lock();
        if let Some(first) = segment_start(file) {
            watch.log.write(file, first + offset, bytes);
        } else if let Some(partition) = partition_of(file) {
            watch.write_pages(file, partition, offset, bytes, self.page_bytes);
        } else if file == "doublewrite" {
            watch.write_shadows(offset, bytes, self.page_bytes);
        }
    }

    fn synced(&self, file: &str) {
        let mut watch = self.lock();
        if segment_start(file).is_some() {
            watch.log.sync(file);
        } else if file == "doublewrite" {
            watch.doublewrite.sync(self.page_bytes);
        }
    }

    fn renamed(&self, from: &str, to: &str) {
        let mut watch = self.lock();
        watch.recycled += u64::from(segment_start(from).is_some() && segment_start(to).is_some());
        // What was written under the old name is no log under the new one.
        watch.log.pending.retain(|(name, _)| name != from && name != to);
    }

    fn removed(&self, file: &str) {
        self.lock().log.pending.retain(|(name, _)| name != file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: usize = 4096;
    const LOG: &str = "wal/00000000000000000000.log";

    fn page(number: u32, page_lsn: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        page[4] = 4;
        page[8..12].copy_from_slice(&number.to_le_bytes());
        page[12..16].copy_from_slice(&7_u32.to_le_bytes());
        page[24..32].copy_from_slice(&page_lsn.to_le_bytes());
        page
    }

    /// Writes a page as it should be written: the doublewrite area first.
    fn write_page(monitor: &Monitor, number: u32, page_lsn: u64) -> Vec<String> {
        let image = page(number, page_lsn);
        monitor.write("doublewrite", 0, &image);
        monitor.synced("doublewrite");
        monitor.write("part/7.dat", u64::from(number) * PAGE_BYTES as u64, &image);
        monitor.violations()
    }

    #[test]
    fn a_page_may_follow_its_log_but_not_go_before_it() {
        let monitor = Monitor::new(PAGE_BYTES);
        monitor.write(LOG, 4096, &[1; 1000]);
        assert_eq!(write_page(&monitor, 3, 4096).len(), 2, "written is not durable");
        monitor.synced("wal/00000000000000065536.log");
        assert_eq!(write_page(&monitor, 3, 4096).len(), 2, "another file was synced");
        monitor.synced(LOG);
        assert_eq!(write_page(&monitor, 3, 5095), [""; 0]);
        assert_eq!(write_page(&monitor, 3, 5096).len(), 2, "the log ends before");
    }

    #[test]
    fn zeros_are_not_log_and_a_gap_stops_the_frontier() {
        let monitor = Monitor::new(PAGE_BYTES);
        monitor.write("wal/00000000000000000000.tmp", 4096, &[1; 12_000]);
        monitor.synced("wal/00000000000000000000.tmp");
        monitor.renamed("wal/00000000000000000000.tmp", LOG);
        monitor.write(LOG, 4096, &[0; 4096]);
        monitor.synced(LOG);
        assert_eq!(write_page(&monitor, 3, 5000).len(), 2);
        monitor.write(LOG, 12_288, &[1; 4096]);
        monitor.synced(LOG);
        assert_eq!(write_page(&monitor, 3, 13_000).len(), 2, "8192..12288 is missing");
        monitor.write(LOG, 8192, &[0; 4096]);
        monitor.synced(LOG);
        assert_eq!(write_page(&monitor, 3, 13_000), [""; 0], "zeros within a record");
    }

    #[test]
    fn what_was_not_durable_counts_for_nothing_after_a_crash() {
        let monitor = Monitor::new(PAGE_BYTES);
        monitor.write(LOG, 4096, &[1; 4096]);
        monitor.synced(LOG);
        monitor.write(LOG, 8192, &[1; 4096]);
        monitor.restart();
        monitor.synced(LOG);
        assert_eq!(write_page(&monitor, 3, 8000), [""; 0]);
        assert_eq!(write_page(&monitor, 3, 9000).len(), 2);
        monitor.write(LOG, 8192, &[1; 4096]);
        monitor.synced(LOG);
        assert_eq!(write_page(&monitor, 3, 9000), [""; 0]);
    }

    #[test]
    fn a_page_goes_to_its_place_only_after_the_doublewrite_area_has_it() {
        let monitor = Monitor::new(PAGE_BYTES);
        monitor.write(LOG, 4096, &[1; 4096]);
        monitor.synced(LOG);
        let image = page(3, 5000);
        monitor.write("part/7.dat", 3 * 4096, &image);
        assert_eq!(monitor.violations().len(), 1, "never there");
        monitor.write("doublewrite", 0, &image);
        monitor.write("part/7.dat", 3 * 4096, &image);
        assert_eq!(monitor.violations().len(), 1, "not synced there");
        monitor.synced("doublewrite");
        monitor.write("part/7.dat", 3 * 4096, &page(3, 5001));
        assert_eq!(monitor.violations().len(), 1, "another image of it is there");
        monitor.write("part/7.dat", 4 * 4096, &image);
        assert_eq!(monitor.violations().len(), 1, "the wrong place");
        monitor.restart();
        monitor.write("part/7.dat", 3 * 4096, &image);
        assert_eq!(monitor.violations(), [""; 0], "recovery may put any image back");
    }
}
