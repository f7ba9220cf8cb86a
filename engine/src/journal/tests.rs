//! What an update promises against what its compensation takes.

use hamal_wal::Lsn;

use super::*;
use crate::change::Row;
use crate::tree::testing::Fixture;

/// Promise of one update, and what taking it back appended to the log, bytes.
fn promised_and_taken(
    f: &Fixture,
    chain: &Chain,
    update: impl FnOnce(),
    undo: impl FnOnce(Author<'_>),
) -> (u64, u64) {
    let before = chain.entry.lock().promised_bytes;
    update();
    let promised = chain.entry.lock().promised_bytes - before;
    let tail = f.journal.log.tail();
    undo(Author::Rollback(chain, Lsn::NEVER));
    (promised, f.journal.log.tail().0 - tail.0)
}

#[test]
fn every_update_promises_what_its_compensation_takes() {
    let f = Fixture::new(4096);
    let setup = f.begin();
    for key_bytes in [0, 1, 20, 21, 200, 900] {
        let key = vec![b'k'; key_bytes];
        f.put(&setup, &key, &[1; 60]);
        let old = Row { stamp: setup.txn(), ghost: false, overflow: false, value: &[1; 60] };
        let chain = f.begin();
        let fresh = [&key[..], b"+"].concat();
        let undo = |author: Author<'_>, key: &[u8], before| {
            f.tree.undo_row(&f.journal, author, key, before, || ()).unwrap();
        };
        let cases = [
            (
                "insert",
                promised_and_taken(&f, &chain, || f.put(&chain, &fresh, b"v"), |a| undo(a, &fresh, None)),
            ),
            (
                "shrink",
                promised_and_taken(&f, &chain, || f.put(&chain, &key, b""), |a| undo(a, &key, Some(old))),
            ),
            (
                "grow",
                promised_and_taken(
                    &f,
                    &chain,
                    || f.put(&chain, &key, &[2; 90]),
                    |a| undo(a, &key, Some(old)),
                ),
            ),
            (
                "remove",
                promised_and_taken(
                    &f,
                    &chain,
                    || assert!(f.remove(&chain, &key)),
                    |a| f.tree.undo_mark(&f.journal, a, &key, (setup.txn(), false), || ()).unwrap(),
                ),
            ),
        ];
        for (case, (promised, taken)) in cases {
            assert!(taken > 0, "{case}");
            assert!(
                promised >= taken,
                "{case} beside a key of {key_bytes} bytes: {promised} promised, {taken} taken"
            );
        }
        f.end(&chain);
    }
    f.end(&setup);
    assert_eq!(f.journal.log.promised_bytes(), 0, "everything was given back");
}
