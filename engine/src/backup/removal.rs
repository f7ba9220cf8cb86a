//! Removing backups: nobody removes by accident what another backup, or a repair, still needs.
//!
//! I1. A backup that another one is based on is needed by that.
//! I2. Of a partition that is quarantined in a backup, the last backup from before that has its pages is needed to repair it, until a newer
//!     backup has the partition's pages again.
//! I3. A damaged manifest neither needs anything nor keeps its backup from being removed.

use super::manifest::{self, Manifest};
use super::target::Target;
use crate::{Error, ErrorKind, Result};

/// Removes a backup, or what an interrupted one left. `NotFound` if there is none; `InvalidArgument`, saying what for, if it is needed: other
/// backups are based on it, or it is the last with the pages of a partition that is quarantined in a later one. What is being backed up
/// meanwhile, and what is quarantined in the database alone, is not asked. O(backups · their partitions).
pub fn remove(target: &dyn Target, backup: &str) -> Result<()> {
    match needed_for(target, backup)? {
        None => manifest::remove(target, backup),
        Some(what) => Err(Error::invalid(format!("the backup {backup} is needed: {what}"))),
    }
}

/// As [`remove`], whatever it is needed for: backups based on it can then not be restored any more, and partitions not be repaired.
pub fn force_remove(target: &dyn Target, backup: &str) -> Result<()> {
    manifest::remove(target, backup)
}

/// What cannot be done any more without the backup.
fn needed_for(target: &dyn Target, backup: &str) -> Result<Option<String>> {
    let Some(manifest) = read_sound(target, backup)? else { return Ok(None) };
    let mut others = Vec::new();
    for id in manifest::ids(target)? {
        if id != backup
            && let Some(other) = read_sound(target, &id)?.filter(|m| m.database_id == manifest.database_id)
        {
            others.push((id, other));
        }
    }
    if let Some((id, _)) = others.iter().find(|(_, other)| other.base == backup) {
        return Ok(Some(format!("{id} is based on it")));
    }
    let behind = others.iter().filter(|(_, other)| other.end_lsn >= manifest.end_lsn);
    for (id, other) in behind.clone() {
        let repairable = other.quarantined.iter().filter(|entry| entry.kept.is_some());
        for entry in repairable.filter(|entry| manifest.entry(entry.id).is_some()) {
            let has_its_pages = |newer: &Manifest| {
                [manifest.history, other.history].contains(&newer.history) && newer.entry(entry.id).is_some()
            };
            if !behind.clone().any(|(_, newer)| has_its_pages(newer)) {
                return Ok(Some(format!(
                    "it is the last with the pages of partition {}, which is quarantined in {id}",
                    entry.id
                )));
            }
        }
    }
    Ok(None)
}

/// `None` as well if the manifest is damaged (I3).
fn read_sound(target: &dyn Target, backup: &str) -> Result<Option<Manifest>> {
    match manifest::read(target, backup) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        other => other,
    }
}
