//! Nodes against a model, under adversarial keys; and against bytes that nobody wrote.

use std::collections::BTreeMap;

use hamal_pager::{PageNo, header};
use proptest::prelude::*;

use super::testing::SliceWords;
use super::*;
use crate::change::Row;
use crate::ids::TxnId;

/// A row as the model keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    stamp: u64,
    ghost: bool,
    overflow: bool,
    value: Vec<u8>,
    capacity: usize,
}

type Model = BTreeMap<Vec<u8>, Kept>;

/// Keys that differ late, early, not at all but in length, or fill the page.
pub(crate) fn any_key(page_bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    let longest = max_key_bytes(page_bytes);
    let letter = prop_oneof![Just(0_u8), Just(0xff), Just(b'a'), Just(b'b')];
    prop_oneof![
        4 => proptest::collection::vec(letter.clone(), 0..12),
        3 => proptest::collection::vec(any::<u8>(), 0..30),
        2 => (0_u16..2000).prop_map(|n| format!("user/profile/{n:06}").into_bytes()),
        1 => (proptest::collection::vec(letter, 0..4), 0..=longest).prop_map(move |(tail, fill)| {
            let mut key = vec![0xff; fill.min(longest - tail.len())];
            key.extend(tail);
            key
        }),
        1 => (0..=longest, any::<u8>()).prop_map(|(bytes, last)| {
            let mut key = vec![b'k'; bytes];
            if let Some(end) = key.last_mut() {
                *end = last;
            }
            key
        }),
    ]
}

pub(crate) fn any_page_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(4096_usize), 1 => Just(8192), 1 => Just(16384), 1 => Just(65536)]
}

fn empty_leaf(page_bytes: usize) -> Vec<u8> {
    let mut page = vec![0; page_bytes];
    Builder::new(&mut page, Shape::Leaf, [b"", b""]).unwrap().finish();
    page
}

fn contents(page: &[u8]) -> Model {
    let node = Node::leaf(page).unwrap();
    let rows = (0..node.len()).map(|index| {
        let cell = node.cell(index).unwrap();
        let kept = Kept {
            stamp: cell.row.stamp.0,
            ghost: cell.row.ghost,
            overflow: cell.row.overflow,
            value: cell.row.value.to_vec(),
            capacity: cell.capacity,
        };
        (node.key(index).unwrap().to_vec(), kept)
    });
    rows.collect()
}

/// The change that the tree makes: put the row, raise `max_txn`.
fn put(page: &mut [u8], key: &[u8], row: Row<'_>) -> Result<(), Damage> {
    put_row(page, key, row)?;
    header::raise_max_txn(page, row.stamp.0);
    Ok(())
}

fn model_put(model: &mut Model, key: &[u8], row: Row<'_>) {
    let capacity = model.get(key).map_or(0, |kept| kept.capacity).max(row.value.len());
    let kept = Kept {
        stamp: row.stamp.0,
        ghost: row.ghost,
        overflow: row.overflow,
        value: row.value.to_vec(),
        capacity,
    };
    model.insert(key.to_vec(), kept);
}

/// Splits for `key` and returns both halves, checked.
fn split_leaf(page: &[u8], key: &[u8], value_bytes: usize) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let node = Node::leaf(page).unwrap();
    let cut = choose_leaf_cut(node, key, value_bytes).unwrap();
    let mut right = page.to_vec();
    build_right(node, &cut, &mut right).unwrap();
    let mut left = page.to_vec();
    assert!(truncated_bytes(node, &cut.separator).unwrap() <= page.len());
    truncate_right(&mut left, &cut.separator).unwrap();
    check_page(&left).unwrap();
    check_page(&right).unwrap();
    (left, right, cut.separator)
}

#[derive(Clone, Debug)]
enum Op {
    Put { key: Vec<u8>, ghost: bool, value_share: u8 },
    Purge,
}

