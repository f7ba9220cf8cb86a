//! What a backup consists of: written last, it makes the backup exist. Normative: docs/file-format.md section 10.

use std::collections::BTreeSet;

use hamal_pager::PartitionId;
use hamal_storage::Error as LowError;
use hamal_wal::Lsn;

use super::object::{Header, Kind, ObjectIn, ObjectOut, Sum};
use super::quarantined::QuarantinedPartition;
use super::target::Target;
use crate::catalog::CATALOG;
use crate::codec::{
    put_list, put_string, put_u32, put_u64, take_list, take_string, take_u8, take_u32, take_u64,
};
use crate::options::LOG_SEGMENT_BYTES;
use crate::{Error, ErrorKind, Result};

/// The directory of all backups.
const DIRECTORY: &str = "backup";
/// A manifest takes 28 bytes for a partition, and some hundreds for one that is quarantined: far more than any database has fit.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// One partition's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionEntry {
    pub(crate) id: PartitionId,
    /// Pages its file had room for.
    pub(crate) file_pages: u32,
    /// Pages in the object.
    pub(crate) pages: u32,
    pub(crate) sum: Sum,
}

/// A partition that was quarantined: the backup has none of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuarantinedEntry {
    pub(crate) id: PartitionId,
    pub(crate) since_micros: u64,
    /// The name of its table; empty: no table had it.
    pub(crate) table: String,
    pub(crate) cause: String,
    /// The object with what was kept of it; `None`: that is lost.
    pub(crate) kept: Option<Sum>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) database_id: u64,
    pub(crate) history: u64,
    pub(crate) page_bytes: usize,
    pub(crate) log_segment_bytes: u64,
    /// The begin record of the checkpoint that recovery starts from.
    pub(crate) checkpoint_lsn: Lsn,
    /// Where its log begins.
    pub(crate) log_lsn: Lsn,
    /// Where its log ends: no copied page is ahead of it.
    pub(crate) end_lsn: Lsn,
    pub(crate) started_micros: u64,
    /// Every commit record in its log is of before this time.
    pub(crate) end_micros: u64,
    /// The backup that has the other pages; empty: a full backup.
    pub(crate) base: String,
    pub(crate) log: Sum,
    pub(crate) partitions: Vec<PartitionEntry>,
    pub(crate) quarantined: Vec<QuarantinedEntry>,
}

/// What there is to know about a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupInfo {
    /// Its name in the target.
    pub id: String,
    /// The database it is of.
    pub database_id: u64,
    /// The backup it is based on; `None`: a full backup.
    pub base: Option<String>,
    /// The checkpoint it starts from.
    pub checkpoint_lsn: u64,
    /// What is restored from it alone is the database as of this LSN, which is the earliest it can be restored to.
    pub end_lsn: u64,
    /// When it was begun, microseconds since 1970.
    pub started_micros: u64,
    /// When its last record had been copied, microseconds since 1970: the earliest time it can be restored to.
    pub end_micros: u64,
    /// Partitions.
    pub partitions: u64,
    /// Pages in it.
    pub pages: u64,
    /// All its objects but the manifest, bytes.
    pub bytes: u64,
    /// Partitions that were quarantined, and so are in what is restored from it: it has none of their pages.
    pub quarantined: Vec<QuarantinedPartition>,
}

/// The name of one of a backup's objects.
fn object_name(backup: &str, object: &str) -> String {
    format!("{DIRECTORY}/{backup}/{object}")
}

/// The object with a partition's pages.
pub(crate) fn pages_name(backup: &str, partition: PartitionId) -> String {
    object_name(backup, &format!("part-{partition}"))
}

/// The object with what was kept of a quarantined partition.
pub(crate) fn kept_name(backup: &str, partition: PartitionId) -> String {
    object_name(backup, &format!("quarantine-{partition}"))
}

/// The object with the log.
pub(crate) fn log_name(backup: &str) -> String {
    object_name(backup, "log")
}

fn manifest_name(backup: &str) -> String {
    object_name(backup, "manifest")
}

