//! What all commands share: where output goes, how a database is opened and closed, progress on a terminal.
//!
//! I1. A command that only reads never makes a database.
//! I2. A database that a failed command made is gone again if it is empty and nobody else has opened it; nothing else is removed.

use std::io::{ErrorKind, IsTerminal, stderr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hamal::backup::DirectoryTarget;
use hamal::{Database, OpenMode, Options, RecoveryPass, RecoveryProgress, RecoveryReport, Scrub, TableInfo};
use hamal_storage::{OsStorage, Storage};
use indicatif::{ProgressBar, ProgressStyle};

use crate::codec::Codec;
use crate::failure::{Failure, Result, Status};
use crate::output::Output;
use crate::takeback::take_back;
use crate::text;

/// One run of the command.
pub(crate) struct Session {
    pub(crate) out: Output,
    pub(crate) cache_bytes: Option<u64>,
    pub(crate) archive: Option<PathBuf>,
    /// Where backups are to rebuild pages from.
    pub(crate) heal_from: Option<PathBuf>,
}

/// The database a command works on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DatabaseArg {
    /// Directory of the database
    #[arg(value_name = "DB")]
    pub(crate) directory: PathBuf,
}

/// The table a command works on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TableArg {
    /// Name of the table
    #[arg(long = "table", short = 't', value_name = "NAME")]
    pub(crate) table: String,
}

impl Session {
    fn options(&self, mode: OpenMode) -> Options {
        // A command is over long before a scrub in the background would be.
        let mut options = Options::new().mode(mode).scrub(Scrub::Off);
        if let Some(target) = &self.heal_from {
            options = options.heal_from(Arc::new(DirectoryTarget::new(target)));
        }
        if let Some(target) = &self.archive {
            options = options.archive(Arc::new(DirectoryTarget::new(target)));
        }
        match self.cache_bytes {
            Some(bytes) => options.cache_bytes(bytes),
            None => options,
        }
    }

    /// Runs `work` on the database that is there, and closes it.
    pub(crate) fn with_database<T>(
        &mut self,
        at: &DatabaseArg,
        work: impl FnOnce(&mut Session, &Database) -> Result<T>,
    ) -> Result<T> {
        must_exist(&at.directory)?;
        let db = open(self.options(OpenMode::Open), &at.directory)?;
        let result = work(self, &db)?;
        db.close().map_err(|error| Failure::from(error).context("closing the database"))?;
        Ok(result)
    }

    /// As [`Session::with_database`], for one that was restored just now: that it is recovered is no news.
    pub(crate) fn with_restored<T>(
        &mut self,
        at: &DatabaseArg,
        work: impl FnOnce(&mut Session, &Database) -> Result<T>,
    ) -> Result<T> {
        let bar = RecoveryBar::new();
        let options = self.options(OpenMode::Open).on_recovery(bar.callback());
        let db = options.open(&at.directory).map_err(|error| open_failure(&at.directory, error))?;
        drop(bar);
        let result = work(self, &db)?;
        db.close().map_err(|error| Failure::from(error).context("closing the database"))?;
        Ok(result)
    }

    /// As [`Session::with_database`], but makes the database if it is missing.
    pub(crate) fn with_database_made<T>(
        &mut self,
        at: &DatabaseArg,
        change: impl FnOnce(Options) -> Options,
        work: impl FnOnce(&mut Session, &Database) -> Result<T>,
    ) -> Result<T> {
        // A dangling link is there, too.
        let was_missing =
            at.directory.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let db = open(change(self.options(OpenMode::OpenOrCreate)), &at.directory)?;
        match work(self, &db) {
            Ok(result) => {
                db.close().map_err(|error| Failure::from(error).context("closing the database"))?;
                Ok(result)
            }
            Err(failure) => {
                if was_missing && db.recovery_report().created {
                    take_back(db, &at.directory);
                }
                Err(failure)
            }
        }
    }
}

/// Opens a database, with a bar while it is recovered, and a note if it was.
fn open(options: Options, directory: &Path) -> Result<Database> {
    let bar = RecoveryBar::new();
    // A tool is open for a moment: what it would leave to be undone the next one would find.
    let db = options
        .trailing_undo_bytes(u64::MAX)
        .on_recovery(bar.callback())
        .open(directory)
        .map_err(|error| open_failure(directory, error))?;
    drop(bar);
    note_recovery(directory, db.recovery_report());
    Ok(db)
}

