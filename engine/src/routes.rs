//! Which partition has which of a table's keys.
//!
//! I1. Nothing here changes once it is made, so whoever routes a request reads it without a lock, and waits for nobody.
//! I2. Lower bounds ascend strictly and the first partition has none: each key is in exactly one partition, which has the keys from its
//!     lower bound (included) to the next one's (not included).
//! I3. Rows, locks, versions and read sets go by table and key: only trees, space and undo chains go by partition.
//! I4. Nobody gets at a partition's rows through here while it is behind ([`crate::trailing`]).

use std::sync::Arc;

use hamal_pager::PartitionId;

use crate::Result;
use crate::engine::PartitionHandle;
use crate::tree::Tree;

/// One partition of a table.
#[derive(Debug)]
pub(crate) struct Route {
    /// Empty: of the first partition, which has all keys below the next one's.
    lower: Box<[u8]>,
    pub(crate) handle: Arc<PartitionHandle>,
    tree: Tree,
}

impl Route {
    fn new(lower: Box<[u8]>, handle: Arc<PartitionHandle>) -> Route {
        let tree = handle.tree();
        Route { lower, handle, tree }
    }

    /// The partition's id.
    pub(crate) fn id(&self) -> PartitionId {
        self.handle.partition.id()
    }

    /// The tree of its rows; while the partition is behind, when `catch_up` has seen to it that it no longer is (I4).
    pub(crate) fn tree(&self, catch_up: impl FnOnce(PartitionId) -> Result<()>) -> Result<&Tree> {
        if self.handle.is_behind() {
            catch_up(self.id())?;
        }
        Ok(&self.tree)
    }
}

/// A place among the partitions of a table, from the lowest keys on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteSlot(usize);

/// The partitions of one table.
#[derive(Debug)]
pub(crate) struct Routes {
    first: Route,
    /// All others, by lower bound.
    others: Box<[Route]>,
}

impl Routes {
    /// `others`: lower bounds that ascend, and the partitions that begin there.
    pub(crate) fn new(
        first: Arc<PartitionHandle>,
        others: impl Iterator<Item = (Box<[u8]>, Arc<PartitionHandle>)>,
    ) -> Routes {
        let others: Box<[Route]> = others.map(|(lower, handle)| Route::new(lower, handle)).collect();
        debug_assert!(others.is_sorted_by(|a, b| a.lower < b.lower), "lower bounds ascend");
        Routes { first: Route::new(Box::default(), first), others }
    }

    /// The partition in this place.
    pub(crate) fn at(&self, slot: RouteSlot) -> &Route {
        slot.0.checked_sub(1).and_then(|at| self.others.get(at)).unwrap_or(&self.first)
    }

    /// Where the partition is that has this key. O(log partitions).
    pub(crate) fn slot_of(&self, key: &[u8]) -> RouteSlot {
        RouteSlot(self.others.partition_point(|route| *route.lower <= *key))
    }

    /// Where the partition is that has the largest keys below this one; `None`: the largest of all.
    pub(crate) fn slot_before(&self, key: Option<&[u8]>) -> RouteSlot {
        RouteSlot(
            key.map_or(self.others.len(), |key| self.others.partition_point(|route| *route.lower < *key)),
        )
    }

    /// The partition that has this key.
    pub(crate) fn of(&self, key: &[u8]) -> &Route {
        self.at(self.slot_of(key))
    }

    /// The lowest key that can be in this partition; `None`: any.
    pub(crate) fn lower(&self, slot: RouteSlot) -> Option<&[u8]> {
        slot.0.checked_sub(1).and_then(|at| self.others.get(at)).map(|route| &*route.lower)
    }

    /// All keys of this partition are below this one; `None`: there is no bound.
    pub(crate) fn upper(&self, slot: RouteSlot) -> Option<&[u8]> {
        self.others.get(slot.0).map(|route| &*route.lower)
    }

    /// All partitions, from the lowest keys on.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hamal_storage::sim::SimStorage;

    use super::*;
    use crate::{Maintenance, Options};

    #[test]
    fn each_key_has_one_partition_and_each_bound_two_sides() {
        let disk = Arc::new(SimStorage::new(1));
        let db = Options::new().maintenance(Maintenance::Manual).open_on(disk).unwrap();
        let splits: [&[u8]; 3] = [b"b", b"b\0", b"m"];
        db.transact(|tx| tx.create_bytes_table("t", &splits).map(drop)).unwrap();
        let tx = db.begin().unwrap();
        let (_, table) = tx.open_raw("t", None, false).unwrap();
        let routes = table.routes();
        let ids: Vec<PartitionId> = routes.iter().map(Route::id).collect();
        assert_eq!(ids.len(), 4);
        let places: [(&[u8], usize, usize); 7] = [
            (b"", 0, 0),
            (b"a", 0, 0),
            (b"b", 1, 0),
            (b"b\0", 2, 1),
            (b"b\0\0", 2, 2),
            (b"m", 3, 2),
            (b"z", 3, 3),
        ];
        for (key, of, before) in places {
            assert_eq!(routes.slot_of(key), RouteSlot(of), "{key:?}");
            assert_eq!(routes.of(key).id(), ids[of], "{key:?}");
            assert_eq!(routes.slot_before(Some(key)), RouteSlot(before), "{key:?}");
        }
        assert_eq!(routes.slot_before(None), RouteSlot(3));
        for slot in 0..4 {
            assert_eq!(routes.lower(RouteSlot(slot)), slot.checked_sub(1).map(|at| splits[at]));
            assert_eq!(routes.upper(RouteSlot(slot)), splits.get(slot).copied());
        }
    }
}
