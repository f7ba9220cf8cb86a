//! Random histories over a handful of keys, beside a model that remembers every committed state.

use std::collections::BTreeMap;
use std::time::Duration;

use hamal_storage::sim::SimStorage;
use hamal_wal::Lsn;

use super::*;
use crate::active::TxnEntry;
use crate::timeline::{Birth, Committing, Hints, LiveView, Timeline};

const TABLE: u32 = 7;
const KEYS: u64 = 6;

type State = BTreeMap<u64, Vec<u8>>;

struct Writer {
    entry: Arc<TxnEntry>,
    live: LiveView,
    images: Option<Arc<VersionTable>>,
    /// Key and row before each write.
    undo: Vec<(u64, Option<OwnedRow>)>,
    /// What it sees.
    state: State,
}

struct World {
    random: SimStorage,
    disk: SimStorage,
    versions: Versions,
    timeline: Timeline,
    hints: Arc<Hints>,
    rows: BTreeMap<u64, OwnedRow>,
    committed: State,
    writers: Vec<Writer>,
    views: Vec<(LiveView, State)>,
    lsn: u64,
    spilled: u64,
    merged: u64,
}

impl World {
    fn new(seed: u64, budget_bytes: u64) -> World {
        let disk = SimStorage::new(seed);
        let hints = Arc::new(Hints::default());
        World {
            random: SimStorage::new(seed),
            versions: Versions::new(Arc::new(disk.clone()), budget_bytes),
            timeline: Timeline::new(TxnId(1), BTreeMap::new(), hints.clone()),
            disk,
            hints,
            rows: BTreeMap::new(),
            committed: State::new(),
            writers: Vec::new(),
            views: Vec::new(),
            lsn: 0,
            spilled: 0,
            merged: 0,
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.random_u64() % limit
    }

    fn horizon(&self) -> TxnId {
        self.hints.horizon()
    }

    fn begin(&mut self) {
        let birth = Birth { shard: self.below(4), ..Birth::default() };
        let (entry, live) = self.timeline.begin(birth, Duration::ZERO, Duration::ZERO).unwrap();
        let state = self.committed.clone();
        self.writers.push(Writer { entry, live, images: None, undo: Vec::new(), state });
    }

    /// Writes or removes a row, as a leaf's latch holder would.
    fn write(&mut self, at: usize) {
        let key = self.below(KEYS);
        let horizon = self.horizon();
        let value = self.random.random_u64().to_le_bytes()[..self.below(9) as usize].to_vec();
        let removal = self.below(3) == 0;
        let id = self.writers[at].entry.id;
        let old = self.rows.get(&key).cloned();
        if let Some(row) = &old
            && row.stamp != id
            && (self.writers.iter().any(|writer| writer.entry.id == row.stamp)
                || !self.writers[at].live.view.sees(row.stamp))
        {
            return; // locked, or overtaken
        }
        if removal && old.as_ref().is_none_or(|row| row.ghost) {
            return;
        }
        let write = if removal { Write::Remove } else { Write::Put };
        let name = key.to_be_bytes();
        let writer = &mut self.writers[at];
        if let Some(row) = &old
            && must_keep(id, row.as_row(), write, || horizon)
        {
            let images = writer.images.get_or_insert_with(|| self.versions.open(id));
            let spilled = row.stamp == id
                && images.is_unknown(TABLE, &name)
                && images.is_spilled(TABLE, &name).unwrap();
            if !spilled {
                images.keep(id, TABLE, &name, row.as_row());
            }
        }
        let new = match &old {
            Some(row) if removal => OwnedRow { stamp: id, ghost: true, ..row.clone() },
            _ => OwnedRow { stamp: id, ghost: false, overflow: false, value: value.clone() },
        };
        writer.undo.push((key, old));
        self.rows.insert(key, new);
        if removal {
            writer.state.remove(&key);
        } else {
            writer.state.insert(key, value);
        }
    }

    /// Takes back the last writes but `keep`, as a savepoint does.
    fn take_back(&mut self, at: usize, keep: usize) {
        let id = self.writers[at].entry.id;
        while self.writers[at].undo.len() > keep {
            let Some((key, before)) = self.writers[at].undo.pop() else { return };
            let before = before.unwrap_or(OwnedRow { ghost: true, ..OwnedRow::default() });
            let seen = before.stamp;
            self.rows.insert(key, before);
            if let Some(images) = self.writers[at].images.as_ref().filter(|_| seen != id) {
                images.undone(TABLE, &key.to_be_bytes());
            }
        }
        // Its view of the keys it wrote: what is in place is its own, or was visible to it.
        let mut state = std::mem::take(&mut self.writers[at].state);
        state.clear();
        for (key, row) in &self.rows {
            let mut older = OwnedRow::default();
            if let Some(row) = self.look(&self.writers[at].live.view, *key, row, &mut older) {
                state.insert(*key, row);
            }
        }
        self.writers[at].state = state;
    }

    fn commit(&mut self, at: usize) {
        let Writer { entry, live, images, undo, state } = self.writers.swap_remove(at);
        self.lsn += 8;
        let lsn = Lsn(self.lsn);
        let mut what = Committing { counts: &[], publish: &mut |_, _| (), exposed: self.below(2) == 0 };
        let committed = self
            .timeline
            .commit(&entry, &live, |_, _| Ok::<_, crate::Error>(()), || Ok(lsn), &mut what)
            .unwrap();
        assert_eq!(committed.horizon, self.horizon());
        if let Some(images) = &images {
            self.versions.retire(entry.id, lsn, images, committed.horizon);
        }
        for (key, _) in undo {
            match state.get(&key) {
                Some(value) => self.committed.insert(key, value.clone()),
                None => self.committed.remove(&key),
            };
        }
    }

    fn roll_back(&mut self, at: usize) {
        self.take_back(at, 0);
        let Writer { entry, live, .. } = self.writers.swap_remove(at);
        self.timeline.end(&entry, Some(&live));
        self.versions.forget(entry.id);
    }

    fn look(&self, view: &View, key: u64, row: &OwnedRow, older: &mut OwnedRow) -> Option<Vec<u8>> {
        let name = key.to_be_bytes();
        let seen = match self.versions.resolve(view, (TABLE, &name), row.as_row(), older) {
            Found::Seen(seen) => seen,
            Found::Spilled(search, runs) => {
                self.versions.finish(view, (TABLE, &name), (search, runs), older).unwrap()
            }
        };
        seen.of(row.as_row(), older).map(|row| row.value.to_vec())
    }

    fn check(&self, what: &str) {
        let writers = self.writers.iter().map(|writer| (&writer.live.view, &writer.state));
        for (view, state) in self.views.iter().map(|(live, state)| (&live.view, state)).chain(writers) {
            for (key, row) in &self.rows {
                let found = self.look(view, *key, row, &mut OwnedRow::default());
                assert_eq!(found.as_ref(), state.get(key), "{what}: key {key}, row {row:?}, view {view:?}");
            }
        }
    }

    fn step(&mut self) -> &'static str {
        let at = self.below(self.writers.len().max(1) as u64) as usize;
        match self.below(16) {
            0 | 1 if self.writers.len() < 4 => {
                self.begin();
                "begin"
            }
            2..=7 if !self.writers.is_empty() => {
                self.write(at);
                "write"
            }
            8 | 9 if !self.writers.is_empty() => {
                self.commit(at);
                "commit"
            }
            10 if !self.writers.is_empty() => {
                self.roll_back(at);
                "roll back"
            }
            11 if !self.writers.is_empty() => {
                let keep = self.below(self.writers[at].undo.len() as u64 + 1) as usize;
                self.take_back(at, keep);
                "take back"
            }
            12 if self.views.len() < 4 => {
                // All commits are exposed first, so that it sees the newest state.
                self.timeline.expose(Lsn(u64::MAX));
                let live = self.timeline.view(Lsn(u64::MAX), Duration::ZERO);
                self.views.push((live, self.committed.clone()));
                "view"
            }
            13 if !self.views.is_empty() => {
                let at = self.below(self.views.len() as u64) as usize;
                self.timeline.release(&self.views.swap_remove(at).0);
                "release"
            }
            14 if !self.writers.is_empty() => {
                if let Some(images) = &self.writers[at].images {
                    self.versions.spill(images).unwrap();
                    self.spilled += 1;
                }
                "spill"
            }
            15 => {
                self.versions.drop_settled(self.horizon());
                let groups = self.timeline.indistinguishable(&self.versions.retired());
                self.merged += groups.iter().filter(|group| group.len() > 1).count() as u64;
                self.versions.merge(&groups).unwrap();
                "merge"
            }
            _ => "nothing",
        }
    }
}

