//! The bytes of one file at one moment: sparse, and cheap to copy because copies share blocks until one changes.
//!
//! I1. A byte that was never written, or was cut off, reads as 0.
//! I2. `allocated_blocks` is the number of slots that are not holes: what the file costs on the disk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::fingerprint::Fingerprint;

/// What a disk writes in one piece.
pub(super) const SECTOR_BYTES: usize = 512;
/// What the file system allocates in one piece.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Sectors in a block: as many as a `u8` has bits.
pub(super) const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

const CHUNK_SLOTS: usize = 64;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// One block.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    /// Takes no space.
    Hole,
    /// Takes space, is all zeros.
    Zeros,
    /// Takes space and has content.
    Data(Arc<[u8; BLOCK_BYTES]>),
}

impl Slot {
    /// The bytes of one sector, or none if they are zeros.
    pub(super) fn sector(&self, sector: usize) -> Option<&[u8]> {
        match self {
            Slot::Hole | Slot::Zeros => None,
            Slot::Data(bytes) => Some(&bytes[sector * SECTOR_BYTES..][..SECTOR_BYTES]),
        }
    }

    /// Puts `bytes` into the block, `within` bytes from its start.
    pub(super) fn write(&mut self, within: usize, bytes: &[u8]) {
        debug_assert!(within + bytes.len() <= BLOCK_BYTES);
        let zeros = bytes.iter().all(|byte| *byte == 0);
        match (<&[u8; BLOCK_BYTES]>::try_from(bytes), &mut *self) {
            (Ok(_), _) | (_, Slot::Hole | Slot::Zeros) if zeros => *self = Slot::Zeros,
            (Ok(whole), _) => *self = Slot::Data(Arc::new(*whole)),
            (Err(_), Slot::Data(data)) => {
                Arc::make_mut(data)[within..within + bytes.len()].copy_from_slice(bytes);
            }
            (Err(_), Slot::Hole | Slot::Zeros) => {
                let mut data = [0; BLOCK_BYTES];
                data[within..within + bytes.len()].copy_from_slice(bytes);
                *self = Slot::Data(Arc::new(data));
            }
        }
    }

    fn is_hole(&self) -> bool {
        matches!(self, Slot::Hole)
    }

    pub(super) fn fingerprint(&self, into: &mut Fingerprint) {
        // A block of zeros is the same whether anybody wrote them or not.
        match self {
            Slot::Data(bytes) if bytes.iter().any(|byte| *byte != 0) => into.bytes(&bytes[..]),
            _ => into.word(0),
        }
    }
}

type Chunk = [Slot; CHUNK_SLOTS];

/// The content of a file. Its length is kept elsewhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    chunks: BTreeMap<u64, Arc<Chunk>>,
    allocated_blocks: u64,
}

impl Content {
    /// See I2.
    pub(super) fn allocated_blocks(&self) -> u64 {
        self.allocated_blocks
    }

    pub(super) fn slot(&self, block: u64) -> &Slot {
        let (chunk, index) = place(block);
        self.chunks.get(&chunk).map_or(&Slot::Hole, |slots| &slots[index])
    }

    pub(super) fn set(&mut self, block: u64, slot: Slot) {
        if !slot.is_hole() || !self.slot(block).is_hole() {
            self.change(block, |place| *place = slot);
        }
    }

    /// Puts `bytes` into one block, `within` bytes from its start.
    pub(super) fn write(&mut self, block: u64, within: usize, bytes: &[u8]) {
        self.change(block, |place| place.write(within, bytes));
    }

    fn change(&mut self, block: u64, change: impl FnOnce(&mut Slot)) {
        let (chunk, index) = place(block);
        let slots = self.chunks.entry(chunk).or_insert_with(|| Arc::new(std::array::from_fn(|_| Slot::Hole)));
        let place = &mut Arc::make_mut(slots)[index];
        self.allocated_blocks -= u64::from(!place.is_hole());
        change(place);
        self.allocated_blocks += u64::from(!place.is_hole());
    }

    /// Puts one sector of `from` in the same place here.
    pub(super) fn copy_sector(&mut self, block: u64, sector: usize, from: &Slot) {
        match from.sector(sector) {
            Some(bytes) => self.write(block, sector * SECTOR_BYTES, bytes),
            None => self.write(block, sector * SECTOR_BYTES, &[0; SECTOR_BYTES]),
        }
    }

