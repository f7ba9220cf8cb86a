use std::time::Duration;

use super::cell::{Window, measure};
use super::workload::{Job, Ledger, Workload};
use super::*;

/// Runs every workload for a moment and audits it.
fn try_out(contender: Contender) {
    for &workload in Workload::ALL {
        let home = tempfile::tempdir().unwrap();
        let setup = Setup { cache_bytes: 16 << 20, commit: Commit::Lazy, writers: 3 };
        let store = contender.open(home.path(), setup).unwrap();
        let job = Job::new(workload, 3, 30);
        job.load(&mut *store.session().unwrap()).unwrap();
        job.audit(&*store, Ledger::default()).unwrap();
        let mut ledger = Ledger::default();
        for round in 0..2 {
            let window = Window { warm_up: Duration::from_millis(2), measured: Duration::from_millis(20) };
            let sample = measure(&*store, job, round, window).unwrap();
            ledger.add(sample.ledger);
        }
        assert!(ledger.commits > 0, "{contender:?} committed nothing in {workload:?}");
        job.audit(&*store, ledger).unwrap();
        if workload == Workload::Zipfian {
            ledger.commits += 1;
            assert!(job.audit(&*store, ledger).is_err(), "a lost increment must show");
        }
    }
}

#[test]
fn no_engine_loses_a_transaction_of_any_workload() {
    for &contender in <Contender as clap::ValueEnum>::value_variants() {
        try_out(contender);
    }
}
