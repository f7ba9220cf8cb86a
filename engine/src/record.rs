//! What a log record says: encoding and decoding of payloads. Normative: docs/file-format.md section 5.
//!
//! I1. A record that changes pages names all of them, each with the page LSN it had before (`page_prev_lsn`): redo checks it, and
//!     that finds lost writes.
//! I2. `Update` alone carries undo. A `Compensation` never does: it says what to undo next instead (ARIES section 3).
//! I3. `prev_lsn` chains the records of one transaction in one partition; a structure change belongs to nobody's chain.

use std::ops::Range;

use hamal_pager::{PageNo, PartitionId};
use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::change::{PageChange, Row};
use crate::codec::{
    put_i64, put_list, put_u32, put_u64, take, take_i64, take_list, take_u8, take_u16, take_u32, take_u64,
};
use crate::ids::TxnId;
use crate::{Error, ErrorKind, Result};

/// How a change is taken back. Logical: by tree and key, wherever the row is by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undo<'a> {
    /// The key's row before the change; `None`: there was none (undo leaves a settled ghost). The key is that of the
    /// record's `PageChange::Row`.
    Row {
        /// Root page of the tree the key is in.
        root: PageNo,
        /// The row before.
        before: Option<Row<'a>>,
    },
    /// The key's row had this stamp and ghost flag; its value did not change. The key is that of the record's
    /// `PageChange::Mark`.
    Mark {
        /// Root page of the tree the key is in.
        root: PageNo,
        /// The stamp before.
        stamp: TxnId,
        /// Whether it was a ghost before.
        ghost: bool,
    },
    /// The extent was allocated: undo frees it.
    Extent {
        /// First page.
        first: PageNo,
        /// Number of pages.
        count: u32,
    },
}

/// One page's part of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PagePart<'a> {
    pub(crate) partition: PartitionId,
    pub(crate) page: PageNo,
    pub(crate) page_prev_lsn: Lsn,
    pub(crate) change: PageChange<'a>,
}

/// A transaction's chain, as a checkpoint keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainImage {
    pub(crate) partition: PartitionId,
    pub(crate) last_lsn: Lsn,
    pub(crate) undo_next_lsn: Lsn,
}

/// An active transaction, as a checkpoint keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TxnImage {
    pub(crate) txn: TxnId,
    pub(crate) first_lsn: Lsn,
    /// Log promised for its compensation, bytes; [`u64::MAX`]: unknown.
    pub(crate) undo_bytes: u64,
    pub(crate) chains: Vec<ChainImage>,
}

/// Who has changed pages, and what their record says beside the parts and the undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changer {
    Update { txn: TxnId, prev_lsn: Lsn },
    Compensation { txn: TxnId, prev_lsn: Lsn, undo_next_lsn: Lsn },
    Structure,
}

