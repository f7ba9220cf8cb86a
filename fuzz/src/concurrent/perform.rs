//! Asking the database.

use std::sync::Arc;

use hamal::{ErrorKind, ReadTable, Result, Savepoint, Snapshot, Table, Transaction};

use super::operation::{Answer, Bounds, End, Get, Operation, Put, Removal, RowOperation, Step, shown};
use crate::model::Key;
use crate::plan::Plan;
use crate::value::Value;
use crate::workload::{Doing, Stop};

type Rows<'t> = ReadTable<'t, &'static [u8], &'static [u8]>;
type WritableRows<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// An operation that failed.
#[derive(Debug)]
pub(super) struct Broken {
    /// The part of it that was done, and what that answered. The operation says only that part now.
    pub(super) so_far: Option<Answer>,
    /// It may have been done in part, and nobody knows which: the transaction is good for rolling back only.
    pub(super) torn: bool,
    pub(super) stop: Stop,
}

impl From<Stop> for Broken {
    fn from(stop: Stop) -> Broken {
        Broken { so_far: None, torn: false, stop }
    }
}

pub(super) type Performed = std::result::Result<Answer, Broken>;

/// Asks a transaction. `savepoints`: those it has; `plan` says where tables are cut.
pub(super) fn in_transaction(
    tx: &Transaction,
    plan: &Plan,
    operation: &mut Operation,
    savepoints: &mut Vec<Savepoint>,
) -> Performed {
    match operation {
        Operation::Savepoint => {
            savepoints.push(tx.savepoint().doing(|| "savepoint".to_owned())?);
            Ok(Answer::Done)
        }
        Operation::RollBackTo(index) => {
            tx.rollback_to(savepoints[*index]).doing(|| format!("roll back to savepoint {index}"))?;
            savepoints.truncate(*index + 1);
            Ok(Answer::Done)
        }
        Operation::Tables => {
            let tables = tx.tables().doing(|| "list the tables".to_owned())?;
            Ok(Answer::Tables(tables.into_iter().map(|table| (table.name, table.rows)).collect()))
        }
        Operation::HasTable(name) => {
            Ok(Answer::Is(tx.has_table(name).doing(|| format!("has_table({name})"))?))
        }
        Operation::Create(name) => {
            let doing = || format!("open or create table {name}");
            if tx.has_table(name).doing(doing)? {
                tx.open_bytes_table(name).doing(doing)?;
            } else {
                tx.create_bytes_table(name, &plan.splits(name)).doing(doing)?;
            }
            Ok(Answer::Done)
        }
        Operation::Drop(name) => refusable(tx.drop_table(name), || format!("drop table {name}")),
        Operation::Rename(from, to) => {
            refusable(tx.rename_table(from, to), || format!("rename table {from} to {to}"))
        }
        Operation::Rows(name, rows) => {
            let mut table = tx.open_bytes_table(name).doing(|| format!("open table {name}"))?;
            match rows {
                RowOperation::Put(..)
                | RowOperation::Remove(..)
                | RowOperation::Lock(_)
                | RowOperation::Pop(_)
                | RowOperation::Clear => write(&mut table, rows),
                RowOperation::Walk(bounds, steps) => {
                    let reading = (*table).clone();
                    walk(&reading, bounds, steps, Some(&mut table))
                }
                _ => read(&table, rows),
            }
        }
    }
}

/// Asks a snapshot, which is asked nothing that changes anything.
pub(super) fn in_snapshot(snapshot: &Snapshot, operation: &mut Operation) -> Performed {
    match operation {
        Operation::Tables => {
            let tables = snapshot.tables().doing(|| "list a snapshot's tables".to_owned())?;
            Ok(Answer::Tables(tables.into_iter().map(|table| (table.name, table.rows)).collect()))
        }
        Operation::HasTable(name) => {
            Ok(Answer::Is(snapshot.has_table(name).doing(|| format!("has_table({name}) in a snapshot"))?))
        }
        Operation::Rows(name, rows) => match snapshot.open_bytes_table(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Answer::Refused(ErrorKind::NotFound)),
            Err(error) => {
                Err(Stop::Engine { doing: format!("open table {name} in a snapshot"), error }.into())
            }
            Ok(table) => match rows {
                RowOperation::Walk(bounds, steps) => walk(&table, bounds, steps, None),
                _ => read(&table, rows),
            },
        },
        other => unreachable!("a snapshot is not asked for {other:?}"),
    }
}