/// A name that sorts by where the backup starts.
pub(crate) fn new_id(checkpoint_lsn: Lsn, random: u64) -> String {
    format!("{checkpoint_lsn:020}-{random:016x}")
}

/// All backups' names there are, of interrupted ones too, sorted. Others' files are passed over.
pub(crate) fn ids(target: &dyn Target) -> Result<Vec<String>> {
    let mut ids = target.list(DIRECTORY).map_err(|e| LowError::io("list", DIRECTORY, e))?;
    ids.retain(|id| check_id(id).is_ok());
    Ok(ids)
}

/// Reads a backup's manifest; `None` if there is no such backup.
pub(crate) fn read(target: &dyn Target, backup: &str) -> Result<Option<Manifest>> {
    check_id(backup)?;
    let name = manifest_name(backup);
    let Some(mut object) = ObjectIn::find(target, &name, Kind::Manifest)? else { return Ok(None) };
    let mut bytes = Vec::new();
    while let Some(block) = object.next_block()? {
        bytes.extend_from_slice(block);
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(Error::corrupt(&name, 0, format!("at most {MAX_MANIFEST_BYTES} bytes"), "more"));
        }
    }
    let manifest = Manifest::decode(&bytes, object.header.argument, &name).map_err(|e| e.context(&name))?;
    object.check_origin(manifest.database_id, manifest.history)?;
    Ok(Some(manifest))
}

/// As [`read`]; `NotFound` if there is no such backup.
pub(crate) fn must_read(target: &dyn Target, backup: &str) -> Result<Manifest> {
    read(target, backup)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no backup {backup:?} in the target"))
    })
}

/// A backup and what it is based on, the full one first. `Corrupt` if they do not belong together.
pub(crate) fn chain(target: &dyn Target, backup: &str) -> Result<Vec<(String, Manifest)>> {
    let mut chain = vec![(backup.to_owned(), must_read(target, backup)?)];
    let mut seen = BTreeSet::from([backup.to_owned()]);
    while let Some((id, later)) = chain.last()
        && !later.base.is_empty()
    {
        let name = manifest_name(&later.base);
        if !seen.insert(later.base.clone()) {
            return Err(Error::corrupt(&name, 0, "backups based on older ones", "a circle"));
        }
        let base = read(target, &later.base)?.ok_or_else(|| {
            Error::corrupt(&name, 0, format!("the backup that {id} is based on"), "no such object")
        })?;
        let fits = base.database_id == later.database_id
            && base.history == later.history
            && base.page_bytes == later.page_bytes
            && base.checkpoint_lsn <= later.checkpoint_lsn;
        if !fits {
            return Err(Error::corrupt(&name, 0, format!("a backup that {id} can be based on"), "another"));
        }
        chain.push((later.base.clone(), base));
    }
    chain.reverse();
    Ok(chain)
}

/// The backups in a chain that a partition's pages are in, with their entries, the oldest first: from the one that has all of them to the
/// newest. None if the newest has none. One that comes before a backup without the partition is no base of what comes behind.
pub(crate) fn pages_of(
    chain: &[(String, Manifest)],
    partition: PartitionId,
) -> Vec<(&str, &Manifest, &PartitionEntry)> {
    let newest_first = chain.iter().rev().map(|(id, manifest)| (id, manifest, manifest.entry(partition)));
    let mut pages: Vec<_> =
        newest_first.map_while(|(id, manifest, entry)| Some((id.as_str(), manifest, entry?))).collect();
    pages.reverse();
    pages
}

/// Removes a backup: its manifest first.
pub(crate) fn remove(target: &dyn Target, backup: &str) -> Result<()> {
    check_id(backup)?;
    let directory = format!("{DIRECTORY}/{backup}");
    let names = target.list(&directory).map_err(|e| LowError::io("list", &directory, e))?;
    if names.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no backup {backup:?} in the target")));
    }
    let manifest = manifest_name(backup);
    target.remove(&manifest).map_err(|e| LowError::io("remove", manifest, e))?;
    for name in names {
        let name = object_name(backup, &name);
        target.remove(&name).map_err(|e| LowError::io("remove", name, e))?;
    }
    Ok(())
}

