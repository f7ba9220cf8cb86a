//! Long values on the simulated disk, without the engine above: a log, a pager, one partition.

mod crash;

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::sync::Arc;
use std::thread;

use hamal_pager::{Pager, PagerOptions, PartitionId};
use hamal_storage::sim::SimStorage;
use hamal_wal::{Log, LogOptions, Lsn};
use proptest::prelude::*;

use super::pending::Freed;
use super::reference::{List, MAX_INLINE_RUNS, Reference, Runs, index_page};
use super::run::{allocate, fill};
use super::*;
use crate::change::PageChange;
use crate::ids::TxnId;
use crate::journal::{Author, Chain, Journal};
use crate::record::{Record, Undo};
use crate::space::Space;
use crate::timeline::{Hints, Timeline};
use crate::tree::{PageSet, ROOT, SYSTEM_ROOT, Tree};
use crate::{ErrorKind, Result};

const PARTITION: PartitionId = PartitionId(7);

struct World {
    storage: SimStorage,
    pager: Arc<Pager>,
    journal: Journal,
    timeline: Timeline,
    space: Arc<Space>,
}

impl World {
    fn new(page_bytes: usize, cache_bytes: u64) -> World {
        let storage = SimStorage::new(1);
        let options =
            LogOptions { segment_bytes: 16 << 20, buffer_bytes: 1 << 20, max_bytes: 1 << 30, shelves: 1 };
        let log = Arc::new(Log::create(Arc::new(storage.clone()), options, 1).unwrap());
        let options = PagerOptions { page_bytes, cache_bytes, database_id: 1, batch_pages: 32 };
        let pager = Pager::open(Arc::new(storage.clone()), log.clone(), options).unwrap();
        let hints = Arc::new(Hints::default());
        let journal = Journal::new(log, hints.clone());
        let partition = pager.create_partition(PARTITION).unwrap();
        Tree::format_partition(&journal, &partition).unwrap();
        let timeline = Timeline::new(TxnId(1), BTreeMap::new(), hints);
        World { storage, pager, journal, timeline, space: Space::new(partition) }
    }

    fn begin(&self) -> Chain {
        Chain { entry: self.timeline.begin_unseeing(), partition: PARTITION }
    }

    fn commit(&self, chain: &Chain) {
        self.timeline.end(&chain.entry, None);
    }

    /// What `rollback` does, without an engine.
    fn roll_back(&self, chain: &Chain) {
        loop {
            let lsn = chain.entry.lock().chain(PARTITION).undo_next_lsn;
            if lsn == Lsn::NEVER {
                break;
            }
            let payload = self.journal.log.read(lsn).unwrap();
            let Record::Update { prev_lsn, parts, undo, .. } = Record::decode(&payload).unwrap() else {
                panic!("only updates are in a chain that goes forward");
            };
            let author = Author::Rollback(chain, prev_lsn);
            match (undo, &parts[0].change) {
                (Undo::Extent { first, count }, _) => {
                    undo_extent(&self.journal, author, &self.space, first, count).unwrap();
                }
                (Undo::Row { root, before }, PageChange::Row { key, .. }) => {
                    assert_eq!(root, SYSTEM_ROOT);
                    Tree::new(&self.space, root).undo_row(&self.journal, author, key, before, || ()).unwrap();
                }
                other => panic!("an overflow value's chain has no {other:?}"),
            }
        }
        self.timeline.end(&chain.entry, None);
    }

    fn writer<'w>(&'w self, chain: &'w Chain) -> Writer<'w> {
        Writer::new(&self.journal, chain, &self.space)
    }

    fn write(&self, chain: &Chain, bytes: &[u8]) -> Vec<u8> {
        let mut writer = self.writer(chain);
        writer.write(bytes).unwrap();
        writer.finish(usize::MAX).unwrap()
    }

    fn reader(&self, reference: &[u8]) -> Result<Reader> {
        Reader::open(self.space.partition(), reference)
    }

