//! Where reads and commits stand in the order of commits, for those who check histories: the simulator. Not part of the interface.

use hamal_wal::Lsn;

use super::{CommitTicket, Transaction};
use crate::{Result, Snapshot};

impl Transaction {
    /// The newest commit it sees, as an LSN; 0: none since the database was opened.
    #[doc(hidden)]
    pub fn seen_up_to(&self) -> u64 {
        self.view().as_of.0
    }

    /// As [`Transaction::commit`]. Says in `lsn` which commit it became, as soon as that is so, whatever is returned; `None`: none, or
    /// one that wrote nothing.
    #[doc(hidden)]
    pub fn commit_witnessed(self, lsn: &mut Option<u64>) -> Result<()> {
        self.commit_noting(&mut |commit: Lsn| *lsn = Some(commit.0))
    }
}

impl CommitTicket {
    /// The LSN of the commit; `None` if it wrote nothing.
    #[doc(hidden)]
    pub fn lsn(&self) -> Option<u64> {
        self.wrote.then_some(self.lsn.0)
    }
}

impl Snapshot {
    /// The newest commit it sees, as an LSN; 0: none since the database was opened.
    #[doc(hidden)]
    pub fn seen_up_to(&self) -> u64 {
        self.view().as_of.0
    }
}
