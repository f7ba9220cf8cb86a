//! What survives a crash: the seeded choices, apart from the state they are applied to.

use std::collections::BTreeMap;

use super::data::LengthChange;
use super::namespace::InodeId;
use super::rng::Rng;

/// How the machine stops, and what that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashMode {
    /// The process is killed. The page cache stays, so everything written is there to read; what was not synced is
    /// still not synced, and a power cut after this may yet lose it.
    Kill,
    /// Power is cut the moment the disk has caught up: everything written is durable.
    KeepAll,
    /// Power is cut before the disk did anything unasked: only what was synced is there.
    LoseAll,
    /// Power is cut anywhere in between: a seeded choice of unsynced sectors, lengths and names is there.
    Subset,
    /// One of the above, by the seed; `Subset` most of the time.
    Any,
}

impl CrashMode {
    /// Replaces `Any` by a choice.
    pub(super) fn decide(self, rng: &mut Rng) -> CrashMode {
        match self {
            CrashMode::Any => match rng.below(16) {
                0 | 1 => CrashMode::Kill,
                2 => CrashMode::KeepAll,
                3 | 4 => CrashMode::LoseAll,
                _ => CrashMode::Subset,
            },
            decided => decided,
        }
    }
}

/// What survives of one file or one directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Survival {
    Nothing,
    Everything,
    /// What came up to this point of the run: a disk that works in order.
    UpTo(u64),
    /// Each sector for itself, this often out of 16.
    Sectors(u64),
}

impl Survival {
    fn choose(rng: &mut Rng) -> Survival {
        match rng.below(8) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            choice => Survival::Sectors([1, 4, 8, 8, 12, 15][choice as usize - 2]),
        }
    }

    /// How many of these changes survive; they reach the disk in order.
    pub(super) fn lengths(self, changes: &[LengthChange], rng: &mut Rng) -> usize {
        let sequences = changes.iter().map(|change| change.sequence);
        self.prefix(sequences, rng)
    }

    /// How many of some ordered changes survive.
    fn prefix(self, sequences: impl ExactSizeIterator<Item = u64>, rng: &mut Rng) -> usize {
        let count = sequences.len();
        match self {
            Survival::Nothing => 0,
            Survival::Everything => count,
            Survival::UpTo(last) => sequences.take_while(|sequence| *sequence <= last).count(),
            Survival::Sectors(_) => match rng.below(4) {
                0 => 0,
                1 => count,
                _ => rng.index(count + 1),
            },
        }
    }

    /// Which of a sector's versions, given oldest first, the disk has; none: what was durable before.
    pub(super) fn version(
        self,
        sequences: impl ExactSizeIterator<Item = u64>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let count = sequences.len();
        let last = count.checked_sub(1)?;
        match self {
            Survival::Nothing => None,
            Survival::Everything => Some(last),
            Survival::UpTo(end) => sequences.take_while(|sequence| *sequence <= end).count().checked_sub(1),
            Survival::Sectors(of_16) => {
                let survives = rng.chance(of_16, 16);
                survives.then(|| if rng.chance(3, 4) { last } else { rng.index(count) })
            }
        }
    }
}

/// What survives of the whole disk.
#[derive(Debug)]
pub(super) enum Plan {
    /// The same for all.
    All(Survival),
    /// Each file and directory for itself.
    Each,
}

impl Plan {
    /// For a power cut of this mode after `sequence` changes. `Kill` is not a power cut, and `Any` is decided before.
    pub(super) fn choose(mode: CrashMode, sequence: u64, rng: &mut Rng) -> Plan {
        match mode {
            CrashMode::KeepAll => Plan::All(Survival::Everything),
            CrashMode::LoseAll => Plan::All(Survival::Nothing),
            CrashMode::Kill | CrashMode::Subset | CrashMode::Any => match rng.below(8) {
                0 => Plan::All(Survival::Nothing),
                1 => Plan::All(Survival::UpTo(rng.below(sequence + 1))),
                _ => Plan::Each,
            },
        }
    }

    pub(super) fn file(&self, rng: &mut Rng) -> Survival {
        match self {
            Plan::All(survival) => *survival,
            Plan::Each => Survival::choose(rng),
        }
    }
}

/// What survives of the changes of names, decided change by change: `(sequence, the unsynced directories it touches)`.
#[derive(Debug)]
pub(super) struct NamePlan<'plan> {
    plan: &'plan Plan,
    directories: BTreeMap<InodeId, NameSurvival>,
}

#[derive(Clone, Copy, Debug)]
enum NameSurvival {
    /// The first so many changes.
    First(usize),
    /// Each change for itself, this often out of 16.
    Some(u64),
}

impl<'plan> NamePlan<'plan> {
    pub(super) fn new(plan: &'plan Plan) -> NamePlan<'plan> {
        NamePlan { plan, directories: BTreeMap::new() }
    }

    /// Whether a change survives in all of these directories, with the number of unsynced changes that each has.
    pub(super) fn survives(
        &mut self,
        sequence: u64,
        directories: &[(InodeId, usize)],
        rng: &mut Rng,
    ) -> bool {
        match self.plan {
            Plan::All(Survival::Nothing) => false,
            Plan::All(Survival::UpTo(last)) => sequence <= *last,
            Plan::All(Survival::Everything | Survival::Sectors(_)) => true,
            Plan::Each => directories.iter().fold(true, |survives, (directory, changes)| {
                let survival =
                    self.directories.entry(*directory).or_insert_with(|| NameSurvival::choose(*changes, rng));
                survives & survival.next(rng)
            }),
        }
    }
}

impl NameSurvival {
    fn choose(changes: usize, rng: &mut Rng) -> NameSurvival {
        match rng.below(8) {
            0 => NameSurvival::First(0),
            1 | 2 => NameSurvival::First(usize::MAX),
            3..6 => NameSurvival::First(rng.index(changes + 1)),
            _ => NameSurvival::Some(8),
        }
    }

    fn next(&mut self, rng: &mut Rng) -> bool {
        match self {
            NameSurvival::First(left) => {
                let survives = *left > 0;
                *left = left.saturating_sub(1);
                survives
            }
            NameSurvival::Some(of_16) => rng.chance(*of_16, 16),
        }
    }
}