/// Names come from people: only those that can be a backup's go any further.
fn check_id(backup: &str) -> Result<()> {
    let is_sound = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b'-';
    if backup.is_empty() || backup.len() > 64 || !backup.bytes().all(is_sound) {
        return Err(Error::invalid(format!("{backup:?} is no backup's name")));
    }
    Ok(())
}

impl Manifest {
    /// Writes it: from here on the backup exists.
    pub(crate) fn write(&self, target: &dyn Target, backup: &str) -> Result<()> {
        let header = Header {
            kind: Kind::Manifest,
            database_id: self.database_id,
            history: self.history,
            argument: self.quarantined.len() as u64,
            micros: self.end_micros,
        };
        let mut object = ObjectOut::create(target, &manifest_name(backup), &header)?;
        for piece in self.encode().chunks(super::object::BLOCK_BYTES) {
            object.put(piece)?;
        }
        object.finish().map(drop)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u64(&mut out, self.database_id);
        put_u64(&mut out, self.history);
        put_u32(&mut out, self.page_bytes as u32);
        put_u64(&mut out, self.log_segment_bytes);
        put_u64(&mut out, self.checkpoint_lsn.0);
        put_u64(&mut out, self.log_lsn.0);
        put_u64(&mut out, self.end_lsn.0);
        put_u64(&mut out, self.started_micros);
        put_u64(&mut out, self.end_micros);
        put_string(&mut out, &self.base);
        put_u64(&mut out, self.log.bytes);
        put_u32(&mut out, self.log.crc);
        put_list(&mut out, &self.partitions, |out, p| {
            put_u32(out, p.id.0);
            put_u32(out, p.file_pages);
            put_u32(out, p.pages);
            put_u64(out, p.sum.bytes);
            put_u32(out, p.sum.crc);
        });
        if !self.quarantined.is_empty() {
            put_list(&mut out, &self.quarantined, |out, q| {
                put_u32(out, q.id.0);
                put_u64(out, q.since_micros);
                put_string(out, &q.table);
                put_string(out, &q.cause);
                out.push(u8::from(q.kept.is_some()));
                let sum = q.kept.unwrap_or_default();
                put_u64(out, sum.bytes);
                put_u32(out, sum.crc);
            });
        }
        out
    }

    /// `quarantined`: how many such partitions its object's header speaks of.
    fn decode(bytes: &[u8], quarantined: u64, name: &str) -> Result<Manifest> {
        let mut input = bytes;
        let i = &mut input;
        let mut manifest = Manifest {
            database_id: take_u64(i, "the database id")?,
            history: take_u64(i, "the history")?,
            page_bytes: take_u32(i, "the page size")? as usize,
            log_segment_bytes: take_u64(i, "the segment size")?,
            checkpoint_lsn: Lsn(take_u64(i, "the checkpoint's LSN")?),
            log_lsn: Lsn(take_u64(i, "the log's start")?),
            end_lsn: Lsn(take_u64(i, "the log's end")?),
            started_micros: take_u64(i, "the start time")?,
            end_micros: take_u64(i, "the end time")?,
            base: take_string(i, "the base")?,
            log: Sum { bytes: take_u64(i, "the log's size")?, crc: take_u32(i, "the log's checksum")? },
            partitions: take_list(i, 24, "the partitions", |i| {
                Ok(PartitionEntry {
                    id: PartitionId(take_u32(i, "a partition's id")?),
                    file_pages: take_u32(i, "a partition's length")?,
                    pages: take_u32(i, "a partition's pages")?,
                    sum: Sum {
                        bytes: take_u64(i, "a partition's size")?,
                        crc: take_u32(i, "a partition's checksum")?,
                    },
                })
            })?,
            quarantined: Vec::new(),
        };
        if quarantined > 0 {
            manifest.quarantined = take_list(i, 29, "the quarantined partitions", take_quarantined)?;
        }
        let is_counted = manifest.quarantined.len() as u64 == quarantined;
        if !i.is_empty() || !is_counted || !manifest.is_sound() {
            return Err(Error::corrupt(name, 0, "fields within their ranges", format!("{manifest:?}")));
        }
        Ok(manifest)
    }

