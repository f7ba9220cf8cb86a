//! Rotting pages: pages of a database that runs, or is between two runs, go bad on the disk in every way that disks know.
//!
//! A round works a little, damages some pages, and lets them be met: by work, by reading everything, by a scrub, or by a restart. Then each
//! damaged page is asked for.
//!
//! O1. No answer is wrong, whatever was damaged: every read is compared with the model.
//! O2. Every page is healed (by whoever read it, by a scrub, or because newer changes of it were written anyway), or reported (`Corrupt`, or in
//!     the report of a scrub), or free. A page in use that is still bad and that nobody has said a word about fails the run.
//! O3. What was reported costs nothing else: with the page put back as it was, everything is there.
//! O4. Where there is a backup and a whole archive, every page is healed.
//!
//! A stale page is found by what is known of its age since the open: from then on that is each page once it has been read or scrubbed. So
//! pages become stale here only after a scrub, and not between two runs, where the log is the only witness: the engine's tests are about that.

#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the path of a method has one lifetime, these closures are for any"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal::backup::{BackupOptions, DirectoryTarget};
use hamal::{Database, ErrorKind, OpenMode, PartitionState, RepairOptions, ScrubReport};
use hamal_pager::header;
use hamal_pager::space::Geometry;
use hamal_pager::{PageNo, PartitionId};
use hamal_storage::sim::{CrashMode, SimStorage};

use crate::choice::{Choices, mix};
use crate::disk::Disk;
use crate::model::Model;
use crate::plan::Plan;
use crate::sweep::watched;
use crate::tally::Tally;
use crate::workload::{Session, Step, Stop, Trace, read_state, verify};

/// Snapshots of the files that stale pages are taken from.
const SNAPSHOTS: usize = 4;

/// What a page can be rebuilt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// What happens to be there: the retained log, which checkpoints cut sooner or later, and copies.
    Chance,
    /// Besides, a backup and an archive that reaches to the retained log.
    Backup,
}

/// In which way a page is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Flips,
    Zeros,
    Misplaced,
    Foreign,
    Stale,
}

/// Who is to meet what is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finder {
    Work,
    Reading,
    Scrub,
    Reopen,
    Crash,
}

/// A page made bad.
#[derive(Debug)]
struct Wound {
    file: String,
    partition: PartitionId,
    page: PageNo,
    way: Way,
    before: Vec<u8>,
    bad: Vec<u8>,
}

impl Wound {
    /// Whether this is some version of the page; what was there before it was damaged is one.
    fn is_sound(&self, image: &[u8]) -> bool {
        is_version((self.partition, self.page), &self.before, image)
    }
}

/// Whether the image is a version of the page, of the database that the other image says it is of.
fn is_version(page: (PartitionId, PageNo), of: &[u8], image: &[u8]) -> bool {
    let mut database_id = [0; 8];
    database_id.copy_from_slice(&of[16..24]);
    header::check_image(image, page, u64::from_le_bytes(database_id), "", 0).is_ok()
}

/// Counts of what became of damaged pages, by way and outcome.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// By name.
    pub seen: BTreeMap<String, u64>,
    /// Pages damaged.
    pub wounds: u64,
}

impl Outcomes {
    fn note(&mut self, way: Way, what: &str) {
        *self.seen.entry(format!("{way:?}: {what}").to_lowercase()).or_default() += 1;
    }

    fn count(&mut self, what: String, by: u64) {
        *self.seen.entry(what).or_default() += by;
    }

    /// Adds those of another run.
    pub fn merge(&mut self, other: Outcomes) {
        self.wounds += other.wounds;
        for (what, count) in other.seen {
            *self.seen.entry(what).or_default() += count;
        }
    }

    /// Pages with this outcome, however they were damaged.
    pub fn total(&self, outcome: &str) -> u64 {
        self.seen.iter().filter(|(name, _)| name.ends_with(outcome)).map(|(_, count)| count).sum()
    }
}

