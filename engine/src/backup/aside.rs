//! A part of a database as of an earlier moment, restored beside the database itself: its catalog and some of its partitions, in a
//! directory of its storage. It is read, and removed.
//!
//! | step | in `scratch/` |
//! |---|---|
//! | [`Aside::begin`] | the catalog's pages, the log up to the moment, the master record |
//! | [`Aside::tables`] | recovered with the catalog alone: which partitions there were, and where which keys were |
//! | [`Aside::open`] | the pages of those that are wanted; recovered again, from the same checkpoint, with these |
//! | drop | nothing |
//!
//! I1. What is not restored is not there: recovery leaves it out ([`crate::options::Options::leaves_out`]), and who asks for it gets
//!     `PartitionUnavailable`, never an answer.
//! I2. The first recovery takes no checkpoint, so the second one meets what a crash of the first would have left, and begins where that began
//!     (docs/recovery.md: F15). What was undone in the catalog stays undone: each chain has an end record of its own.
//! I3. Partitions of then are independent of those before and after: a split or a merge logs the rows it moves in the partition that gets
//!     them. So the partitions that the catalog of then names for a key are all that is needed.
//! I4. Nothing here is ever a database to anybody else. What a crash leaves goes when the database is opened ([`remove_leftovers`]) or, if that
//!     fails, when a range is restored next.
//! I5. Files go only where the mark is, which is made first, durably, and goes last, when the removals are durable: a directory of that name that
//!     is somebody else's, or a link to one, is left untouched.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use hamal_pager::PartitionId;
use hamal_storage::{Error as LowError, Storage, Subdirectory};

use super::manifest::{self, Manifest};
use super::requarantine::Requarantine;
use super::restore::{choose, write_log, write_master, write_partitions};
use super::target::Target;
use super::{OnProgress, RestoreOptions, RestoreReport, Stage, tell};
use crate::catalog::{CATALOG, Definition};
use crate::database::Handle;
use crate::engine::Engine;
use crate::report::RecoveryProgress;
use crate::{Error, ErrorKind, Options, Result, recovery};

/// Where it is, in the database's directory.
const DIRECTORY: &str = "scratch";
/// The file in it that says that all else there may go.
const MARK: &str = "SCRATCH";
/// Reports of progress that may wait to be heard.
const PROGRESS_WAITING: usize = 16;

/// See the module. Goes with all of its files when it is dropped.
#[derive(Debug)]
pub(crate) struct Aside<'t> {
    target: &'t dyn Target,
    directory: Subdirectory,
    storage: Arc<dyn Storage>,
    /// The backup it is restored from and those that is based on, the full one first.
    chain: Vec<(String, Manifest)>,
    options: Options,
    pub(crate) report: RestoreReport,
}

impl<'t> Aside<'t> {
    /// Writes what is needed to read the catalog of then. `origin`: id and history of the database, `options`: what the part is opened with.
    /// Errors as [`super::restore()`]; `InvalidArgument` if there are only backups of other databases.
    pub(crate) fn begin(
        target: &'t dyn Target,
        storage: &Arc<dyn Storage>,
        origin: (u64, u64),
        restore: &RestoreOptions,
        options: Options,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Aside<'t>> {
        let backup = choose(target, restore, Some(origin))?;
        let chain = manifest::chain(target, &backup)?;
        let directory = directory(storage)?;
        clear(&directory)?;
        mark(&directory)?;
        let report = RestoreReport { backup, backups: chain.len() as u64, ..RestoreReport::default() };
        let storage: Arc<dyn Storage> = Arc::new(directory.clone());
        let mut aside = Aside { target, directory, storage, chain, options, report };
        aside.write(restore, on_progress)?;
        Ok(aside)
    }

    fn write(&mut self, restore: &RestoreOptions, on_progress: &mut OnProgress<'_>) -> Result<()> {
        for name in ["wal", "part"] {
            self.storage.create_directory(name).map_err(|e| LowError::io("create", DIRECTORY, e))?;
        }
        self.write_pages(&|id| id == CATALOG, on_progress)?;
        let Some((id, newest)) = self.chain.last() else {
            return Err(Error::new(ErrorKind::NotFound, "there is no backup"));
        };
        let written = (id.as_str(), newest);
        // What is quarantined in the backup is left out, whatever is wanted of it.
        let none = &mut Requarantine::none();
        let (target, report) = (self.target, &mut self.report);
        let log = write_log(target, &self.storage, written, restore.point(), none, report, on_progress)?;
        write_master(&self.storage, newest, &log)
    }

    fn write_pages(
        &mut self,
        is_wanted: &dyn Fn(PartitionId) -> bool,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        write_partitions(self.target, &self.storage, &self.chain, is_wanted, &mut self.report, on_progress)
    }

    /// Which of these partitions are quarantined in the backup that it is restored from: they cannot be had.
    pub(crate) fn missing(&self, partitions: &BTreeSet<PartitionId>) -> Vec<PartitionId> {
        let Some((_, newest)) = self.chain.last() else { return Vec::new() };
        partitions.iter().copied().filter(|id| newest.quarantined(*id).is_some()).collect()
    }

