//! Read-only views (interface).

use crate::raw::RawTable;
use crate::{Result, TableInfo};

/// A read-only view of the committed state.
#[derive(Debug)]
pub struct Snapshot {}

#[expect(unused_variables, dead_code, clippy::unused_self, reason = "interface")]
impl Snapshot {
    /// Opens a table by name; `types` as for transactions. `NotFound` if it is missing.
    pub(crate) fn open_raw(&self, name: &str, types: Option<(&str, &str)>) -> Result<RawTable<'_>> {
        unimplemented!()
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> Result<bool> {
        unimplemented!()
    }

    /// All tables, by name.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        unimplemented!()
    }
}
