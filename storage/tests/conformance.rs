//! The operating system and the simulated disk give the same answers to the same calls, as long as nothing crashes.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hamal_storage::sim::SimStorage;
use hamal_storage::{
    DIRECT_BLOCK_BYTES, File, Lock, OsStorage, Storage, read_exact_at, write_all_at, write_all_direct_at,
};
use proptest::prelude::*;

/// Runs each of these on both implementations, as a test of its own.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod os {
            $(#[test] fn $name() {
                let root = tempfile::tempdir().unwrap();
                super::$name(&super::OsStorage::new(root.path()));
            })*
        }
        mod sim {
            $(#[test] fn $name() { super::$name(&super::SimStorage::new(1)); })*
        }
    };
}

on_both! {
    bytes_written_are_read_back_at_any_offset
    writes_past_the_cache_and_through_it_see_each_other
    writes_past_the_cache_go_to_the_file_that_was_opened
    reads_stop_at_the_end_of_the_file
    gaps_read_as_zeros
    a_file_is_cut_and_extended_with_zeros
    allocating_extends_with_zeros_and_changes_no_byte
    two_handles_see_one_file
    an_open_file_survives_its_removal
    a_file_is_told_from_another_of_its_name
    creating_a_name_twice_is_refused
    opening_what_is_not_a_file_is_refused
    names_are_listed_sorted_and_without_their_directory
    directories_are_created_with_their_parents
    renaming_replaces_the_target
    renaming_onto_the_wrong_kind_is_refused
    removing_what_is_not_a_file_is_refused
    names_that_lead_outside_are_refused_by_every_call
    a_lock_excludes_another_until_it_is_dropped
    syncing_what_is_not_a_directory_is_refused
    reading_exactly_beyond_the_end_is_an_error_of_its_own
    many_threads_write_their_own_parts_of_one_file
    time_and_randomness_move
}

fn kind_of<T>(result: io::Result<T>) -> io::ErrorKind {
    result.map(drop).unwrap_err().kind()
}

fn create_with(storage: &dyn Storage, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = storage.create(name).unwrap();
    write_all_at(&*file, bytes, 0).unwrap();
    file
}

