//! The catalog: which tables there are and where their rows are. Rows of an ordinary tree, in partition 0, so that creating,
//! renaming and dropping tables is logged, undone and recovered like everything else.

use hamal_pager::PartitionId;

use crate::codec::{put_string, put_u32, take_string, take_u32};
use crate::{Error, Result};

/// The catalog's own partition. Recovered first; its chains are undone last (hazard H11).
pub(crate) const CATALOG: PartitionId = PartitionId(0);

/// Longest table name, bytes.
const MAX_NAME_BYTES: usize = 255;

/// One table, as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRow {
    pub(crate) id: u32,
    pub(crate) partition: PartitionId,
    pub(crate) key_type: String,
    pub(crate) value_type: String,
}

impl TableRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u32(&mut out, self.id);
        put_u32(&mut out, self.partition.0);
        put_string(&mut out, &self.key_type);
        put_string(&mut out, &self.value_type);
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<TableRow> {
        let i = &mut bytes;
        Ok(TableRow {
            id: take_u32(i, "a table's id")?,
            partition: PartitionId(take_u32(i, "a table's partition")?),
            key_type: take_string(i, "a table's key type")?,
            value_type: take_string(i, "a table's value type")?,
        })
    }
}

/// The key of a table's row is its name.
pub(crate) fn table_key(name: &str) -> Result<&[u8]> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!(
            "a table name has 1 to {MAX_NAME_BYTES} bytes, not {}",
            name.len()
        )));
    }
    Ok(name.as_bytes())
}
