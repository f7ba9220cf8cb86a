//! Before-images in a temporary file, sorted: where they go when memory is short (hazard H12).
//!
//! I1. A run is complete before anybody reads it, and never changes. Its file goes with it; what a crash leaves is removed at the next
//!     open. Nothing in it matters after a crash, so it is never synced.
//!
//! An entry: table (4 bytes), length of the key (4), length of the value (4), stamp (8), flags (1: there was a row; 2: a ghost; 4:
//! overflow), key, value; little-endian. Blocks end with an entry; the first key of each is kept in memory.

use std::sync::Arc;

use hamal_storage::{Error as LowError, File, Storage, read_exact_at, write_all_at};

use super::OwnedRow;
use super::images::{Before, Images};
use crate::change::Row;
use crate::codec::{put_u32, put_u64, take, take_u8, take_u32, take_u64};
use crate::ids::TxnId;
use crate::{Error, Result};

/// Where runs are.
pub(crate) const DIRECTORY: &str = "spill";
/// A block ends with the entry that crosses this, bytes.
const BLOCK_BYTES: usize = 16 << 10;

const ROW: u8 = 1;
const GHOST: u8 = 2;
const OVERFLOW: u8 = 4;

#[derive(Debug)]
struct Block {
    table: u32,
    first_key: Box<[u8]>,
    offset: u64,
}

/// Images in a file.
#[derive(Debug)]
pub(crate) struct Run {
    storage: Arc<dyn Storage>,
    file: Arc<dyn File>,
    name: String,
    blocks: Vec<Block>,
    file_bytes: u64,
}

/// What a run says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spilled {
    Absent,
    Row(OwnedRow),
}

impl Run {
    /// Writes images to a new file.
    pub(super) fn write(storage: &Arc<dyn Storage>, number: u64, images: &Images) -> Result<Run> {
        let name = format!("{DIRECTORY}/{number}");
        let io = |what, e| Error::from(LowError::io(what, &name, e));
        storage.create_directory(DIRECTORY).map_err(|e| io("create", e))?;
        let file = storage.create(&name).map_err(|e| io("create", e))?;
        let (storage, file_name) = (storage.clone(), name.clone());
        let mut run = Run { storage, file, name: file_name, blocks: Vec::new(), file_bytes: 0 };
        let mut sorted: Vec<_> = images.iter().collect();
        sorted.sort_unstable_by_key(|(table, key, _)| (*table, *key));
        let mut block = Vec::with_capacity(BLOCK_BYTES * 2);
        for (table, key, before) in sorted {
            if block.is_empty() {
                run.blocks.push(Block { table, first_key: key.into(), offset: run.file_bytes });
            }
            put_entry(&mut block, table, key, before);
            if block.len() >= BLOCK_BYTES {
                run.append(&mut block).map_err(|e| io("write", e))?;
            }
        }
        run.append(&mut block).map_err(|e| io("write", e))?;
        Ok(run)
    }

    fn append(&mut self, block: &mut Vec<u8>) -> std::io::Result<()> {
        write_all_at(&*self.file, block, self.file_bytes)?;
        self.file_bytes += block.len() as u64;
        block.clear();
        Ok(())
    }

    /// What it says of a key. One read of a block; the caller holds no latch.
    pub(super) fn find(&self, table: u32, key: &[u8]) -> Result<Option<Spilled>> {
        let behind = self.blocks.partition_point(|block| (block.table, &*block.first_key) <= (table, key));
        let Some(at) = behind.checked_sub(1) else { return Ok(None) };
        let start = self.blocks[at].offset;
        let end = self.blocks.get(behind).map_or(self.file_bytes, |next| next.offset);
        let mut block = vec![0; (end - start) as usize];
        read_exact_at(&*self.file, &mut block, start).map_err(|e| LowError::io("read", &self.name, e))?;
        let mut rest = &block[..];
        while !rest.is_empty() {
            let (entry_table, entry_key, spilled) = take_entry(&mut rest)
                .map_err(|e| e.context(format_args!("{}, block at byte {start}", self.name)))?;
            if (entry_table, entry_key) == (table, key) {
                return Ok(Some(spilled.into_owned()));
            }
        }
        Ok(None)
    }

