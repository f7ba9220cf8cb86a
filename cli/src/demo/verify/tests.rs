//! The verifier is itself verified: each kind of damage that a broken recovery could leave is planted, and must be named.

use hamal::OpenMode;

use super::super::protocol::{Change, Event};
use super::super::setup::Settings;
use super::super::{account_name, ledger_key};
use super::*;

struct Fixture {
    db: Database,
    model: Model,
    _directory: tempfile::TempDir,
}

/// A small database as the model has it: two characters, all accounts, two workers.
fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { cache_bytes: 4 << 20 };
    let db = settings.options(OpenMode::Create).open(directory.path().join("db")).unwrap();
    let characters = ["0041", "0042"].map(|key| (key.to_owned(), format!("row {key}")));
    let model = Model::new(characters.into(), 2);
    let tx = db.begin().unwrap();
    {
        let mut table = tx.open_table(CHARACTERS).unwrap();
        for (key, value) in &model.characters {
            table.put(key, value).unwrap();
        }
        let mut table = tx.open_table(ACCOUNTS).unwrap();
        for (key, cents) in &model.accounts {
            table.put(key, u64::try_from(*cents).unwrap()).unwrap();
        }
        let mut table = tx.open_table(LEDGER).unwrap();
        for (key, sequence) in &model.ledger {
            table.put(key, *sequence).unwrap();
        }
    }
    tx.commit().unwrap();
    Fixture { db, model, _directory: directory }
}

impl Fixture {
    /// Changes the database behind the model's back; what the verifier says to that.
    fn plant(mut self, change: impl Fn(&hamal::Transaction) -> hamal::Result<()>) -> Verdict {
        self.db.transact(|tx| change(tx)).unwrap();
        verify(&self.db, &mut self.model).unwrap()
    }
}

#[test]
fn a_right_database_has_no_differences() {
    let verdict = fixture().plant(|_| Ok(()));
    assert_eq!(verdict.wrong, Vec::<String>::new());
    assert_eq!((verdict.rows, verdict.balance), (1004, Model::total()));
    assert!(verdict.pages > 0);
}

#[test]
fn a_lost_row_a_revived_row_and_an_old_value_are_named() {
    let verdict = fixture().plant(|tx| {
        let mut characters = tx.open_table(CHARACTERS)?;
        characters.delete("0042")?;
        characters.put("0040", "x")?;
        characters.put("0041", "stale\n")
    });
    assert_eq!(
        verdict.wrong,
        [
            "characters: 0040 should not be there",
            "characters: 0041 is stale\\n, not row 0041",
            "characters: 0042 is missing"
        ]
    );
}

#[test]
fn money_from_nowhere_is_named() {
    let verdict = fixture().plant(|tx| tx.open_table(ACCOUNTS)?.put(&account_name(7), 1001));
    assert_eq!(
        verdict.wrong,
        ["the balances add up to 1000001, not 1000000", "accounts: account-0007 is 1001, not 1000"]
    );
}

#[test]
fn half_of_a_transaction_in_doubt_is_named() {
    let mut fixture = fixture();
    let changes = vec![Change::Delete { key: "0041".into() }, Change::Delete { key: "0042".into() }];
    fixture.model.hear(Event::Commit { worker: 0, sequence: 1, changes }).unwrap();
    // The ledger has it, and one of its two changes is there.
    let verdict = fixture.plant(|tx| {
        tx.open_table(LEDGER)?.put(&ledger_key(0), 1)?;
        tx.open_table(CHARACTERS)?.delete("0041")
    });
    assert_eq!(verdict.settled, Settled { present: 1, absent: 0 });
    assert_eq!(
        verdict.wrong,
        ["characters: 0042 should not be there", "characters: its count of rows is 1, not 0"]
    );
}

#[test]
fn a_lost_acknowledged_transaction_is_named() {
    let mut fixture = fixture();
    fixture.model.hear(Event::Commit { worker: 1, sequence: 1, changes: vec![] }).unwrap();
    fixture.model.hear(Event::Acknowledged { worker: 1, sequence: 1 }).unwrap();
    let verdict = fixture.plant(|_| Ok(()));
    assert_eq!(verdict.wrong, ["ledger: worker-1 is 0, not 1"]);
}

#[test]
fn a_transaction_that_nobody_announced_is_named() {
    let verdict = fixture().plant(|tx| tx.open_table(LEDGER)?.put(&ledger_key(1), 1));
    assert_eq!(verdict.wrong, ["ledger: worker-1 is 1, not 0"]);
}
