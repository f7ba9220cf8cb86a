//! One file: what readers see, what the disk has for certain, and what lies between.
//!
//! *Visible* is the page cache: what reads return. *Durable* is what the last successful sync left. A write goes to the
//! visible content at once and is remembered, sector by sector, as a *version* that the disk may or may not get
//! before the power fails. A change of length is remembered likewise; lengths are file-system metadata and reach the
//! disk in order.
//!
//! I1. A sector that differs between visible and durable has a version in `pending`, unless `stale` says that a failed
//!     sync has declared it clean.
//! I2. `pending` and `lengths` are empty after a successful sync.
//! I3. The newest version of a sector is the visible one, or a cut came after it.

use std::collections::BTreeMap;

use super::content::{BLOCK_BYTES, Content, SECTOR_BYTES, SECTORS, Slot, blocks, pieces, sector_bits};
use super::crash::Survival;
use super::fingerprint::Fingerprint;
use super::rng::Rng;

/// Versions of one block that are kept apart; beyond that the middle one is forgotten.
const VERSIONS: usize = 16;
/// Changes of length that are kept apart.
const LENGTHS: usize = 64;

/// A block after some write: the sectors in `sectors` may reach the disk like this.
#[derive(Clone, Debug)]
struct Version {
    sequence: u64,
    sectors: u8,
    block: Slot,
}

/// The length after some call.
#[derive(Clone, Copy, Debug)]
pub(super) struct LengthChange {
    pub(super) sequence: u64,
    len: u64,
    /// Made the file shorter: whole sectors beyond `len` are gone once this survives.
    cut: bool,
}