/// Almost always one: that of a row's leaf.
pub(crate) type PageParts<'a> = SmallVec<[PagePart<'a>; 1]>;

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A transaction changed pages of one partition.
    Update { txn: TxnId, prev_lsn: Lsn, parts: PageParts<'a>, undo: Undo<'a> },
    /// A change was taken back.
    Compensation { txn: TxnId, prev_lsn: Lsn, undo_next_lsn: Lsn, parts: PageParts<'a> },
    /// A change of structure, complete in itself: redo only.
    Structure { parts: PageParts<'a> },
    /// The transaction has committed, at this wall-clock time, with these changes of row counts.
    Commit { txn: TxnId, micros: u64, counts: Vec<(u32, i64)> },
    /// The transaction has begun to roll back.
    Abort { txn: TxnId },
    /// The transaction's chain in this partition is undone to its start.
    End { txn: TxnId, partition: PartitionId },
    /// These pages' files hold at least everything up to the LSN beside each.
    PagesClean { pages: Vec<(PartitionId, PageNo, Lsn)> },
    /// A fuzzy checkpoint begins. The database's id tells a log that belongs to another database.
    BeginCheckpoint { database_id: u64 },
    /// Part of its dirty page table.
    CheckpointPages { partition: PartitionId, pages: Vec<(PageNo, Lsn)> },
    /// Part of its transaction table.
    CheckpointTransactions { transactions: Vec<TxnImage> },
    /// Part of its row counts, by table.
    CheckpointCounts { counts: Vec<(u32, u64)> },
    /// It is complete. Counts include every commit below `counts_as_of`.
    EndCheckpoint { begin_lsn: Lsn, counts_as_of: Lsn, next_txn: TxnId, next_id: u32 },
    /// The partition is gone for ever, its file with it (hazard H11).
    PartitionDeleted { partition: PartitionId },
}

pub(crate) mod kind {
    //! Kind bytes; never reused.
    pub(crate) const UPDATE: u8 = 1;
    pub(crate) const COMPENSATION: u8 = 2;
    pub(crate) const STRUCTURE: u8 = 3;
    pub(crate) const COMMIT: u8 = 4;
    pub(crate) const ABORT: u8 = 5;
    pub(crate) const END: u8 = 6;
    pub(crate) const PAGES_CLEAN: u8 = 7;
    pub(crate) const BEGIN_CHECKPOINT: u8 = 8;
    pub(crate) const CHECKPOINT_PAGES: u8 = 9;
    /// Written no more: without what undo takes.
    pub(crate) const OLD_CHECKPOINT_TRANSACTIONS: u8 = 10;
    pub(crate) const CHECKPOINT_COUNTS: u8 = 11;
    pub(crate) const END_CHECKPOINT: u8 = 12;
    pub(crate) const PARTITION_DELETED: u8 = 13;
    pub(crate) const CHECKPOINT_TRANSACTIONS: u8 = 14;
}

/// Bytes of a page part beside its change.
pub(crate) const PART_BYTES: usize = 16;
/// Most bytes of a page-changing record beside its parts and undo.
pub(crate) const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 2;
/// Most bytes an undo takes beside the row's value.
pub(crate) const UNDO_BYTES: usize = 1 + 4 + 1 + 8 + 1 + 4;

const UNDO_ROW_NONE: u8 = 1;
const UNDO_ROW: u8 = 2;
const UNDO_EXTENT: u8 = 3;
const UNDO_MARK: u8 = 4;

const ROW_GHOST: u8 = 1;
const ROW_OVERFLOW: u8 = 2;

fn put_parts_head(out: &mut Vec<u8>, parts: usize) {
    out.extend_from_slice(&(parts as u16).to_le_bytes());
}

/// Appends the head of an update; its parts ([`put_part`]) and undo ([`put_undo`]) follow.
pub(crate) fn put_update_head(out: &mut Vec<u8>, txn: TxnId, prev_lsn: Lsn, parts: usize) {
    out.push(kind::UPDATE);
    put_u64(out, txn.0);
    put_u64(out, prev_lsn.0);
    put_parts_head(out, parts);
}

/// Appends a commit record.
pub(crate) fn put_commit(out: &mut Vec<u8>, txn: TxnId, micros: u64, counts: &[(u32, i64)]) {
    out.push(kind::COMMIT);
    put_u64(out, txn.0);
    put_u64(out, micros);
    put_list(out, counts, |out, (table, delta)| {
        put_u32(out, *table);
        put_i64(out, *delta);
    });
}

/// Appends the head of a compensation; its parts follow.
pub(crate) fn put_compensation_head(
    out: &mut Vec<u8>,
    txn: TxnId,
    prev_lsn: Lsn,
    undo_next_lsn: Lsn,
    parts: usize,
) {
    out.push(kind::COMPENSATION);
    put_u64(out, txn.0);
    put_u64(out, prev_lsn.0);
    put_u64(out, undo_next_lsn.0);
    put_parts_head(out, parts);
}

/// Appends the head of a structure change; its parts follow.
pub(crate) fn put_structure_head(out: &mut Vec<u8>, parts: usize) {
    out.push(kind::STRUCTURE);
    put_parts_head(out, parts);
}

/// Appends one page part.
pub(crate) fn put_part(
    out: &mut Vec<u8>,
    partition: PartitionId,
    page: PageNo,
    page_prev_lsn: Lsn,
    change: &PageChange<'_>,
) {
    put_u32(out, partition.0);
    put_u32(out, page.0);
    put_u64(out, page_prev_lsn.0);
    change.encode(out);
}

/// Appends an undo.
pub(crate) fn put_undo(out: &mut Vec<u8>, undo: &Undo<'_>) {
    match undo {
        Undo::Row { root, before: None } => {
            out.push(UNDO_ROW_NONE);
            put_u32(out, root.0);
        }
        Undo::Row { root, before: Some(row) } => {
            out.push(UNDO_ROW);
            put_u32(out, root.0);
            put_u64(out, row.stamp.0);
            out.push(u8::from(row.ghost) * ROW_GHOST + u8::from(row.overflow) * ROW_OVERFLOW);
            put_u32(out, row.value.len() as u32);
            out.extend_from_slice(row.value);
        }
        Undo::Mark { root, stamp, ghost } => {
            out.push(UNDO_MARK);
            put_u32(out, root.0);
            put_u64(out, stamp.0);
            out.push(u8::from(*ghost) * ROW_GHOST);
        }
        Undo::Extent { first, count } => {
            out.push(UNDO_EXTENT);
            put_u32(out, first.0);
            put_u32(out, *count);
        }
    }
}

impl Record<'_> {
    /// Appends the encoding of any record. The journal encodes page changes piecewise instead; the result is the same.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let put_parts = |out: &mut Vec<u8>, parts: &[PagePart<'_>]| {
            for p in parts {
                put_part(out, p.partition, p.page, p.page_prev_lsn, &p.change);
            }
        };
        match self {
            Record::Update { txn, prev_lsn, parts, undo } => {
                put_update_head(out, *txn, *prev_lsn, parts.len());
                put_parts(out, parts);
                put_undo(out, undo);
            }
            Record::Compensation { txn, prev_lsn, undo_next_lsn, parts } => {
                put_compensation_head(out, *txn, *prev_lsn, *undo_next_lsn, parts.len());
                put_parts(out, parts);
            }
            Record::Structure { parts } => {
                put_structure_head(out, parts.len());
                put_parts(out, parts);
            }
            Record::Commit { txn, micros, counts } => {
                put_commit(out, *txn, *micros, counts);
            }
            Record::Abort { txn } => {
                out.push(kind::ABORT);
                put_u64(out, txn.0);
            }
            Record::End { txn, partition } => {
                out.push(kind::END);
                put_u64(out, txn.0);
                put_u32(out, partition.0);
            }
            Record::PagesClean { pages } => {
                out.push(kind::PAGES_CLEAN);
                put_list(out, pages, |out, (partition, page, lsn)| {
                    put_u32(out, partition.0);
                    put_u32(out, page.0);
                    put_u64(out, lsn.0);
                });
            }
            Record::BeginCheckpoint { database_id } => {
                out.push(kind::BEGIN_CHECKPOINT);
                put_u64(out, *database_id);
            }
            Record::CheckpointPages { partition, pages } => {
                out.push(kind::CHECKPOINT_PAGES);
                put_u32(out, partition.0);
                put_list(out, pages, |out, (page, lsn)| {
                    put_u32(out, page.0);
                    put_u64(out, lsn.0);
                });
            }
            Record::CheckpointTransactions { transactions } => {
                out.push(kind::CHECKPOINT_TRANSACTIONS);
                put_list(out, transactions, |out, t| {
                    put_u64(out, t.txn.0);
                    put_u64(out, t.first_lsn.0);
                    put_u64(out, t.undo_bytes);
                    put_list(out, &t.chains, |out, c| {
                        put_u32(out, c.partition.0);
                        put_u64(out, c.last_lsn.0);
                        put_u64(out, c.undo_next_lsn.0);
                    });
                });
            }
            Record::CheckpointCounts { counts } => {
                out.push(kind::CHECKPOINT_COUNTS);
                put_list(out, counts, |out, (table, count)| {
                    put_u32(out, *table);
                    put_u64(out, *count);
                });
            }
            Record::EndCheckpoint { begin_lsn, counts_as_of, next_txn, next_id } => {
                out.push(kind::END_CHECKPOINT);
                put_u64(out, begin_lsn.0);
                put_u64(out, counts_as_of.0);
                put_u64(out, next_txn.0);
                put_u32(out, *next_id);
            }
            Record::PartitionDeleted { partition } => {
                out.push(kind::PARTITION_DELETED);
                put_u32(out, partition.0);
            }
        }
    }
}

