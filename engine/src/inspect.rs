//! Looking into a database's files without opening it: the master record, log records, pages, what recovery would do. Read-only, for
//! tools. A database that is open elsewhere may be looked at too: what is seen then is what has reached the files.

use std::fmt::Write as _;
use std::sync::Arc;

use hamal_pager::space::Geometry;
use hamal_pager::{PageNo, header};
use hamal_storage::{Error as LowError, Storage, read_exact_at};
use hamal_wal::{LogOptions, Lsn, Scanner};

use crate::change::{PageChange, overflow_data};
use crate::master::{self, Found, Master};
use crate::node::{self, Node};
use crate::record::{Record, Undo};
use crate::{Error, ErrorKind, RecoveryReport, Result, recovery};

/// What the master record says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MasterInfo {
    /// The database's id.
    pub database_id: u64,
    /// Page size, bytes.
    pub page_bytes: usize,
    /// BEGIN record of the last checkpoint.
    pub checkpoint_lsn: u64,
    /// Oldest LSN the log must still have.
    pub oldest_lsn: u64,
    /// The log's incarnation.
    pub incarnation: u32,
    /// Sequence number of the master record itself.
    pub sequence: u64,
}

/// One page's part of a log record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPage {
    /// Partition.
    pub partition: u32,
    /// Page.
    pub page: u32,
    /// The page's LSN before this record.
    pub page_prev_lsn: u64,
    /// What happens to it, readable.
    pub change: String,
}

/// One log record, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogEntry {
    /// Where it starts.
    pub lsn: u64,
    /// Where the next starts.
    pub end_lsn: u64,
    /// Incarnation of the log that wrote it.
    pub incarnation: u32,
    /// Its kind: `update`, `compensation`, `commit`, ...
    pub kind: String,
    /// The transaction, 0 for none.
    pub txn: u64,
    /// The transaction's previous record in the same partition, 0 for none.
    pub prev_lsn: u64,
    /// For a compensation: what is to be undone next.
    pub undo_next_lsn: Option<u64>,
    /// The pages it changes.
    pub pages: Vec<LogPage>,
    /// Everything else, readable ("commit at 2026-...", "undo: ...").
    pub detail: String,
}

/// One page, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageInfo {
    /// Kind, readable: `leaf`, `inner`, `bitmap`, ...
    pub kind: String,
    /// Page LSN.
    pub page_lsn: u64,
    /// `max_txn`.
    pub max_txn: u64,
    /// Level; 0 for leaves.
    pub level: u8,
    /// What is wrong with it, if anything (checksum, identity, structure).
    pub damage: Option<String>,
    /// Its fields, in order: name and readable value.
    pub fields: Vec<(String, String)>,
    /// Its entries (rows, separators, runs of allocated pages), readable, in order: key and description.
    pub entries: Vec<(Vec<u8>, String)>,
}

/// Reads the master record. `NotADatabase` if there is none.
pub fn master(storage: &Arc<dyn Storage>) -> Result<MasterInfo> {
    let master = find(storage)?;
    Ok(MasterInfo {
        database_id: master.database_id,
        page_bytes: master.page_bytes,
        checkpoint_lsn: master.checkpoint_lsn.0,
        oldest_lsn: master.oldest_lsn.0,
        incarnation: master.incarnation,
        sequence: master.sequence,
    })
}

fn find(storage: &Arc<dyn Storage>) -> Result<Master> {
    match master::find(&**storage)? {
        Found::Database(master) => Ok(master),
        Found::Nothing => Err(Error::new(ErrorKind::NotADatabase, "there is no database in this directory")),
    }
}

/// Calls `visit` with each record from `from` (0: the last checkpoint) until `to` (0: the end) or until it returns
/// `false`. `from` may lie anywhere in the live log: it is moved up to the next record. A record that cannot be decoded is shown
/// with kind `undecodable`. O(log from its oldest record).
pub fn log(
    storage: &Arc<dyn Storage>,
    from: u64,
    to: u64,
    visit: &mut dyn FnMut(&LogEntry) -> bool,
) -> Result<()> {
    let master = find(storage)?;
    let start = if from == 0 { master.checkpoint_lsn } else { master.oldest_lsn };
    let options = LogOptions { segment_bytes: master.log_segment_bytes, ..LogOptions::default() };
    let mut scanner = Scanner::open(storage.clone(), &options, start, master.attested)?;
    while let Some(frame) = scanner.next_frame()? {
        if to != 0 && frame.lsn >= Lsn(to) {
            break;
        }
        if frame.lsn < Lsn(from) {
            continue;
        }
        let mut entry = match Record::decode(frame.payload) {
            Ok(record) => describe(&record),
            Err(e) => {
                LogEntry { kind: "undecodable".to_owned(), detail: e.to_string(), ..LogEntry::default() }
            }
        };
        entry.lsn = frame.lsn.0;
        entry.end_lsn = frame.end.0;
        entry.incarnation = frame.incarnation;
        if !visit(&entry) {
            break;
        }
    }
    Ok(())
}