impl LengthChange {
    fn cuts(&self, offset: u64) -> bool {
        self.cut && self.len <= offset
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileData {
    visible: Content,
    visible_len: u64,
    durable: Content,
    durable_len: u64,
    pending: BTreeMap<u64, Vec<Version>>,
    lengths: Vec<LengthChange>,
    stale: bool,
}

impl FileData {
    pub(super) fn len(&self) -> u64 {
        self.visible_len
    }

    /// What the file takes on the disk.
    pub(super) fn allocated_blocks(&self) -> u64 {
        self.visible.allocated_blocks()
    }

    /// How many blocks a write or a reservation of this range would take in addition.
    pub(super) fn needed_blocks(&self, offset: u64, len: u64) -> u64 {
        self.visible.holes(blocks(offset, len))
    }

    /// How many sectors a power cut may lose or keep.
    pub(super) fn pending_sectors(&self) -> u64 {
        self.pending.values().map(|versions| u64::from(all_sectors(versions).count_ones())).sum()
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let left = self.visible_len.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.visible.read(offset, &mut buffer[..count]);
        count
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], sequence: u64) {
        let mut rest = bytes;
        for (block, within) in pieces(offset, bytes.len()) {
            let (piece, after) = rest.split_at(within.len());
            self.visible.write(block, within.start, piece);
            self.remember(block, sector_bits(&within), sequence);
            rest = after;
        }
        self.extend(offset + bytes.len() as u64, sequence);
    }

    pub(super) fn set_len(&mut self, len: u64, sequence: u64) {
        if len < self.visible_len {
            self.visible.cut(len);
            let within = (len % BLOCK_BYTES as u64) as usize;
            let tail = within % SECTOR_BYTES;
            if tail > 0 {
                // The cut goes through a sector, and rewriting that is a write like any other.
                self.remember(len / BLOCK_BYTES as u64, sector_bits(&(within..within + 1)), sequence);
            }
            self.change_length(LengthChange { sequence, len, cut: true });
        } else {
            self.extend(len, sequence);
        }
    }

    /// Takes space for the range. Space is not content: it is durable together with the length.
    pub(super) fn reserve(&mut self, offset: u64, len: u64, sequence: u64) {
        self.visible.reserve(blocks(offset, len));
        self.durable.reserve(blocks(offset, len));
        self.extend(offset + len, sequence);
    }

    fn extend(&mut self, len: u64, sequence: u64) {
        if len > self.visible_len {
            self.change_length(LengthChange { sequence, len, cut: false });
        }
    }

    fn change_length(&mut self, change: LengthChange) {
        self.visible_len = change.len;
        self.lengths.push(change);
        if self.lengths.len() > LENGTHS
            && let Some(index) = (LENGTHS / 2..LENGTHS).find(|index| !self.lengths[*index].cut)
        {
            self.lengths.remove(index);
        }
    }

    fn remember(&mut self, block: u64, sectors: u8, sequence: u64) {
        let versions = self.pending.entry(block).or_default();
        versions.push(Version { sequence, sectors, block: self.visible.slot(block).clone() });
        if versions.len() > VERSIONS {
            // The next version has the forgotten one's sectors too, so none is forgotten altogether.
            let forgotten = versions.remove(VERSIONS / 2);
            versions[VERSIONS / 2].sectors |= forgotten.sectors;
        }
    }

    pub(super) fn sync(&mut self) {
        cut_back(&mut self.durable, &self.lengths);
        for (block, versions) in std::mem::take(&mut self.pending) {
            let now = self.visible.slot(block);
            if self.stale {
                for sector in sectors_in(all_sectors(&versions)) {
                    self.durable.copy_sector(block, sector, now);
                }
            } else {
                self.durable.set(block, now.clone());
            }
        }
        self.durable_len = self.visible_len;
        self.lengths.clear();
    }

    /// A sync that failed: some sectors got to the disk, others never will unless they are written again, and the
    /// page cache, which has them all, calls them clean.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        if self.lengths.iter().any(|change| change.cut) {
            cut_back(&mut self.durable, &self.lengths);
            self.durable_len = self.visible_len;
            self.lengths.clear();
        }
        let written_of_4 = rng.below(5);
        for (block, versions) in std::mem::take(&mut self.pending) {
            for sector in sectors_in(all_sectors(&versions)) {
                if rng.chance(written_of_4, 4) {
                    self.durable.copy_sector(block, sector, self.visible.slot(block));
                }
            }
        }
        self.stale = true;
    }

    /// The page cache forgets what it believes to be clean: from here on, reads see what the disk has.
    pub(super) fn drop_clean_cache(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let dirty = std::mem::replace(&mut self.visible, self.durable.clone());
        cut_back(&mut self.visible, &self.lengths);
        for (block, versions) in &self.pending {
            for sector in sectors_in(all_sectors(versions)) {
                self.visible.copy_sector(*block, sector, dirty.slot(*block));
            }
        }
    }

    /// Changes bytes behind everybody's back, on the disk and in the page cache. Not beyond the end of the file.
    pub(super) fn damage(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (block, within) in pieces(offset, bytes.len()) {
            let (piece, after) = rest.split_at(within.len());
            self.visible.write(block, within.start, piece);
            self.durable.write(block, within.start, piece);
            for version in self.pending.get_mut(&block).into_iter().flatten() {
                version.block.write(within.start, piece);
            }
            rest = after;
        }
    }

    /// The file as it comes out of a power cut.
    pub(super) fn after_power_cut(&self, survival: Survival, rng: &mut Rng) -> FileData {
        let (kept, lost) = self.lengths.split_at(survival.lengths(&self.lengths, rng));
        let len = kept.last().map_or(self.durable_len, |change| change.len);
        let mut content = self.durable.clone();
        cut_back(&mut content, kept);
        for (&block, versions) in &self.pending {
            for sector in sectors_in(all_sectors(versions)) {
                let offset = block * BLOCK_BYTES as u64 + (sector * SECTOR_BYTES) as u64;
                // A cut that survived has taken earlier versions with it; what was written after a cut that did not
                // survive went to space that the surviving file does not own.
                let after =
                    kept.iter().filter(|change| change.cuts(offset)).map(|change| change.sequence).max();
                let before =
                    lost.iter().filter(|change| change.cuts(offset)).map(|change| change.sequence).min();
                let candidates: Vec<&Version> = versions
                    .iter()
                    .filter(|version| version.sectors & 1 << sector != 0)
                    .filter(|version| after.is_none_or(|after| version.sequence > after))
                    .filter(|version| before.is_none_or(|before| version.sequence < before))
                    .collect();
                let sequences = candidates.iter().map(|version| version.sequence);
                if let Some(index) = survival.version(sequences, rng) {
                    content.copy_sector(block, sector, &candidates[index].block);
                }
            }
        }
        content.cut(len);
        FileData {
            visible: content.clone(),
            visible_len: len,
            durable: content,
            durable_len: len,
            ..FileData::default()
        }
    }

    pub(super) fn fingerprint(&self, into: &mut Fingerprint) {
        for (content, len) in [(&self.visible, self.visible_len), (&self.durable, self.durable_len)] {
            into.word(len);
            content.fingerprint(into);
        }
        for (block, versions) in &self.pending {
            into.word(*block);
            for version in versions {
                into.word(version.sequence);
                into.word(u64::from(version.sectors));
                version.block.fingerprint(into);
            }
        }
        for change in &self.lengths {
            into.word(change.sequence);
            into.word(change.len);
        }
    }
}

/// Takes from a content what these changes of length cut off.
fn cut_back(content: &mut Content, changes: &[LengthChange]) {
    if let Some(len) = changes.iter().filter(|change| change.cut).map(|change| change.len).min() {
        content.cut(len);
    }
}

/// The sectors of a block that have any version.
fn all_sectors(versions: &[Version]) -> u8 {
    versions.iter().fold(0, |bits, version| bits | version.sectors)
}

fn sectors_in(bits: u8) -> impl Iterator<Item = usize> {
    (0..SECTORS).filter(move |sector| bits & 1 << sector != 0)
}
