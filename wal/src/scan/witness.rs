//! The search for a record that attests a position as durable.

use hamal_storage::Result;

use super::Source;
use crate::frame::{HEADER_BYTES, Header};

/// Bytes looked at in one piece.
const CHUNK_BYTES: u64 = 1 << 20;
/// Looked at in each segment that begins beyond the look-ahead.
const PROBE_BYTES: u64 = 1 << 20;

/// What the search came to.
#[derive(Debug)]
pub(super) enum Found {
    /// This one.
    Record(Header),
    /// More bytes claimed to be witnesses than are worth checking: no crash does that.
    TooManyClaims,
}

/// Looks for a valid record beyond `position` with at least `incarnation` that attests `position` as durable.
pub(super) fn search(
    source: &Source,
    position: u64,
    incarnation: u32,
    look_ahead_bytes: u64,
) -> Result<Option<Found>> {
    let mut search = Search {
        source,
        position,
        incarnation,
        // A log that was torn by a crash holds no false witness at all, so this is generous.
        checksum_budget: 2 * look_ahead_bytes,
        chunk: Vec::new(),
    };
    let mut left = look_ahead_bytes;
    for (start, end) in source.extents(position + 8) {
        let bytes = left.max(PROBE_BYTES).min(end - start);
        left = left.saturating_sub(bytes);
        let found = search.extent(start, start + bytes, end)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

struct Search<'a> {
    source: &'a Source,
    position: u64,
    incarnation: u32,
    checksum_budget: u64,
    chunk: Vec<u8>,
}

impl Search<'_> {
    /// Tries every multiple of 8 in [start, to). `end`: where the segment's bytes end.
    fn extent(&mut self, start: u64, to: u64, end: u64) -> Result<Option<Found>> {
        let mut at = start;
        while at < to {
            // A header may stick out of the piece, into this segment's rest or the next.
            let piece_to = to.min(at + CHUNK_BYTES);
            let readable = piece_to + HEADER_BYTES as u64;
            let readable =
                if readable <= end { readable } else { readable.min(self.source.contiguous_end(at)) };
            self.chunk.resize((readable - at) as usize, 0);
            self.source.read(at, &mut self.chunk)?;
            for offset in claims(&self.chunk, at, (piece_to - at) as usize) {
                let Some(header) = self.chunk[offset..].first_chunk().map(Header::decode) else { continue };
                match self.judge(at + offset as u64, &header)? {
                    None => {}
                    found => return Ok(found),
                }
            }
            at = piece_to;
        }
        Ok(None)
    }

    fn judge(&mut self, at: u64, header: &Header) -> Result<Option<Found>> {
        if header.plausible(at).is_err()
            || header.attested() <= self.position
            || header.incarnation < self.incarnation
        {
            return Ok(None);
        }
        let length = u64::from(header.length);
        if at + length > self.source.contiguous_end(at) {
            return Ok(None);
        }
        let Some(left) = self.checksum_budget.checked_sub(length) else {
            return Ok(Some(Found::TooManyClaims));
        };
        self.checksum_budget = left;
        let mut frame = vec![0; length as usize];
        self.source.read(at, &mut frame)?;
        Ok(header.verify(&frame).is_ok().then_some(Found::Record(*header)))
    }
}

/// The offsets, multiples of 8 below `to`, where a header's LSN field would equal its own position.
fn claims(chunk: &[u8], start: u64, to: usize) -> Vec<usize> {
    let words = chunk.as_chunks::<8>().0;
    let fields = words.iter().skip(1).zip((start..).step_by(8));
    let claims = fields.enumerate().filter(|(_, (field, at))| u64::from_le_bytes(**field) == *at);
    claims.map(|(index, _)| index * 8).take_while(|offset| *offset < to).collect()
}
