//! What records change, as plain values beside their bytes: whoever reads the log takes records apart as long as their bytes are near, and
//! passes on what analysis and redo ask of each. The changes themselves are handed on encoded.
//!
//! I1. What is here decodes: a record that does not, or is of another kind, has no [`Changes`], and tells whoever decodes it.

use std::ops::Range;

use hamal_pager::{PageNo, PartitionId};
use hamal_wal::{Frame, FrameBatch, Log, Lsn};

use crate::change::{EncodedChange, Tag};
use crate::record::{Changer, Record, each_part};
use crate::{Error, Result};

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
struct PartStub {
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
    stubs: &'a [PartStub],
    payload: &'a [u8],
}

impl<'a> Changes<'a> {
    /// What it takes in the log, bytes.
    pub(crate) fn log_bytes(self) -> u64 {
        Log::framed_bytes(self.payload.len())
    }

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
pub(crate) struct Parts(Vec<PartStub>);

impl Parts {
    /// Takes a record apart, in the memory of the one before (I1).
    pub(crate) fn of<'a>(&'a mut self, payload: &'a [u8]) -> Option<Changes<'a>> {
        self.0.clear();
        let changer = self.push(payload)?;
        Some(Changes { changer, stubs: &self.0, payload })
    }

    fn push(&mut self, payload: &[u8]) -> Option<Changer> {
        let before = self.0.len();
        let changer = each_part(payload, |part, Range { start, end }| {
            let tag = Tag::of(&payload[start..end]);
            let (start, end) = (start as u32, end as u32);
            let (partition, page, page_prev_lsn) = (part.partition, part.page, part.page_prev_lsn);
            self.0.push(PartStub { partition, page, page_prev_lsn, start, end, tag });
        });
        let changer = changer.unwrap_or_default();
        if changer.is_none() {
            self.0.truncate(before);
        }
        changer
    }
}

/// A record that has no [`Changes`]. `Corrupt` if it does not decode, or if it changes pages after all: these changes would be lost.
pub(crate) fn decode_other<'f>(frame: &Frame<'f>) -> Result<Record<'f>> {
    let record = Record::decode(frame.payload).map_err(|e| e.context(format!("log record {}", frame.lsn)))?;
    if record.parts().is_empty() { Ok(record) } else { Err(changes_pages(frame.lsn, &record)) }
}

/// A record is taken for one that changes no pages.
pub(crate) fn changes_pages(lsn: Lsn, record: &Record<'_>) -> Error {
    Error::corrupt("the log", lsn.0, "a record that changes no pages", record.kind_name())
}

/// Many records, and what they change.
#[derive(Debug, Default)]
pub(super) struct RecordBatch {
    frames: FrameBatch,
    /// For each record, who has changed pages, and where its parts end in `parts`.
    changers: Vec<Option<(Changer, usize)>>,
    parts: Parts,
}

impl RecordBatch {
    /// Takes the records apart. `old`: its memory is used.
    pub(super) fn new(frames: FrameBatch, old: RecordBatch) -> RecordBatch {
        let RecordBatch { mut changers, mut parts, .. } = old;
        changers.clear();
        parts.0.clear();
        for frame in frames.frames() {
            let changer = parts.push(frame.payload);
            changers.push(changer.map(|changer| (changer, parts.0.len())));
        }
        RecordBatch { frames, changers, parts }
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
    use std::sync::Arc;

    use hamal_storage::Storage;
    use hamal_storage::sim::SimStorage;
    use hamal_wal::{LogOptions, Scanner};
    use proptest::prelude::*;

    use super::*;
    use crate::change::PageChange;
    use crate::record::{self, Record};

    impl Parts {
        /// How many there are, if the record changes pages.
        fn count(&mut self, payload: &[u8]) -> Option<usize> {
            self.of(payload).map(|changes| changes.parts().count())
        }
    }

    /// What [`Parts`] makes of a payload is what decoding makes of it.
    fn assert_alike(payload: &[u8]) {
        let mut parts = Parts::default();
        match (parts.of(payload), Record::decode(payload)) {
            (Some(changes), Ok(record)) => {
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
            (None, Ok(record)) => {
                let changes = matches!(
                    record,
                    Record::Update { .. } | Record::Compensation { .. } | Record::Structure { .. }
                );
                assert!(!changes, "{record:?}");
            }
            (None, Err(error)) => match each_part(payload, |_, _| {}) {
                Err(other) => assert_eq!(error.to_string(), other.to_string()),
                // Of another kind.
                Ok(changer) => assert_eq!(changer, None),
            },
            (Some(changes), Err(error)) => panic!("{payload:?}: {changes:?}, but {error}"),
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

    #[test]
    fn each_record_of_a_batch_has_its_own_changes() {
        let encoded = record::tests::encoded;
        let mut payloads: Vec<Vec<u8>> = record::tests::samples().iter().map(encoded).collect();
        // Two good parts, and bad bytes behind them; and one that has none.
        let two = payloads.iter().position(|bytes| Parts::default().count(bytes) == Some(2)).unwrap();
        let behind = [payloads[two].as_slice(), &[0]].concat();
        payloads.insert(two, behind);
        payloads.push(encoded(&Record::Structure { parts: smallvec::smallvec![] }));
        payloads.extend(payloads.clone());
        let storage: Arc<dyn Storage> = Arc::new(SimStorage::new(1));
        let options = LogOptions::default();
        let log = Log::create(storage.clone(), options.clone(), 1).unwrap();
        for payload in &payloads {
            log.admit(Log::framed_bytes(payload.len()), 0).unwrap().append(payload).unwrap();
        }
        log.flush().unwrap();
        let mut scanner = Scanner::open(storage, &options, Lsn::FIRST, Lsn::FIRST).unwrap();
        let mut old = RecordBatch::default();
        let (mut seen, mut pages) = (0, 0);
        while let Some(frames) = scanner.next_batch(old.take_frames()).unwrap() {
            let batch = RecordBatch::new(frames, old);
            pages += batch.pages().count();
            for (frame, changes) in batch.records() {
                assert_eq!(frame.payload, payloads[seen]);
                let mut parts = Parts::default();
                let alone = parts.of(frame.payload);
                let both = [changes, alone].map(|c| c.map(|c| (c.changer, c.parts().collect::<Vec<_>>())));
                assert_eq!(both[0], both[1], "record {seen}");
                seen += 1;
            }
            old = batch;
        }
        assert_eq!(seen, payloads.len());
        let alone: usize = payloads.iter().filter_map(|bytes| Parts::default().count(bytes)).sum();
        assert_eq!(pages, alone);
    }

    #[test]
    fn changes_that_nobody_has_taken_apart_are_refused_and_not_lost() {
        for record in record::tests::samples() {
            let payload = record::tests::encoded(&record);
            let (lsn, end) = (Lsn(64), Lsn(128));
            let frame = Frame { lsn, end, incarnation: 1, attested: lsn, payload: &payload };
            assert_eq!(decode_other(&frame).is_ok(), record.parts().is_empty(), "{record:?}");
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
