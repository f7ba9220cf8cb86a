//! What people and tools are told of the range partitions.

use std::fmt;

use hamal_pager::PartitionId;
use hamal_wal::Lsn;

use crate::Result;
use crate::catalog::{CATALOG, Definition};
use crate::engine::Engine;

#[cfg(test)]
mod tests;

/// What a partition can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PartitionState {
    /// Reading and writing.
    Online,
    /// Reading and writing too, but whoever comes to its rows first has to help to undo what a transaction did there that had not
    /// committed when the database was opened ([`crate::Options::trailing_undo_bytes`]).
    Recovering,
    /// Nothing: it is damaged. [`PartitionInfo::cause`] says how.
    Quarantined,
}

impl fmt::Display for PartitionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PartitionState::Online => "online",
            PartitionState::Recovering => "recovering",
            PartitionState::Quarantined => "quarantined",
        })
    }
}

/// One range partition: a part of a table's keys, which has a file, a tree and a recovery scope of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// Its number; never reused.
    pub id: u32,
    /// The table's name; `None`: it is the catalog.
    pub table: Option<String>,
    /// No key in it is below this one, encoded; `None`: there is no bound.
    pub lower: Option<Vec<u8>>,
    /// All keys in it are below this one, encoded; `None`: there is no bound.
    pub upper: Option<Vec<u8>>,
    /// What it can be used for.
    pub state: PartitionState,
    /// Why it is quarantined, if it is.
    pub cause: Option<String>,
    /// Since when, microseconds since 1970.
    pub quarantined_micros: Option<u64>,
    /// Rows, if the partition is all of a table; those of one part among several are not counted.
    pub rows: Option<u64>,
    /// Pages its file has room for.
    pub pages: u32,
    /// Bytes its file takes.
    pub bytes: u64,
    /// About how many operations there have been since the database was opened: rows read or written, and leaves scanned.
    pub operations: u64,
    /// About how many of them a second of late, if there is a balancer.
    pub operations_per_second: u64,
    /// Its file, in the database's directory.
    pub file: String,
}

/// What tools are told of the partitions of these tables.
pub(crate) fn partition_infos(
    engine: &Engine,
    tables: Vec<(String, Definition)>,
    as_of: Lsn,
) -> Result<Vec<PartitionInfo>> {
    let mut infos = vec![describe(engine, CATALOG)?];
    for (name, table) in tables {
        let first = infos.len();
        for id in table.partitions() {
            infos.push(PartitionInfo { table: Some(name.clone()), ..describe(engine, id)? });
        }
        for (at, cut) in table.cuts.iter().enumerate() {
            infos[first + at].upper = Some(cut.lower.to_vec());
            infos[first + at + 1].lower = Some(cut.lower.to_vec());
        }
        if table.cuts.is_empty() {
            infos[first].rows = Some(engine.timeline.rows_as_of(table.row.id, as_of));
        }
    }
    Ok(infos)
}

fn describe(engine: &Engine, id: PartitionId) -> Result<PartitionInfo> {
    let handle = engine.partition(id)?;
    let pages = handle.partition.file_pages();
    let (cause, quarantined_micros) = engine.quarantine.cause(id).unzip();
    let state = match cause {
        Some(_) => PartitionState::Quarantined,
        None if handle.is_behind() => PartitionState::Recovering,
        None => PartitionState::Online,
    };
    Ok(PartitionInfo {
        id: id.0,
        table: None,
        lower: None,
        upper: None,
        state,
        cause,
        quarantined_micros,
        rows: None,
        pages,
        bytes: u64::from(pages) * engine.page_bytes as u64,
        operations: handle.load.operations(),
        operations_per_second: handle.load.rate(),
        file: format!("part/{id}.dat"),
    })
}