impl<'a> Record<'a> {
    /// Decodes a payload. Hostile bytes give `Corrupt` without a place; the caller adds the LSN.
    pub(crate) fn decode(payload: &'a [u8]) -> Result<Self> {
        let mut input = payload;
        let record = match take_changer(&mut input)? {
            Some(changer) => Record::changes(changer, &mut input)?,
            None => Record::other(&mut input)?,
        };
        expect_no_more(input)?;
        Ok(record)
    }

    /// Takes what is behind the head of a record that changes pages.
    fn changes(changer: Changer, input: &mut &'a [u8]) -> Result<Self> {
        let parts = take_parts(input)?;
        Ok(match changer {
            Changer::Update { txn, prev_lsn } => {
                Record::Update { txn, prev_lsn, parts, undo: take_undo(input)? }
            }
            Changer::Compensation { txn, prev_lsn, undo_next_lsn } => {
                Record::Compensation { txn, prev_lsn, undo_next_lsn, parts }
            }
            Changer::Structure => Record::Structure { parts },
        })
    }

    /// Takes a record of any other kind.
    fn other(i: &mut &'a [u8]) -> Result<Self> {
        let which = take_u8(i, "a record's kind")?;
        Ok(match which {
            kind::COMMIT => Record::Commit {
                txn: TxnId(take_u64(i, "a transaction id")?),
                micros: take_u64(i, "a commit's time")?,
                counts: take_list(i, 12, "row counts", |i| {
                    Ok((take_u32(i, "a table id")?, take_i64(i, "a row count")?))
                })?,
            },
            kind::ABORT => Record::Abort { txn: TxnId(take_u64(i, "a transaction id")?) },
            kind::END => Record::End {
                txn: TxnId(take_u64(i, "a transaction id")?),
                partition: PartitionId(take_u32(i, "a partition id")?),
            },
            kind::PAGES_CLEAN => Record::PagesClean {
                pages: take_list(i, 16, "clean pages", |i| {
                    Ok((
                        PartitionId(take_u32(i, "a partition id")?),
                        PageNo(take_u32(i, "a page number")?),
                        Lsn(take_u64(i, "a page LSN")?),
                    ))
                })?,
            },
            kind::BEGIN_CHECKPOINT => {
                Record::BeginCheckpoint { database_id: take_u64(i, "the database id")? }
            }
            kind::CHECKPOINT_PAGES => Record::CheckpointPages {
                partition: PartitionId(take_u32(i, "a partition id")?),
                pages: take_list(i, 12, "dirty pages", |i| {
                    Ok((PageNo(take_u32(i, "a page number")?), Lsn(take_u64(i, "rec_lsn")?)))
                })?,
            },
            kind::CHECKPOINT_TRANSACTIONS | kind::OLD_CHECKPOINT_TRANSACTIONS => {
                Record::CheckpointTransactions {
                    transactions: take_list(i, 20, "transactions", |i| {
                        Ok(TxnImage {
                            txn: TxnId(take_u64(i, "a transaction id")?),
                            first_lsn: Lsn(take_u64(i, "first_lsn")?),
                            undo_bytes: match which {
                                kind::CHECKPOINT_TRANSACTIONS => take_u64(i, "what undo takes")?,
                                _ => u64::MAX,
                            },
                            chains: take_list(i, 20, "chains", |i| {
                                Ok(ChainImage {
                                    partition: PartitionId(take_u32(i, "a partition id")?),
                                    last_lsn: Lsn(take_u64(i, "last_lsn")?),
                                    undo_next_lsn: Lsn(take_u64(i, "undo_next_lsn")?),
                                })
                            })?,
                        })
                    })?,
                }
            }
            kind::CHECKPOINT_COUNTS => Record::CheckpointCounts {
                counts: take_list(i, 12, "row counts", |i| {
                    Ok((take_u32(i, "a table id")?, take_u64(i, "a row count")?))
                })?,
            },
            kind::END_CHECKPOINT => Record::EndCheckpoint {
                begin_lsn: Lsn(take_u64(i, "begin_lsn")?),
                counts_as_of: Lsn(take_u64(i, "counts_as_of")?),
                next_txn: TxnId(take_u64(i, "the next transaction id")?),
                next_id: take_u32(i, "the next table or partition id")?,
            },
            kind::PARTITION_DELETED => {
                Record::PartitionDeleted { partition: PartitionId(take_u32(i, "a partition id")?) }
            }
            other => return Err(Error::new(ErrorKind::Corrupt, format!("record kind {other} is unknown"))),
        })
    }

