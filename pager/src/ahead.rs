//! Reading ahead: the system begins to read pages that somebody will fix soon.

use crate::{PageNo, Partition};

/// Pages in between are read along if they are no more than this, bytes: less than another request costs.
const GAP_BYTES: u64 = 64 << 10;

impl Partition {
    /// Lets the system begin to read those of the pages that are not in memory. A hint: it returns at once, takes no latch and no memory of the
    /// cache. `pages` ascend, each once; those that follow each other closely are one request.
    pub fn read_ahead(&self, pages: impl IntoIterator<Item = PageNo>) {
        let page_bytes = self.page_bytes() as u64;
        let mut run: Option<(u64, u64)> = None;
        for page in pages.into_iter().filter(|page| self.known_lsn(*page).is_some()) {
            let offset = self.offset(page);
            run = match run {
                Some((start, end)) if (end..=end + GAP_BYTES).contains(&offset) => {
                    Some((start, offset + page_bytes))
                }
                _ => {
                    self.ask_for(run);
                    Some((offset, offset + page_bytes))
                }
            };
        }
        self.ask_for(run);
    }

    fn ask_for(&self, run: Option<(u64, u64)>) {
        if let Some((start, end)) = run {
            self.file().will_need(start, end - start);
        }
    }
}