    /// All tables of then, by name. O(catalog + log).
    pub(crate) fn tables(&self, on_progress: &mut OnProgress<'_>) -> Result<Vec<(String, Definition)>> {
        let engine = self.recover(BTreeSet::from([CATALOG]), on_progress)?;
        recovery::tables(&engine)
    }

    /// Opens it with these partitions, and the catalog. Once. O(partitions + log).
    pub(crate) fn open(
        &mut self,
        mut partitions: BTreeSet<PartitionId>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Arc<Handle>> {
        self.write_pages(&|id| partitions.contains(&id), on_progress)?;
        partitions.insert(CATALOG);
        let engine = Arc::new(self.recover(partitions, on_progress)?);
        Ok(Handle::of_thread(&engine))
    }

    fn recover(&self, only: BTreeSet<PartitionId>, on_progress: &mut OnProgress<'_>) -> Result<Engine> {
        let options = Options { only: Some(Arc::new(only)), ..self.options.clone() };
        let engine = recover_and_tell(&self.storage, options, on_progress)
            .map_err(|e| e.context("recovering what was restored"))?;
        // Recovery confines damage to a partition. Here nothing else is wanted.
        match engine.quarantine.first().and_then(|id| engine.quarantine.cause(id)) {
            None => Ok(engine),
            Some((cause, _)) => {
                Err(Error::new(ErrorKind::Corrupt, format!("what was restored is damaged: {cause}")))
            }
        }
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.directory) {
            tracing::warn!(%error, "what was restored beside the database could not be removed; it goes when the database is opened");
        }
    }
}

/// Recovers. The callback need not be one that other threads may call: while it hears of progress, another thread does the work.
fn recover_and_tell(
    storage: &Arc<dyn Storage>,
    options: Options,
    on_progress: &mut OnProgress<'_>,
) -> Result<Engine> {
    if storage.scheduler().is_some() {
        // A simulation runs one thread at a time, and decides itself which.
        return recovery::open(storage.clone(), options);
    }
    let stop = Arc::new(AtomicBool::new(false));
    // `None`: it is done. The engine keeps the callback, and so the channel does not end by itself.
    let (told, hears) = mpsc::sync_channel::<Option<RecoveryProgress>>(PROGRESS_WAITING);
    let (is_stopped, tells_end) = (stop.clone(), told.clone());
    let options = options.on_recovery(move |progress| match told.send(Some(*progress)) {
        Ok(()) if !is_stopped.load(Ordering::Relaxed) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    let storage = storage.clone();
    let work = move || {
        let recovered = recovery::open(storage, options);
        // Whoever hears waits for this, or has panicked.
        let _heard = tells_end.send(None);
        recovered
    };
    let recovered = thread::scope(|scope| {
        // Of in here: if the callback panics, nobody hears any more, and the other thread, which is waited for all the same, stops.
        let hears = hears;
        let thread = thread::Builder::new().name("hamal-restore".to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| {
            Error::new(ErrorKind::Limit, format!("a thread to recover with could not be started: {e}"))
        })?;
        while let Ok(Some(progress)) = hears.recv() {
            if !stop.load(Ordering::Relaxed)
                && tell(on_progress, Stage::Recovery, progress.done, progress.total).is_err()
            {
                stop.store(true, Ordering::Relaxed);
            }
        }
        thread.join().map_err(|_| Error::new(ErrorKind::Poisoned, "recovering what was restored panicked"))
    })?;
    // It may have been done before it was heard.
    if stop.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Cancelled, "stopped by the progress callback"));
    }
    recovered
}

fn directory(storage: &Arc<dyn Storage>) -> Result<Subdirectory> {
    Ok(Subdirectory::new(storage.clone(), DIRECTORY).map_err(|e| LowError::io("use", DIRECTORY, e))?)
}

/// Makes the directory one whose files may go (I5). `AlreadyExists` if somebody else's are there.
fn mark(directory: &Subdirectory) -> Result<()> {
    let io = |e| LowError::io("make", DIRECTORY, e);
    directory.create_directory("").map_err(io)?;
    let names = directory.list("").map_err(io)?;
    // Directories of an earlier restore stay, empty.
    for name in names {
        match directory.list(&name) {
            Ok(inside) if inside.is_empty() => {}
            _ => {
                let what =
                    format!("{DIRECTORY}/{name} is not of a restore, so nothing can be restored there");
                return Err(Error::new(ErrorKind::AlreadyExists, what));
            }
        }
    }
    directory.create(MARK).map_err(io)?;
    directory.sync_directory("").map_err(io)?;
    // The directory itself may be new.
    Ok(directory.sync_parent().map_err(io)?)
}

/// Removes all files, where the mark is.
fn clear(directory: &Subdirectory) -> Result<()> {
    let io = |e| LowError::io("clear", DIRECTORY, e);
    if !directory.exists(MARK).map_err(io)? {
        return Ok(());
    }
    directory.clear(&[MARK]).map_err(io)?;
    directory.remove(MARK).map_err(io)?;
    Ok(directory.sync_directory("").map_err(io)?)
}

/// Removes what a crash has left (I4).
pub(crate) fn remove_leftovers(storage: &Arc<dyn Storage>) -> Result<()> {
    clear(&directory(storage)?)
}