/// Runs one seed: at least `wounds` pages damaged, one round after the other. The error says what went wrong.
pub fn run_seed(seed: u64, sources: Sources, wounds: u64) -> Result<Outcomes, String> {
    let mut run = Run::new(seed, sources)?;
    let mut rounds = 0;
    let mut all = || -> Step {
        while run.outcomes.wounds < wounds {
            rounds += 1;
            run.round()?;
        }
        run.end()
    };
    all().map_err(|stop| format!("seed {seed}, {sources:?}, round {rounds}: {stop}"))?;
    Ok(run.outcomes)
}

struct Run {
    choices: Choices,
    plan: Plan,
    disk: Disk,
    model: Model,
    tally: Tally,
    trace: Trace,
    sources: Sources,
    vault: Arc<DirectoryTarget>,
    keep_log_bytes: u64,
    db: Option<Database>,
    /// A scrub has seen all pages since the database was opened.
    ages_known: bool,
    /// What a crash has taken back is known to the model.
    is_settled: bool,
    snapshots: VecDeque<Vec<(String, Vec<u8>)>>,
    /// Pages that were free when they were damaged, and were left so: file and page.
    left_bad: BTreeSet<(String, u32)>,
    /// Files of another database.
    foreign: Vec<(String, Vec<u8>)>,
    outcomes: Outcomes,
}

