//! Faults by schedule: which call fails, when, and how.

use std::io;

use rustix::io::Errno;

/// What a call does to the disk. Each counts as one I/O; `exists`, `len`, clock and randomness are not I/Os.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `open`.
    Open,
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `sync_data`.
    Sync,
    /// `set_len`.
    SetLen,
    /// `allocate`.
    Allocate,
    /// `create`.
    Create,
    /// `create_directory`.
    CreateDirectory,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `list`.
    List,
    /// `sync_directory`.
    SyncDirectory,
    /// `lock`.
    Lock,
}

/// How many operations there are.
pub(super) const OPERATIONS: usize = Operation::Lock as usize + 1;

/// A set of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u16);

impl Operations {
    /// Every operation.
    pub const ALL: Operations = Operations((1 << OPERATIONS) - 1);
    /// What changes the disk, syncs included.
    pub const MUTATING: Operations = Operations::of(&[
        Operation::Write,
        Operation::Sync,
        Operation::SetLen,
        Operation::Allocate,
        Operation::Create,
        Operation::CreateDirectory,
        Operation::Rename,
        Operation::Remove,
        Operation::SyncDirectory,
    ]);

    /// The set of these.
    pub const fn of(operations: &[Operation]) -> Operations {
        let (mut bits, mut index) = (0, 0);
        while index < operations.len() {
            bits |= 1 << operations[index] as u16;
            index += 1;
        }
        Operations(bits)
    }

    /// Whether `operation` is in the set.
    pub const fn contains(self, operation: Operation) -> bool {
        self.0 & (1 << operation as u16) != 0
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// `EIO`, on anything. A write may have reached the page cache in part; for a sync see the module's header.
    Eio,
    /// `ENOSPC`, on write, allocate, set_len, create, create_directory, rename and both syncs; otherwise as `Eio`.
    Enospc,
    /// `EINTR`, on reads and writes: nothing transferred.
    Interrupted,
    /// A read or write transfers a part only, at least one byte, and succeeds.
    Short,
    /// A write is acknowledged and never happens.
    LostWrite,
    /// A write is acknowledged but lands this many bytes further on in the same file.
    Misdirected {
        /// How far; may be negative, and stops at the start of the file.
        by_bytes: i64,
    },
}

impl FaultKind {
    fn applies_to(self, operation: Operation) -> bool {
        use Operation as Op;
        match self {
            FaultKind::Eio => true,
            FaultKind::Enospc => Operations::MUTATING.contains(operation) && operation != Op::Remove,
            FaultKind::Interrupted | FaultKind::Short => matches!(operation, Op::Read | Op::Write),
            FaultKind::LostWrite | FaultKind::Misdirected { .. } => operation == Op::Write,
        }
    }

    /// The error that this kind answers with, if it is one.
    pub(super) fn error(self) -> Option<io::Error> {
        match self {
            FaultKind::Eio => Some(Errno::IO.into()),
            FaultKind::Enospc => Some(Errno::NOSPC.into()),
            FaultKind::Interrupted => Some(Errno::INTR.into()),
            FaultKind::Short | FaultKind::LostWrite | FaultKind::Misdirected { .. } => None,
        }
    }
}

/// Which of the calls that a fault applies to is the first to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The first at or after this I/O number, as [`super::SimStorage::io_count`] counts: the first I/O is 1.
    Io(u64),
    /// The nth from now on that the fault applies to; the first is 1.
    Nth(u64),
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Once.
    Once,
    /// From then on, every time.
    Forever,
}

/// A fault to come.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it strikes first.
    pub when: When,
    /// Whether it goes away.
    pub repeat: Repeat,
    /// What it does.
    pub kind: FaultKind,
    /// The calls it strikes, of those that its kind applies to.
    pub only: Operations,
    /// The files it strikes, all if `None`: a name in which `*` stands for any characters. A rename counts under both
    /// its names.
    pub file: Option<String>,
}

impl Fault {
    /// A fault on any operation and any file.
    pub fn new(kind: FaultKind, when: When, repeat: Repeat) -> Fault {
        Fault { when, repeat, kind, only: Operations::ALL, file: None }
    }

    /// The same, on these operations only.
    #[must_use]
    pub fn only(mut self, operations: &[Operation]) -> Fault {
        self.only = Operations::of(operations);
        self
    }

    /// The same, on files of this name only; see [`Fault::file`].
    #[must_use]
    pub fn on(mut self, pattern: impl Into<String>) -> Fault {
        self.file = Some(pattern.into());
        self
    }