    /// The pages it changes.
    pub(crate) fn parts(&self) -> &[PagePart<'a>] {
        match self {
            Record::Update { parts, .. }
            | Record::Compensation { parts, .. }
            | Record::Structure { parts } => parts,
            _ => &[],
        }
    }

    /// Its kind, readable.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self {
            Record::Update { .. } => "update",
            Record::Compensation { .. } => "compensation",
            Record::Structure { .. } => "structure",
            Record::Commit { .. } => "commit",
            Record::Abort { .. } => "abort",
            Record::End { .. } => "end",
            Record::PagesClean { .. } => "pages-clean",
            Record::BeginCheckpoint { .. } => "begin-checkpoint",
            Record::CheckpointPages { .. } => "checkpoint-pages",
            Record::CheckpointTransactions { .. } => "checkpoint-transactions",
            Record::CheckpointCounts { .. } => "checkpoint-counts",
            Record::EndCheckpoint { .. } => "end-checkpoint",
            Record::PartitionDeleted { .. } => "partition-deleted",
        }
    }

    /// The transaction it belongs to; [`TxnId::NONE`] for none.
    pub(crate) fn txn(&self) -> TxnId {
        match self {
            Record::Update { txn, .. }
            | Record::Compensation { txn, .. }
            | Record::Commit { txn, .. }
            | Record::Abort { txn }
            | Record::End { txn, .. } => *txn,
            _ => TxnId::NONE,
        }
    }
}