    /// Memory it takes, bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let keys: usize = self.blocks.iter().map(|block| block.first_key.len()).sum();
        (keys + self.blocks.capacity() * size_of::<Block>()) as u64
    }

    /// The file's length, bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = self.storage.remove(&self.name) {
            tracing::warn!(file = self.name, %error, "a spill file could not be removed; the next open does that");
        }
    }
}

/// Removes what an earlier process left.
pub(crate) fn remove_leftovers(storage: &dyn Storage) -> Result<()> {
    let io = |e| LowError::io("remove", DIRECTORY, e);
    if storage.exists(DIRECTORY).map_err(io)? {
        for name in storage.list(DIRECTORY).map_err(io)? {
            storage.remove(&format!("{DIRECTORY}/{name}")).map_err(io)?;
        }
    }
    Ok(())
}

/// A decoded entry's content, still in its block.
struct Entry<'b>(Before<'b>);

impl Entry<'_> {
    fn into_owned(self) -> Spilled {
        match self.0 {
            Before::Absent => Spilled::Absent,
            Before::Row(row) => {
                let mut owned = OwnedRow::default();
                owned.set(row);
                Spilled::Row(owned)
            }
        }
    }
}

fn put_entry(out: &mut Vec<u8>, table: u32, key: &[u8], before: Before<'_>) {
    let none = Row { stamp: TxnId::NONE, ghost: false, overflow: false, value: &[] };
    let (row, mut flags) = match before {
        Before::Absent => (none, 0),
        Before::Row(row) => (row, ROW),
    };
    flags |= if row.ghost { GHOST } else { 0 } | if row.overflow { OVERFLOW } else { 0 };
    put_u32(out, table);
    put_u32(out, key.len() as u32);
    put_u32(out, row.value.len() as u32);
    put_u64(out, row.stamp.0);
    out.push(flags);
    out.extend_from_slice(key);
    out.extend_from_slice(row.value);
}

fn take_entry<'b>(input: &mut &'b [u8]) -> Result<(u32, &'b [u8], Entry<'b>)> {
    let table = take_u32(input, "a table id")?;
    let key_bytes = take_u32(input, "the length of a key")? as usize;
    let value_bytes = take_u32(input, "the length of a value")? as usize;
    let stamp = TxnId(take_u64(input, "a stamp")?);
    let flags = take_u8(input, "flags")?;
    let key = take(input, key_bytes, "a key")?;
    let value = take(input, value_bytes, "a value")?;
    let row = Row { stamp, ghost: flags & GHOST != 0, overflow: flags & OVERFLOW != 0, value };
    let before = if flags & ROW == 0 { Before::Absent } else { Before::Row(row) };
    Ok((table, key, Entry(before)))
}

#[cfg(test)]
mod tests {
    use hamal_storage::sim::SimStorage;

    use super::*;

    #[test]
    fn a_run_says_what_the_images_said_and_its_file_goes_with_it() {
        let disk = SimStorage::new(1);
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let mut images = Images::default();
        for number in 0..3_000_u32 {
            let value = vec![number as u8; (number % 97) as usize];
            let row = Row {
                stamp: TxnId(number.into()),
                ghost: number % 5 == 0,
                overflow: number % 7 == 0,
                value: &value,
            };
            let before = if number % 3 == 0 { Before::Absent } else { Before::Row(row) };
            images.add(number % 4, &number.to_le_bytes(), before);
        }
        let run = Run::write(&storage, 7, &images).unwrap();
        assert!(run.blocks.len() > 3, "several blocks: {}", run.blocks.len());
        for (table, key, before) in images.iter() {
            let found = run.find(table, key).unwrap().unwrap();
            assert_eq!(found, Entry(before).into_owned());
            assert_eq!(run.find(table + 4, key).unwrap(), None);
            assert_eq!(run.find(table, &[key, &[0]].concat()).unwrap(), None);
        }
        assert_eq!(disk.files(), ["spill/7"]);
        let second = Run::write(&storage, 8, &images).unwrap();
        drop(run);
        assert_eq!(disk.files(), ["spill/8"]);
        std::mem::forget(second);
        remove_leftovers(&*storage).unwrap();
        assert!(disk.files().is_empty());
    }
}