fn part_files(disk: &SimStorage) -> Vec<(String, Vec<u8>)> {
    let names = disk.files().into_iter().filter(|name| name.starts_with("part/"));
    let files = names.filter_map(|name| disk.read_file(&name).ok().map(|bytes| (name, bytes)));
    // One that is being made has no page yet.
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn partition_of(file: &str) -> Option<PartitionId> {
    Some(PartitionId(file.strip_prefix("part/")?.strip_suffix(".dat")?.parse().ok()?))
}

fn wrong<T>(what: impl Into<String>) -> Step<T> {
    Err(Stop::Wrong(what.into()))
}

impl Run {
    fn new(seed: u64, sources: Sources) -> Result<Run, String> {
        let mut choices = Choices::seeded(seed);
        let mut plan = Plan::draw(&mut choices, None);
        // More data than cache, so that pages come and go.
        plan.value_bytes = *choices.pick(&[300, 1200]);
        plan.preload_rows = (1_600_000 / (plan.value_bytes / 2 + 60)).min(6000);
        plan.key_space = plan.preload_rows;
        plan.big_value_bytes = 20_000;
        plan.max_log_bytes = 64 << 20;
        let keep_log_bytes = *choices.pick(&[0, 0, 1 << 20, 1 << 40]);
        let page_bytes = plan.page_bytes;
        let mut run = Run {
            choices,
            disk: Disk::new(mix(seed), page_bytes),
            plan,
            model: Model::default(),
            tally: Tally::default(),
            trace: Trace::Off,
            sources,
            vault: Arc::new(DirectoryTarget::within(Arc::new(SimStorage::new(seed)), "")),
            keep_log_bytes,
            db: None,
            ages_known: false,
            is_settled: false,
            snapshots: VecDeque::new(),
            left_bad: BTreeSet::new(),
            foreign: foreign(page_bytes)?,
            outcomes: Outcomes::default(),
        };
        let begin = |run: &mut Run| -> Step {
            run.open(OpenMode::Create)?;
            run.session(|session| session.preload())?;
            run.session(|session| session.checkpoint())?;
            run.back_up(&BackupOptions::new())
        };
        begin(&mut run).map_err(|stop| format!("seed {seed}: {stop}"))?;
        Ok(run)
    }

    fn session<T>(&mut self, work: impl FnOnce(&mut Session<'_>) -> Step<T>) -> Step<T> {
        let Some(db) = &self.db else { return wrong("no database is open") };
        let mut session = Session {
            db,
            model: &mut self.model,
            plan: &self.plan,
            choices: &mut self.choices,
            tally: &mut self.tally,
            trace: &mut self.trace,
        };
        work(&mut session)
    }

    fn open(&mut self, mode: OpenMode) -> Step {
        self.open_unread(mode)?;
        self.compare()
    }

    fn open_unread(&mut self, mode: OpenMode) -> Step {
        self.disk.monitor().restart();
        let mut options = self.plan.options(mode).keep_log_bytes(self.keep_log_bytes);
        if self.sources == Sources::Backup {
            options = options.archive(Arc::clone(&self.vault) as _);
        }
        let opened = options.open_on(self.disk.storage());
        let db = opened.map_err(|error| Stop::Engine { doing: "open".to_owned(), error })?;
        self.db = Some(db);
        (self.ages_known, self.is_settled) = (false, false);
        Ok(())
    }

    fn read(&mut self) -> Step<crate::model::State> {
        let Some(db) = &self.db else { return wrong("no database is open") };
        read_state(db)
    }

    /// Everything is as the model says.
    fn compare(&mut self) -> Step {
        let found = self.read()?;
        if !self.is_settled {
            self.model.recovered(found).map_err(Stop::Wrong)?;
            self.is_settled = true;
            return Ok(());
        }
        let difference = self.model.working().difference(&found);
        if difference.is_empty() { Ok(()) } else { wrong(difference) }
    }

    fn scrub(&mut self) -> Step<ScrubReport> {
        let Some(db) = &self.db else { return wrong("no database is open") };
        let scrubbed = db.scrub(&mut |_| ControlFlow::Continue(()));
        let report = scrubbed.map_err(|error| Stop::Engine { doing: "scrub".to_owned(), error })?;
        self.ages_known = true;
        Ok(report)
    }

    fn back_up(&mut self, options: &BackupOptions) -> Step {
        let (Sources::Backup, Some(db)) = (self.sources, &self.db) else { return Ok(()) };
        let taken = db.backup(&*self.vault, options, &mut |_| ControlFlow::Continue(()));
        taken.map(drop).map_err(|error| Stop::Engine { doing: "backup".to_owned(), error })?;
        self.model.all_durable();
        Ok(())
    }

    fn round(&mut self) -> Step {
        for _ in 0..self.choices.between(1, 6) {
            self.session(|session| session.step())?;
        }
        if self.choices.once_in(6) {
            self.back_up(&BackupOptions::new())?;
        }
        if let (Sources::Backup, Some(db)) = (self.sources, &self.db) {
            let archived = db.archive();
            archived.map_err(|error| Stop::Engine { doing: "archive".to_owned(), error })?;
        }
        if !self.ages_known {
            let mut report = self.scrub()?;
            // Pages taken since they were damaged are in memory only: their copies are bad until they are written for the first time.
            report
                .healed
                .retain(|f| !f.page.is_some_and(|page| self.left_bad.remove(&(f.file.clone(), page))));
            if !report.healed.is_empty() || !report.damaged.is_empty() {
                return wrong(format!("a scrub of sound files: {report:?}"));
            }
        }
        self.snapshots.push_back(part_files(self.disk.sim()));
        if self.snapshots.len() > SNAPSHOTS {
            self.snapshots.pop_front();
        }
        let finders =
            [Finder::Work, Finder::Reading, Finder::Scrub, Finder::Scrub, Finder::Reopen, Finder::Crash];
        let finder = *self.choices.pick(&finders);
        self.stop_before(finder)?;
        let wounds = self.wound(matches!(finder, Finder::Work | Finder::Reading | Finder::Scrub));
        self.outcomes.wounds += wounds.len() as u64;
        let met = self.meet(finder);
        self.account(finder, &wounds, met)?;
        watched(&self.disk).map_err(Stop::Wrong)
    }

    /// Pages of a database that is not open are damaged before it is opened again.
    fn stop_before(&mut self, finder: Finder) -> Step {
        match finder {
            Finder::Reopen => {
                let Some(db) = self.db.take() else { return Ok(()) };
                db.close().map_err(|error| Stop::Engine { doing: "close".to_owned(), error })?;
                self.model.all_durable();
            }
            Finder::Crash => self.crash(),
            _ => {}
        }
        Ok(())
    }

    fn crash(&mut self) {
        let mode = *self.choices.pick(&[CrashMode::Any, CrashMode::Kill, CrashMode::Subset]);
        let seed = self.choices.fresh();
        self.disk.crash(mode, seed);
        // Its handles only fail from here on.
        drop(self.db.take());
    }

    fn wound(&mut self, may_be_stale: bool) -> Vec<Wound> {
        let mut wounds: Vec<Wound> = Vec::new();
        let files = part_files(self.disk.sim());
        let most = *self.choices.pick(&[2, 12, 60, 60]);
        for _ in 0..self.choices.between(1, most) {
            let (file, bytes) = self.choices.pick(&files);
            let page_bytes = self.plan.page_bytes;
            let page = self.choices.below((bytes.len() / page_bytes) as u64) as usize;
            let before = bytes[page * page_bytes..][..page_bytes].to_vec();
            let Some(partition) = partition_of(file) else { continue };
            let is_sound = is_version((partition, PageNo(page as u32)), &before, &before);
            if header::kind(&before) == 0
                || !is_sound
                || wounds.iter().any(|wound| (wound.partition, wound.page.0) == (partition, page as u32))
            {
                continue;
            }
            let ways = [Way::Flips, Way::Zeros, Way::Misplaced, Way::Foreign, Way::Stale, Way::Stale];
            let way = *self.choices.pick(&ways[..if may_be_stale { 6 } else { 4 }]);
            let Some(bad) = self.bad(way, file, page, &before, &files) else { continue };
            if bad == before {
                continue;
            }
            let offset = (page * page_bytes) as u64;
            if self.disk.sim().overwrite(file, offset, &bad).is_err() {
                continue;
            }
            let page = PageNo(page as u32);
            wounds.push(Wound { file: file.clone(), partition, page, way, before, bad });
        }
        wounds
    }

    /// What the page is to be overwritten with.
    fn bad(
        &mut self,
        way: Way,
        file: &str,
        page: usize,
        before: &[u8],
        files: &[(String, Vec<u8>)],
    ) -> Option<Vec<u8>> {
        let page_bytes = before.len();
        let of = |files: &[(String, Vec<u8>)], file: &str, page: usize| {
            let (_, bytes) = files.iter().find(|(name, _)| name == file)?;
            bytes.get(page * page_bytes..(page + 1) * page_bytes).map(<[u8]>::to_vec)
        };
        match way {
            Way::Flips => {
                let mut bad = before.to_vec();
                for _ in 0..=self.choices.skewed(64) {
                    bad[self.choices.below(page_bytes as u64) as usize] ^= 1 << self.choices.below(8);
                }
                Some(bad)
            }
            Way::Zeros => Some(vec![0; page_bytes]),
            Way::Misplaced => {
                let (other, bytes) = self.choices.pick(files);
                let at = self.choices.below((bytes.len() / page_bytes) as u64) as usize;
                let is_itself = other == file && at == page;
                of(files, other, at).filter(|bad| !is_itself && header::kind(bad) != 0)
            }
            Way::Foreign => of(&self.foreign, file, page).filter(|bad| header::kind(bad) != 0),
            Way::Stale => {
                let at = self.choices.below(self.snapshots.len() as u64) as usize;
                let older = of(self.snapshots.get(at)?, file, page)?;
                let is_older =
                    header::kind(&older) != 0 && header::page_lsn(&older) < header::page_lsn(before);
                is_older.then_some(older)
            }
        }
    }

    /// Lets what is bad be met.
    fn meet(&mut self, finder: Finder) -> Step {
        match finder {
            Finder::Work => {
                for _ in 0..self.choices.between(1, 8) {
                    self.session(|session| session.step())?;
                }
                Ok(())
            }
            Finder::Reading => self.compare(),
            Finder::Scrub => Ok(()),
            Finder::Reopen | Finder::Crash => {
                for _ in 0..self.choices.below(3) {
                    self.open_and_crash()?;
                }
                self.open(OpenMode::Open)
            }
        }
    }

    /// Opens the database, and lets the machine stop at some I/O of that, or of the scrub after it: in the middle of a healing, often.
    fn open_and_crash(&mut self) -> Step {
        let io = self.disk.sim().io_count() + 1 + self.choices.skewed(600);
        self.disk.sim().crash_at(io);
        let met = self.open(OpenMode::Open).and_then(|()| self.scrub().map(drop));
        let has_crashed = self.disk.sim().is_crashed();
        match met {
            // A machine that has stopped answers nothing, but nothing wrong either.
            Err(Stop::Engine { .. } | Stop::Read { .. }) if has_crashed => {}
            other => {
                Run::is_report(other)?;
            }
        }
        watched(&self.disk).map_err(Stop::Wrong)?;
        self.outcomes.count("machines stopped while they healed".to_owned(), u64::from(has_crashed));
        self.crash();
        Ok(())
    }

    /// Sees what became of each damaged page.
    fn account(&mut self, finder: Finder, wounds: &[Wound], met: Step) -> Step {
        let mut is_reported = Run::is_report(met)?;
        let mut scrubbed = None;
        if self.db.is_some() {
            match self.scrub() {
                Ok(report) => scrubbed = Some(report),
                Err(stop) => is_reported |= Run::is_report(Err(stop))?,
            }
        }
        let read = if self.db.is_some() { self.compare() } else { Ok(()) };
        is_reported |= Run::is_report(read)?;
        if let Some(db) = &self.db {
            // What has newer changes in memory gets to the disk.
            let taken = db.checkpoint().map(drop);
            is_reported |= Run::is_report(
                taken.map_err(|error| Stop::Engine { doing: "checkpoint".to_owned(), error }),
            )?;
        }
        // A table dropped meanwhile has nothing to lose; its files may stay for a while.
        let partitions = self.db.as_ref().and_then(|db| db.partitions().ok());
        let listed: Option<Vec<u32>> =
            partitions.as_ref().map(|all| all.iter().map(|partition| partition.id).collect());
        // Put out of use by who has read it: everybody is told.
        let is_quarantined = |id: u32| {
            let mut partitions = partitions.iter().flatten();
            partitions.any(|p| p.id == id && p.state == hamal::PartitionState::Quarantined)
        };
        let mut damaged = 0;
        let files = part_files(self.disk.sim());
        for wound in wounds {
            let bytes = files.iter().find(|(name, _)| *name == wound.file).map(|(_, bytes)| bytes);
            let at = wound.page.0 as usize * self.plan.page_bytes;
            let now = bytes.and_then(|bytes| bytes.get(at..at + self.plan.page_bytes));
            let is_named = |findings: &[hamal::Finding]| {
                findings
                    .iter()
                    .any(|f| f.file == wound.file && f.page.is_none_or(|page| page == wound.page.0))
            };
            let what = match (now, &scrubbed) {
                (None, _) => "file gone",
                (Some(now), _) if now == wound.before => "healed, as it was",
                (Some(now), _) if now != wound.bad && wound.is_sound(now) => "healed, with newer changes",
                (Some(_), Some(report)) if is_named(&report.damaged) => "reported by a scrub",
                (Some(_), Some(_)) if is_quarantined(wound.partition.0) => "reported by an error",
                (Some(_), Some(_))
                    if listed.as_ref().is_some_and(|ids| !ids.contains(&wound.partition.0)) =>
                {
                    "of a dropped table"
                }
                (Some(_), Some(_)) if !self.is_in_use(wound) => "free",
                // The handle has refused to go on, or the open has.
                (Some(_), None) if is_reported => "reported by an error",
                (Some(_), _) => {
                    let Wound { file, page, way, .. } = wound;
                    return wrong(format!(
                        "{way:?}, {finder:?}: page {page} of {file} is bad, and nobody says so"
                    ));
                }
            };
            damaged += u64::from(what.starts_with("reported"));
            if what == "free" {
                self.left_bad.insert((wound.file.clone(), wound.page.0));
            }
            self.outcomes.note(wound.way, what);
        }
        self.outcomes.count(format!("found by {finder:?}").to_lowercase(), wounds.len() as u64);
        if self.sources == Sources::Backup && (damaged > 0 || is_reported) {
            return wrong(format!(
                "{damaged} pages were not healed, although there is a backup: {scrubbed:?}"
            ));
        }
        if damaged > 0 || is_reported {
            self.mend(wounds)?;
        }
        Ok(())
    }

    /// Whether the step has ended with damage being reported. Every other error fails the run.
    fn is_report(step: Step) -> Step<bool> {
        match step {
            Ok(()) => Ok(false),
            Err(Stop::Engine { error, .. })
                if matches!(
                    error.kind(),
                    ErrorKind::PartitionUnavailable
                        | ErrorKind::Corrupt
                        | ErrorKind::Poisoned
                        | ErrorKind::TransactionEnded
                ) =>
            {
                Ok(true)
            }
            Err(Stop::Read { error, .. }) if error.to_string().contains("damaged") => Ok(true),
            // What a verification in the middle of the work has found is reported, too.
            Err(Stop::Unsound(_)) => Ok(true),
            Err(stop) => Err(stop),
        }
    }

    /// Whether the page's bit is set, by the bitmap on the disk, which is up to date.
    fn is_in_use(&self, wound: &Wound) -> bool {
        let page_bytes = self.plan.page_bytes;
        let geometry = Geometry::new(page_bytes);
        let bitmap = geometry.bitmap_of(wound.page).0 as usize * page_bytes;
        let Ok(bytes) = self.disk.sim().read_file(&wound.file) else { return true };
        let Some(bitmap) = bytes.get(bitmap..bitmap + page_bytes) else { return true };
        wound.page.0 == 0
            || geometry.is_bitmap(wound.page)
            || geometry.is_set(bitmap, geometry.bit_of(wound.page))
    }

    /// Puts the pages back that are still bad: all must be as if nothing had happened (O3).
    fn mend(&mut self, wounds: &[Wound]) -> Step {
        self.crash();
        for wound in wounds {
            let at = wound.page.0 as usize * self.plan.page_bytes;
            let now = self.disk.sim().read_file(&wound.file).unwrap_or_default();
            let is_bad = |now: &[u8]| now == wound.bad || !wound.is_sound(now);
            if now.get(at..at + self.plan.page_bytes).is_some_and(is_bad) {
                let put = self.disk.sim().overwrite(&wound.file, at as u64, &wound.before);
                put.map_err(|error| Stop::Wrong(error.to_string()))?;
            }
        }
        self.open_unread(OpenMode::Open)?;
        self.repair()?;
        self.compare()
    }

    /// Brings back the partitions that are quarantined, out of their own files, which are whole again.
    fn repair(&mut self) -> Step {
        let Some(db) = &self.db else { return wrong("no database is open") };
        let partitions = db.partitions().map_err(|error| Stop::Engine { doing: "list".to_owned(), error })?;
        for partition in partitions.iter().filter(|p| p.state == PartitionState::Quarantined) {
            let repaired =
                db.repair(partition.id, None, &RepairOptions::new(), &mut |_| ControlFlow::Continue(()));
            repaired.map_err(|error| Stop::Engine { doing: format!("repair {partition:?}"), error })?;
            self.outcomes.count("partitions quarantined and repaired".to_owned(), 1);
        }
        Ok(())
    }

    fn end(&mut self) -> Step {
        if let Some(db) = self.db.take() {
            verify(&db, &mut self.tally)?;
            let stats = db.stats();
            for (what, count) in [
                ("sources of the last life: copies", stats.healed_from_copies),
                ("sources of the last life: the log", stats.healed_from_log),
                ("sources of the last life: backups", stats.healed_from_backups),
            ] {
                self.outcomes.count(what.to_owned(), count);
            }
            db.close().map_err(|error| Stop::Engine { doing: "close".to_owned(), error })?;
            self.model.all_durable();
        }
        self.open(OpenMode::Open)?;
        self.compare()
    }
}

/// Files of another database, whose partitions have the same names.
fn foreign(page_bytes: usize) -> Result<Vec<(String, Vec<u8>)>, String> {
    let plan = Plan { preload_rows: 200, key_space: 200, ..Plan::small(page_bytes) };
    let disk = Disk::new(0xf0e1, page_bytes);
    let db = disk.open(&plan, OpenMode::Create).map_err(|stop| stop.to_string())?;
    let (mut model, mut choices) = (Model::default(), Choices::seeded(5));
    let (mut tally, mut trace) = (Tally::default(), Trace::Off);
    let mut session = Session {
        db: &db,
        model: &mut model,
        plan: &plan,
        choices: &mut choices,
        tally: &mut tally,
        trace: &mut trace,
    };
    session.preload().and_then(|()| session.checkpoint()).map_err(|stop| stop.to_string())?;
    Ok(part_files(disk.sim()))
}
