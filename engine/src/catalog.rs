//! The catalog: which tables there are and where their rows are. Rows of an ordinary tree, in partition 0, so that creating,
//! renaming and dropping tables is logged, undone and recovered like everything else.
//!
//! I1. A table has one row under its name, which says its first partition, and one row for each of its other partitions, a *cut*, under
//!     its id and the partition's lower bound. A name is UTF-8 and the key of a cut is not, so they never meet, and all cuts come last.
//! I2. A table's cuts are written with its row, before it, and removed with it, after it; later a split adds one, and a merge removes
//!     one, of a table whose row is locked. A view sees all of this or nothing, and where rows are says nothing about what they are: so
//!     whoever has read the row, and noted that, need not note that it has read the cuts.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::ops::Bound;

use hamal_pager::PartitionId;
use smallvec::SmallVec;

use crate::change::Row;
use crate::codec::{put_string, put_u32, take_string, take_u32};
use crate::ids::TxnId;
use crate::raw::RawTable;
use crate::tree::{Eyes, LeafCopy, Tree};
use crate::{Error, ErrorKind, Result};

/// The catalog's own partition. Recovered first; its chains are undone last (hazard H11).
pub(crate) const CATALOG: PartitionId = PartitionId(0);

/// The last a partition, or a table, can be numbered: the number behind it is needed as the next one.
const LAST_PARTITION: PartitionId = PartitionId(u32::MAX - 1);

/// Longest table name, bytes.
const MAX_NAME_BYTES: usize = 255;

/// What the key of a cut begins with.
const CUT: u8 = 0xff;

/// Bytes of a cut's key before its lower bound.
const CUT_HEAD_BYTES: usize = 5;

/// One table, as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRow {
    pub(crate) id: u32,
    /// The one with the lowest keys.
    pub(crate) partition: PartitionId,
    pub(crate) key_type: String,
    pub(crate) value_type: String,
}

/// A partition of a table that is not its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Its lowest possible key. Not empty.
    pub(crate) lower: Box<[u8]>,
    pub(crate) partition: PartitionId,
}

/// One table, as all its rows say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) row: TableRow,
    /// By lower bound.
    pub(crate) cuts: Vec<Cut>,
}

impl Definition {
    /// All partitions, from the lowest keys on.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        std::iter::once(self.row.partition).chain(self.cuts.iter().map(|cut| cut.partition))
    }
}

fn corrupt<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Corrupt, what))
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

    /// Decodes a row of the catalog. `Corrupt` if it is none, or names what no table can have.
    pub(crate) fn of(row: Row<'_>) -> Result<TableRow> {
        let i = &mut inline(row)?;
        let table = TableRow {
            id: take_u32(i, "a table's id")?,
            partition: PartitionId(take_u32(i, "a table's partition")?),
            key_type: take_string(i, "a table's key type")?,
            value_type: take_string(i, "a table's value type")?,
        };
        if !i.is_empty() {
            return corrupt(format!("{} bytes follow the names of the types", i.len()));
        }
        if !is_number(table.id) || !is_number(table.partition.0) {
            return corrupt(format!("no table has id {} and partition {}", table.id, table.partition));
        }
        Ok(table)
    }
}

/// A row's value, which is never long.
fn inline(row: Row<'_>) -> Result<&[u8]> {
    if row.overflow {
        return corrupt("the row has a long value's reference in its place");
    }
    Ok(row.value)
}

/// Whether a table or a partition of one can have this number.
fn is_number(id: u32) -> bool {
    (CATALOG.0 + 1..=LAST_PARTITION.0).contains(&id)
}

impl Cut {
    /// Its key in the catalog.
    fn key(table: u32, lower: &[u8]) -> Vec<u8> {
        let mut key = vec![CUT];
        key.extend_from_slice(&table.to_be_bytes());
        key.extend_from_slice(lower);
        key
    }