fn expect_no_more(rest: &[u8]) -> Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, format!("{} bytes are left behind a record", rest.len())))
}

/// Takes the head of a record that changes pages; nothing, if it is of another kind.
#[inline]
fn take_changer(input: &mut &[u8]) -> Result<Option<Changer>> {
    let Some((&kind @ (kind::UPDATE | kind::COMPENSATION | kind::STRUCTURE), mut rest)) = input.split_first()
    else {
        return Ok(None);
    };
    let i = &mut rest;
    let changer = match kind {
        kind::UPDATE => Changer::Update {
            txn: TxnId(take_u64(i, "a transaction id")?),
            prev_lsn: Lsn(take_u64(i, "prev_lsn")?),
        },
        kind::COMPENSATION => Changer::Compensation {
            txn: TxnId(take_u64(i, "a transaction id")?),
            prev_lsn: Lsn(take_u64(i, "prev_lsn")?),
            undo_next_lsn: Lsn(take_u64(i, "undo_next_lsn")?),
        },
        _ => Changer::Structure,
    };
    *input = rest;
    Ok(Some(changer))
}

#[inline]
fn take_part<'a>(input: &mut &'a [u8]) -> Result<PagePart<'a>> {
    Ok(PagePart {
        partition: PartitionId(take_u32(input, "a partition id")?),
        page: PageNo(take_u32(input, "a page number")?),
        page_prev_lsn: Lsn(take_u64(input, "page_prev_lsn")?),
        change: PageChange::decode(input)?,
    })
}

#[inline]
fn take_part_count(input: &mut &[u8]) -> Result<u16> {
    take_u16(input, "a record's page count")
}

fn take_parts<'a>(input: &mut &'a [u8]) -> Result<PageParts<'a>> {
    let count = take_part_count(input)?;
    let mut parts = PageParts::with_capacity((count as usize).min(input.len() / PART_BYTES));
    for _ in 0..count {
        parts.push(take_part(input)?);
    }
    Ok(parts)
}

/// Takes a record that changes pages apart, all of it, and shows each part, and where in the payload its change is encoded. `None`: it is of
/// another kind. Hostile bytes give `Corrupt`, as decoding does: then what was shown before counts for nothing.
#[inline]
pub(crate) fn each_part(
    payload: &[u8],
    mut see: impl FnMut(&PagePart<'_>, Range<usize>),
) -> Result<Option<Changer>> {
    let mut input = payload;
    let Some(changer) = take_changer(&mut input)? else { return Ok(None) };
    for _ in 0..take_part_count(&mut input)? {
        let start = payload.len() - input.len() + PART_BYTES;
        let part = take_part(&mut input)?;
        see(&part, start..payload.len() - input.len());
    }
    if matches!(changer, Changer::Update { .. }) {
        take_undo(&mut input)?;
    }
    expect_no_more(input)?;
    Ok(Some(changer))
}

fn take_undo<'a>(input: &mut &'a [u8]) -> Result<Undo<'a>> {
    match take_u8(input, "an undo's kind")? {
        UNDO_ROW_NONE => {
            Ok(Undo::Row { root: PageNo(take_u32(input, "an undo's root page")?), before: None })
        }
        UNDO_ROW => {
            let root = PageNo(take_u32(input, "an undo's root page")?);
            let stamp = TxnId(take_u64(input, "an undo's stamp")?);
            let flags = take_u8(input, "an undo's flags")?;
            let len = take_u32(input, "an undo's length")? as usize;
            let value = take(input, len, "an undo's value")?;
            Ok(Undo::Row {
                root,
                before: Some(Row {
                    stamp,
                    ghost: flags & ROW_GHOST != 0,
                    overflow: flags & ROW_OVERFLOW != 0,
                    value,
                }),
            })
        }
        UNDO_MARK => Ok(Undo::Mark {
            root: PageNo(take_u32(input, "an undo's root page")?),
            stamp: TxnId(take_u64(input, "an undo's stamp")?),
            ghost: take_u8(input, "an undo's flags")? & ROW_GHOST != 0,
        }),
        UNDO_EXTENT => Ok(Undo::Extent {
            first: PageNo(take_u32(input, "an extent's first page")?),
            count: take_u32(input, "an extent's page count")?,
        }),
        other => Err(Error::new(ErrorKind::Corrupt, format!("undo kind {other} is unknown"))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
