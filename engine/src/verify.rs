//! Verification: proves every invariant of every page of every partition, and of partitions, catalog and counts to each other.
//!
//! Per partition: its header; both trees (every page, each against its parent); every overflow value, read to its end; every pending
//! run; and the bitmaps against all of these: each page is reachable, free, or allocated to something, exactly once; and that no key lies
//! outside of the partition's range, but for strays above it that a split or a merge has left and nobody has removed yet. Per table: the row count against the rows of all its partitions. Damage becomes a finding, and the search goes on; an I/O error ends it.
//!
//! The caller keeps writers out; this module keeps the vacuum out.

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::{PageNo, PartitionId};

use crate::catalog::{CATALOG, Definition};
use crate::engine::{Engine, PartitionHandle};
use crate::node::{Node, Sort};
use crate::repair::Bounds;
use crate::report::{Finding, VerifyProgress, VerifyReport};
use crate::space::Fault;
use crate::tree::{PageSet, ROOT, TreeReport};
use crate::{Error, ErrorKind, Result, overflow, recovery};

/// Bytes read at a time from overflow values.
const READ_BYTES: usize = 64 << 10;

pub(crate) fn run(
    engine: &Engine,
    progress: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
) -> Result<VerifyReport> {
    let _still = engine.lock(&engine.vacuum, "a vacuum");
    let _span = tracing::info_span!("verification").entered();
    let mut report = VerifyReport::default();
    // Without the catalog nothing says which partitions there should be.
    let tables = match recovery::tables(engine) {
        Ok(tables) => tables,
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            note(&mut report, CATALOG, None, e.to_string());
            Vec::new()
        }
        Err(e) => return Err(e),
    };
    report.tables = tables.len() as u64;
    let mut scopes = open_all(engine, &tables, &mut report)?;
    let pages_total = scopes.iter().map(|scope| u64::from(scope.handle.partition.file_pages())).sum();
    let mut tick = |pages_done: u64| match progress(VerifyProgress { pages_done, pages_total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "verification was stopped")),
    };
    for scope in &mut scopes {
        report.partitions += 1;
        engine.pause("between partitions of a verification");
        scope.rows = check_partition(scope, true, &mut report, &mut tick)?;
    }
    for (at, (name, table)) in tables.iter().enumerate() {
        let parts = scopes.iter().filter(|scope| scope.table == Some(at));
        let rows: Vec<u64> = parts.filter_map(|scope| scope.rows).collect();
        // Only if all of its rows could be seen.
        if rows.len() == table.partitions().count() {
            let (counted, rows) = (engine.timeline.newest_rows(table.row.id), rows.iter().sum::<u64>());
            if rows != counted {
                let what = format!("table {name:?}: expected {counted} rows by its count, found {rows}");
                note(&mut report, table.row.partition, None, what);
            }
        }
    }
    tick(pages_total)?;
    let (pages, rows, findings) = (report.pages, report.rows, report.findings.len());
    tracing::info!(pages, rows, findings, "verified");
    Ok(report)
}

/// A partition that is checked.
struct Scope {
    handle: Arc<PartitionHandle>,
    /// Which table it is of; `None`: it is the catalog.
    table: Option<usize>,
    /// Where its keys are: not below, and below. Empty: there is no bound.
    lower: Box<[u8]>,
    upper: Box<[u8]>,
    /// Its rows, if all could be seen.
    rows: Option<u64>,
}