    /// Decodes a row under a key of a cut, and says whose it is. `Corrupt` if it is none.
    fn of(key: &[u8], row: Row<'_>) -> Result<(u32, Cut)> {
        let place = |e: Error| e.context(format!("the catalog's row {}", key.escape_ascii()));
        let decode = || {
            let Some(([CUT, table @ ..], lower)) = key.split_first_chunk::<CUT_HEAD_BYTES>() else {
                return corrupt("neither a name nor a lower bound");
            };
            let i = &mut inline(row)?;
            let partition = PartitionId(take_u32(i, "a partition")?);
            if !i.is_empty() {
                return corrupt(format!("{} bytes follow the partition", i.len()));
            }
            if lower.is_empty() || !is_number(partition.0) {
                let lower = lower.escape_ascii();
                return corrupt(format!("no partition {partition} begins at \"{lower}\""));
            }
            Ok((u32::from_be_bytes(*table), Cut { lower: lower.into(), partition }))
        };
        decode().map_err(place)
    }
}

/// Shows `each` every row of the catalog from `from` on, up to `until` (`None`: to the end), as the eyes see it, or as it is.
pub(crate) fn each_row(
    tree: &Tree,
    eyes: Option<Eyes<'_>>,
    from: &[u8],
    until: Option<&[u8]>,
    each: &mut dyn FnMut(&[u8], Row<'_>) -> Result<()>,
) -> Result<()> {
    each_slot(tree, eyes, from, until, &mut |key, row| if row.ghost { Ok(()) } else { each(key, row) })
}

/// As [`each_row`], ghosts included.
fn each_slot(
    tree: &Tree,
    eyes: Option<Eyes<'_>>,
    from: &[u8],
    until: Option<&[u8]>,
    each: &mut dyn FnMut(&[u8], Row<'_>) -> Result<()>,
) -> Result<()> {
    let mut leaf = LeafCopy::default();
    let (mut at, mut key) = (from.to_vec(), Vec::new());
    loop {
        tree.leaf_at(Some(&at), eyes, &mut leaf)?;
        // A vacuum may have put the leaf together with one that has been shown.
        for index in leaf.lower_bound(&at)..leaf.len() {
            let row = leaf.row(index);
            key.clear();
            leaf.key_into(index, &mut key);
            if until.is_some_and(|until| *key >= *until) {
                return Ok(());
            }
            each(&key, row)?;
        }
        match leaf.upper_fence() {
            Some(fence) => at = fence.to_vec(),
            None => return Ok(()),
        }
    }
}

/// Whether a row, committed or not, names the partition. For when others write: rows of a table that is being made need not be complete.
pub(crate) fn is_named(tree: &Tree, partition: PartitionId) -> Result<bool> {
    let mut named = partition == CATALOG;
    each_row(tree, None, &[], None, &mut |key, row| {
        let named_here = match key.first() {
            Some(&CUT) => Cut::of(key, row)?.1.partition,
            _ => TableRow::of(row)?.partition,
        };
        named |= named_here == partition;
        Ok(())
    })?;
    Ok(named)
}

/// The cuts of a table, as the eyes see them, or as they are; their lower bounds ascend. `Corrupt` if they do not.
pub(crate) fn cuts_of(tree: &Tree, eyes: Option<Eyes<'_>>, table: u32) -> Result<Vec<Cut>> {
    let mut cuts: Vec<Cut> = Vec::new();
    let (from, until) = (Cut::key(table, &[]), Cut::key(table.saturating_add(1), &[]));
    each_row(tree, eyes, &from, Some(&until), &mut |key, row| {
        let (owner, cut) = Cut::of(key, row)?;
        if owner != table || cuts.last().is_some_and(|last| last.lower >= cut.lower) {
            return corrupt(format!("the catalog's row {} is out of order", key.escape_ascii()));
        }
        cuts.push(cut);
        Ok(())
    })?;
    Ok(cuts)
}

/// The stamps of a table's cuts as they are, of those too that are gone.
pub(crate) fn stamps_of_cuts(tree: &Tree, table: u32) -> Result<SmallVec<[TxnId; 1]>> {
    let mut stamps = SmallVec::new();
    let (from, until) = (Cut::key(table, &[]), Cut::key(table.saturating_add(1), &[]));
    each_slot(tree, None, &from, Some(&until), &mut |_, row| {
        stamps.push(row.stamp);
        Ok(())
    })?;
    Ok(stamps)
}

/// The keys below which those of each partition are (`None`: there is no bound), where everybody sees that it is so.
pub(crate) fn settled_uppers(tree: &Tree, horizon: TxnId) -> Result<HashMap<PartitionId, Option<Box<[u8]>>>> {
    // The last partition of each table, so far.
    let mut lasts: HashMap<u32, PartitionId> = HashMap::new();
    let mut uppers = HashMap::new();
    each_row(tree, None, &[], None, &mut |key, row| {
        if key.first() != Some(&CUT) {
            let table = TableRow::of(row)?;
            lasts.insert(table.id, table.partition);
            return Ok(());
        }
        let (table, cut) = Cut::of(key, row)?;
        // A table that is being dropped or made has cuts without a row of its own.
        if let Some(before) = lasts.get_mut(&table) {
            let before = mem::replace(before, cut.partition);
            if row.stamp < horizon {
                uppers.insert(before, Some(cut.lower));
            }
        }
        Ok(())
    })?;
    uppers.extend(lasts.into_values().map(|last| (last, None)));
    Ok(uppers)
}

/// The catalog, as a transaction or snapshot sees it.
#[derive(Debug)]
pub(crate) struct Catalog<'t>(RawTable<'t>);

impl<'t> Catalog<'t> {
    /// `table`: the catalog's rows.
    pub(crate) fn new(table: RawTable<'t>) -> Self {
        Catalog(table)
    }

    /// The row of a table.
    pub(crate) fn find(&self, name: &str) -> Result<Option<TableRow>> {
        let row = self.0.read_row(table_key(name)?, TableRow::of)?;
        row.transpose().map_err(|e| e.context(row_place(name)))
    }

    /// A table.
    pub(crate) fn definition(&self, name: &str) -> Result<Option<Definition>> {
        let Some(row) = self.find(name)? else { return Ok(None) };
        // Not noted as read: I2.
        let tree = self.0.tree(self.0.routes().of(&[]))?;
        let cuts = self.0.with_eyes(|eyes| cuts_of(tree, Some(eyes), row.id))?;
        Ok(Some(Definition { row, cuts }))
    }

    /// All tables, by name.
    pub(crate) fn all(&self) -> Result<Vec<(String, Definition)>> {
        let mut tables = Tables::default();
        let mut rows = self.0.range(Bound::Unbounded, Bound::Unbounded)?;
        let (mut key, mut value) = (Vec::new(), Vec::new());
        while rows.next(&mut key, Some(&mut value))? {
            let row = Row { stamp: TxnId::NONE, ghost: false, overflow: false, value: &value };
            tables.add(&key, row)?;
        }
        Ok(tables.rows)
    }

    /// Writes a table's row, or removes it, where nobody else has since the view was taken.
    pub(crate) fn write(&self, name: &str, row: Option<&TableRow>) -> Result<()> {
        self.write_row(table_key(name)?, row.map(TableRow::encode).as_deref())
    }

    fn write_row(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        match value {
            Some(value) => self.0.replace(key, value, |_| Ok(())).map(drop),
            None => self.0.take(key, |_| Ok(())).map(drop),
        }
    }

    /// Locks the row of a table; whether it is there.
    pub(crate) fn lock(&self, name: &str) -> Result<bool> {
        self.0.get_locked(table_key(name)?, &mut Vec::new())
    }

    /// Writes a cut of a table.
    pub(crate) fn add_cut(&self, table: u32, cut: &Cut) -> Result<()> {
        self.write_row(&Cut::key(table, &cut.lower), Some(&cut.partition.0.to_le_bytes()))
    }

    /// Removes a cut of a table.
    pub(crate) fn remove_cut(&self, table: u32, lower: &[u8]) -> Result<()> {
        self.write_row(&Cut::key(table, lower), None)
    }

    /// The stamp of a cut that is there. Its row is nobody else's to change.
    pub(crate) fn stamp_of_cut(&self, table: u32, lower: &[u8]) -> Result<TxnId> {
        let tree = self.0.tree(self.0.routes().of(&[]))?;
        let found = tree.get(&Cut::key(table, lower), |row| row.stamp)?;
        found.ok_or_else(|| Error::new(ErrorKind::Corrupt, "a cut that was seen is not in the catalog"))
    }

    /// Writes all rows of a new table.
    pub(crate) fn create(&self, name: &str, table: &Definition) -> Result<()> {
        table.cuts.iter().try_for_each(|cut| self.add_cut(table.row.id, cut))?;
        self.write(name, Some(&table.row))
    }

    /// Removes all rows of a table.
    pub(crate) fn remove(&self, name: &str, table: &Definition) -> Result<()> {
        self.write(name, None)?;
        table.cuts.iter().try_for_each(|cut| self.remove_cut(table.row.id, &cut.lower))
    }

    /// Puts split keys in order. `InvalidArgument` if one is empty, comes twice, or is too long.
    pub(crate) fn sort_splits(&self, splits: &mut [Vec<u8>]) -> Result<()> {
        let max = self.0.max_key_bytes() - CUT_HEAD_BYTES;
        splits.sort_unstable();
        for (at, split) in splits.iter().enumerate() {
            if split.is_empty() {
                return Err(Error::invalid("an empty split key: no key is below it"));
            }
            if split.len() > max {
                let bytes = split.len();
                return Err(Error::invalid(format!(
                    "a split key of {bytes} bytes is longer than {max} bytes"
                )));
            }
            if at.checked_sub(1).is_some_and(|before| splits[before] == *split) {
                return Err(Error::invalid(format!(
                    "the split key \"{}\" comes twice",
                    split.escape_ascii()
                )));
            }
        }
        Ok(())
    }
}

/// Tables that are found in the catalog one by one, in order of key.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) rows: Vec<(String, Definition)>,
    /// Where in `rows` the table with this id is.
    ids: HashMap<u32, usize>,
    partitions: HashSet<PartitionId>,
}