#[test]
fn every_view_sees_its_own_state_whatever_becomes_of_the_rows_and_their_images() {
    let (mut spilled, mut merged) = (0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed, if seed % 2 == 0 { 0 } else { u64::MAX });
        for step in 0..400 {
            let what = world.step();
            world.check(&format!("seed {seed}, step {step}, after {what}"));
        }
        while !world.writers.is_empty() {
            world.commit(0);
        }
        while let Some((live, _)) = world.views.pop() {
            world.timeline.release(&live);
        }
        world.timeline.expose(Lsn(u64::MAX));
        world.versions.drop_settled(world.horizon());
        assert_eq!(
            (world.versions.bytes(), world.versions.writers()),
            (0, 0),
            "seed {seed}: nobody needs them"
        );
        assert!(world.disk.files().is_empty(), "seed {seed}: files go with their tables");
        spilled += world.spilled;
        merged += world.merged;
    }
    assert!(spilled > 200 && merged > 200, "spilled {spilled}, merged {merged}");
}

#[test]
fn images_of_one_row_that_is_changed_again_and_again_do_not_pile_up_behind_an_old_view() {
    let mut world = World::new(1, 1 << 20);
    world.begin();
    world.rows.insert(0, OwnedRow { stamp: TxnId(1), value: vec![1; 100], ..OwnedRow::default() });
    world.committed.insert(0, vec![1; 100]);
    world.commit(0);
    let live = world.timeline.view(Lsn(u64::MAX), Duration::ZERO);
    world.views.push((live, world.committed.clone()));
    let mut most = 0;
    for round in 0..50_000_u64 {
        world.begin();
        let id = world.writers[0].entry.id;
        let images = world.versions.open(id);
        images.keep(id, TABLE, &0_u64.to_be_bytes(), world.rows[&0].as_row());
        world.writers[0].images = Some(images);
        world
            .rows
            .insert(0, OwnedRow { stamp: id, value: round.to_le_bytes().repeat(12), ..OwnedRow::default() });
        world.commit(0);
        world.timeline.expose(Lsn(u64::MAX));
        if world.versions.may_merge() {
            let groups = world.timeline.indistinguishable(&world.versions.retired());
            world.versions.merge(&groups).unwrap();
        }
        most = most.max(world.versions.bytes());
    }
    world.check("at the end");
    assert!(most < 1 << 20, "{most} bytes");
}

