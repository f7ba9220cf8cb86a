//! Where leaves begin: what a tree's inner nodes tell without a look at the leaves.

use hamal_pager::pin_epoch;

use super::Tree;
use super::descent::{Halt, Patience};
use crate::Result;
use crate::node::{Damage, Node, Target};

impl Tree {
    /// Shows `each` the keys at which leaves begin, those above `from` and below `until` (`None`: to the end), in order. Reads one page for
    /// some hundred leaves. Leaves that are split or merged meanwhile may be shown as before or as after.
    pub(crate) fn leaf_starts(
        &self,
        from: &[u8],
        until: Option<&[u8]>,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let (mut at, mut page) = (from.to_vec(), Vec::new());
        loop {
            let page_no = self.copy_lowest_inner(&at, &mut page)?;
            let damaged = |damage| self.damaged(page_no, damage);
            let node = Node::inner(&page).map_err(damaged)?;
            for index in 0..node.len() {
                let key = node.key(index).map_err(damaged)?.to_vec();
                if until.is_some_and(|until| *key >= *until) {
                    return Ok(());
                }
                if *key > *at {
                    each(&key);
                }
            }
            let fence = node.upper_fence().map_err(damaged)?;
            if fence.is_empty() || until.is_some_and(|until| fence >= until) {
                return Ok(());
            }
            if fence <= at.as_slice() {
                let damage = Damage { expected: "fences about the key that led here", found: 0 };
                return Err(self.damaged(page_no, damage));
            }
            at = fence.to_vec();
            each(&at);
        }
    }

    /// Copies the inner node above the leaf for a key.
    fn copy_lowest_inner(&self, key: &[u8], page: &mut Vec<u8>) -> Result<hamal_pager::PageNo> {
        let mut patience = Patience::default();
        loop {
            let tried = {
                let epoch = pin_epoch();
                self.descend(Target::At(key), 1, &epoch).and_then(|found| {
                    page.clear();
                    for index in 0..found.node.words() {
                        page.extend_from_slice(&found.node.word(index).to_le_bytes());
                    }
                    if found.node.validate() { Ok(found.node.page_no()) } else { Err(Halt::Changed) }
                })
            };
            match tried {
                Ok(page_no) => return Ok(page_no),
                Err(halt) => self.overcome(halt, &mut patience)?,
            }
        }
    }
}