fn content(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

fn bytes_written_are_read_back_at_any_offset(storage: &dyn Storage) {
    let bytes: Vec<u8> = (0..20_000_u32).map(|index| (index % 251) as u8).collect();
    let file = create_with(storage, "f", &bytes);
    for (offset, len) in [(0, 1), (511, 2), (4_095, 4_098), (12_345, 100), (0, 20_000)] {
        let mut read = vec![0; len];
        read_exact_at(&*file, &mut read, offset as u64).unwrap();
        assert_eq!(read, bytes[offset..offset + len]);
    }
    file.sync_data().unwrap();
    assert_eq!(content(&*file), bytes);
}

/// Blocks, pieces of blocks, and blocks that are out of step in memory, each over bytes that were written through the cache and not synced.
fn writes_past_the_cache_and_through_it_see_each_other(storage: &dyn Storage) {
    const BLOCK: usize = DIRECT_BLOCK_BYTES;
    let file = create_with(storage, "f", &vec![1; 8 * BLOCK]);
    let other = storage.open("f").unwrap();
    let mut expected = content(&*file);
    let mut memory = vec![0; 5 * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    let pieces = [
        (aligned, 2 * BLOCK, 2 * BLOCK),
        (aligned, 100, BLOCK),
        (aligned, BLOCK, 3 * BLOCK + 8),
        (aligned + 8, BLOCK, 4 * BLOCK),
        (aligned + BLOCK, BLOCK, 0),
        // Over itself, and beyond the end of the file.
        (aligned + BLOCK, BLOCK, 0),
        (aligned, 3 * BLOCK, 7 * BLOCK),
    ];
    for (round, (from, len, offset)) in (2..).zip(pieces) {
        let around = offset.saturating_sub(1);
        write_all_at(&*other, &vec![100 + round; len + 2], around as u64).unwrap();
        expected.resize(expected.len().max(around + len + 2), 0);
        expected[around..around + len + 2].fill(100 + round);
        memory[from..from + len].fill(round);
        write_all_direct_at(&*file, &memory[from..from + len], offset as u64).unwrap();
        expected[offset..offset + len].fill(round);
        assert!(content(&*other) == expected, "after {len} bytes at {offset}");
    }
    file.sync_data().unwrap();
    assert!(content(&*other) == expected, "once it is synced");
}

/// What a reopening by name would get wrong.
fn writes_past_the_cache_go_to_the_file_that_was_opened(storage: &dyn Storage) {
    const BLOCK: usize = DIRECT_BLOCK_BYTES;
    let file = create_with(storage, "f", &vec![1; BLOCK]);
    storage.rename("f", "g").unwrap();
    storage.remove("g").unwrap();
    let others = ["f", "g"].map(|name| create_with(storage, name, &vec![2; BLOCK]));
    let memory = vec![3; 2 * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    write_all_direct_at(&*file, &memory[aligned..aligned + BLOCK], 0).unwrap();
    assert!(content(&*file) == vec![3; BLOCK]);
    for other in others {
        assert!(content(&*other) == vec![2; BLOCK], "a file that has its name now");
    }
}

fn reads_stop_at_the_end_of_the_file(storage: &dyn Storage) {
    let file = create_with(storage, "f", b"12345");
    let mut buffer = [9; 10];
    assert_eq!(file.read_at(&mut buffer, 2).unwrap(), 3);
    assert_eq!(&buffer[..4], b"345\x09");
    assert_eq!(file.read_at(&mut buffer, 5).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
    assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
}

fn gaps_read_as_zeros(storage: &dyn Storage) {
    let file = storage.create("f").unwrap();
    assert!(file.is_empty().unwrap());
    assert_eq!(file.write_at(&[], 500).unwrap(), 0);
    assert!(file.is_empty().unwrap(), "a write of nothing does not extend");
    write_all_at(&*file, b"x", 9_000).unwrap();
    assert_eq!(content(&*file), [vec![0; 9_000], b"x".to_vec()].concat());
}

fn a_file_is_cut_and_extended_with_zeros(storage: &dyn Storage) {
    let file = create_with(storage, "f", &[7; 10_000]);
    file.set_len(5_000).unwrap();
    assert_eq!(content(&*file), vec![7; 5_000]);
    file.set_len(8_000).unwrap();
    assert_eq!(content(&*file), [vec![7; 5_000], vec![0; 3_000]].concat());
    file.set_len(0).unwrap();
    assert!(file.is_empty().unwrap());
}

fn allocating_extends_with_zeros_and_changes_no_byte(storage: &dyn Storage) {
    let file = create_with(storage, "f", &[7; 1_000]);
    file.allocate(500, 100).unwrap();
    assert_eq!(content(&*file), vec![7; 1_000]);
    file.allocate(500, 5_000).unwrap();
    assert_eq!(content(&*file), [vec![7; 1_000], vec![0; 4_500]].concat());
    file.allocate(0, 0).unwrap();
    file.allocate(10_000, 0).unwrap();
    assert_eq!(file.len().unwrap(), 5_500);
}

fn two_handles_see_one_file(storage: &dyn Storage) {
    let one = create_with(storage, "f", b"old");
    let two = storage.open("f").unwrap();
    write_all_at(&*two, b"new", 0).unwrap();
    assert_eq!(content(&*one), b"new");
    storage.rename("f", "g").unwrap();
    write_all_at(&*one, b"!", 3).unwrap();
    assert_eq!(content(&*storage.open("g").unwrap()), b"new!");
}

fn an_open_file_survives_its_removal(storage: &dyn Storage) {
    let file = create_with(storage, "f", b"ghost");
    storage.remove("f").unwrap();
    storage.sync_directory("").unwrap();
    assert!(!storage.exists("f").unwrap());
    write_all_at(&*file, b"G", 0).unwrap();
    assert_eq!(content(&*file), b"Ghost");
    let other = create_with(storage, "f", b"other");
    assert_eq!(content(&*file), b"Ghost");
    assert_eq!(content(&*other), b"other");
}

fn a_file_is_told_from_another_of_its_name(storage: &dyn Storage) {
    let file = create_with(storage, "f", b"one");
    let identity = file.identity().unwrap();
    assert_eq!(storage.identity("f").unwrap(), Some(identity));
    assert_eq!(storage.open("f").unwrap().identity().unwrap(), identity);
    storage.rename("f", "g").unwrap();
    assert_eq!((storage.identity("f").unwrap(), storage.identity("g").unwrap()), (None, Some(identity)));
    let other = create_with(storage, "f", b"one");
    assert_ne!(other.identity().unwrap(), identity);
    storage.rename("f", "g").unwrap();
    assert_eq!(storage.identity("g").unwrap(), Some(other.identity().unwrap()));
    assert_eq!(file.identity().unwrap(), identity);
    assert_eq!(storage.identity("nowhere/f").unwrap(), None);
}

fn creating_a_name_twice_is_refused(storage: &dyn Storage) {
    create_with(storage, "f", b"kept");
    storage.create_directory("d").unwrap();
    assert_eq!(kind_of(storage.create("f")), io::ErrorKind::AlreadyExists);
    assert_eq!(kind_of(storage.create("d")), io::ErrorKind::AlreadyExists);
    assert_eq!(kind_of(storage.create_directory("f")), io::ErrorKind::AlreadyExists);
    assert_eq!(content(&*storage.open("f").unwrap()), b"kept");
}

fn opening_what_is_not_a_file_is_refused(storage: &dyn Storage) {
    create_with(storage, "f", b"");
    storage.create_directory("d").unwrap();
    assert_eq!(kind_of(storage.open("missing")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.open("missing/f")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.create("missing/f")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.open("d")), io::ErrorKind::IsADirectory);
    assert_eq!(kind_of(storage.open("f/x")), io::ErrorKind::NotADirectory);
    assert_eq!(kind_of(storage.create("f/x")), io::ErrorKind::NotADirectory);
    assert_eq!(kind_of(storage.lock("d")), io::ErrorKind::IsADirectory);
    assert!(!storage.exists("f/x").unwrap());
    assert!(!storage.exists("missing/x").unwrap());
}

fn names_are_listed_sorted_and_without_their_directory(storage: &dyn Storage) {
    storage.create_directory("d/sub").unwrap();
    for name in ["d/b", "d/a", "d/10", "d/9", "top"] {
        storage.create(name).unwrap();
    }
    assert_eq!(storage.list("d").unwrap(), ["10", "9", "a", "b", "sub"]);
    assert_eq!(storage.list("").unwrap(), ["d", "top"]);
    assert_eq!(storage.list("d/sub").unwrap(), Vec::<String>::new());
    assert_eq!(kind_of(storage.list("missing")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.list("top")), io::ErrorKind::NotADirectory);
}

fn directories_are_created_with_their_parents(storage: &dyn Storage) {
    storage.create_directory("").unwrap();
    storage.create_directory("a/b/c").unwrap();
    storage.create_directory("a/b").unwrap();
    assert!(storage.exists("").unwrap() && storage.exists("a").unwrap() && storage.exists("a/b/c").unwrap());
    create_with(storage, "f", b"");
    assert_eq!(kind_of(storage.create_directory("f/x")), io::ErrorKind::NotADirectory);
}

fn renaming_replaces_the_target(storage: &dyn Storage) {
    storage.create_directory("d").unwrap();
    create_with(storage, "f", b"new");
    let replaced = create_with(storage, "d/g", b"old");
    storage.rename("f", "d/g").unwrap();
    storage.sync_directory("").unwrap();
    storage.sync_directory("d").unwrap();
    assert_eq!(content(&*storage.open("d/g").unwrap()), b"new");
    assert_eq!(content(&*replaced), b"old");
    assert!(!storage.exists("f").unwrap());
    storage.rename("d/g", "d/g").unwrap();
    assert_eq!(storage.list("d").unwrap(), ["g"]);
    assert_eq!(kind_of(storage.rename("f", "h")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.rename("d/g", "missing/g")), io::ErrorKind::NotFound);
}

fn renaming_onto_the_wrong_kind_is_refused(storage: &dyn Storage) {
    storage.create_directory("d/e").unwrap();
    storage.create_directory("empty").unwrap();
    create_with(storage, "f", b"");
    assert_eq!(kind_of(storage.rename("f", "d")), io::ErrorKind::IsADirectory);
    assert_eq!(kind_of(storage.rename("d", "f")), io::ErrorKind::NotADirectory);
    assert_eq!(kind_of(storage.rename("empty", "d")), io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind_of(storage.rename("d", "d/e/x")), io::ErrorKind::InvalidInput);
    storage.rename("d", "empty").unwrap();
    assert_eq!(storage.list("empty").unwrap(), ["e"]);
}

fn removing_what_is_not_a_file_is_refused(storage: &dyn Storage) {
    storage.create_directory("d").unwrap();
    assert_eq!(kind_of(storage.remove("missing")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.remove("d")), io::ErrorKind::IsADirectory);
    assert!(storage.exists("d").unwrap());
}

fn names_that_lead_outside_are_refused_by_every_call(storage: &dyn Storage) {
    create_with(storage, "f", b"");
    for name in ["/f", "../f", "d/../f", "./f", "d//f", "f/"] {
        let results = [
            storage.open(name).map(drop),
            storage.create(name).map(drop),
            storage.exists(name).map(drop),
            storage.list(name).map(drop),
            storage.create_directory(name),
            storage.rename(name, "g"),
            storage.rename("f", name),
            storage.remove(name),
            storage.sync_directory(name),
            storage.lock(name).map(drop),
        ];
        for (call, result) in results.into_iter().enumerate() {
            assert_eq!(kind_of(result), io::ErrorKind::InvalidInput, "{name:?}, call {call}");
        }
    }
    assert_eq!(kind_of(storage.open("")), io::ErrorKind::InvalidInput);
    assert_eq!(kind_of(storage.remove("")), io::ErrorKind::InvalidInput);
    assert_eq!(storage.list("").unwrap(), ["f"]);
}

fn a_lock_excludes_another_until_it_is_dropped(storage: &dyn Storage) {
    let held = storage.lock("LOCK").unwrap();
    assert!(storage.exists("LOCK").unwrap());
    assert_eq!(kind_of(storage.lock("LOCK")), io::ErrorKind::WouldBlock);
    let _other = storage.lock("OTHER").unwrap();
    drop(held);
    let held = storage.lock("LOCK").unwrap();
    // The lock is on the file, not on its name.
    storage.rename("LOCK", "MOVED").unwrap();
    assert_eq!(kind_of(storage.lock("MOVED")), io::ErrorKind::WouldBlock);
    let _new = storage.lock("LOCK").unwrap();
    drop(held);
}

fn syncing_what_is_not_a_directory_is_refused(storage: &dyn Storage) {
    create_with(storage, "f", b"");
    storage.sync_directory("").unwrap();
    assert_eq!(kind_of(storage.sync_directory("missing")), io::ErrorKind::NotFound);
    assert_eq!(kind_of(storage.sync_directory("f")), io::ErrorKind::NotADirectory);
}

fn reading_exactly_beyond_the_end_is_an_error_of_its_own(storage: &dyn Storage) {
    let file = create_with(storage, "f", b"12345");
    assert_eq!(kind_of(read_exact_at(&*file, &mut [0; 3], 3)), io::ErrorKind::UnexpectedEof);
}

fn many_threads_write_their_own_parts_of_one_file(storage: &dyn Storage) {
    let file = storage.create("f").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..50_u64 {
                    let offset = (round * 4 + u64::from(thread)) * 300;
                    write_all_at(&**file, &[thread + 1; 300], offset).unwrap();
                    if round % 16 == 0 {
                        file.sync_data().unwrap();
                    }
                }
            });
        }
    });
    let expected: Vec<u8> = (0..200_u32).flat_map(|part| [(part % 4 + 1) as u8; 300]).collect();
    assert_eq!(content(&*file), expected);
}

