//! The catalog: which tables there are and where their rows are. Rows of an ordinary tree, in partition 0, so that creating,
//! renaming and dropping tables is logged, undone and recovered like everything else.

use std::collections::HashSet;
use std::ops::Bound;

use hamal_pager::PartitionId;

use crate::change::Row;
use crate::codec::{put_string, put_u32, take_string, take_u32};
use crate::ids::TxnId;
use crate::raw::RawTable;
use crate::{Error, ErrorKind, Result};

/// The catalog's own partition. Recovered first; its chains are undone last (hazard H11).
pub(crate) const CATALOG: PartitionId = PartitionId(0);

/// The last a partition, or a table, can be numbered: the number behind it is needed as the next one.
const LAST_PARTITION: PartitionId = PartitionId(u32::MAX - 1);

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

    /// Decodes a row of the catalog. `Corrupt` if it is none, or names what no table can have.
    pub(crate) fn of(row: Row<'_>) -> Result<TableRow> {
        let corrupt = |what: String| Err(Error::new(ErrorKind::Corrupt, what));
        if row.overflow {
            return corrupt("the row has a long value's reference in its place".to_owned());
        }
        let i = &mut &*row.value;
        let table = TableRow {
            id: take_u32(i, "a table's id")?,
            partition: PartitionId(take_u32(i, "a table's partition")?),
            key_type: take_string(i, "a table's key type")?,
            value_type: take_string(i, "a table's value type")?,
        };
        if !i.is_empty() {
            return corrupt(format!("{} bytes follow the names of the types", i.len()));
        }
        let numbers = CATALOG.0 + 1..=LAST_PARTITION.0;
        if !numbers.contains(&table.id) || !numbers.contains(&table.partition.0) {
            return corrupt(format!("no table has id {} and partition {}", table.id, table.partition));
        }
        Ok(table)
    }
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

    /// All tables: name and row.
    pub(crate) fn all(&self) -> Result<Vec<(String, TableRow)>> {
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
        let key = table_key(name)?;
        match row {
            Some(row) => self.0.replace(key, &row.encode(), |_| Ok(())).map(drop),
            None => self.0.take(key, |_| Ok(())).map(drop),
        }
    }
}

/// Tables that are found in the catalog one by one.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) rows: Vec<(String, TableRow)>,
    ids: HashSet<u32>,
    partitions: HashSet<PartitionId>,
}

impl Tables {
    /// The next row. `Corrupt` if it is no table's, or claims the id or partition of another.
    pub(crate) fn add(&mut self, key: &[u8], row: Row<'_>) -> Result<()> {
        let name = String::from_utf8(key.to_vec())
            .map_err(|_| Error::new(ErrorKind::Corrupt, "a table name in the catalog is not UTF-8"))?;
        let row = TableRow::of(row).map_err(|e| e.context(row_place(&name)))?;
        if !self.ids.insert(row.id) || !self.partitions.insert(row.partition) {
            let what = format!("another table has id {} or partition {} too", row.id, row.partition);
            return Err(Error::new(ErrorKind::Corrupt, what).context(row_place(&name)));
        }
        self.rows.push((name, row));
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
mod tests {
    use std::sync::Arc;

    use hamal_storage::Storage;
    use hamal_storage::sim::SimStorage;

    use super::*;
    use crate::journal::Author;
    use crate::tree::Decision;
    use crate::{Database, Maintenance, Options};

    fn open(disk: &SimStorage) -> Database {
        Options::new().maintenance(Maintenance::Manual).open_on(Arc::new(disk.clone())).unwrap()
    }

    #[test]
    fn a_row_that_no_table_can_have_is_corrupt() {
        let table = |id, partition| TableRow {
            id,
            partition: PartitionId(partition),
            key_type: "str".to_owned(),
            value_type: "u64".to_owned(),
        };
        let decode =
            |value: &[u8], overflow| TableRow::of(Row { stamp: TxnId(1), ghost: false, overflow, value });
        for (id, partition) in [(1, 1), (7, 9), (u32::MAX - 1, u32::MAX - 1)] {
            assert_eq!(decode(&table(id, partition).encode(), false).unwrap(), table(id, partition));
        }
        let good = table(1, 1).encode();
        let corrupt = |result: Result<TableRow>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
        };
        for (id, partition) in [(1, 0), (0, 1), (1, u32::MAX), (u32::MAX, 1)] {
            corrupt(decode(&table(id, partition).encode(), false));
        }
        corrupt(decode(&good, true));
        corrupt(decode(&[&good[..], &[0]].concat(), false));
        corrupt(decode(&good[..good.len() - 1], false));
    }

    #[test]
    fn two_tables_of_one_partition_are_corrupt() {
        let db = open(&SimStorage::new(1));
        db.transact(|tx| tx.open_bytes_table("a")?.put(b"k", b"v")).unwrap();
        let engine = &db.handle.engine;
        let catalog = engine.partition(CATALOG).unwrap().tree();
        let row = find_row(&catalog, b"a");
        for (id, partition) in [(row.id + 1, row.partition), (row.id, PartitionId(row.partition.0 + 1))] {
            let value = TableRow { id, partition, ..row.clone() }.encode();
            let other = Row { stamp: TxnId(1), ghost: false, overflow: false, value: &value };
            let write = &mut |_: Option<Row<'_>>| Ok(Decision::Write(other));
            catalog.update(&engine.journal, Author::System, b"b", value.len(), write).unwrap();
            let error = db.tables().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("row of table \"b\""), "{error}");
        }
    }

    fn find_row(catalog: &crate::tree::Tree, name: &[u8]) -> TableRow {
        catalog.get(name, TableRow::of).unwrap().unwrap().unwrap()
    }

    #[test]
    fn only_our_own_spelling_of_a_number_names_a_partition() {
        for (name, id) in [("7.dat", Some(7)), ("0.dat", Some(0)), ("4294967294.dat", Some(u32::MAX - 1))] {
            assert_eq!(partition_of(name), id.map(PartitionId), "{name}");
        }
        let others =
            ["+7.dat", "007.dat", "4294967295.dat", "4294967296.dat", ".dat", "7", "7.tmp", "-0.dat"];
        for name in others {
            assert_eq!(partition_of(name), None, "{name}");
        }
        // A stranger's file stays, and is nobody's.
        let disk = SimStorage::new(2);
        open(&disk).close().unwrap();
        for name in others {
            disk.create(&format!("part/{name}")).unwrap();
        }
        let db = open(&disk);
        db.transact(|tx| tx.open_bytes_table("a")?.put(b"k", b"v")).unwrap();
        db.close().unwrap();
        assert_eq!(open(&disk).tables().unwrap().len(), 1);
        assert!(others.iter().all(|name| disk.exists(&format!("part/{name}")).unwrap()));
    }
}