/// The database's files, to look into without opening it.
pub(crate) fn files(at: &DatabaseArg) -> Result<Arc<dyn Storage>> {
    must_exist(&at.directory)?;
    Ok(Arc::new(OsStorage::new(&at.directory)))
}

/// An engine's error about this database.
pub(crate) fn open_failure(directory: &Path, error: hamal::Error) -> Failure {
    Failure::from(error).context(directory.display())
}

pub(crate) fn must_exist(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let what = if directory.exists() { "not a directory, so no database" } else { "there is no database" };
    Err(Failure::unusable(format!("{}: {what}", directory.display())))
}

/// A directory that is to be filled must be missing or empty.
pub(crate) fn must_be_free(directory: &Path) -> Result<()> {
    let is_taken = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    if is_taken {
        return Err(Failure::input(format!("{} is not an empty directory", directory.display())));
    }
    Ok(())
}

/// Opening repaired something: say so, once, where people look.
fn note_recovery(directory: &Path, report: &RecoveryReport) {
    if report.clean || report.created {
        return;
    }
    let took = report.analysis.elapsed + report.redo.elapsed + report.undo.elapsed;
    eprintln!(
        "hamal: note: {} was not closed; recovered in {}: {} redone, {} rolled back",
        directory.display(),
        text::duration(took),
        text::count(report.redo.applied, "page change"),
        text::count(report.losers, "transaction"),
    );
}

/// The names of a table's types, as codecs. `NotFound` in a line of its own.
pub(crate) fn codecs(tables: &[TableInfo], name: &str) -> Result<(Codec, Codec)> {
    let table = tables.iter().find(|table| table.name == name).ok_or_else(|| no_table(name))?;
    Ok((Codec::of(&table.key_type), Codec::of(&table.value_type)))
}

pub(crate) fn no_table(name: &str) -> Failure {
    Failure::Message(Status::Input, format!("there is no table {name:?}"))
}

/// How keys and values on the command line are written.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Writing {
    /// Keys and values given here are hexadecimal digits
    #[arg(long, conflicts_with = "escaped")]
    hex: bool,
    /// Keys and values given here are escaped (\xNN, \n, \\), as they are shown
    #[arg(long)]
    escaped: bool,
}

impl Writing {
    /// Whether bytes can be given that are no text.
    pub(crate) fn is_bytes(self) -> bool {
        self.hex || self.escaped
    }

    /// The bytes of a key or value of this type.
    pub(crate) fn bytes(self, codec: &Codec, what: &str, typed: &str) -> Result<Vec<u8>> {
        let bytes = if self.hex {
            text::unhex(typed)
        } else if self.escaped {
            text::unescape(typed)
        } else {
            codec.parse(typed)
        };
        bytes.map_err(|error| Failure::input(format!("the {what}: {error}")))
    }
}

/// A bar on standard error if that is a terminal, else nothing.
pub(crate) fn progress_bar(total: Option<u64>, template: &str) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows the passes of a recovery that takes its time. Gone when dropped.
struct RecoveryBar(Arc<Mutex<Option<ProgressBar>>>);

impl RecoveryBar {
    /// Recoveries shorter than this are not worth a bar.
    const PATIENCE: Duration = Duration::from_millis(300);

    fn new() -> RecoveryBar {
        RecoveryBar(Arc::default())
    }

    fn callback(&self) -> impl Fn(&RecoveryProgress) -> ControlFlow<()> + Send + Sync + 'static {
        let shown = Arc::clone(&self.0);
        let started = Instant::now();
        move |progress| {
            if started.elapsed() >= RecoveryBar::PATIENCE
                && let Ok(mut shown) = shown.lock()
            {
                let bar =
                    shown.get_or_insert_with(|| progress_bar(Some(0), "{msg:<8} [{bar:40}] {percent}%"));
                bar.set_message(pass_name(progress.pass));
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            }
            ControlFlow::Continue(())
        }
    }
}

impl Drop for RecoveryBar {
    fn drop(&mut self) {
        if let Ok(shown) = self.0.lock()
            && let Some(bar) = &*shown
        {
            bar.finish_and_clear();
        }
    }
}

/// The pass in one word.
pub(crate) fn pass_name(pass: RecoveryPass) -> &'static str {
    match pass {
        RecoveryPass::Analysis => "analysis",
        RecoveryPass::Redo => "redo",
        RecoveryPass::Undo => "undo",
        _ => "recovery",
    }
}