    fn applies_to(&self, operation: Operation, names: &[&str]) -> bool {
        self.only.contains(operation)
            && self.kind.applies_to(operation)
            && self.file.as_deref().is_none_or(|pattern| names.iter().any(|name| matches(pattern, name)))
    }
}

/// A fault that struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The number of the I/O it struck.
    pub io: u64,
    /// What the call was.
    pub operation: Operation,
    /// On which file (a rename: its old name).
    pub file: String,
    /// What it did.
    pub kind: FaultKind,
}

/// The faults to come and those that struck.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    coming: Vec<Fault>,
    pub(super) fired: Vec<Fired>,
}

impl Schedule {
    pub(super) fn add(&mut self, fault: Fault) {
        self.coming.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.coming.clear();
    }

    /// The fault that strikes this call: of several, the one injected first. The others see the call pass.
    pub(super) fn strike(&mut self, io: u64, operation: Operation, names: &[&str]) -> Option<FaultKind> {
        let mut struck = None;
        for (index, fault) in self.coming.iter_mut().enumerate() {
            if !fault.applies_to(operation, names) {
                continue;
            }
            let due = match &mut fault.when {
                When::Io(from) => io >= *from,
                When::Nth(left) => {
                    *left = left.saturating_sub(1);
                    *left == 0
                }
            };
            if due && struck.is_none() {
                struck = Some(index);
            }
        }
        let index = struck?;
        let kind = self.coming[index].kind;
        if self.coming[index].repeat == Repeat::Once {
            self.coming.remove(index);
        }
        let file = names.first().map_or_else(String::new, ToString::to_string);
        self.fired.push(Fired { io, operation, file, kind });
        Some(kind)
    }
}

/// Whether `name` fits `pattern`, where `*` stands for any characters, none included.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let Some((middle, last)) = rest.rsplit_once('*') else { return name.ends_with(rest) };
    for part in middle.split('*') {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names_with_stars_for_anything() {
        for (pattern, name) in [
            ("LOCK", "LOCK"),
            ("wal/*", "wal/1.log"),
            ("*.log", "wal/1.log"),
            ("w*1*g", "wal/1.log"),
            ("*", ""),
            ("a*a", "aa"),
            ("*b*c*", "abc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("LOCK", "LOCKS"), ("wal/*", "part/1"), ("*.log", "a.logs"), ("a*a", "a"), ("*c*b*", "abc")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn the_nth_call_counts_only_calls_the_fault_applies_to() {
        let mut schedule = Schedule::default();
        schedule
            .add(Fault::new(FaultKind::Eio, When::Nth(2), Repeat::Once).only(&[Operation::Sync]).on("wal/*"));
        let calls = [
            (Operation::Sync, "wal/1"),
            (Operation::Write, "wal/1"),
            (Operation::Sync, "part/1"),
            (Operation::Sync, "wal/2"),
            (Operation::Sync, "wal/2"),
        ];
        let struck: Vec<bool> = (1..)
            .zip(calls)
            .map(|(io, (operation, name))| schedule.strike(io, operation, &[name]).is_some())
            .collect();
        assert_eq!(struck, [false, false, false, true, false]);
        assert_eq!(schedule.fired.len(), 1);
        assert_eq!((schedule.fired[0].io, schedule.fired[0].file.as_str()), (4, "wal/2"));
    }

    #[test]
    fn a_fault_for_ever_goes_on_and_clearing_ends_it() {
        let mut schedule = Schedule::default();
        schedule.add(Fault::new(FaultKind::Enospc, When::Io(3), Repeat::Forever));
        let strike = |schedule: &mut Schedule, io| schedule.strike(io, Operation::Write, &["f"]);
        assert_eq!(strike(&mut schedule, 2), None);
        assert_eq!(strike(&mut schedule, 3), Some(FaultKind::Enospc));
        assert_eq!(schedule.strike(4, Operation::Read, &["f"]), None, "no read needs space");
        assert_eq!(strike(&mut schedule, 5), Some(FaultKind::Enospc));
        schedule.clear();
        assert_eq!(strike(&mut schedule, 6), None);
    }

    #[test]
    fn an_operation_set_holds_what_it_was_made_of() {
        let set = Operations::of(&[Operation::Open, Operation::Lock]);
        assert!(set.contains(Operation::Open) && set.contains(Operation::Lock));
        assert!(!set.contains(Operation::Sync));
        assert!(Operations::ALL.contains(Operation::Lock) && !Operations::MUTATING.contains(Operation::Read));
    }
}