fn time_and_randomness_move(storage: &dyn Storage) {
    let (first, second) = (storage.monotonic(), storage.monotonic());
    assert!(second >= first);
    assert_ne!(storage.random_u64(), storage.random_u64());
    // 2020-01-01, in microseconds.
    assert!(storage.now_micros() > 1_577_836_800_000_000);
}

const NAMES: [&str; 10] = ["a", "b", "d", "d/a", "d/e", "d/e/f", "a/b", "e", "", "../a"];

#[derive(Clone, Debug)]
enum Step {
    Open(usize),
    Create(usize),
    Close(usize),
    Read { slot: usize, offset: u64, len: usize },
    Write { slot: usize, offset: u64, bytes: Vec<u8> },
    Sync(usize),
    SetLen { slot: usize, len: u64 },
    Allocate { slot: usize, offset: u64, len: u64 },
    Len(usize),
    Exists(usize),
    List(usize),
    CreateDirectory(usize),
    Rename(usize, usize),
    Remove(usize),
    SyncDirectory(usize),
    Lock(usize),
    Unlock(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || 0..NAMES.len();
    let slot = || 0..4_usize;
    let offset = || prop_oneof![0..1_500_u64, 0..20_000_u64];
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..700),
        (any::<u8>(), 0..10_000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let step = prop_oneof![
        3 => name().prop_map(Step::Open),
        5 => name().prop_map(Step::Create),
        1 => slot().prop_map(Step::Close),
        5 => (slot(), offset(), 0..9_000_usize).prop_map(|(slot, offset, len)| Step::Read { slot, offset, len }),
        9 => (slot(), offset(), bytes).prop_map(|(slot, offset, bytes)| Step::Write { slot, offset, bytes }),
        2 => slot().prop_map(Step::Sync),
        3 => (slot(), offset()).prop_map(|(slot, len)| Step::SetLen { slot, len }),
        2 => (slot(), offset(), 0..9_000_u64).prop_map(|(slot, offset, len)| Step::Allocate { slot, offset, len }),
        2 => slot().prop_map(Step::Len),
        2 => name().prop_map(Step::Exists),
        2 => name().prop_map(Step::List),
        4 => name().prop_map(Step::CreateDirectory),
        5 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => name().prop_map(Step::Remove),
        2 => name().prop_map(Step::SyncDirectory),
        2 => name().prop_map(Step::Lock),
        1 => name().prop_map(Step::Unlock),
    ];
    proptest::collection::vec(step, 1..120)
}

#[derive(Debug, PartialEq)]
enum Answer {
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Names(Vec<String>),
    Failed(io::ErrorKind),
}

/// A storage and what is open on it. The fourth file opened replaces the first.
struct Session<'storage> {
    storage: &'storage dyn Storage,
    slots: Vec<Option<Arc<dyn File>>>,
    next: usize,
    locks: BTreeMap<usize, Box<dyn Lock>>,
}

