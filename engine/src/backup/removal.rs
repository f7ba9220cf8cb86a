//! Removing backups: nobody removes by accident what another backup, or a repair, still needs.
//!
//! I1. A backup that another one is based on is needed by that.
//! I2. A partition that is quarantined in a backup Q needs the last backup that it could be repaired from in what is restored from Q, if that
//!     can be restored itself. It needs it no more once a later backup of Q's history has the partition in use, or not at all.
//! I3. A damaged manifest neither needs anything nor keeps its backup from being removed.

use std::collections::BTreeMap;

use super::manifest::{self, Manifest, QuarantinedEntry};
use super::quarantined::KeptObject;
use super::target::Target;
use crate::repair::Limits;
use crate::{Error, ErrorKind, Result};

/// Removes a backup, or what an interrupted one left. `NotFound` if there is none; `InvalidArgument`, saying what for, if it is needed: other
/// backups are based on it, or it is the last that a partition can be repaired from which is quarantined in another. It gives no thought to what is
/// being backed up meanwhile, to what is quarantined in the database alone, and to gaps in the archive. O(backups² · quarantined partitions).
pub fn remove(target: &dyn Target, backup: &str) -> Result<()> {
    match needed_for(target, backup)? {
        None => manifest::remove(target, backup),
        Some(what) => Err(Error::invalid(format!(
            "the backup {backup} is needed, unless it is removed by force: {what}"
        ))),
    }
}

/// As [`remove`], whatever it is needed for: backups based on it can then not be restored any more, and partitions not be repaired.
pub fn force_remove(target: &dyn Target, backup: &str) -> Result<()> {
    manifest::remove(target, backup)
}

/// What cannot be done any more without the backup.
fn needed_for(target: &dyn Target, backup: &str) -> Result<Option<String>> {
    let Some(manifest) = read_sound(target, backup)? else { return Ok(None) };
    let mut others = BTreeMap::new();
    for id in manifest::ids(target)?.into_iter().filter(|id| id != backup) {
        if let Some(other) = read_sound(target, &id)?.filter(|m| m.database_id == manifest.database_id) {
            others.insert(id, other);
        }
    }
    if let Some((id, _)) = others.iter().find(|(_, other)| other.base == backup) {
        return Ok(Some(format!("{id} is based on it")));
    }
    for (id, other) in &others {
        for entry in &other.quarantined {
            let Some(limits) = limits(target, id, other, entry)? else { continue };
            let replaces = |newer: &Manifest| {
                let is_later = newer.history == other.history && newer.end_lsn > other.end_lsn;
                let is_settled = is_later && newer.quarantined(entry.id).is_none();
                let is_newer_base = limits.is_base(newer, entry.id) && newer.end_lsn >= manifest.end_lsn;
                (is_settled || is_newer_base) && is_whole(newer, &others)
            };
            if limits.is_base(&manifest, entry.id) && !others.values().any(replaces) {
                return Ok(Some(format!(
                    "it is the last that partition {}, which is quarantined in {id}, can be repaired from",
                    entry.id
                )));
            }
        }
    }
    Ok(None)
}

/// Which backups a partition that is quarantined in another can be repaired from; `None`: it cannot be repaired at all.
fn limits(
    target: &dyn Target,
    backup: &str,
    manifest: &Manifest,
    entry: &QuarantinedEntry,
) -> Result<Option<Limits>> {
    match KeptObject::open(target, backup, manifest, entry) {
        Ok(kept) => Ok(kept.map(|kept| Limits::of_restored(manifest, &kept.state))),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether all that the backup is based on is there.
fn is_whole(backup: &Manifest, others: &BTreeMap<String, Manifest>) -> bool {
    let mut links = others.len();
    let mut at = backup;
    while !at.base.is_empty() && links > 0 {
        let Some(base) = others.get(&at.base) else { return false };
        (at, links) = (base, links - 1);
    }
    at.base.is_empty()
}

/// `None` as well if the manifest is damaged (I3).
fn read_sound(target: &dyn Target, backup: &str) -> Result<Option<Manifest>> {
    match manifest::read(target, backup) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        other => other,
    }
}
