//! What the retained log knows of the age of pages.

use std::collections::HashMap;
use std::ops::ControlFlow;

use hamal_pager::space::Geometry;
use hamal_pager::{PageNo, PartitionId};
use hamal_wal::Lsn;

use crate::Result;
use crate::change::PageChange;
use crate::engine::Engine;
use crate::record::Record;

/// Pages that are remembered at most: those that the log names first.
const MOST_PAGES: usize = 1 << 20;

/// The newest durable record of each page that the retained log names.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    pages: HashMap<(PartitionId, PageNo), Lsn>,
}

impl Newest {
    /// Reads the retained log.
    pub(crate) fn read(engine: &Engine) -> Result<Newest> {
        let mut newest = Newest::default();
        let coverage = Geometry::new(engine.page_bytes).coverage();
        read_log(engine, &mut |lsn, record| {
            for part in record.parts() {
                if let PageChange::ClearBits { first, count } = part.change {
                    // What a freed page missed nobody wants.
                    for page in pages_of(part.page, first, count, coverage) {
                        newest.pages.remove(&(part.partition, page));
                    }
                }
                let key = (part.partition, part.page);
                if newest.pages.len() < MOST_PAGES || newest.pages.contains_key(&key) {
                    newest.pages.insert(key, lsn);
                }
            }
        })?;
        Ok(newest)
    }

    /// The newest record of a page; [`Lsn::NEVER`]: none is known.
    pub(crate) fn of(&self, partition: PartitionId, page: PageNo) -> Lsn {
        self.pages.get(&(partition, page)).copied().unwrap_or(Lsn::NEVER)
    }
}

/// Whether the page has been allocated, as far as the log goes back, and not been written since. The record of an allocation whose pages are
/// still to be written is in the retained log: its transaction is active.
pub(crate) fn awaits_first_write(engine: &Engine, partition: PartitionId, page: PageNo) -> Result<bool> {
    engine.log.flush()?;
    engine.durable_moved();
    let coverage = Geometry::new(engine.page_bytes).coverage();
    let mut awaits = false;
    read_log(engine, &mut |_, record| {
        for part in record.parts().iter().filter(|part| part.partition == partition) {
            match part.change {
                PageChange::SetBits { first, count } | PageChange::ClearBits { first, count } => {
                    awaits |= pages_of(part.page, first, count, coverage).any(|of| of == page);
                }
                _ => {}
            }
        }
        // In the order of a split's record: the page is allocated and written at once.
        if record.parts().iter().any(|part| (part.partition, part.page) == (partition, page)) {
            awaits = false;
        }
    })?;
    Ok(awaits)
}

/// The pages that these bits of a bitmap are about.
fn pages_of(bitmap: PageNo, first: u32, count: u32, coverage: u32) -> impl Iterator<Item = PageNo> {
    let base = bitmap.0.saturating_sub(1);
    (first..first.saturating_add(count).min(coverage)).map(move |bit| PageNo(base.saturating_add(bit)))
}

/// Hands over all durable records.
fn read_log(engine: &Engine, see: &mut dyn FnMut(Lsn, &Record<'_>)) -> Result<()> {
    let (_hold, from) = engine.retention.hold_oldest(engine.log.oldest());
    engine.log.each_durable(from, engine.log.durable(), &mut |frame| {
        let record =
            Record::decode(frame.payload).map_err(|e| e.context(format!("log record {}", frame.lsn)))?;
        see(frame.lsn, &record);
        Ok(ControlFlow::Continue(()))
    })
}
