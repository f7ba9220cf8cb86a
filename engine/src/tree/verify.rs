//! Proving a tree sound: every invariant of every page, and of pages to each other.
//!
//! Beside what `node::check_page` proves of each page: levels fall by one, each page's fences are those its parent gives it (so
//! all keys are in order, none is hidden from search, and no gap is left between neighbours), no page is reached twice. Together with the
//! bitmaps (`Space::check_bitmaps`) it follows that every page is reachable, free, or allocated to something, exactly once.
//!
//! Meant for a tree that nobody changes meanwhile: pages are looked at one by one, so a split under way would look like damage.

use hamal_pager::PageNo;

use super::Tree;
use crate::node::{self, Damage, Node, Sort};
use crate::space::Fault;
use crate::{ErrorKind, Result};

/// What a tree consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TreeReport {
    /// Levels, leaves included.
    pub(crate) height: u8,
    pub(crate) leaves: u64,
    pub(crate) inner_nodes: u64,
    /// Rows that are not ghosts.
    pub(crate) rows: u64,
    pub(crate) ghosts: u64,
    /// Rows, ghosts included, whose value is an overflow reference.
    pub(crate) overflow_rows: u64,
    /// Bytes of pages that hold something.
    pub(crate) used_bytes: u64,
}

/// A set of page numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// Adds a page; `false` if it was there. The caller knows that the file has such a page.
    pub(crate) fn insert(&mut self, page: PageNo) -> bool {
        let (word, bit) = (page.0 as usize / 64, 1 << (page.0 % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    pub(crate) fn contains(&self, page: PageNo) -> bool {
        self.words.get(page.0 as usize / 64).is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    pub(crate) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// A page still to be looked at, and what its parent says about it.
struct Pending {
    page: PageNo,
    /// `None`: the root may be at any.
    level: Option<u8>,
    lower: Vec<u8>,
    upper: Vec<u8>,
}

impl Tree {
    /// Proves the tree sound and adds its pages to `pages`; the first damage is the error. `visit` sees every sound page.
    #[cfg(test)]
    pub(crate) fn verify(
        &self,
        pages: &mut PageSet,
        visit: &mut dyn FnMut(PageNo, Node<'_>) -> Result<()>,
    ) -> Result<TreeReport> {
        self.check(pages, visit, &mut |fault| Err(fault.into_error(&self.partition)))
    }

    /// Proves the tree sound and adds its pages to `pages`; `visit` sees every sound page. Hands every damage to `found`
    /// and goes on where that is possible: a damaged page is not visited, and what is below it not looked at.
    pub(crate) fn check(
        &self,
        pages: &mut PageSet,
        visit: &mut dyn FnMut(PageNo, Node<'_>) -> Result<()>,
        found: &mut dyn FnMut(Fault) -> Result<()>,
    ) -> Result<TreeReport> {
        let mut report = TreeReport::default();
        let mut bytes = Vec::with_capacity(self.page_bytes());
        let mut stack = vec![Pending { page: self.root, level: None, lower: Vec::new(), upper: Vec::new() }];
        while let Some(pending) = stack.pop() {
            if let Err(fault) = self.reach(pages, pending.page) {
                found(fault)?;
                continue;
            }
            match self.partition.fix_shared(pending.page) {
                Ok(page) => {
                    bytes.clear();
                    bytes.extend_from_slice(page.bytes());
                }
                Err(error) => {
                    let error = crate::Error::from(error);
                    if error.kind() != ErrorKind::Corrupt {
                        return Err(error);
                    }
                    found(Fault::new(pending.page, &"a page that can be read", &error))?;
                    continue;
                }
            }
            match check_against_parent(&bytes, &pending) {
                Err(fault) => found(fault)?,
                Ok(node) => {
                    report.add(node);
                    if let Err(damage) = push_children(node, &mut stack) {
                        found(Fault::new(pending.page, &damage.expected, &damage.found))?;
                    }
                    visit(pending.page, node)?;
                }
            }
        }
        Ok(report)
    }

    fn reach(&self, pages: &mut PageSet, page: PageNo) -> Result<(), Fault> {
        let file_pages = self.partition.file_pages();
        if page.0 >= file_pages {
            return Err(Fault::new(
                page,
                &"a page within the file",
                &format_args!("a file of {file_pages} pages"),
            ));
        }
        if !pages.insert(page) {
            return Err(Fault::new(page, &"one parent for each page", &"another that refers to it"));
        }
        Ok(())
    }
}

fn check_against_parent<'p>(page: &'p [u8], pending: &Pending) -> Result<Node<'p>, Fault> {
    let sound = || {
        node::check_page(page)?;
        let node = Node::open(page)?;
        Ok::<_, Damage>((node, node.lower_fence()?, node.upper_fence()?))
    };
    let fault = |damage: Damage| Fault::new(pending.page, &damage.expected, &damage.found);
    let (node, lower, upper) = sound().map_err(fault)?;
    let wrong = |expected: String, found: String| Err(Fault::new(pending.page, &expected, &found));
    match pending.level {
        None if node.sort() == Sort::Leaf => {
            return wrong("an inner node for a root".into(), "a leaf".into());
        }
        Some(level) if level != node.level() => {
            return wrong(
                format!("level {level}, one below the parent's"),
                format!("level {}", node.level()),
            );
        }
        _ => {}
    }
    for (name, given, own) in [("lower", &pending.lower, lower), ("upper", &pending.upper, upper)] {
        if given != own {
            return wrong(
                format!("the {name} fence that the parent gives, {}", given.escape_ascii()),
                own.escape_ascii().to_string(),
            );
        }
    }
    Ok(node)
}

fn push_children(node: Node<'_>, stack: &mut Vec<Pending>) -> Result<(), Damage> {
    if node.sort() == Sort::Leaf {
        return Ok(());
    }
    // From right to left, so that they are looked at from left to right.
    for index in (0..=node.len()).rev() {
        let lower = if index == 0 { node.lower_fence()?.to_vec() } else { node.key(index - 1)?.to_vec() };
        let upper =
            if index == node.len() { node.upper_fence()?.to_vec() } else { node.key(index)?.to_vec() };
        stack.push(Pending { page: node.child(index)?, level: node.level().checked_sub(1), lower, upper });
    }
    Ok(())
}

impl TreeReport {
    fn add(&mut self, node: Node<'_>) {
        self.height = self.height.max(node.level().saturating_add(1));
        self.used_bytes += (node.page().len() - node.free_bytes()) as u64;
        if node.sort() == Sort::Inner {
            self.inner_nodes += 1;
            return;
        }
        self.leaves += 1;
        for cell in (0..node.len()).filter_map(|index| node.cell(index).ok()) {
            self.rows += u64::from(!cell.row.ghost);
            self.ghosts += u64::from(cell.row.ghost);
            self.overflow_rows += u64::from(cell.row.overflow);
        }
    }
}
