//! Every record kind there and back, and hostile payloads.

use proptest::prelude::*;
use smallvec::smallvec;

use super::*;
use crate::ErrorKind;

/// One record of each kind and shape.
pub(crate) fn samples<'a>() -> Vec<Record<'a>> {
    let part = PagePart {
        partition: PartitionId(3),
        page: PageNo(7),
        page_prev_lsn: Lsn(4_096),
        change: PageChange::Row {
            key: b"key",
            row: Row { stamp: TxnId(9), ghost: false, overflow: true, value: b"value" },
        },
    };
    let bits =
        |change| PagePart { partition: PartitionId(3), page: PageNo(1), page_prev_lsn: Lsn(8), change };
    let before = Row { stamp: TxnId(2), ghost: true, overflow: false, value: b"" };
    let (txn, prev_lsn) = (TxnId(9), Lsn(4_160));
    vec![
        Record::Update {
            txn,
            prev_lsn,
            parts: smallvec![part.clone()],
            undo: Undo::Row { root: PageNo(2), before: Some(before) },
        },
        Record::Update {
            txn,
            prev_lsn: Lsn::NEVER,
            parts: smallvec![part.clone()],
            undo: Undo::Row { root: PageNo(2), before: None },
        },
        Record::Update {
            txn,
            prev_lsn,
            parts: smallvec![bits(PageChange::Mark { key: b"k", stamp: txn, ghost: true })],
            undo: Undo::Mark { root: PageNo(4), stamp: TxnId(1), ghost: false },
        },
        Record::Update {
            txn,
            prev_lsn,
            parts: smallvec![bits(PageChange::SetBits { first: 5, count: 2 })],
            undo: Undo::Extent { first: PageNo(5), count: 2 },
        },
        Record::Compensation { txn, prev_lsn, undo_next_lsn: Lsn(64), parts: smallvec![part.clone()] },
        Record::Structure { parts: smallvec![part, bits(PageChange::ClearBits { first: 9, count: 1 })] },
        Record::Structure { parts: smallvec![bits(PageChange::Overflow { data: b"data" })] },
        Record::Commit { txn, micros: 1_700_000_000_000_000, counts: vec![(1, -5), (2, i64::MAX)] },
        Record::Abort { txn },
        Record::End { txn, partition: PartitionId(3) },
        Record::PagesClean {
            pages: vec![(PartitionId(0), PageNo(1), Lsn(2)), (PartitionId(3), PageNo(4), Lsn(5))],
        },
        Record::BeginCheckpoint { database_id: 77 },
        Record::CheckpointPages {
            partition: PartitionId(3),
            pages: vec![(PageNo(1), Lsn(100)), (PageNo(9), Lsn(1))],
        },
        Record::CheckpointTransactions {
            transactions: vec![TxnImage {
                txn,
                first_lsn: Lsn(1),
                undo_bytes: 77,
                chains: vec![ChainImage {
                    partition: PartitionId(3),
                    last_lsn: Lsn(9),
                    undo_next_lsn: Lsn(8),
                }],
            }],
        },
        Record::CheckpointCounts { counts: vec![(1, 0), (2, u64::MAX)] },
        Record::EndCheckpoint { begin_lsn: Lsn(1), counts_as_of: Lsn(2), next_txn: TxnId(3), next_id: 4 },
        Record::PartitionDeleted { partition: PartitionId(3) },
    ]
}

pub(crate) fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode(&mut out);
    out
}

#[test]
fn transactions_of_a_checkpoint_of_before_are_read_as_of_unknown_size() {
    let record = samples().into_iter().find(|r| matches!(r, Record::CheckpointTransactions { .. })).unwrap();
    let mut bytes = encoded(&record);
    bytes[0] = kind::OLD_CHECKPOINT_TRANSACTIONS;
    let at = bytes.windows(8).position(|window| window == 77_u64.to_le_bytes()).unwrap();
    drop(bytes.drain(at..at + 8));
    let Record::CheckpointTransactions { mut transactions } = record else { unreachable!() };
    transactions[0].undo_bytes = u64::MAX;
    assert_eq!(Record::decode(&bytes).unwrap(), Record::CheckpointTransactions { transactions });
}

#[test]
fn every_record_survives_encoding() {
    let encodings: Vec<_> = samples().iter().map(encoded).collect();
    for (bytes, record) in encodings.iter().zip(samples()) {
        assert_eq!(Record::decode(bytes).unwrap(), record);
    }
}

#[test]
fn a_record_cut_short_or_with_bytes_behind_it_is_corrupt() {
    for record in samples() {
        let bytes = encoded(&record);
        for len in 0..bytes.len() {
            let error = Record::decode(&bytes[..len]).expect_err("cut short");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{record:?} cut to {len}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Record::decode(&longer).expect_err("longer").kind(), ErrorKind::Corrupt);
    }
}

proptest! {
    #[test]
    fn no_payload_makes_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Record::decode(&bytes);
    }

    #[test]
    fn no_changed_byte_makes_decoding_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encoded(which.get(&samples()));
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = Record::decode(&bytes);
    }
}
