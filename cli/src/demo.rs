//! The demo: a child process works on a database, is killed at random moments, and everything is checked.
//!
//! Three tables: `characters` (the Unicode character database, one row a character), `accounts` (balances whose sum never changes) and
//! `ledger` (a row per worker: the number of its last committed transaction). The child's workers say over a pipe what a
//! transaction changes before they commit it, and that it is committed after. The parent kills the child with SIGKILL, opens the
//! database, which recovers it, and compares every row with a model that replays what it was told.
//!
//! The model is exact although workers run at once: characters belong to one worker each (by code point), balances change by amounts, which
//! add up in any order, and a transaction whose commit was announced but not acknowledged is settled by its worker's row in the
//! ledger. If the ledger has it, all of it must be there; if not, none.
//!
//! I1. Acknowledged means `commit` returned: such a transaction must be there.
//! I2. A worker announces before it commits, so a transaction nobody announced must not be there.
//! I3. The parent believes only whole lines: what the kill cut short was not announced.

pub(crate) mod campaign;
pub(crate) mod image;
mod model;
pub(crate) mod outage;
mod protocol;
mod random;
pub(crate) mod report;
pub(crate) mod setup;
mod verify;
pub(crate) mod worker;

use hamal::TableDef;

/// The rows of UnicodeData.txt.
pub(crate) const CHARACTERS: TableDef<'_, &str, &str> = TableDef::new("characters");
/// Balances, cents.
pub(crate) const ACCOUNTS: TableDef<'_, &str, u64> = TableDef::new("accounts");
/// Last committed transaction of each worker.
pub(crate) const LEDGER: TableDef<'_, &str, u64> = TableDef::new("ledger");

/// How many accounts there are.
const ACCOUNT_COUNT: u64 = 1000;
/// What each holds at first, cents.
const FIRST_BALANCE: u64 = 1000;

/// Name of an account.
fn account_name(number: u64) -> String {
    format!("account-{number:04}")
}

/// A worker's row in the ledger.
fn ledger_key(worker: usize) -> String {
    format!("worker-{worker}")
}

/// Key of a character: its code point as UnicodeData.txt writes it.
fn character_key(code_point: u64) -> String {
    format!("{code_point:04X}")
}