impl Tables {
    /// The next row. `Corrupt` if it is neither a table's nor a cut of one, or claims the id or partition of another.
    pub(crate) fn add(&mut self, key: &[u8], row: Row<'_>) -> Result<()> {
        if key.first() == Some(&CUT) {
            return self.add_cut(key, row);
        }
        let name = String::from_utf8(key.to_vec())
            .map_err(|_| Error::new(ErrorKind::Corrupt, "a table name in the catalog is not UTF-8"))?;
        let row = TableRow::of(row).map_err(|e| e.context(row_place(&name)))?;
        let is_new = self.ids.insert(row.id, self.rows.len()).is_none();
        if !is_new || !self.partitions.insert(row.partition) {
            let what = format!("another table has id {} or partition {} too", row.id, row.partition);
            return corrupt(what).map_err(|e| e.context(row_place(&name)));
        }
        self.rows.push((name, Definition { row, cuts: Vec::new() }));
        Ok(())
    }

    fn add_cut(&mut self, key: &[u8], row: Row<'_>) -> Result<()> {
        let (table, cut) = Cut::of(key, row)?;
        let Some((name, definition)) = self.ids.get(&table).and_then(|at| self.rows.get_mut(*at)) else {
            return corrupt(format!(
                "partition {} belongs to table {table}, which is not there",
                cut.partition
            ));
        };
        if !self.partitions.insert(cut.partition) {
            let what = format!("partition {} is there twice", cut.partition);
            return corrupt(what).map_err(|e| e.context(row_place(name)));
        }
        definition.cuts.push(cut);
        Ok(())
    }
}

/// Where a table's row is, for messages.
pub(crate) fn row_place(name: &str) -> String {
    format!("the catalog's row of table {name:?}")
}

/// The partition that a file in `part/` is for, if its name is one that we give: no other spelling of a number is.
pub(crate) fn partition_of(name: &str) -> Option<PartitionId> {
    let id = name.strip_suffix(".dat")?.parse().ok().map(PartitionId)?;
    (id <= LAST_PARTITION && name == format!("{id}.dat")).then_some(id)
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

#[cfg(test)]
mod tests;