impl<'storage> Session<'storage> {
    fn new(storage: &'storage dyn Storage) -> Session<'storage> {
        Session { storage, slots: vec![None; 4], next: 0, locks: BTreeMap::new() }
    }

    fn keep(&mut self, file: Arc<dyn File>) -> Answer {
        self.slots[self.next % 4] = Some(file);
        self.next += 1;
        Answer::Nothing
    }

    fn step(&mut self, step: &Step) -> Answer {
        self.try_step(step).unwrap_or_else(|error| Answer::Failed(error.kind()))
    }

    fn try_step(&mut self, step: &Step) -> io::Result<Answer> {
        let (storage, nothing) = (self.storage, |()| Answer::Nothing);
        let file = |slot: usize| self.slots[slot].clone().ok_or(io::ErrorKind::Other);
        Ok(match step {
            Step::Open(name) => {
                let file = storage.open(NAMES[*name])?;
                self.keep(file)
            }
            Step::Create(name) => {
                let file = storage.create(NAMES[*name])?;
                self.keep(file)
            }
            Step::Close(slot) => {
                self.slots[*slot] = None;
                Answer::Nothing
            }
            Step::Read { slot, offset, len } => {
                let mut bytes = vec![0; *len];
                let count = file(*slot)?.read_at(&mut bytes, *offset)?;
                bytes.truncate(count);
                Answer::Bytes(bytes)
            }
            Step::Write { slot, offset, bytes } => {
                Answer::Number(file(*slot)?.write_at(bytes, *offset)? as u64)
            }
            Step::Sync(slot) => file(*slot)?.sync_data().map(nothing)?,
            Step::SetLen { slot, len } => file(*slot)?.set_len(*len).map(nothing)?,
            Step::Allocate { slot, offset, len } => file(*slot)?.allocate(*offset, *len).map(nothing)?,
            Step::Len(slot) => Answer::Number(file(*slot)?.len()?),
            Step::Exists(name) => Answer::Number(u64::from(storage.exists(NAMES[*name])?)),
            Step::List(name) => Answer::Names(storage.list(NAMES[*name])?),
            Step::CreateDirectory(name) => storage.create_directory(NAMES[*name]).map(nothing)?,
            Step::Rename(from, to) => storage.rename(NAMES[*from], NAMES[*to]).map(nothing)?,
            Step::Remove(name) => storage.remove(NAMES[*name]).map(nothing)?,
            Step::SyncDirectory(name) => storage.sync_directory(NAMES[*name]).map(nothing)?,
            Step::Lock(name) => {
                let lock = storage.lock(NAMES[*name])?;
                self.locks.insert(*name, lock);
                Answer::Nothing
            }
            Step::Unlock(name) => {
                self.locks.remove(name);
                Answer::Nothing
            }
        })
    }
}

/// Every name below a directory, files with their content.
fn tree(storage: &dyn Storage, directory: &str, into: &mut BTreeMap<String, Option<Vec<u8>>>) {
    for name in storage.list(directory).unwrap() {
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        if let Ok(file) = storage.open(&path) {
            into.insert(path, Some(content(&*file)));
        } else {
            tree(storage, &path, into);
            into.insert(path, None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_calls_have_the_same_answers_and_leave_the_same_tree(steps in steps()) {
        let root = tempfile::tempdir().unwrap();
        let (os, sim) = (OsStorage::new(root.path()), SimStorage::new(1));
        let (mut on_os, mut on_sim) = (Session::new(&os), Session::new(&sim));
        for (index, step) in steps.iter().enumerate() {
            prop_assert_eq!(on_os.step(step), on_sim.step(step), "step {} of {:?}", index, steps);
        }
        let (mut os_tree, mut sim_tree) = (BTreeMap::new(), BTreeMap::new());
        tree(&os, "", &mut os_tree);
        tree(&sim, "", &mut sim_tree);
        prop_assert_eq!(os_tree, sim_tree);
    }
}