fn describe(record: &Record<'_>) -> LogEntry {
    let mut entry = LogEntry {
        kind: record.kind_name().to_owned(),
        txn: record.txn().0,
        pages: record
            .parts()
            .iter()
            .map(|p| LogPage {
                partition: p.partition.0,
                page: p.page.0,
                page_prev_lsn: p.page_prev_lsn.0,
                change: describe_change(&p.change),
            })
            .collect(),
        ..LogEntry::default()
    };
    match record {
        Record::Update { prev_lsn, undo, .. } => {
            entry.prev_lsn = prev_lsn.0;
            entry.detail = describe_undo(undo);
        }
        Record::Compensation { prev_lsn, undo_next_lsn, .. } => {
            entry.prev_lsn = prev_lsn.0;
            entry.undo_next_lsn = Some(undo_next_lsn.0);
        }
        Record::Structure { .. } | Record::Abort { .. } => {}
        Record::Commit { micros, counts, .. } => {
            entry.detail = format!("at {micros} us since 1970");
            for (table, delta) in counts {
                // Writing to a string cannot fail.
                let _ = write!(entry.detail, ", table {table}: {delta:+} rows");
            }
        }
        Record::End { partition, .. } => entry.detail = format!("undone in partition {partition}"),
        Record::PagesClean { pages } => entry.detail = format!("{} pages are on disk", pages.len()),
        Record::BeginCheckpoint { database_id } => entry.detail = format!("database {database_id:#018x}"),
        Record::CheckpointPages { partition, pages } => {
            entry.detail = format!("{} dirty pages of partition {partition}", pages.len());
        }
        Record::CheckpointTransactions { transactions } => {
            let ids: Vec<String> = transactions.iter().map(|t| t.txn.to_string()).collect();
            entry.detail = format!("active: {}", ids.join(", "));
        }
        Record::CheckpointCounts { counts } => {
            entry.detail = format!("row counts of {} tables", counts.len());
        }
        Record::EndCheckpoint { begin_lsn, counts_as_of, next_txn, next_id } => {
            entry.detail = format!(
                "of the checkpoint begun at {begin_lsn}; counts as of {counts_as_of}; next transaction {next_txn}, next id {next_id}"
            );
        }
        Record::PartitionDeleted { partition } => entry.detail = format!("partition {partition}"),
    }
    entry
}

fn describe_undo(undo: &Undo<'_>) -> String {
    match undo {
        Undo::Row { before: None, .. } => "undo: no row".to_owned(),
        Undo::Row { before: Some(row), .. } => {
            format!("undo: {}", describe_row(row.ghost, row.overflow, row.value))
        }
        Undo::Mark { stamp, ghost, .. } => {
            format!("undo: stamp {stamp}{}", if *ghost { ", ghost" } else { "" })
        }
        Undo::Extent { first, count } => {
            format!("undo: free pages {first}..{}", u64::from(first.0) + u64::from(*count))
        }
    }
}

fn describe_row(ghost: bool, overflow: bool, value: &[u8]) -> String {
    let what = if overflow { "overflow reference" } else { "value" };
    format!("{}{what} {}", if ghost { "ghost, " } else { "" }, preview(value))
}

/// The first bytes, escaped, and the length.
fn preview(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let shown = bytes[..bytes.len().min(SHOWN)].escape_ascii();
    if bytes.len() > SHOWN {
        format!("\"{shown}\"... ({} bytes)", bytes.len())
    } else {
        format!("\"{shown}\"")
    }
}

fn describe_change(change: &PageChange<'_>) -> String {
    match change {
        PageChange::Row { key, row } => {
            format!("row {} = {}", preview(key), describe_row(row.ghost, row.overflow, row.value))
        }
        PageChange::Mark { key, stamp, ghost } => {
            format!("row {} {} by {stamp}", preview(key), if *ghost { "removed" } else { "back" })
        }
        PageChange::Purge { horizon } => format!("purge below transaction {horizon}"),
        PageChange::Image(_) => format!("image, {} bytes", change.encoded_bytes()),
        PageChange::TruncateRight { separator } => format!("split off from {}", preview(separator)),
        PageChange::InsertSeparator { key, child } => format!("separator {} -> page {child}", preview(key)),
        PageChange::RemoveSeparator { key } => format!("separator {} removed", preview(key)),
        PageChange::SetBits { first, count } => format!("{count} pages allocated from bit {first}"),
        PageChange::ClearBits { first, count } => format!("{count} pages freed from bit {first}"),
        PageChange::Overflow { data } => format!("overflow data, {} bytes", data.len()),
        PageChange::BitmapPages { count } => format!("{} bitmap pages", count.0),
    }
}