/// All partitions that there should be, and can be opened.
fn open_all(
    engine: &Engine,
    tables: &[(String, Definition)],
    report: &mut VerifyReport,
) -> Result<Vec<Scope>> {
    let mut wanted = vec![(CATALOG, None, Box::default(), Box::default())];
    for (at, (_, table)) in tables.iter().enumerate() {
        let mut uppers = table.cuts.iter().map(|cut| cut.lower.clone());
        let mut upper = || uppers.next().unwrap_or_default();
        wanted.push((table.row.partition, Some(at), Box::default(), upper()));
        for cut in &table.cuts {
            wanted.push((cut.partition, Some(at), cut.lower.clone(), upper()));
        }
    }
    let mut scopes = Vec::with_capacity(wanted.len());
    for (id, table, lower, upper) in wanted {
        match engine.partition(id) {
            Ok(handle) if handle.partition.is_sealed() => {
                note(report, id, None, engine.unavailable(id).to_string());
            }
            Ok(handle) => scopes.push(Scope { handle, table, lower, upper, rows: None }),
            Err(e) if e.kind() == ErrorKind::Corrupt => note(report, id, None, e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok(scopes)
}

fn note(report: &mut VerifyReport, partition: PartitionId, page: Option<u32>, what: String) {
    tracing::error!(partition = partition.0, page, what, "damage");
    report.findings.push(Finding { file: format!("part/{partition}.dat"), page, what });
}

/// Hands damage to `report`, everything else to the caller.
fn noted<T>(report: &mut VerifyReport, partition: PartitionId, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            note(report, partition, None, e.to_string());
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Checks one partition that nobody uses; returns its rows, and what was found. `whole`: also that every page is accounted for, which it is
/// only if no transaction is half done there.
pub(crate) fn check_alone(
    engine: &Engine,
    handle: &Arc<PartitionHandle>,
    bounds: &Bounds,
    whole: bool,
) -> Result<(u64, Vec<Finding>)> {
    let _still = engine.lock(&engine.vacuum, "a vacuum");
    let (lower, upper) = (bounds.lower.clone(), bounds.upper.clone());
    let scope = Scope { handle: handle.clone(), table: None, lower, upper, rows: None };
    let mut report = VerifyReport::default();
    let rows = check_partition(&scope, whole, &mut report, &mut |_| Ok(()))?;
    Ok((rows.unwrap_or(0), report.findings))
}

/// Checks one partition; returns the number of rows in its user tree if the whole tree could be seen.
fn check_partition(
    scope: &Scope,
    whole: bool,
    report: &mut VerifyReport,
    tick: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Option<u64>> {
    let handle = &*scope.handle;
    let id = handle.partition.id();
    let before = report.findings.len();
    let base = report.pages;
    if noted(report, id, handle.space.check_header())?.is_none() {
        return Ok(None);
    }
    let mut pages = PageSet::default();
    let mut references = Vec::new();
    // Left by a split or merge, and nobody's.
    let mut strays_allowed = Strays { allowed: handle.strays.are_possible(), rows: 0 };
    let mut rows = 0;
    for tree in [handle.tree(), handle.system_tree()] {
        let has_users_rows = tree.root == ROOT;
        let mut strays: Vec<Fault> = Vec::new();
        let mut faults: Vec<Fault> = Vec::new();
        let mut visited = 0;
        let seen = tree.check(
            &mut pages,
            &mut |page, node| {
                if has_users_rows {
                    strays.extend(find_stray(scope, page, node, &mut strays_allowed)?);
                }
                visited += 1;
                if visited % 256 == 0 {
                    tick(base + visited)?;
                }
                live_references(node, &mut references)
            },
            &mut |fault| {
                faults.push(fault);
                Ok(())
            },
        )?;
        add(report, &seen);
        if has_users_rows {
            rows = seen.rows - strays_allowed.rows;
        }
        for fault in faults.into_iter().chain(strays) {
            note_fault(report, id, &fault);
        }
    }
    for reference in &references {
        let read = check_value(handle, reference, &mut pages);
        report.overflow_values += 1;
        noted(report, id, read)?;
    }
    let pending = overflow::pending_runs(&handle.space, &mut |run| claim(&mut pages, run));
    noted(report, id, pending)?;
    report.pages += pages.len();
    // What could not be reached would all look leaked.
    if report.findings.len() > before {
        return Ok(None);
    }
    if !whole {
        return Ok(Some(rows));
    }
    let mut faults = Vec::new();
    let free = handle.space.check_bitmaps(&|page| pages.contains(page), &mut |fault| {
        faults.push(fault);
        Ok(())
    });
    if let Some(free) = noted(report, id, free)? {
        report.free_pages += free;
    }
    for fault in &faults {
        note_fault(report, id, fault);
    }
    Ok(Some(rows))
}

/// Rows at or above the partition's upper bound.
struct Strays {
    allowed: bool,
    /// Those that are not ghosts.
    rows: u64,
}

/// A key in this page that is not in its partition's range, and may not be there, if there is one. Below the range there is not even a
/// ghost, for undo would bring it back. Above it a split or a merge may have left ghosts.
fn find_stray(scope: &Scope, page: PageNo, node: Node<'_>, strays: &mut Strays) -> Result<Option<Fault>> {
    if node.sort() != Sort::Leaf || node.len() == 0 {
        return Ok(None);
    }
    let mut found = Some(node.key(0)?.to_vec()).filter(|first| **first < *scope.lower);
    for index in (0..node.len()).rev() {
        let key = node.key(index)?.to_vec();
        if scope.upper.is_empty() || *key < *scope.upper {
            break;
        }
        if !node.cell(index)?.row.ghost {
            strays.rows += 1;
            found = found.or(Some(key).filter(|_| !strays.allowed));
        }
    }
    Ok(found.map(|key| {
        let (lower, upper) = (scope.lower.escape_ascii(), scope.upper.escape_ascii());
        let expected = format!("keys in the partition's range, from \"{lower}\" up to \"{upper}\"");
        Fault::new(page, &expected, &format!("\"{}\"", key.escape_ascii()))
    }))
}

fn note_fault(report: &mut VerifyReport, id: PartitionId, fault: &Fault) {
    let what = format!("expected {}, found {}", fault.expected, fault.found);
    note(report, id, Some(fault.page.0), what);
}

fn add(report: &mut VerifyReport, seen: &TreeReport) {
    report.rows += seen.rows;
    report.ghosts += seen.ghosts;
    report.height = report.height.max(u64::from(seen.height));
}

/// Overflow references of rows that are not ghosts: a ghost's runs are listed as pending instead.
fn live_references(node: Node<'_>, references: &mut Vec<Vec<u8>>) -> Result<()> {
    if node.sort() != Sort::Leaf {
        return Ok(());
    }
    for index in 0..node.len() {
        let row = node.cell(index)?.row;
        if row.overflow && !row.ghost {
            references.push(row.value.to_vec());
        }
    }
    Ok(())
}

fn claim(pages: &mut PageSet, run: overflow::Run) -> Result<()> {
    for page in run.pages() {
        if !pages.insert(page) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("page {page} is in use twice, once in an overflow run"),
            ));
        }
    }
    Ok(())
}

/// Claims a value's runs and reads it to its end.
fn check_value(handle: &PartitionHandle, reference: &[u8], pages: &mut PageSet) -> Result<()> {
    overflow::runs_of(&handle.partition, reference, &mut |run| claim(pages, run))?;
    let mut reader = overflow::Reader::open(&handle.partition, reference)?;
    let mut buffer = vec![0; READ_BYTES];
    while reader.read(&mut buffer)? > 0 {}
    Ok(())
}