    fn read(&self, reference: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader(reference)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn unlink(&self, chain: &Chain, reference: &[u8]) {
        unlink(&self.journal, chain, &self.space, reference).unwrap();
    }

    fn free(&self) -> usize {
        free_pending(&self.journal, &self.space, usize::MAX).unwrap().runs
    }

    fn part_bytes(&self) -> usize {
        part_bytes(self.pager.page_bytes())
    }

    fn check(&self, references: &[&[u8]]) {
        check(&self.space, references);
    }
}

/// Each page is free, or in the hands of exactly one of: the trees, these values, the pending list.
fn check(space: &Arc<Space>, references: &[&[u8]]) {
    let mut pages = PageSet::default();
    for root in [ROOT, SYSTEM_ROOT] {
        Tree::new(space, root).verify(&mut pages, &mut |_, _| Ok(())).unwrap();
    }
    let mut take = |run: Run| {
        for page in run.pages() {
            assert!(pages.insert(page), "page {page} belongs to two");
        }
        Ok(())
    };
    for reference in references {
        runs_of(space.partition(), reference, &mut take).unwrap();
    }
    pending_runs(space, &mut take).unwrap();
    space.check_bitmaps(&|page| pages.contains(page), &mut |fault| panic!("{fault:?}")).unwrap();
}

/// A value's bytes, any of them at once.
fn pattern(seed: u64, from: u64, bytes: &mut [u8]) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        let position = from + at as u64;
        let mixed = (position / 8 + seed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d);
        *byte = mixed.to_le_bytes()[position as usize % 8];
    }
}

