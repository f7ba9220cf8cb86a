//! Private copies of leaves, for scans: no latch is held while they are read.

use hamal_pager::{PageNo, SharedPage};

use super::Tree;
use crate::Result;
use crate::change::Row;
use crate::ids::TxnId;
use crate::node::{Damage, Node, Target};

/// A private copy of one leaf, and a buffer that is used again. Until [`Tree::leaf_at`] fills it, it has no rows.
///
/// I1. All its cells lie within the copy: that was checked when it was made, so reading it cannot fail.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeafCopy {
    page: Vec<u8>,
    page_no: PageNo,
}

/// What a row looks like that I1 says cannot be.
const NO_ROW: Row<'static> = Row { stamp: TxnId::NONE, ghost: true, overflow: false, value: &[] };

impl Tree {
    /// Copies the leaf whose range holds `key` (`None`: the first leaf) into `copy`.
    pub(crate) fn leaf_at(&self, key: Option<&[u8]>, copy: &mut LeafCopy) -> Result<()> {
        let key = key.unwrap_or_default();
        let page = self.leaf_shared(Target::At(key))?;
        self.copy_leaf(page, copy, |node| node.covers(key))
    }

    /// Copies the leaf that holds the largest possible key below `key` (`None`: the last leaf) into `copy`.
    pub(crate) fn leaf_before(&self, key: Option<&[u8]>, copy: &mut LeafCopy) -> Result<()> {
        let Some(key) = key else {
            let page = self.leaf_shared(Target::Last)?;
            return self.copy_leaf(page, copy, |node| Ok(node.upper_fence()?.is_empty()));
        };
        let page = self.leaf_shared(Target::Before(key))?;
        self.copy_leaf(page, copy, |node| {
            let (lower, upper) = (node.lower_fence()?, node.upper_fence()?);
            Ok((lower < key || key.is_empty()) && (upper.is_empty() || key <= upper))
        })
    }

    /// Copies a leaf, which must be `expected`: a scan that is led elsewhere would skip keys, or never end.
    fn copy_leaf(
        &self,
        page: SharedPage<'_>,
        copy: &mut LeafCopy,
        expected: impl FnOnce(Node<'_>) -> Result<bool, Damage>,
    ) -> Result<()> {
        copy.page.clear();
        copy.page.extend_from_slice(page.bytes());
        copy.page_no = page.page_no();
        drop(page);
        let checked = check_cells(&copy.page).and_then(|()| expected(Node::leaf(&copy.page)?));
        match checked {
            Ok(true) => return Ok(()),
            Ok(false) | Err(_) => copy.page.clear(),
        }
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

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        self.node().and_then(|node| node.cell(index).ok()).map_or(NO_ROW, |cell| cell.row)
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
