//! One page, followed through the log.
//!
//! ```text
//!             blind record                       the page's next record, whose `page_prev_lsn` is the page's LSN
//!   nothing ----------------> page at that LSN ---------------------------------------------------> page at the record's LSN
//!      |                          ^     ^                                                     |
//!      | `page_prev_lsn` is a base's LSN |                                                    | any other `page_prev_lsn`
//!      +--------------------------+     +------------------- blind record, base --------------+--> nothing: the chain is broken
//! ```
//!
//! I1. A *base* is a sound image of the page, of unknown age. It is used where a record says that it changed a page with the base's LSN; or
//!     as it is, where the newest record there is of the page is the base's, or the page is known to have had the base's LSN last.
//! I2. A base out of a backup has all changes of before the backup's log: it is used too where no record from there on names the page.
//! I3. The outcome is at the newest record's LSN, and not below what the caller knows; everything else is a refusal.
//! I4. A change is applied only if it passes the check that redo makes.

use hamal_pager::{PageNo, PartitionId, header};
use hamal_wal::Lsn;

use crate::record::{PagePart, Record};

/// What a page was rebuilt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// A blind record.
    Record,
    /// A copy of the page in its place or in the doublewrite area.
    Copy,
    /// A backup's page. The records fed begin with the backup's log.
    Backup,
}

/// A sound image of the page.
#[derive(Clone, Debug)]
struct Offered {
    base: Base,
    lsn: Lsn,
    image: Vec<u8>,
}

/// Where a chain of records broke.
#[derive(Clone, Copy, Debug)]
struct Break {
    at: Lsn,
    expected: Lsn,
    found: Lsn,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Rebuild {
    key: (PartitionId, PageNo),
    known_lsn: Lsn,
    bases: Vec<Offered>,
    /// The page, at the LSN in its header; [`Lsn::NEVER`]: nothing.
    image: Vec<u8>,
    base: Base,
    /// The newest record seen of the page.
    newest: Lsn,
    records: u64,
    broken: Option<Break>,
    refused: Option<String>,
}

/// A page rebuilt.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) image: Vec<u8>,
    pub(crate) page_lsn: Lsn,
    pub(crate) base: Base,
    /// Records applied.
    pub(crate) records: u64,
}

impl Rebuild {
    /// Of the page `key`, which was changed last at `known_lsn`, if that is known, or later.
    pub(crate) fn new(key: (PartitionId, PageNo), page_bytes: usize, known_lsn: Lsn) -> Rebuild {
        Rebuild {
            key,
            known_lsn,
            bases: Vec::new(),
            image: vec![0; page_bytes],
            base: Base::Record,
            newest: Lsn::NEVER,
            records: 0,
            broken: None,
            refused: None,
        }
    }

    /// The page's partition.
    pub(crate) fn key(&self) -> (PartitionId, PageNo) {
        self.key
    }

    /// A base, which has passed the checks of a page that is read.
    pub(crate) fn offer(&mut self, image: &[u8], base: Base) {
        let lsn = header::page_lsn(image);
        if lsn > Lsn::NEVER && image.len() == self.image.len() {
            self.bases.push(Offered { base, lsn, image: image.to_vec() });
        }
    }

    /// The next record of the log.
    pub(crate) fn see(&mut self, lsn: Lsn, record: &Record<'_>) {
        for part in record.parts() {
            if (part.partition, part.page) == self.key {
                self.newest = lsn;
                self.step(lsn, part);
            }
        }
    }

    fn step(&mut self, lsn: Lsn, part: &PagePart<'_>) {
        if part.change.is_blind() {
            self.image.fill(0);
            self.base = Base::Record;
            self.records = 0;
            (self.broken, self.refused) = (None, None);
        } else {
            let at = header::page_lsn(&self.image);
            // What a base was taken with already.
            if at >= lsn {
                return;
            }
            if at != part.page_prev_lsn && !self.start_from(part.page_prev_lsn) {
                self.image.fill(0);
                self.broken.get_or_insert(Break { at: lsn, expected: part.page_prev_lsn, found: at });
                return;
            }
        }
        if let Err(error) = part.change.check_and_apply(&mut self.image) {
            self.image.fill(0);
            self.refused.get_or_insert_with(|| format!("log record {lsn} does not fit the page: {error}"));
            return;
        }
        header::set_page_lsn(&mut self.image, lsn);
        self.records += 1;
    }

    /// Begins with the base that has this LSN, if there is one.
    fn start_from(&mut self, lsn: Lsn) -> bool {
        let Some(offered) = self.bases.iter().find(|offered| offered.lsn == lsn && lsn > Lsn::NEVER) else {
            return false;
        };
        self.image.copy_from_slice(&offered.image);
        self.base = offered.base;
        self.records = 0;
        (self.broken, self.refused) = (None, None);
        true
    }

    /// All records there are have been seen: the page, or why not.
    pub(crate) fn finish(mut self) -> Result<Done, String> {
        if self.newest == Lsn::NEVER {
            self.take_unchanged();
        } else if header::page_lsn(&self.image) != self.newest {
            self.start_from(self.newest);
        }
        let page_lsn = header::page_lsn(&self.image);
        if page_lsn == Lsn::NEVER || page_lsn < self.newest {
            return Err(self.why_not());
        }
        if page_lsn < self.known_lsn {
            let known = self.known_lsn;
            return Err(format!("what there is of it ends at LSN {page_lsn}, and it was changed at {known}"));
        }
        Ok(Done { image: self.image, page_lsn, base: self.base, records: self.records })
    }

    /// No record names the page: a base is the page if it is known to be.
    fn take_unchanged(&mut self) {
        let known = self.known_lsn;
        let is_newest = |offered: &&Offered| match offered.base {
            Base::Backup => true,
            Base::Record | Base::Copy => known > Lsn::NEVER && offered.lsn == known,
        };
        if let Some(lsn) = self.bases.iter().filter(is_newest).map(|offered| offered.lsn).max() {
            self.start_from(lsn);
        }
    }

    fn why_not(&self) -> String {
        if let Some(refused) = &self.refused {
            return refused.clone();
        }
        match (self.broken, self.newest) {
            (Some(Break { at, expected, found: Lsn::NEVER }), _) => {
                format!("log record {at} changed it as of LSN {expected}, which there is no copy of")
            }
            (Some(Break { at, expected, found }), _) => {
                format!("log record {at} changed it as of LSN {expected}, and before that it was at {found}")
            }
            (None, Lsn::NEVER) => "no record of it is left".to_owned(),
            (None, newest) => format!("its newest record is {newest}, which there is no copy of"),
        }
    }
}