fn any_ops(page_bytes: usize) -> impl Strategy<Value = Vec<Op>> {
    let put = (any_key(page_bytes), proptest::bool::weighted(0.2), any::<u8>())
        .prop_map(|(key, ghost, value_share)| Op::Put { key, ghost, value_share });
    proptest::collection::vec(prop_oneof![30 => put, 1 => Just(Op::Purge)], 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_leaf_holds_what_a_map_holds_through_splits_merges_and_purges(
        (page_bytes, ops) in any_page_bytes().prop_flat_map(|bytes| (Just(bytes), any_ops(bytes))),
    ) {
        let mut page = empty_leaf(page_bytes);
        let mut model = Model::new();
        for (step, op) in ops.into_iter().enumerate() {
            let stamp = TxnId(step as u64 + 1);
            match op {
                Op::Purge => {
                    let horizon = TxnId(stamp.0 / 2);
                    let gain = purge_gain_bytes(Node::leaf(&page).unwrap(), horizon).unwrap();
                    let before = Node::leaf(&page).unwrap().free_bytes();
                    purge(&mut page, horizon).unwrap();
                    prop_assert_eq!(Node::leaf(&page).unwrap().free_bytes(), before + gain);
                    model.retain(|_, kept| !kept.ghost || kept.stamp >= horizon.0);
                    for kept in model.values_mut().filter(|kept| kept.stamp < horizon.0) {
                        kept.capacity = kept.value.len();
                    }
                }
                Op::Put { key, ghost, value_share } => {
                    if !Node::leaf(&page).unwrap().covers(&key).unwrap() {
                        continue;
                    }
                    let most = max_value_bytes(page_bytes, key.len());
                    let value = vec![value_share; most * usize::from(value_share) / 255];
                    let row = Row { stamp, ghost, overflow: value_share == 7, value: &value };
                    let node = Node::leaf(&page).unwrap();
                    let room = plan_row(node, &key, node.search(&key).unwrap(), value.len()).unwrap();
                    if matches!(room, Room::Full { .. }) {
                        prop_assert!(put(&mut page, &key, row).is_err());
                        prop_assert_eq!(&contents(&page), &model, "a put that fails changes nothing");
                        let (left, right, separator) = split_leaf(&page, &key, value.len());
                        let mut halves = contents(&left);
                        halves.extend(contents(&right));
                        prop_assert_eq!(&halves, &model, "a split loses nothing");
                        let above = model.split_off(&separator);
                        if key >= separator {
                            page = right;
                            model = above;
                        } else {
                            page = left;
                        }
                    }
                    put(&mut page, &key, row).unwrap();
                    model_put(&mut model, &key, row);
                }
            }
            check_page(&page).unwrap();
            prop_assert_eq!(contents(&page), model.clone());
        }
        let node = Node::leaf(&page).unwrap();
        prop_assert_eq!(compacted_bytes(node).unwrap() + node.free_bytes(), page_bytes);
        for (index, key) in model.keys().enumerate() {
            prop_assert_eq!(node.search(key), Ok(Ok(index)));
        }
    }

    #[test]
    fn merging_the_halves_of_a_leaf_gives_the_leaf_back(
        keys in proptest::collection::btree_set(any_key(4096), 2..40), split_key in any_key(4096),
    ) {
        let mut page = empty_leaf(4096);
        let mut model = Model::new();
        for key in &keys {
            let row = Row { stamp: TxnId(3), ghost: false, overflow: false, value: &key[..key.len() / 2] };
            if put(&mut page, key, row).is_ok() {
                model_put(&mut model, key, row);
            }
        }
        prop_assume!(model.len() >= 2 && !model.contains_key(&split_key));
        let (left, right, separator) = split_leaf(&page, &split_key, 10);
        let (left, right) = (Node::leaf(&left).unwrap(), Node::leaf(&right).unwrap());
        let mut merged = page.clone();
        build_merged(left, right, &separator, &mut merged).unwrap();
        check_page(&merged).unwrap();
        let bytes = merged_bytes(left, right, &separator).unwrap();
        prop_assert_eq!(bytes + Node::leaf(&merged).unwrap().free_bytes(), merged.len());
        prop_assert_eq!(contents(&merged), model);
    }

    #[test]
    fn an_inner_node_routes_as_a_map_would_through_splits_merges_and_removals(
        page_bytes in any_page_bytes(),
        keys in proptest::collection::vec((any_key(4096), proptest::bool::weighted(0.15)), 1..300),
        probes in proptest::collection::vec(any_key(4096), 20),
    ) {
        let mut page = vec![0; page_bytes];
        let shape = Shape::Inner { level: 3, leftmost: PageNo(1) };
        Builder::new(&mut page, shape, [b"", b""]).unwrap().finish();
        let mut leftmost = 1;
        let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for (step, (key, remove)) in keys.into_iter().enumerate() {
            let node = Node::inner(&page).unwrap();
            if model.contains_key(&key) {
                prop_assert!(plan_separator(node, &key).is_err());
                if remove {
                    remove_separator(&mut page, &key).unwrap();
                    model.remove(&key);
                }
                continue;
            }
            if !node.covers(&key).unwrap() || key == node.lower_fence().unwrap() {
                prop_assert!(insert_separator(&mut page, &key, PageNo(9)).is_err());
                continue;
            }
            while matches!(plan_separator(Node::inner(&page).unwrap(), &key), Ok(Room::Full { .. })) {
                let node = Node::inner(&page).unwrap();
                let cut = choose_inner_cut(node, &key).unwrap();
                prop_assert!(node.len() > 1, "two separators always fit");
                let (mut left, mut right) = (page.clone(), page.clone());
                build_right(node, &cut, &mut right).unwrap();
                truncate_right(&mut left, &cut.separator).unwrap();
                check_page(&left).unwrap();
                check_page(&right).unwrap();
                let mut merged = page.clone();
                let (l, r) = (Node::inner(&left).unwrap(), Node::inner(&right).unwrap());
                build_merged(l, r, &cut.separator, &mut merged).unwrap();
                check_page(&merged).unwrap();
                prop_assert_eq!(
                    merged_bytes(l, r, &cut.separator).unwrap() + Node::inner(&merged).unwrap().free_bytes(),
                    page_bytes
                );
                prop_assert_eq!(Node::inner(&merged).unwrap().len(), node.len());
                let mut above = model.split_off(&cut.separator);
                let middle = above.remove(&cut.separator).unwrap();
                if key > cut.separator {
                    (page, model, leftmost) = (right, above, middle);
                } else {
                    page = left;
                }
            }
            insert_separator(&mut page, &key, PageNo(step as u32 + 10)).unwrap();
            model.insert(key, step as u32 + 10);
            check_page(&page).unwrap();
        }
        let node = Node::inner(&page).unwrap();
        let children: Vec<_> = (0..=node.len()).map(|index| node.child(index).unwrap().0).collect();
        let expected: Vec<_> = [leftmost].into_iter().chain(model.values().copied()).collect();
        prop_assert_eq!(&children, &expected);
        let words = SliceWords(&page);
        let child = |target: Target<'_>| route(&words, target).unwrap().child.0;
        let (lower, upper) = (node.lower_fence().unwrap(), node.upper_fence().unwrap());
        let near = model.keys().flat_map(|key| [key.clone(), [key.as_slice(), &[0]].concat()]);
        for probe in probes.into_iter().chain(near) {
            if node.covers(&probe).unwrap() {
                let at = model.range(..=probe.clone()).next_back().map_or(leftmost, |(_, child)| *child);
                prop_assert_eq!(child(Target::At(&probe)), at);
            }
            if probe.as_slice() > lower && (upper.is_empty() || probe.as_slice() <= upper) {
                let before = model.range(..probe.clone()).next_back().map_or(leftmost, |(_, child)| *child);
                prop_assert_eq!(child(Target::Before(&probe)), before);
            }
        }
        prop_assert_eq!(child(Target::Last), *expected.last().unwrap());
    }

    /// Hazard H5: whatever others do to a leaf, and however it splits, taking back never needs space.
    #[test]
    fn undo_never_needs_space(
        ops in proptest::collection::vec((any_key(4096), any::<bool>(), any::<u8>(), proptest::bool::weighted(0.3)), 1..200),
    ) {
        let (mine, horizon) = (TxnId(1000), TxnId(1000));
        let mut leaves = BTreeMap::from([(Vec::new(), empty_leaf(4096))]);
        let mut undo: Vec<(Vec<u8>, Option<Kept>)> = Vec::new();
        for (step, (key, ghost, share, is_mine)) in ops.into_iter().enumerate() {
            if !is_mine && undo.iter().any(|(locked, _)| *locked == key) {
                continue; // the row is locked
            }
            let stamp = if is_mine { mine } else { TxnId(step as u64) };
            let value = vec![share; max_value_bytes(4096, key.len()) * usize::from(share) / 255];
            let row = Row { stamp, ghost, overflow: false, value: &value };
            let (low, mut page) = leaves.range(..=key.clone()).next_back().map(|(k, p)| (k.clone(), p.clone())).unwrap();
            let before = contents(&page).remove(&key);
            if put(&mut page, &key, row).is_err() {
                purge(&mut page, horizon).unwrap();
                if put(&mut page, &key, row).is_err() {
                    let (left, right, separator) = split_leaf(&page, &key, value.len());
                    leaves.insert(separator.clone(), right);
                    leaves.insert(low.clone(), left);
                    let home = if key >= separator { separator } else { low };
                    put(leaves.get_mut(&home).unwrap(), &key, row).unwrap();
                } else {
                    leaves.insert(low, page);
                }
            } else {
                leaves.insert(low, page);
            }
            if is_mine {
                undo.push((key, before));
            }
        }
        for (key, before) in undo.into_iter().rev() {
            let (_, page) = leaves.range_mut(..=key.clone()).next_back().unwrap();
            let row = match &before {
                Some(kept) => Row { stamp: TxnId(kept.stamp), ghost: kept.ghost, overflow: false, value: &kept.value },
                None => Row { stamp: TxnId::NONE, ghost: true, overflow: false, value: &[] },
            };
            let node = Node::leaf(page).unwrap();
            let found = node.search(&key).unwrap();
            let room = plan_row(node, &key, found, row.value.len()).unwrap();
            prop_assert!(matches!(room, Room::Over(_)), "undo of {key:?} would need space: {room:?}");
            put(page, &key, row).unwrap();
            check_page(page).unwrap();
        }
    }
}

#[test]
fn ascending_keys_at_the_right_edge_leave_full_pages() {
    let mut page = empty_leaf(4096);
    let mut splits = 0;
    for number in 0_u32..5000 {
        let key = format!("{number:010}").into_bytes();
        let row = Row { stamp: TxnId(1), ghost: false, overflow: false, value: &[7; 50] };
        if put(&mut page, &key, row).is_err() {
            let (left, right, _) = split_leaf(&page, &key, 50);
            let (rows, kept) = (Node::leaf(&page).unwrap().len(), Node::leaf(&left).unwrap().len());
            assert!(kept + 1 >= rows, "of {rows} rows only {kept} stay");
            splits += 1;
            page = right;
            put(&mut page, &key, row).unwrap();
        }
    }
    assert!(splits > 50);
}

#[test]
fn the_longest_keys_and_values_always_find_a_place() {
    for page_bytes in [4096, 8192, 16384, 32768, 65536] {
        let longest = max_key_bytes(page_bytes);
        let key = |last: &[u8]| [&vec![b'x'; longest - last.len()][..], last].concat();
        let mut page = empty_leaf(page_bytes);
        for number in [5_u16, 1, 9, 3, 7, 2, 8, 4, 6, 0] {
            let key = key(&number.to_be_bytes());
            let row = Row { stamp: TxnId(1), ghost: false, overflow: true, value: &[1; 32] };
            assert_eq!(max_value_bytes(page_bytes, key.len()), 32);
            if !Node::leaf(&page).unwrap().covers(&key).unwrap() {
                continue;
            }
            if put(&mut page, &key, row).is_err() {
                let (left, right, separator) = split_leaf(&page, &key, 32);
                page = if key >= separator { right } else { left };
                put(&mut page, &key, row).unwrap();
            }
            check_page(&page).unwrap();
        }
    }
}
