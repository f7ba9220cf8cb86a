//! What records change, as plain values beside their bytes: whoever reads the log takes records apart as long as their bytes are near, and
//! passes on what analysis and redo ask of each. The changes themselves stay encoded until they are redone.
//!
//! I1. What is here decodes: a record that does not, or is of another kind, has no [`Changes`].

use std::ops::Range;

use hamal_pager::{PageNo, PartitionId};
use hamal_wal::{Frame, FrameBatch, Lsn};

use crate::Result;
use crate::change::{EncodedChange, Tag};
use crate::record::{Changer, each_part};

/// One page's part of a record, its change still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EncodedPart<'a> {
    pub(crate) partition: PartitionId,
    pub(crate) page: PageNo,
    pub(crate) page_prev_lsn: Lsn,
    pub(crate) change: EncodedChange<'a>,
}

/// The same without the change: where in the record's payload that is.
#[derive(Clone, Copy, Debug)]
struct Stub {
    partition: PartitionId,
    page: PageNo,
    page_prev_lsn: Lsn,
    start: u32,
    end: u32,
    tag: Tag,
}

/// A record that changes pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changes<'a> {
    pub(crate) changer: Changer,
    stubs: &'a [Stub],
    payload: &'a [u8],
}

impl<'a> Changes<'a> {
    /// Its parts, in their order.
    pub(crate) fn parts(self) -> impl Iterator<Item = EncodedPart<'a>> {
        self.stubs.iter().map(move |stub| EncodedPart {
            partition: stub.partition,
            page: stub.page,
            page_prev_lsn: stub.page_prev_lsn,
            change: EncodedChange::new(
                stub.tag,
                self.payload.get(stub.start as usize..stub.end as usize).unwrap_or_default(),
            ),
        })
    }
}

/// The parts of records.
#[derive(Debug, Default)]
pub(crate) struct Parts(Vec<Stub>);

impl Parts {
    /// Takes a record apart, in the memory of the one before. `None`: it changes no pages. `Corrupt` as decoding the record.
    pub(crate) fn of<'a>(&'a mut self, payload: &'a [u8]) -> Result<Option<Changes<'a>>> {
        self.0.clear();
        let changer = self.push(payload)?;
        Ok(changer.map(|changer| Changes { changer, stubs: &self.0, payload }))
    }

    fn push(&mut self, payload: &[u8]) -> Result<Option<Changer>> {
        each_part(payload, |part, Range { start, end }| {
            let tag = Tag::of(&payload[start..end]);
            let (start, end) = (start as u32, end as u32);
            let (partition, page, page_prev_lsn) = (part.partition, part.page, part.page_prev_lsn);
            self.0.push(Stub { partition, page, page_prev_lsn, start, end, tag });
        })
    }
}

/// Many records, and what they change.
#[derive(Debug, Default)]
pub(super) struct Batch {
    frames: FrameBatch,
    /// For each record, who has changed pages, and where its parts end in `parts`.
    changers: Vec<Option<(Changer, usize)>>,
    parts: Parts,
}

impl Batch {
    /// Takes the records apart. `old`: its memory is used.
    pub(super) fn new(frames: FrameBatch, old: Batch) -> Batch {
        let Batch { mut changers, mut parts, .. } = old;
        changers.clear();
        parts.0.clear();
        for frame in frames.frames() {
            let before = parts.0.len();
            // What does not decode tells whoever decodes it.
            let changer = parts.push(frame.payload).unwrap_or_else(|_| {
                parts.0.truncate(before);
                None
            });
            changers.push(changer.map(|changer| (changer, parts.0.len())));
        }
        Batch { frames, changers, parts }
    }

    /// What it was made of, to be filled again.
    pub(super) fn take_frames(&mut self) -> FrameBatch {
        std::mem::take(&mut self.frames)
    }

    /// What its records take in the log, bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        self.frames.log_bytes()
    }

    /// All pages that are changed.
    pub(super) fn pages(&self) -> impl Iterator<Item = (PartitionId, PageNo)> {
        self.parts.0.iter().map(|stub| (stub.partition, stub.page))
    }

    /// Its records, in the order of the log.
    pub(super) fn records(&self) -> impl Iterator<Item = (Frame<'_>, Option<Changes<'_>>)> {
        let mut start = 0;
        self.frames.frames().zip(&self.changers).map(move |(frame, changer)| {
            let changes = changer.map(|(changer, end)| {
                let stubs = &self.parts.0[start..end];
                start = end;
                Changes { changer, stubs, payload: frame.payload }
            });
            (frame, changes)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::PageChange;
    use crate::record::{self, Record};

    /// What [`Parts`] makes of a payload is what decoding makes of it.
    fn assert_alike(payload: &[u8]) {
        let mut parts = Parts::default();
        match (parts.of(payload), Record::decode(payload)) {
            (Ok(Some(changes)), Ok(record)) => {
                let changer = match &record {
                    Record::Update { txn, prev_lsn, .. } => {
                        Changer::Update { txn: *txn, prev_lsn: *prev_lsn }
                    }
                    Record::Compensation { txn, prev_lsn, undo_next_lsn, .. } => Changer::Compensation {
                        txn: *txn,
                        prev_lsn: *prev_lsn,
                        undo_next_lsn: *undo_next_lsn,
                    },
                    _ => Changer::Structure,
                };
                assert_eq!(changes.changer, changer, "{record:?}");
                assert_eq!(changes.parts().count(), record.parts().len(), "{record:?}");
                for (encoded, part) in changes.parts().zip(record.parts()) {
                    assert_eq!(
                        (encoded.partition, encoded.page, encoded.page_prev_lsn),
                        (part.partition, part.page, part.page_prev_lsn)
                    );
                    let mut bytes = encoded.change.bytes;
                    assert_eq!(PageChange::decode(&mut bytes).unwrap(), part.change);
                    assert!(bytes.is_empty(), "{part:?}");
                    assert_eq!(encoded.change.is_blind(), part.change.is_blind(), "{part:?}");
                    assert_eq!(encoded.change.cleared_bits(), part.change.cleared_bits(), "{part:?}");
                }
            }
            (Ok(None), Ok(record)) => {
                let changes = matches!(
                    record,
                    Record::Update { .. } | Record::Compensation { .. } | Record::Structure { .. }
                );
                assert!(!changes, "{record:?}");
            }
            // Of any other kind, and left to whoever decodes it.
            (Ok(None), Err(_)) => {}
            (Err(error), Err(other)) => assert_eq!(error.to_string(), other.to_string()),
            (apart, decoded) => panic!("{payload:?}: {apart:?}, but {decoded:?}"),
        }
    }

    #[test]
    fn every_record_is_taken_apart_as_it_is_decoded() {
        for record in record::tests::samples() {
            let payload = record::tests::encoded(&record);
            (0..=payload.len()).for_each(|bytes| assert_alike(&payload[..bytes]));
            assert_alike(&[payload.as_slice(), &[0]].concat());
        }
    }

    proptest! {
        #[test]
        fn no_changed_byte_is_taken_apart_otherwise_than_it_is_decoded(
            which in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            to in any::<u8>(),
        ) {
            let samples = record::tests::samples();
            let mut payload = record::tests::encoded(which.get(&samples));
            let at = at.index(payload.len());
            payload[at] = to;
            assert_alike(&payload);
        }
    }
}
