//! Private copies of leaves, for scans: no latch is held while they are read.

use std::sync::Arc;

use hamal_pager::{PageNo, SharedPage, header};

use super::Tree;
use crate::Result;
use crate::change::Row;
use crate::ids::TxnId;
use crate::node::{Damage, Node, Target};
use crate::versions::run::Run;
use crate::versions::{Found, OwnedRow, Search, Seen, Versions};
use crate::view::View;

/// A private copy of one leaf, and a buffer that is used again. Until [`Tree::leaf_at`] fills it, it has no rows.
///
/// I1. All its cells lie within the copy: that was checked when it was made, so reading it cannot fail.
/// I2. It shows what its [`Eyes`] saw while the leaf was latched (hazard H7).
#[derive(Clone, Debug, Default)]
pub(crate) struct LeafCopy {
    page: Vec<u8>,
    page_no: PageNo,
    /// Rows that look otherwise than in the page, by index.
    seen: Vec<(usize, Seen, OwnedRow)>,
}

/// A row that its eyes see in a file: its index, where the search has come to, and what it has found on the way.
type SpilledRow = (usize, (Search, Vec<Arc<Run>>), OwnedRow);

/// Whose view of a leaf is copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eyes<'e> {
    pub(crate) view: &'e View,
    pub(crate) versions: &'e Versions,
    pub(crate) table: u32,
}

/// What a row looks like that I1 says cannot be.
const NO_ROW: Row<'static> = Row { stamp: TxnId::NONE, ghost: true, overflow: false, value: &[] };

impl Tree {
    /// Copies the leaf whose range holds `key` (`None`: the first leaf) into `copy`. Without eyes: as it is.
    pub(crate) fn leaf_at(
        &self,
        key: Option<&[u8]>,
        eyes: Option<Eyes<'_>>,
        copy: &mut LeafCopy,
    ) -> Result<()> {
        let key = key.unwrap_or_default();
        let page = self.leaf_shared(Target::At(key))?;
        self.copy_leaf(page, eyes, copy, |node| node.covers(key))
    }

    /// Copies the leaf that holds the largest possible key below `key` (`None`: the last leaf) into `copy`. Without eyes: as it is.
    pub(crate) fn leaf_before(
        &self,
        key: Option<&[u8]>,
        eyes: Option<Eyes<'_>>,
        copy: &mut LeafCopy,
    ) -> Result<()> {
        let Some(key) = key else {
            let page = self.leaf_shared(Target::Last)?;
            return self.copy_leaf(page, eyes, copy, |node| Ok(node.upper_fence()?.is_empty()));
        };
        let page = self.leaf_shared(Target::Before(key))?;
        self.copy_leaf(page, eyes, copy, |node| {
            let (lower, upper) = (node.lower_fence()?, node.upper_fence()?);
            Ok((lower < key || key.is_empty()) && (upper.is_empty() || key <= upper))
        })
    }

    /// Copies a leaf, which must be `expected`: a scan that is led elsewhere would skip keys, or never end.
    fn copy_leaf(
        &self,
        page: SharedPage<'_>,
        eyes: Option<Eyes<'_>>,
        copy: &mut LeafCopy,
        expected: impl FnOnce(Node<'_>) -> Result<bool, Damage>,
    ) -> Result<()> {
        copy.page.clear();
        copy.seen.clear();
        copy.page.extend_from_slice(page.bytes());
        copy.page_no = page.page_no();
        let looked = match eyes {
            Some(eyes) if !eyes.view.sees_all(TxnId(header::max_txn(&copy.page))) => copy.look(eyes),
            _ => Ok(Vec::new()),
        };
        drop(page);
        let checked = looked.and_then(|spilled| {
            check_cells(&copy.page)?;
            Ok((spilled, expected(Node::leaf(&copy.page)?)?))
        });
        let checked = match (checked, eyes) {
            (Ok((spilled, true)), Some(eyes)) => return copy.look_into_files(eyes, spilled),
            (Ok((_, true)), None) => return Ok(()),
            (checked, _) => checked,
        };
        copy.page.clear();
        let wrong = Damage { expected: "fences about the key that led here", found: 0 };
        Err(self.damaged(copy.page_no, checked.err().unwrap_or(wrong)))
    }
}

fn check_cells(page: &[u8]) -> Result<(), Damage> {
    let node = Node::leaf(page)?;
    node.prefix()?;
    (0..node.len()).try_for_each(|index| node.cell(index).map(|_| ()))
}

impl LeafCopy {
    /// Finds the rows that these eyes see otherwise; returns those that they see in files. The leaf is latched.
    fn look(&mut self, eyes: Eyes<'_>) -> Result<Vec<SpilledRow>, Damage> {
        let mut spilled = Vec::new();
        let node = Node::leaf(&self.page)?;
        let (mut key, mut older) = (Vec::new(), OwnedRow::default());
        for index in 0..node.len() {
            let row = node.cell(index)?.row;
            if eyes.view.sees(row.stamp) {
                continue;
            }
            key.clear();
            node.key(index)?.append_to(&mut key);
            match eyes.versions.resolve(eyes.view, (eyes.table, &key), row, &mut older) {
                Found::Seen(seen) => self.seen.push((index, seen, std::mem::take(&mut older))),
                Found::Spilled(search, runs) => {
                    spilled.push((index, (search, runs), std::mem::take(&mut older)));
                }
            }
        }
        Ok(spilled)
    }

