//! What a few records make of the dirty page table.

use super::*;
use crate::change::PageChange;
use crate::record::PagePart;
use crate::recovery::changes::Parts;

const BEGIN: Lsn = Lsn(800);
const PARTITION: PartitionId = PartitionId(1);
const PAGE: PageNo = PageNo(5);

/// What analysis has in its table for [`PAGE`] after a checkpoint's BEGIN and these records.
fn rec_lsn_after(records: &[(u64, Record<'_>)]) -> Option<Lsn> {
    see_all(records, Lsn::NEVER, &mut Nobody).rec_lsn(PARTITION, PAGE)
}

fn see_all(records: &[(u64, Record<'_>)], restored_to: Lsn, taker: &mut impl Takes) -> Analysis {
    let master = Master {
        sequence: 1,
        database_id: 7,
        page_bytes: 4096,
        incarnation: 1,
        log_segment_bytes: 1 << 20,
        checkpoint_lsn: BEGIN,
        attested: BEGIN,
        oldest_lsn: BEGIN,
        restored_to,
        history: 0,
    };
    let mut analysis = Analysis::new(&master);
    let begin = Record::BeginCheckpoint { database_id: 7 };
    analysis.see(BEGIN, BEGIN, &master, &begin, taker).unwrap();
    let (mut parts, mut payload) = (Parts::default(), Vec::new());
    for (lsn, record) in records {
        payload.clear();
        record.encode(&mut payload);
        match parts.of(&payload) {
            Some(changes) => analysis.see_changes(Lsn(*lsn), changes, taker).unwrap(),
            None => analysis.see(Lsn(*lsn), BEGIN, &master, record, taker).unwrap(),
        }
    }
    analysis
}

/// Takes whatever it is offered.
#[derive(Default)]
struct Taker {
    parts: Vec<u64>,
    gone: usize,
}

impl Takes for Taker {
    fn takes(&mut self, _: PartitionId, _: PageNo) -> bool {
        true
    }

    fn part(&mut self, at: Place, _: EncodedPart<'_>) {
        self.parts.push(at.lsn.0);
    }

    fn gone(&mut self, _: PartitionId, _: PageNo) {
        self.gone += 1;
    }
}

fn changed(page: PageNo, change: PageChange<'static>) -> Record<'static> {
    let part = PagePart { partition: PARTITION, page, page_prev_lsn: Lsn(700), change };
    Record::Structure { parts: smallvec::smallvec![part] }
}

fn listed(rec_lsn: u64) -> Record<'static> {
    Record::CheckpointPages { partition: PARTITION, pages: vec![(PAGE, Lsn(rec_lsn))] }
}

fn clean(lsn: u64) -> Record<'static> {
    Record::PagesClean { pages: vec![(PARTITION, PAGE, Lsn(lsn))] }
}

/// Any change will do.
const CHANGE: PageChange<'static> = PageChange::SetBits { first: 1, count: 1 };

#[test]
fn a_page_is_clean_only_if_its_copy_has_what_analysis_does_not_see() {
    assert_eq!(rec_lsn_after(&[(840, listed(400)), (880, clean(600))]), Some(Lsn(600)));
    assert_eq!(rec_lsn_after(&[(840, listed(400)), (880, clean(800))]), None);
    assert_eq!(
        rec_lsn_after(&[(816, changed(PAGE, CHANGE)), (840, listed(400)), (880, clean(808))]),
        Some(Lsn(808))
    );
    assert_eq!(rec_lsn_after(&[(816, changed(PAGE, CHANGE)), (840, listed(400)), (880, clean(816))]), None);
}

#[test]
fn what_was_written_of_the_files_a_backup_was_taken_of_is_no_reason_to_forget_a_page_that_was_taken() {
    let records = [(816, changed(PAGE, CHANGE)), (824, clean(816))];
    for (restored_to, gone) in [(Lsn::NEVER, 1), (Lsn(824), 1), (Lsn(832), 0)] {
        let mut taker = Taker::default();
        let mut analysis = see_all(&records, restored_to, &mut taker);
        assert_eq!((&taker.parts[..], taker.gone), (&[816][..], gone), "restored to {restored_to}");
        analysis.settle_taken(|_, _| true);
        assert_eq!(analysis.is_redone(PARTITION, PAGE), gone == 0);
    }
}

#[test]
fn a_page_freed_before_the_checkpoint_could_list_it_is_not_replayed() {
    let freed = changed(PageNo(1), PageChange::ClearBits { first: PAGE.0, count: 1 });
    assert_eq!(rec_lsn_after(&[(816, changed(PAGE, CHANGE)), (824, freed.clone())]), None);
    let again = [(816, changed(PAGE, CHANGE)), (824, freed), (832, changed(PAGE, CHANGE))];
    assert_eq!(rec_lsn_after(&again), Some(Lsn(832)), "used again");
}