    /// Fills `buffer` from `offset`.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut rest = buffer;
        for (block, within) in pieces(offset, rest.len()) {
            let (piece, after) = rest.split_at_mut(within.len());
            match self.slot(block) {
                Slot::Data(bytes) => piece.copy_from_slice(&bytes[within]),
                Slot::Hole | Slot::Zeros => piece.fill(0),
            }
            rest = after;
        }
    }

    /// Zeroes everything from byte `from` on and gives the space of whole blocks back.
    pub(super) fn cut(&mut self, from: u64) {
        let whole = from.div_ceil(BLOCK);
        let within = (from % BLOCK) as usize;
        if within > 0 && matches!(self.slot(whole - 1), Slot::Data(_)) {
            self.write(whole - 1, within, &[0; BLOCK_BYTES][within..]);
        }
        let (chunk, index) = place(whole);
        let gone = if index == 0 {
            self.chunks.split_off(&chunk)
        } else {
            let gone = self.chunks.split_off(&(chunk + 1));
            for block in whole..(chunk + 1) * CHUNK_SLOTS as u64 {
                if !self.slot(block).is_hole() {
                    self.set(block, Slot::Hole);
                }
            }
            gone
        };
        let taken = |slots: &Arc<Chunk>| slots.iter().filter(|slot| !slot.is_hole()).count() as u64;
        self.allocated_blocks -= gone.values().map(taken).sum::<u64>();
    }

    /// Takes space for the holes among these blocks.
    pub(super) fn reserve(&mut self, blocks: Range<u64>) {
        for block in blocks {
            if self.slot(block).is_hole() {
                self.set(block, Slot::Zeros);
            }
        }
    }

    /// How many of these blocks are holes.
    pub(super) fn holes(&self, blocks: Range<u64>) -> u64 {
        blocks.filter(|block| self.slot(*block).is_hole()).count() as u64
    }

    pub(super) fn fingerprint(&self, into: &mut Fingerprint) {
        for (chunk, slots) in &self.chunks {
            for (index, slot) in slots.iter().enumerate() {
                if let Slot::Data(bytes) = slot
                    && bytes.iter().any(|byte| *byte != 0)
                {
                    into.word(chunk * CHUNK_SLOTS as u64 + index as u64);
                    into.bytes(&bytes[..]);
                }
            }
        }
    }
}

fn place(block: u64) -> (u64, usize) {
    (block / CHUNK_SLOTS as u64, (block % CHUNK_SLOTS as u64) as usize)
}

/// The blocks that a range of bytes touches.
pub(super) fn blocks(offset: u64, len: u64) -> Range<u64> {
    if len == 0 { 0..0 } else { offset / BLOCK..(offset + len).div_ceil(BLOCK) }
}

/// A range of bytes as pieces within blocks.
pub(super) fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    blocks(offset, len as u64).map(move |block| {
        let start = offset.max(block * BLOCK);
        let end = (offset + len as u64).min((block + 1) * BLOCK);
        (block, (start - block * BLOCK) as usize..(end - block * BLOCK) as usize)
    })
}

/// The sectors of a block that a piece of it touches, as bits.
pub(super) fn sector_bits(within: &Range<usize>) -> u8 {
    let (first, end) = (within.start / SECTOR_BYTES, within.end.div_ceil(SECTOR_BYTES));
    (first..end).fold(0, |bits, sector| bits | 1 << sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(content: &mut Content, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (block, within) in pieces(offset, bytes.len()) {
            let (piece, after) = rest.split_at(within.len());
            content.write(block, within.start, piece);
            rest = after;
        }
    }

    fn read(content: &Content, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        content.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn what_was_written_is_read_and_the_rest_is_zero() {
        let mut content = Content::default();
        write(&mut content, 4_000, &[7; 5_000]);
        assert_eq!(read(&content, 3_999, 5_002), [&[0][..], &[7; 5_000], &[0]].concat());
        assert_eq!(content.allocated_blocks(), 3);
        assert_eq!(read(&content, 1 << 40, 3), [0; 3]);
    }

    #[test]
    fn a_copy_keeps_its_bytes_when_the_original_changes() {
        let mut content = Content::default();
        write(&mut content, 0, &[1; 8_192]);
        let copy = content.clone();
        write(&mut content, 100, &[2; 4]);
        content.cut(4_096);
        assert_eq!(read(&copy, 0, 8_192), [1; 8_192]);
        assert_eq!(copy.allocated_blocks(), 2);
        assert_eq!(content.allocated_blocks(), 1);
    }

    #[test]
    fn cutting_zeroes_to_the_byte_and_frees_whole_blocks_in_every_chunk() {
        let block = BLOCK;
        for cut in [0, 1, 4_095, 4_096, 63 * block, 64 * block, 64 * block + 5, 200 * block, 500 * block] {
            let mut content = Content::default();
            for number in [0, 1, 63, 64, 65, 130, 300] {
                write(&mut content, number * block, &[9; BLOCK_BYTES]);
            }
            content.cut(cut);
            for number in [0, 1, 63, 64, 65, 130, 300] {
                let bytes = read(&content, number * block, BLOCK_BYTES);
                let kept = cut.saturating_sub(number * block).min(block) as usize;
                assert!(bytes[..kept].iter().all(|byte| *byte == 9), "cut {cut}, block {number}");
                assert!(bytes[kept..].iter().all(|byte| *byte == 0), "cut {cut}, block {number}");
            }
            let expected =
                [0, 1, 63, 64, 65, 130, 300].iter().filter(|number| **number * block < cut).count();
            assert_eq!(content.allocated_blocks(), expected as u64, "cut {cut}");
        }
    }

    #[test]
    fn zeros_take_space_but_no_memory_and_reserving_takes_only_holes() {
        let mut content = Content::default();
        write(&mut content, 0, &[0; 3 * BLOCK_BYTES]);
        assert!(matches!(content.slot(1), Slot::Zeros));
        write(&mut content, 4_096, &[1]);
        assert_eq!(content.holes(0..10), 7);
        content.reserve(0..10);
        assert_eq!((content.allocated_blocks(), content.holes(0..10)), (10, 0));
        assert_eq!(read(&content, 4_095, 3), [0, 1, 0]);
    }

    #[test]
    fn pieces_are_marked_with_the_sectors_they_touch() {
        assert_eq!(sector_bits(&(0..1)), 0b1);
        assert_eq!(sector_bits(&(511..513)), 0b11);
        assert_eq!(sector_bits(&(512..4_096)), 0b1111_1110);
        assert_eq!(sector_bits(&(0..4_096)), 0xff);
    }
}