    /// Reads the rows that the eyes see in files. The leaf is no longer latched.
    fn look_into_files(&mut self, eyes: Eyes<'_>, spilled: Vec<SpilledRow>) -> Result<()> {
        for (index, search, mut older) in spilled {
            let mut key = Vec::new();
            self.key_into(index, &mut key);
            let seen = eyes.versions.finish(eyes.view, (eyes.table, &key), search, &mut older)?;
            self.seen.push((index, seen, older));
        }
        self.seen.sort_unstable_by_key(|(index, ..)| *index);
        Ok(())
    }

    fn node(&self) -> Option<Node<'_>> {
        if self.page.is_empty() { None } else { Node::leaf(&self.page).ok() }
    }

    /// Number of rows, ghosts included.
    pub(crate) fn len(&self) -> usize {
        self.node().map_or(0, Node::len)
    }

    /// Index of the first row whose key is at or above `key`.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> usize {
        let Some(node) = self.node() else { return 0 };
        let prefix = node.prefix().unwrap_or_default();
        match key.get(..prefix.len()) {
            Some(front) if front == prefix => {
                node.search(key).map_or(0, |found| found.unwrap_or_else(|at| at))
            }
            _ if key < prefix => 0,
            _ => node.len(),
        }
    }

    /// Index of the first row whose key is above `key`.
    pub(crate) fn upper_bound(&self, key: &[u8]) -> usize {
        let at = self.lower_bound(key);
        let equal =
            self.node().and_then(|node| node.key(at).ok()).is_some_and(|found| found.compare(key).is_eq());
        at + usize::from(equal)
    }

    /// Appends the whole key of row `index` to `out`.
    pub(crate) fn key_into(&self, index: usize, out: &mut Vec<u8>) {
        if let Some(key) = self.node().and_then(|node| node.key(index).ok()) {
            key.append_to(out);
        }
    }

    /// Row `index`; a ghost where its eyes saw none.
    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        let row = self.node().and_then(|node| node.cell(index).ok()).map_or(NO_ROW, |cell| cell.row);
        if self.seen.is_empty() {
            return row;
        }
        match self.seen.binary_search_by_key(&index, |seen| seen.0) {
            Err(_) => row,
            Ok(at) => self.seen[at].1.of(row, &self.seen[at].2).unwrap_or(NO_ROW),
        }
    }

    /// The leaf holds keys at or above this (`None`: no bound).
    pub(crate) fn lower_fence(&self) -> Option<&[u8]> {
        self.node()?.lower_fence().ok().filter(|fence| !fence.is_empty())
    }

    /// The leaf holds keys below this (`None`: no bound).
    pub(crate) fn upper_fence(&self) -> Option<&[u8]> {
        self.node()?.upper_fence().ok().filter(|fence| !fence.is_empty())
    }

    /// No row of the leaf has a later stamp.
    #[cfg(test)]
    pub(crate) fn max_txn(&self) -> TxnId {
        TxnId(self.node().map_or(0, |node| hamal_pager::header::max_txn(node.page())))
    }
}