    fn is_sound(&self) -> bool {
        let lsns = [Lsn::FIRST, self.log_lsn, self.checkpoint_lsn, self.end_lsn, Lsn(1 << 62)];
        lsns.is_sorted()
            && lsns.iter().all(|lsn| lsn.0.is_multiple_of(8))
            && matches!(self.page_bytes, 4096 | 8192 | 16384 | 32768 | 65536)
            && self.log_segment_bytes.is_multiple_of(4096)
            && LOG_SEGMENT_BYTES.contains(&self.log_segment_bytes)
            && self.partitions.is_sorted_by(|a, b| a.id < b.id)
            && self
                .partitions
                .iter()
                .all(|p| p.id.0 != u32::MAX && p.file_pages > 0 && p.pages <= p.file_pages)
            && self.quarantined.is_sorted_by(|a, b| a.id < b.id)
            && self
                .quarantined
                .iter()
                .all(|q| q.id != CATALOG && q.id.0 != u32::MAX && self.entry(q.id).is_none())
            && (self.base.is_empty() || check_id(&self.base).is_ok())
    }

    /// The partition's pages, if it has any.
    pub(crate) fn entry(&self, partition: PartitionId) -> Option<&PartitionEntry> {
        let at = self.partitions.binary_search_by_key(&partition, |entry| entry.id);
        at.ok().map(|at| &self.partitions[at])
    }

    /// What it says of all objects with pages, and with what was kept.
    pub(crate) fn sums(&self) -> impl Iterator<Item = Sum> + '_ {
        self.partitions.iter().map(|p| p.sum).chain(self.quarantined.iter().filter_map(|q| q.kept))
    }

    /// What it has of the partition, if that was quarantined.
    pub(crate) fn quarantined(&self, partition: PartitionId) -> Option<&QuarantinedEntry> {
        let at = self.quarantined.binary_search_by_key(&partition, |entry| entry.id);
        at.ok().map(|at| &self.quarantined[at])
    }

    /// `InvalidArgument`, saying why, if nothing can be built from this backup of the partition's pages.
    pub(crate) fn check_has(&self, backup: &str, partition: PartitionId) -> Result<()> {
        match self.quarantined(partition) {
            None => Ok(()),
            Some(entry) => Err(Error::invalid(format!(
                "the backup {backup} has no pages of partition {partition}, which was quarantined when it was taken: {}",
                entry.cause
            ))),
        }
    }

    pub(crate) fn info(&self, backup: &str) -> BackupInfo {
        BackupInfo {
            id: backup.to_owned(),
            database_id: self.database_id,
            base: (!self.base.is_empty()).then(|| self.base.clone()),
            checkpoint_lsn: self.checkpoint_lsn.0,
            end_lsn: self.end_lsn.0,
            started_micros: self.started_micros,
            end_micros: self.end_micros,
            partitions: self.partitions.len() as u64,
            pages: self.partitions.iter().map(|p| u64::from(p.pages)).sum(),
            bytes: self.sums().fold(self.log.bytes, |bytes, sum| bytes.saturating_add(sum.bytes)),
            quarantined: self.quarantined.iter().map(QuarantinedEntry::tell).collect(),
        }
    }
}