#[test]
fn a_large_transaction_makes_few_files_though_others_have_taken_the_budget() {
    const BUDGET_BYTES: u64 = 1 << 20;
    let disk = SimStorage::new(1);
    let versions = Versions::new(Arc::new(disk.clone()), BUDGET_BYTES);
    let row = OwnedRow { stamp: TxnId(1), value: vec![1; 1000], ..OwnedRow::default() };
    let keep = |writer: TxnId, images: &VersionTable, key: u64| {
        images.keep(writer, TABLE, &key.to_be_bytes(), row.as_row());
    };
    // Behind a view that does not see it, and not to be merged with anything.
    let other = versions.open(TxnId(2));
    for key in 0..2000 {
        keep(TxnId(2), &other, key);
    }
    versions.retire(TxnId(2), Lsn(1), &other, TxnId(1));
    assert!(versions.bytes() > BUDGET_BYTES);
    let large = versions.open(TxnId(3));
    let mut most = 0;
    for key in 0..20_000 {
        if versions.must_spill(&large) {
            versions.spill(&large).unwrap();
        }
        keep(TxnId(3), &large, key);
        most = most.max(versions.bytes());
    }
    let files = disk.files().len();
    assert!((10..80).contains(&files), "{files} files for 20 MB");
    assert!(most < 8 * BUDGET_BYTES, "{most} bytes");
}

#[test]
fn a_table_is_used_again_only_once_nobody_searches_it() {
    let disk = SimStorage::new(1);
    let versions = Versions::new(Arc::new(disk.clone()), 1 << 20);
    let row = OwnedRow { stamp: TxnId(1), value: vec![1; 100], ..OwnedRow::default() };
    let everything = TxnId(u64::MAX);
    let [first, second, third, fourth] = [16, 32, 48, 64].map(TxnId);
    let table = versions.open(first);
    table.keep(first, TABLE, b"key", row.as_row());
    let reader = versions.of(first).unwrap();
    versions.retire(first, Lsn(1), &table, everything);
    // The writer is done with it; a reader that came before is not.
    let was = Arc::as_ptr(&table);
    drop(table);
    let other = versions.open(second);
    assert_ne!(Arc::as_ptr(&other), was);
    assert!(versions.of(first).is_none(), "nobody finds it any more");
    assert_eq!(reader.content.lock().find(TABLE, b"key"), Some(Before::Row(row.as_row())));
    drop(reader);
    let again = versions.open(third);
    assert_eq!(Arc::as_ptr(&again), was, "it was not lost by being busy");
    assert!(again.content.lock().find(TABLE, b"key").is_none(), "it is as new");
    // One that was kept behind a view is counted, and is not any more when it is out of use.
    again.keep(third, TABLE, b"key", row.as_row());
    versions.retire(third, Lsn(2), &again, TxnId(1));
    assert!(versions.bytes() > 0);
    drop(again);
    versions.drop_settled(everything);
    assert_eq!((versions.bytes(), versions.writers()), (0, 1));
    assert_eq!(Arc::as_ptr(&versions.open(fourth)), was);
    // One that has a file is not kept.
    other.keep(second, TABLE, b"key", row.as_row());
    versions.spill(&other).unwrap();
    assert_eq!(disk.files().len(), 1);
    versions.retire(second, Lsn(3), &other, everything);
    drop(other);
    assert!(disk.files().is_empty(), "its file goes with it");
}