/// Reads and decodes one page of a partition's file; damage is told, not an error. `NotFound` if the file ends before it.
pub fn page(storage: &Arc<dyn Storage>, partition: u32, page: u32) -> Result<PageInfo> {
    let master = find(storage)?;
    let name = format!("part/{partition}.dat");
    let io = |e| LowError::io("read", &name, e);
    let file = storage.open(&name).map_err(io)?;
    let mut bytes = vec![0; master.page_bytes];
    let offset = u64::from(page) * master.page_bytes as u64;
    read_exact_at(&*file, &mut bytes, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::NotFound, format!("{name} ends before page {page}"))
        }
        _ => io(e).into(),
    })?;
    Ok(decode_page(&bytes, &master, partition, page))
}

fn decode_page(bytes: &[u8], master: &Master, partition: u32, page: u32) -> PageInfo {
    let mut info = PageInfo {
        kind: match header::kind(bytes) {
            header::kind::PARTITION_HEADER => "partition header".to_owned(),
            header::kind::BITMAP => "bitmap".to_owned(),
            header::kind::INNER => "inner".to_owned(),
            header::kind::LEAF => "leaf".to_owned(),
            header::kind::OVERFLOW => "overflow".to_owned(),
            other => format!("unknown ({other})"),
        },
        page_lsn: header::page_lsn(bytes).0,
        max_txn: header::max_txn(bytes),
        level: header::level(bytes),
        damage: None,
        fields: Vec::new(),
        entries: Vec::new(),
    };
    if bytes.iter().all(|b| *b == 0) {
        "never written".clone_into(&mut info.kind);
        return info;
    }
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let checksum = crc32c::crc32c(&bytes[4..]);
    let mut field = |name: &str, value: String| info.fields.push((name.to_owned(), value));
    field("checksum", format!("{:#010x}", u32_at(0)));
    field("page number", u32_at(8).to_string());
    field("partition", u32_at(12).to_string());
    let database_id = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    field("database id", format!("{database_id:#018x}"));
    let identity = [
        (u32_at(0) != checksum, format!("checksum {checksum:#010x} expected, {:#010x} found", u32_at(0))),
        (u32_at(8) != page, format!("page number {page} expected, {} found", u32_at(8))),
        (u32_at(12) != partition, format!("partition {partition} expected, {} found", u32_at(12))),
        (
            database_id != master.database_id,
            format!("database {:#018x} expected, {database_id:#018x} found", master.database_id),
        ),
    ];
    info.damage = identity.into_iter().find_map(|(bad, what)| bad.then_some(what));
    let structure = match header::kind(bytes) {
        header::kind::LEAF | header::kind::INNER => decode_node(bytes, &mut info),
        header::kind::BITMAP => {
            decode_bitmap(bytes, page, &mut info);
            Ok(())
        }
        header::kind::OVERFLOW => overflow_data(bytes)
            .map(|data| info.fields.push(("data bytes".to_owned(), data.len().to_string())))
            .map_err(Error::from),
        _ => Ok(()),
    };
    if let Err(e) = structure {
        info.damage.get_or_insert_with(|| e.to_string());
    }
    info
}

fn decode_node(bytes: &[u8], info: &mut PageInfo) -> Result<()> {
    node::check_page(bytes)?;
    let node = Node::open(bytes)?;
    let leaf = header::kind(bytes) == header::kind::LEAF;
    let mut field = |name: &str, value: String| info.fields.push((name.to_owned(), value));
    field("slots", node.len().to_string());
    field("free bytes", node.free_bytes().to_string());
    field("prefix", preview(node.prefix()?));
    field("lower fence", preview(node.lower_fence()?));
    field("upper fence", preview(node.upper_fence()?));
    if !leaf {
        field("leftmost child", node.child(0)?.to_string());
    }
    for index in 0..node.len() {
        let key = node.key(index)?.to_vec();
        let what = if leaf {
            let row = node.cell(index)?.row;
            format!("stamp {}, {}", row.stamp, describe_row(row.ghost, row.overflow, row.value))
        } else {
            format!("page {}", node.child(index + 1)?)
        };
        info.entries.push((key, what));
    }
    Ok(())
}

/// Runs of allocated pages.
fn decode_bitmap(bytes: &[u8], page: u32, info: &mut PageInfo) {
    let geometry = Geometry::new(bytes.len());
    let base = geometry.bitmap_of(PageNo(page)).0 - 1;
    info.fields.push(("allocated".to_owned(), geometry.count_set(bytes).to_string()));
    let mut run: Option<u32> = None;
    for bit in 0..=geometry.coverage() {
        let set = bit < geometry.coverage() && geometry.is_set(bytes, bit);
        match (set, run) {
            (true, None) => run = Some(bit),
            (false, Some(first)) => {
                let (first, last) =
                    (u64::from(base) + u64::from(first), u64::from(base) + u64::from(bit) - 1);
                info.entries.push((Vec::new(), format!("pages {first} to {last}")));
                run = None;
            }
            _ => {}
        }
    }
}

/// What recovery would find: the analysis pass alone. Changes nothing.
pub fn analyze(storage: &Arc<dyn Storage>) -> Result<RecoveryReport> {
    recovery::dry_run(storage)
}