fn take_quarantined(i: &mut &[u8]) -> Result<QuarantinedEntry> {
    let (id, since_micros) = (take_u32(i, "a quarantined partition's id")?, take_u64(i, "since when")?);
    let (table, cause) = (take_string(i, "its table")?, take_string(i, "the cause")?);
    let has_kept = take_u8(i, "whether anything was kept")?;
    let sum = Sum { bytes: take_u64(i, "the length of that")?, crc: take_u32(i, "its checksum")? };
    if has_kept > 1 || (has_kept == 0 && sum != Sum::default()) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "a quarantined partition has something, or nothing, kept",
        ));
    }
    Ok(QuarantinedEntry {
        id: PartitionId(id),
        since_micros,
        table,
        cause,
        kept: (has_kept == 1).then_some(sum),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            database_id: 7,
            history: 9,
            page_bytes: 4096,
            log_segment_bytes: 1 << 20,
            checkpoint_lsn: Lsn(8192),
            log_lsn: Lsn(4096),
            end_lsn: Lsn(16_384),
            started_micros: 1,
            end_micros: 2,
            base: "00ab-1".to_owned(),
            log: Sum { bytes: 3, crc: 4 },
            partitions: vec![PartitionEntry {
                id: PartitionId(1),
                file_pages: 64,
                pages: 6,
                sum: Sum { bytes: 5, crc: 6 },
            }],
            quarantined: Vec::new(),
        }
    }

    fn with_quarantined() -> Manifest {
        let entry = |id, kept| QuarantinedEntry {
            id: PartitionId(id),
            since_micros: 7,
            table: "accounts".to_owned(),
            cause: "the file is gone".to_owned(),
            kept,
        };
        let quarantined = vec![entry(2, Some(Sum { bytes: 7, crc: 8 })), entry(4, None)];
        Manifest { quarantined, ..sample() }
    }

    fn decode(manifest: &Manifest) -> Result<Manifest> {
        Manifest::decode(&manifest.encode(), manifest.quarantined.len() as u64, "m")
    }

    /// Of a database without quarantined partitions: what the first version of the format says.
    const GOLDEN: &str = "\
        070000000000000009000000000000000010000000001000000000000020000000000000001000000000000000400000\
        000000000100000000000000020000000000000006003030\
        61622d31030000000000000004000000010000000100000040000000060000000500000000000000\
        06000000";

    #[test]
    fn a_manifest_of_whole_partitions_is_what_it_always_was() {
        let hex = sample().encode().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        assert_eq!(hex, GOLDEN);
    }

    #[test]
    fn only_the_backups_behind_the_last_one_without_a_partition_have_its_pages() {
        let link = |id: &str, has: bool| {
            let mut manifest = sample();
            if !has {
                manifest.partitions.clear();
            }
            (id.to_owned(), manifest)
        };
        let ids = |has: &[bool]| {
            let chain: Vec<_> = has.iter().enumerate().map(|(n, has)| link(&n.to_string(), *has)).collect();
            pages_of(&chain, PartitionId(1)).into_iter().map(|(id, ..)| id.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&[true, true]), ["0", "1"]);
        assert_eq!(ids(&[true, false, true, true]), ["2", "3"]);
        assert_eq!(ids(&[true, true, false]), Vec::<String>::new());
        assert_eq!(ids(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_manifest_survives_encoding_and_is_refused_when_cut_or_absurd() {
        for sample in [sample(), with_quarantined()] {
            let bytes = sample.encode();
            let count = sample.quarantined.len() as u64;
            assert_eq!(Manifest::decode(&bytes, count, "m").unwrap(), sample);
            for len in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..len], count, "m").is_err(), "{len}");
            }
            for other in [0, 1, 2, 3].into_iter().filter(|other| *other != count) {
                assert!(Manifest::decode(&bytes, other, "m").is_err(), "{other} instead of {count}");
            }
        }
        let changes: [&dyn Fn(&mut Manifest); 9] = [
            &|m| m.quarantined = with_quarantined().quarantined.into_iter().rev().collect(),
            &|m| {
                m.quarantined = with_quarantined().quarantined;
                m.quarantined[0].id = PartitionId(1);
            },
            &|m| {
                m.quarantined = with_quarantined().quarantined;
                m.quarantined[0].id = CATALOG;
            },
            &|m| m.page_bytes = 5000,
            &|m| m.end_lsn.0 = 4096,
            &|m| m.checkpoint_lsn.0 += 4,
            &|m| m.partitions[0].pages = 65,
            &|m| m.partitions.push(m.partitions[0]),
            &|m| m.base = "../x".to_owned(),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut manifest = sample();
            change(&mut manifest);
            let error = decode(&manifest).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "change {index}");
        }
    }

    #[test]
    fn names_that_are_no_backups_are_refused() {
        for name in ["", "..", "a/b", "X", "zz"] {
            assert_eq!(check_id(name).unwrap_err().kind(), ErrorKind::InvalidArgument, "{name:?}");
        }
        check_id(&new_id(Lsn(4096), 0xabc)).unwrap();
    }
}