fn patterned(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

#[test]
fn values_of_any_length_come_back() {
    for page_bytes in [4096, 16384, 65536] {
        let world = World::new(page_bytes, 8 << 20);
        let part = world.part_bytes();
        let chunk = part * (65536 / page_bytes);
        let chain = world.begin();
        let mut references = Vec::new();
        for len in
            [0, 1, part - 1, part, part + 1, 2 * part, chunk - 1, chunk, chunk + 1, 3 * chunk + part + 5]
        {
            let bytes = patterned(len as u64, len);
            let reference = world.write(&chain, &bytes);
            assert!(reference.len() < 100, "a reference of {} bytes", reference.len());
            assert_eq!(world.reader(&reference).unwrap().len(), len as u64);
            assert!(world.read(&reference).unwrap() == bytes, "{len} bytes on pages of {page_bytes}");
            references.push(reference);
        }
        world.check(&references.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_make_the_same_value_and_any_part_of_it_can_be_read(
        pieces in prop::collection::vec(prop_oneof![0..200usize, 0..70_000usize], 1..12),
        reads in prop::collection::vec((any::<prop::sample::Index>(), 1..9000usize), 1..20),
    ) {
        let world = World::new(4096, 2 << 20);
        let chain = world.begin();
        let bytes = patterned(3, pieces.iter().sum());
        let mut writer = world.writer(&chain);
        let mut rest = bytes.as_slice();
        for piece in pieces {
            let (front, behind) = rest.split_at(piece);
            writer.write(front).unwrap();
            rest = behind;
        }
        let reference = writer.finish(usize::MAX).unwrap();
        let mut reader = world.reader(&reference).unwrap();
        for (at, count) in reads {
            let at = at.index(bytes.len() + 1);
            prop_assert_eq!(reader.seek(SeekFrom::Start(at as u64)).unwrap(), at as u64);
            let (mut buffer, mut filled) = (vec![0; count], 0);
            loop {
                let read = reader.read(&mut buffer[filled..]).unwrap();
                if read == 0 {
                    break;
                }
                filled += read;
            }
            prop_assert_eq!(&buffer[..filled], &bytes[at..bytes.len().min(at + count)]);
        }
        world.check(&[&reference]);
    }
}

#[test]
fn a_reader_seeks_like_a_cursor() {
    let world = World::new(4096, 2 << 20);
    let chain = world.begin();
    let bytes = patterned(5, 10_000);
    let mut reader = world.reader(&world.write(&chain, &bytes)).unwrap();
    let mut cursor = std::io::Cursor::new(&bytes);
    for to in
        [SeekFrom::End(-10), SeekFrom::Current(-100), SeekFrom::Start(20_000), SeekFrom::Current(-15_000)]
    {
        assert_eq!(reader.seek(to).unwrap(), std::io::Seek::seek(&mut cursor, to).unwrap());
        let (mut a, mut b) = ([0; 7], [0; 7]);
        assert_eq!(reader.read(&mut a).unwrap(), std::io::Read::read(&mut cursor, &mut b).unwrap());
        assert_eq!(a, b);
    }
    assert!(reader.seek(SeekFrom::Start(0)).is_ok() && reader.seek(SeekFrom::Current(-1)).is_err());
}

/// Two values written in turns have no neighbouring chunks, so their lists of runs need index pages, several of them.
#[test]
fn two_values_of_34_mib_pass_through_a_cache_of_1_mib() {
    const LEN: u64 = 34 << 20;
    let world = World::new(4096, 1 << 20);
    let chain = world.begin();
    let mut writers = [world.writer(&chain), world.writer(&chain)];
    let mut buffer = vec![0; world.part_bytes() * 16];
    let chunks = LEN.div_ceil(buffer.len() as u64) as usize;
    let mut at = 0;
    while at < LEN {
        let count = (LEN - at).min(buffer.len() as u64) as usize;
        for (seed, writer) in writers.iter_mut().enumerate() {
            pattern(seed as u64, at, &mut buffer[..count]);
            writer.write(&buffer[..count]).unwrap();
        }
        at += count as u64;
        let stats = world.pager.stats();
        assert!(stats.resident_bytes <= 1 << 20, "{} bytes of pages in memory", stats.resident_bytes);
    }
    let [a, b] = writers.map(|writer| writer.finish(usize::MAX).unwrap());
    world.check(&[&a, &b]);

    let mut index_pages = 0;
    let mut runs =
        Runs::new(world.space.partition(), Reference::decode(world.space.partition(), &a).unwrap()).unwrap();
    while runs.advance(world.space.partition()).unwrap().is_some() {
        index_pages += 1;
    }
    assert_eq!(index_pages, 2, "{chunks} chunks in a list of 504 runs a page");

    let mut expected = vec![0; buffer.len()];
    for (seed, reference) in [&a, &b].into_iter().enumerate() {
        let mut reader = world.reader(reference).unwrap();
        let mut at = 0;
        loop {
            let count = reader.read(&mut buffer).unwrap();
            pattern(seed as u64, at, &mut expected[..count]);
            assert!(buffer[..count] == expected[..count], "value {seed} at {at}");
            at += count as u64;
            if count == 0 {
                break;
            }
        }
        assert_eq!(at, LEN);
        // Back and forth, over the border of the index pages.
        for at in [LEN - 3, 5, 33 << 20, 20 << 20, 32 << 20, 0] {
            reader.seek(SeekFrom::Start(at)).unwrap();
            let count = reader.read(&mut buffer[..100]).unwrap();
            pattern(seed as u64, at, &mut expected[..count]);
            assert_eq!(buffer[..count], expected[..count]);
        }
    }

    world.unlink(&chain, &a);
    world.check(&[&b]);
    assert_eq!(world.free(), 0, "its transaction is still active");
    world.commit(&chain);
    assert_eq!(world.free(), chunks + 1, "the chunks, and two index pages side by side");
    world.check(&[&b]);
    assert!(world.read(&a).is_err());
    let mut reader = world.reader(&b).unwrap();
    reader.seek(SeekFrom::End(-50)).unwrap();
    assert_eq!(reader.read(&mut buffer).unwrap(), 50);
    assert!(world.pager.stats().resident_bytes <= 1 << 20);
}

/// Found by the crash simulator: beside the longest key a row has room for two runs, and the value had three.
#[test]
fn a_reference_beside_a_long_key_stays_within_what_the_row_has_room_for() {
    let world = World::new(4096, 1 << 20);
    let chain = world.begin();
    let mut writers = [world.writer(&chain), world.writer(&chain)];
    let bytes = vec![7; world.part_bytes() * 16];
    for _ in 0..3 {
        for writer in &mut writers {
            writer.write(&bytes).unwrap();
        }
    }
    let [a, b] = writers.map(|writer| writer.finish(33).unwrap());
    assert!(a.len() <= 33 && b.len() <= 33, "{} and {} bytes", a.len(), b.len());
    world.check(&[&a, &b]);
    assert_eq!(world.read(&a).unwrap(), bytes.repeat(3));
}

#[test]
fn a_rollback_gives_all_pages_back() {
    let world = World::new(4096, 2 << 20);
    let kept = world.begin();
    let kept_bytes = patterned(1, 300_000);
    let kept_reference = world.write(&kept, &kept_bytes);
    world.commit(&kept);

    let chain = world.begin();
    let mut writers = [world.writer(&chain), world.writer(&chain)];
    for _ in 0..2 * MAX_INLINE_RUNS {
        for writer in &mut writers {
            writer.write(&patterned(2, 66_000)).unwrap();
        }
    }
    let [finished, unfinished] = writers;
    let finished = finished.finish(usize::MAX).unwrap();
    world.unlink(&chain, &finished);
    world.unlink(&chain, &kept_reference);
    drop(unfinished);
    world.roll_back(&chain);

    world.check(&[&kept_reference]);
    assert_eq!(world.free(), 0, "what was taken back is not due");
    assert_eq!(world.read(&kept_reference).unwrap(), kept_bytes);

    // And once more, now over the ghosts of the first time.
    let chain = world.begin();
    world.unlink(&chain, &kept_reference);
    world.commit(&chain);
    assert!(world.free() > 0);
    world.check(&[]);
}

#[test]
fn nothing_is_freed_while_a_transaction_may_read_it() {
    let world = World::new(4096, 2 << 20);
    let writer = world.begin();
    let reference = world.write(&writer, &patterned(1, 100_000));
    world.commit(&writer);

    let older = world.begin();
    let chain = world.begin();
    world.unlink(&chain, &reference);
    world.commit(&chain);
    assert_eq!(world.free(), 0);
    assert_eq!(world.read(&reference).unwrap().len(), 100_000);
    world.commit(&older);
    let free = |max_runs| free_pending(&world.journal, &world.space, max_runs).unwrap();
    assert_eq!(free(0), Freed { runs: 0, is_more: true });
    let runs = free(usize::MAX).runs;
    assert!(runs > 0);
    assert_eq!(free(1), Freed { runs: 0, is_more: false });
    world.check(&[]);
}

#[test]
fn freed_pages_are_never_taken_for_the_values_they_once_held() {
    let world = World::new(4096, 2 << 20);
    let chain = world.begin();
    let old = world.write(&chain, &patterned(1, 50_000));
    world.unlink(&chain, &old);
    world.commit(&chain);
    world.free();
    let chain = world.begin();
    let new = world.write(&chain, &patterned(2, 50_000));
    let runs = |reference: &[u8]| {
        let mut runs = Vec::new();
        runs_of(world.space.partition(), reference, &mut |run| {
            runs.push(run);
            Ok(())
        })
        .unwrap();
        runs
    };
    assert_eq!(runs(&old), runs(&new), "the new value has the old one's pages");
    assert_eq!(world.read(&old).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(world.read(&new).unwrap(), patterned(2, 50_000));
}

#[test]
fn letting_go_twice_is_damage() {
    let world = World::new(4096, 2 << 20);
    let chain = world.begin();
    let reference = world.write(&chain, &patterned(1, 50_000));
    world.unlink(&chain, &reference);
    let error = unlink(&world.journal, &chain, &world.space, &reference).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    world.commit(&chain);
    world.free();
    let error = undo_extent(&world.journal, Author::System, &world.space, PageNo(6), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    world.check(&[]);
}

#[test]
fn a_full_disk_fails_the_value_and_nothing_else() {
    let world = World::new(4096, 2 << 20);
    let chain = world.begin();
    let kept = world.write(&chain, &patterned(1, 100_000));
    world.journal.log.flush().unwrap();
    world.storage.set_capacity_bytes(Some(world.storage.used_bytes() + (1 << 20)));
    let doomed = world.begin();
    let mut writer = world.writer(&doomed);
    let error = (0..100).find_map(|_| writer.write(&patterned(2, 65_536)).err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    world.roll_back(&doomed);
    world.check(&[&kept]);
    assert_eq!(world.read(&kept).unwrap(), patterned(1, 100_000));
}

#[test]
fn threads_that_write_and_free_keep_out_of_each_others_pages() {
    let world = World::new(4096, 1 << 20);
    let kept = thread::scope(|scope| {
        let work = |seed: u64| {
            let world = &world;
            move || {
                let mut kept = Vec::new();
                for round in 0..20 {
                    let chain = world.begin();
                    let len = (seed * 31_337 + round * 7_919) as usize % 150_000 + 1;
                    let bytes = patterned(seed + round * 10, len);
                    let reference = world.write(&chain, &bytes);
                    assert!(world.read(&reference).unwrap() == bytes, "thread {seed}, round {round}");
                    match round % 4 {
                        0 => kept.push((reference, bytes)),
                        1 => {
                            world.roll_back(&chain);
                            continue;
                        }
                        _ => world.unlink(&chain, &reference),
                    }
                    world.commit(&chain);
                    world.free();
                }
                kept
            }
        };
        let threads: Vec<_> = (1..=4).map(|seed| scope.spawn(work(seed))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    world.free();
    for (reference, bytes) in &kept {
        assert!(world.read(reference).unwrap() == *bytes);
    }
    world.check(&kept.iter().map(|(reference, _)| reference.as_slice()).collect::<Vec<_>>());
}

/// Everything that takes a reference takes this one: with the right answer, or `Corrupt`.
fn survives(world: &World, reference: &[u8]) {
    let corrupt = |result: Result<()>| {
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    };
    corrupt(world.read(reference).map(|bytes| assert!(bytes.len() < 10 << 20)));
    corrupt(runs_of(world.space.partition(), reference, &mut |_| Ok(())));
    corrupt(world.reader(reference).and_then(|mut reader| {
        reader.seek(SeekFrom::End(-1)).ok();
        reader.read(&mut [0; 10]).map(|_| ())
    }));
    let chain = world.begin();
    corrupt(unlink(&world.journal, &chain, &world.space, reference));
    world.roll_back(&chain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn hostile_references_are_corrupt(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 300),
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 100),
    ) {
        let world = World::new(4096, 4 << 20);
        let chain = world.begin();
        let mut writers = [world.writer(&chain), world.writer(&chain), world.writer(&chain)];
        for round in 0..12 {
            writers[0].write(&patterned(round, 66_000)).unwrap();
            writers[1].write(&patterned(round, 66_000)).unwrap();
            writers[2].write(&patterned(round, 20_000)).unwrap();
        }
        let [indexed, other, inline] = writers.map(|writer| writer.finish(usize::MAX).unwrap());
        prop_assert_eq!(indexed.len(), 21);
        prop_assert_ne!(inline.len(), 21);
        for (at, flip) in flips {
            for reference in [&indexed, &inline] {
                let mut hostile = reference.clone();
                let at = at.index(hostile.len());
                hostile[at] ^= flip;
                survives(&world, &hostile);
                survives(&world, &reference[..at]);
            }
        }
        for bytes in garbage {
            survives(&world, &bytes);
        }
        world.check(&[&indexed, &other, &inline]);
    }
}

#[test]
fn an_index_that_runs_in_circles_ends() {
    let world = World::new(4096, 4 << 20);
    let chain = world.begin();
    let (data, value) = allocate(&world.journal, &chain, &world.space, 16).unwrap();
    let (index, _) = allocate(&world.journal, &chain, &world.space, 2).unwrap();
    let [first, second] = [index.first, PageNo(index.first.0 + 1)];
    let listed = |count| Run { first: data.first, count };
    let total_bytes = world.part_bytes() as u64 * 15;
    let reference = Reference { total_bytes, value, list: List::Index(first) }.encode();
    let write = |page, number: u32, runs: &[Run], next| {
        let tag = Tag { value: value.0, part: Tag::FIRST_INDEX_PART + number };
        fill(&world.journal, &world.space, page, tag, &index_page(runs, next)).unwrap();
    };
    let refused = || {
        let error = runs_of(world.space.partition(), &reference, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(world.reader(&reference).unwrap().seek(SeekFrom::End(-1)).unwrap(), total_bytes - 1);
        assert_eq!(world.read(&reference).unwrap_err().kind(), ErrorKind::Corrupt);
        error.to_string()
    };

    // To itself; to and fro; without a run; to the header; too many pages; too few.
    write(first, 0, &[listed(1)], Some(first));
    assert!(refused().contains("part 2147483649"));
    write(first, 0, &[listed(1)], Some(second));
    write(second, 1, &[listed(1)], Some(first));
    assert!(refused().contains("part 2147483650"));
    write(first, 0, &[], Some(second));
    assert!(refused().contains("add up"));
    write(first, 0, &[listed(1)], Some(PageNo(5)));
    assert!(refused().contains("a run of overflow pages"));
    write(first, 0, &[listed(16)], None);
    assert!(refused().contains("add up"));
    write(first, 0, &[listed(15)], Some(second));
    assert!(refused().contains("add up"));
    write(first, 0, &[listed(14)], None);
    assert!(refused().contains("add up"));
    write(first, 0, &[listed(u32::MAX), listed(u32::MAX)], None);
    assert!(refused().contains("add up"));
    // All in order, but for the data.
    write(first, 0, &[listed(15)], None);
    let error = world.read(&reference).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_reader_that_met_a_damaged_index_page_keeps_saying_so() {
    let world = World::new(4096, 4 << 20);
    let chain = world.begin();
    let (data, value) = allocate(&world.journal, &chain, &world.space, 16).unwrap();
    let (index, _) = allocate(&world.journal, &chain, &world.space, 2).unwrap();
    let [first, second] = [index.first, PageNo(index.first.0 + 1)];
    let part = world.part_bytes();
    let bytes = patterned(1, 6 * part);
    let write = |page: u32, tag: u32, data: &[u8]| {
        fill(&world.journal, &world.space, PageNo(page), Tag { value: value.0, part: tag }, data).unwrap();
    };
    for at in 0..6 {
        write(data.first.0 + at, at, &bytes[at as usize * part..][..part]);
    }
    // Four runs before two: a cursor that outlives its piece points behind the next one.
    let run = |at, count| Run { first: PageNo(data.first.0 + at), count };
    let front = [run(0, 1), run(1, 1), run(2, 1), run(3, 1)];
    write(first.0, Tag::FIRST_INDEX_PART, &index_page(&front, Some(second)));
    let total_bytes = bytes.len() as u64;
    let reference = Reference { total_bytes, value, list: List::Index(first) }.encode();
    let good = index_page(&[run(4, 1), run(5, 1)], None);
    let too_many = index_page(&[run(4, 2), run(6, 2)], None);
    let off_the_file = index_page(&[run(1 << 20, 2)], None);
    for bad in [&too_many, &good[..good.len() - 3], &off_the_file] {
        write(second.0, Tag::FIRST_INDEX_PART + 1, bad);
        let mut reader = world.reader(&reference).unwrap();
        let mut buffer = vec![0; part];
        for at in 0..4 {
            assert_eq!(reader.read(&mut buffer).unwrap(), part);
            assert!(buffer == bytes[at * part..][..part]);
        }
        for _ in 0..3 {
            assert_eq!(reader.read(&mut buffer).unwrap_err().kind(), ErrorKind::Corrupt);
            reader.seek(SeekFrom::End(-1)).unwrap();
        }
        // What lies before is still there, and the error too.
        reader.seek(SeekFrom::Start(2 * part as u64)).unwrap();
        assert_eq!(reader.read(&mut buffer).unwrap(), part);
        assert!(buffer == bytes[2 * part..3 * part]);
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(reader.read(&mut buffer).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    write(second.0, Tag::FIRST_INDEX_PART + 1, &good);
    assert!(world.read(&reference).unwrap() == bytes);
}

#[test]
fn runs_join_only_side_by_side_and_up_to_256_kib() {
    let (mut runs, run) = (Vec::new(), |first, count| Run { first: PageNo(first), count });
    for next in [run(10, 16), run(26, 16), run(43, 16), run(59, 16), run(75, 16), run(91, 16), run(107, 16)] {
        run::push(&mut runs, next, 4096);
    }
    assert_eq!(runs, [run(10, 32), run(43, 64), run(107, 16)]);
    let mut runs = vec![run(10, 1)];
    run::push(&mut runs, run(11, 1), 65536);
    assert_eq!(runs, [run(10, 2)]);
}
