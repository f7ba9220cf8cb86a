//! Where a page's records and older copies come from.

use std::ops::ControlFlow;

use hamal_pager::header;
use hamal_storage::{Error as LowError, Result as LowResult};
use hamal_wal::{Frame, FrameStream, Lsn};

use super::rebuild::{Base, Done, Rebuild};
use super::{PageHealer, Refusal};
use crate::backup::logs::LogBytes;
use crate::backup::manifest::{self, Manifest, PartitionEntry};
use crate::backup::{Target, pages};
use crate::record::Record;
use crate::{Error, Result};

/// A way to get at a page: the live log is held, and may be read, from the LSN on.
pub(super) type Source = fn(&PageHealer, Lsn, &Rebuild) -> Result<Done, Refusal>;

impl PageHealer {
    /// The retained log alone.
    pub(super) fn out_of_log(&self, from: Lsn, rebuild: &Rebuild) -> Result<Done, Refusal> {
        let mut rebuild = rebuild.clone();
        let to = self.log.durable();
        self.feed(from, to, &mut rebuild)?;
        let place = |why| Refusal::Useless(format!("the log, from {from} to {to}, does not have it: {why}"));
        rebuild.finish().map_err(place)
    }

    /// The newest backup that helps, with the archive's log behind it and the retained log behind that.
    pub(super) fn out_of_backups(&self, from: Lsn, rebuild: &Rebuild) -> Result<Done, Refusal> {
        let Some(target) = &self.target else {
            return Err(Refusal::Useless("no backups are known (Options::heal_from)".to_owned()));
        };
        let mut ours = Vec::new();
        for id in manifest::ids(&**target)? {
            // One that is damaged does not keep the others from being used.
            if let Ok(Some(manifest)) = manifest::read(&**target, &id)
                && (manifest.database_id, manifest.history) == (self.database_id, self.history)
                && manifest.page_bytes == self.page_bytes
            {
                ours.push((manifest.end_lsn, id));
            }
        }
        ours.sort_unstable();
        let mut refusals = Vec::new();
        // An older one may have what is damaged in the newest.
        while let Some((_, id)) = ours.pop() {
            match self.out_of_backup(&**target, &id, from, rebuild.clone()) {
                Ok(done) => return Ok(done),
                Err(Refusal::Useless(why)) => refusals.push(format!("backup {id}: {why}")),
                Err(Refusal::Failed(error)) => refusals.push(format!("backup {id}: {error}")),
            }
        }
        if refusals.is_empty() {
            refusals.push("there is no backup of this database".to_owned());
        }
        Err(Refusal::Useless(refusals.join("; ")))
    }

    fn out_of_backup(
        &self,
        target: &dyn Target,
        id: &str,
        from: Lsn,
        mut rebuild: Rebuild,
    ) -> Result<Done, Refusal> {
        let chain = manifest::chain(target, id)?;
        let Some((_, newest)) = chain.last() else {
            return Err(Refusal::Useless("it is not there any more".to_owned()));
        };
        let (partition, _) = rebuild.key();
        newest.check_has(id, partition)?;
        // The newest copy: what a backup leaves out, its base has, if that has the partition.
        for (id, manifest, entry) in manifest::pages_of(&chain, partition).into_iter().rev() {
            if let Some(image) = find_page(target, (id, manifest, entry), &rebuild)? {
                rebuild.offer(&image, Base::Backup);
                break;
            }
        }
        let reached = feed_archive(target, id, newest, &mut rebuild)?;
        if reached < from {
            let why = format!(
                "log is missing from {reached}, where the archive ends, to {from}, where the retained log begins"
            );
            return Err(Refusal::Useless(why));
        }
        self.feed(reached, self.log.durable(), &mut rebuild)?;
        rebuild.finish().map_err(Refusal::Useless)
    }

    /// Feeds the records of the live log.
    fn feed(&self, from: Lsn, to: Lsn, rebuild: &mut Rebuild) -> LowResult<()> {
        self.log.each_durable(from, to, &mut |frame| -> LowResult<_> {
            see_frame(frame, "the log", rebuild)?;
            Ok(ControlFlow::Continue(()))
        })
    }
}

fn see_frames(frames: &mut FrameStream, source: &str, rebuild: &mut Rebuild) -> LowResult<()> {
    while let Some((frame, _)) = frames.next_frame(source)? {
        see_frame(&frame, source, rebuild)?;
    }
    Ok(())
}

fn see_frame(frame: &Frame<'_>, source: &str, rebuild: &mut Rebuild) -> LowResult<()> {
    let record = Record::decode(frame.payload).map_err(|e| LowError::Corrupt {
        file: source.to_owned(),
        offset: frame.lsn.0,
        expected: "a record".to_owned(),
        found: e.to_string(),
    })?;
    rebuild.see(frame.lsn, &record);
    Ok(())
}

/// The page, if this backup has it. Reads the partition's object to its end, for the checksum at its end is what its pages are believed for.
fn find_page(
    target: &dyn Target,
    (id, manifest, entry): (&str, &Manifest, &PartitionEntry),
    rebuild: &Rebuild,
) -> Result<Option<Vec<u8>>> {
    let (_, wanted) = rebuild.key();
    let mut found = None;
    let visit = &mut |first: hamal_pager::PageNo, images: &[u8]| {
        let index = wanted.0.checked_sub(first.0).map(|index| index as usize * manifest.page_bytes);
        if let Some(image) = index.and_then(|at| images.get(at..at + manifest.page_bytes)) {
            debug_assert_eq!(header::page_no(image), wanted, "pages of a run are neighbours");
            found = Some(image.to_vec());
        }
        Ok(())
    };
    pages::read(target, id, manifest, entry, visit, &mut |_| Ok(()))?;
    Ok(found)
}

/// Feeds the records of a backup's log and of the archive behind it; returns where the next record would start.
fn feed_archive(target: &dyn Target, id: &str, newest: &Manifest, rebuild: &mut Rebuild) -> Result<Lsn> {
    let mut log = LogBytes::open(target, id, newest)?;
    let (mut frames, mut bytes) = (FrameStream::new(newest.log_lsn), Vec::new());
    while log.next(&mut bytes)? {
        frames.push(&bytes);
        see_frames(&mut frames, &log.source(), rebuild).map_err(Error::from)?;
    }
    Ok(frames.position())
}