/// The answer, or which error it is that the state of the database calls for.
fn refusable(result: Result<()>, what: impl FnOnce() -> String) -> Performed {
    match result {
        Ok(()) => Ok(Answer::Done),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
            Ok(Answer::Refused(error.kind()))
        }
        Err(error) => Err(Stop::Engine { doing: what(), error }.into()),
    }
}

fn read(table: &Rows<'_>, operation: &RowOperation) -> Performed {
    let doing = || describe(table.name(), operation);
    match operation {
        RowOperation::Get(key, Get::Value) => {
            Ok(Answer::Value(table.get(key).doing(doing)?.map(|value| Value::of(&value))))
        }
        RowOperation::Get(key, Get::Contains) => Ok(Answer::Is(table.contains_key(key).doing(doing)?)),
        RowOperation::Get(key, Get::Reader) => {
            let Some(mut reader) = table.reader(key).doing(doing)? else { return Ok(Answer::Value(None)) };
            let value = Value::read(&mut reader);
            let value = value.map_err(|error| Stop::Read { doing: doing(), error })?;
            Ok(Answer::Value(Some(value)))
        }
        RowOperation::Count => Ok(Answer::Count(table.len().doing(doing)?)),
        other => unreachable!("{other:?} is no read"),
    }
}

fn write(table: &mut WritableRows<'_>, operation: &RowOperation) -> Performed {
    let name = table.name().to_owned();
    let doing = || describe(&name, operation);
    let hash = |old: Option<Vec<u8>>| Answer::Value(old.map(|old| Value::of(&old)));
    match operation {
        RowOperation::Put(key, written, Put::Blind) => {
            table.put(key, &written.recipe.bytes()).doing(doing)?;
            Ok(Answer::Done)
        }
        RowOperation::Put(key, written, Put::Insert) => {
            Ok(hash(table.insert(key, &written.recipe.bytes()).doing(doing)?))
        }
        RowOperation::Put(key, written, Put::Stream) => {
            let bytes = written.recipe.bytes();
            Ok(Answer::Count(table.insert_from(key, &bytes[..]).doing(doing)?))
        }
        RowOperation::Remove(key, Removal::Blind) => {
            table.delete(key).doing(doing)?;
            Ok(Answer::Done)
        }
        RowOperation::Remove(key, Removal::Remove) => Ok(hash(table.remove(key).doing(doing)?)),
        RowOperation::Lock(key) => Ok(hash(table.get_for_update(key).doing(doing)?)),
        RowOperation::Pop(end) => {
            let row = match end {
                End::Front => table.pop_first(),
                End::Back => table.pop_last(),
            };
            Ok(Answer::Row(row.doing(doing)?.map(hashed)))
        }
        RowOperation::Clear => match table.clear().doing(doing) {
            Ok(()) => Ok(Answer::Done),
            Err(stop) => Err(Broken { so_far: None, torn: true, stop }),
        },
        other => unreachable!("{other:?} is no write"),
    }
}

fn hashed((key, value): (Vec<u8>, Vec<u8>)) -> (Key, Value) {
    (Arc::from(key), Value::of(&value))
}

/// Walks a range. If a step fails, `steps` loses it and those behind it.
fn walk(
    table: &Rows<'_>,
    bounds: &Bounds,
    steps: &mut Vec<Step>,
    mut writable: Option<&mut WritableRows<'_>>,
) -> Performed {
    let name = table.name();
    let (lower, upper) = (bounds.0.as_ref().map(|key| &key[..]), bounds.1.as_ref().map(|key| &key[..]));
    let doing = |step: &str| format!("{name}: {step} of a walk of {lower:x?}..{upper:x?}");
    let mut range = table.range((lower, upper)).doing(|| doing("start"))?;
    let mut rows = Vec::new();
    for at in 0..steps.len() {
        let step = match (&steps[at], &mut writable) {
            (Step::Next(end), _) => {
                let found = match end {
                    End::Front => range.next(),
                    End::Back => range.next_back(),
                };
                found.transpose().map(|found| rows.push(found.map(hashed)))
            }
            (Step::Put(key, written), Some(table)) => table.put(key, &written.recipe.bytes()),
            (Step::Delete(key), Some(table)) => table.delete(key),
            (step, None) => unreachable!("a snapshot is not asked for {step:?}"),
        };
        if let Err(stop) = step.doing(|| doing(&format!("step {at}"))) {
            steps.truncate(at);
            return Err(Broken { so_far: Some(Answer::Rows(rows)), torn: false, stop });
        }
    }
    Ok(Answer::Rows(rows))
}

fn describe(name: &str, operation: &RowOperation) -> String {
    format!("{name}: {}", shown(operation))
}
