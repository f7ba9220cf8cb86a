//! Encodings there and back; hostile encodings; changes on damaged pages.

use hamal_pager::{PageClass, PageNo, header};
use proptest::prelude::*;

use super::*;
use crate::ErrorKind;
use crate::node::{self, Builder, Key, Node, Shape, Target};

const PAGE_BYTES: usize = 4096;

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..most)
}

/// Owned parts from which any change can be borrowed.
#[derive(Clone, Debug)]
struct Parts {
    variant: usize,
    a: Vec<u8>,
    b: Vec<u8>,
    long: u64,
    short: [u32; 2],
    flags: [bool; 2],
}

fn any_parts() -> impl Strategy<Value = Parts> {
    let small = prop_oneof![0_u32..200, any::<u32>()];
    (0_usize..11, bytes(40), bytes(120), any::<u64>(), [small.clone(), small], any::<[bool; 2]>())
        .prop_map(|(variant, a, b, long, short, flags)| Parts { variant, a, b, long, short, flags })
}

impl Parts {
    fn change(&self) -> PageChange<'_> {
        let (key, [first, count]) = (self.a.as_slice(), self.short);
        match self.variant {
            0 => {
                let [ghost, overflow] = self.flags;
                PageChange::Row { key, row: Row { stamp: TxnId(self.long), ghost, overflow, value: &self.b } }
            }
            1 => PageChange::Purge { horizon: TxnId(self.long) },
            2 => PageChange::Image(Image {
                kind: 1 + (first % 5) as u8,
                level: count as u8,
                max_txn: TxnId(self.long),
                low: &self.a,
                high: &self.b,
            }),
            3 => PageChange::TruncateRight { separator: key },
            4 => PageChange::InsertSeparator { key, child: PageNo(first) },
            5 => PageChange::RemoveSeparator { key },
            6 => PageChange::SetBits { first, count },
            7 => PageChange::ClearBits { first, count },
            8 => PageChange::Overflow { data: &self.b },
            9 => PageChange::Mark { key, stamp: TxnId(self.long), ghost: self.flags[0] },
            _ => PageChange::BitmapPages { count: BitmapCount(first) },
        }
    }
}

/// Pages of every kind, sound.
fn any_page() -> impl Strategy<Value = Vec<u8>> {
    let keys = proptest::collection::btree_set(bytes(12), 0..60);
    (0_usize..5, keys, bytes(9)).prop_map(|(variant, keys, mut upper)| {
        let mut page = vec![0; PAGE_BYTES];
        upper.insert(0, 0xff);
        let fences = [&b""[..], if upper.len() > 5 { &upper } else { b"" }];
        match variant {
            0 | 1 => {
                let mut builder = Builder::new(&mut page, Shape::Leaf, fences).unwrap();
                for (index, key) in keys.iter().filter(|key| key.first() != Some(&0xff)).enumerate() {
                    let ghost = index % 3 == 0;
                    let row = Row { stamp: TxnId(index as u64), ghost, overflow: index % 5 == 0, value: key };
                    builder.push_row(Key::whole(key), row, key.len() + index % 4).unwrap();
                }
                builder.finish();
                header::raise_max_txn(&mut page, 60);
                node::check_page(&page).unwrap();
            }
            2 => {
                let shape = Shape::Inner { level: 1, leftmost: PageNo(7) };
                let mut builder = Builder::new(&mut page, shape, fences).unwrap();
                let inside = |key: &&Vec<u8>| !key.is_empty() && key.first() != Some(&0xff);
                for (index, key) in keys.iter().filter(inside).enumerate() {
                    builder.push_child(Key::whole(key), PageNo(index as u32 + 8)).unwrap();
                }
                builder.finish();
                node::check_page(&page).unwrap();
            }
            3 => {
                header::set_kind(&mut page, header::kind::BITMAP);
                page[64..70].fill(0xff);
            }
            _ => header::set_kind(&mut page, header::kind::PARTITION_HEADER),
        }
        page
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_change_comes_back_from_its_encoding(parts in proptest::collection::vec(any_parts(), 1..5)) {
        let mut encoded = Vec::new();
        for part in &parts {
            let start = encoded.len();
            part.change().encode(&mut encoded);
            prop_assert_eq!(encoded.len() - start, part.change().encoded_bytes());
        }
        let mut input = encoded.as_slice();
        for part in &parts {
            prop_assert_eq!(PageChange::decode(&mut input).unwrap(), part.change());
        }
        prop_assert!(input.is_empty());
    }

    #[test]
    fn a_cut_or_altered_encoding_is_refused_or_decodes_to_what_encodes_to_it(
        parts in any_parts(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut encoded = Vec::new();
        parts.change().encode(&mut encoded);
        let front = &encoded[..cut.index(encoded.len())];
        let refused = PageChange::decode(&mut &front[..]);
        prop_assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
        let at = at.index(encoded.len());
        encoded[at] = to;
        let mut input = encoded.as_slice();
        if let Ok(change) = PageChange::decode(&mut input) {
            let mut again = Vec::new();
            change.encode(&mut again);
            prop_assert_eq!(&again[..], &encoded[..encoded.len() - input.len()]);
        }
    }

    #[test]
    fn random_bytes_are_decoded_or_refused(input in bytes(64)) {
        let _ = PageChange::decode(&mut input.as_slice());
    }

    /// On any page, however damaged, a change that passes `check` applies (`apply` asserts that it worked), and nothing
    /// that reads the page panics.
    #[test]
    fn whatever_passes_check_applies_to_a_damaged_page(
        page in any_page(),
        hits in proptest::collection::vec((0_usize..320, any::<u8>()), 0..12),
        tail_hits in proptest::collection::vec((0_usize..1500, any::<u8>()), 0..6),
        parts in proptest::collection::vec(any_parts(), 1..8),
    ) {
        let mut page = page;
        for (at, to) in hits {
            page[4 + at] = to;
        }
        for (at, to) in tail_hits {
            page[PAGE_BYTES - 1 - at] = to;
        }
        for part in &parts {
            let change = part.change();
            let mut other = page.clone();
            let both = change.check_and_apply(&mut other);
            let checked = change.check(&page);
            if checked.is_ok() {
                change.apply(&mut page);
            }
            assert_eq!(both.is_ok(), checked.is_ok(), "in one and in two: {both:?}, {checked:?}");
            assert!(other == page, "in one and in two: {change:?}");
            read_everything(&page, &part.a);
        }
    }

    #[test]
    fn an_image_makes_its_page_again(page in any_page()) {
        let change = PageChange::Image(Image::of(&page, TxnId(header::max_txn(&page))));
        let mut copy = vec![0xaa; PAGE_BYTES];
        copy[..header::HEADER_BYTES].copy_from_slice(&page[..header::HEADER_BYTES]);
        copy[32..40].fill(0xbb);
        prop_assert!(change.encoded_bytes() <= PageChange::max_image_bytes(PAGE_BYTES));
        prop_assert!(change.is_blind());
        change.check(&copy).unwrap();
        change.apply(&mut copy);
        prop_assert_eq!(&copy, &page);
        let inner = header::kind(&page) == header::kind::INNER;
        prop_assert_eq!(change.class() == PageClass::Inner, inner);
    }
}

/// Everything that readers, splits and verification do with a page.
fn read_everything(page: &[u8], key: &[u8]) {
    let _ = node::check_page(page);
    let _ = overflow_data(page);
    let words = node::testing::SliceWords(page);
    for target in [Target::At(key), Target::Before(key), Target::Last] {
        let _ = node::route(&words, target);
    }
    let Ok(node) = Node::open(page) else { return };
    let found = node.search(key);
    let _ = (node.covers(key), node::compacted_bytes(node), node.free_bytes(), node.child(0));
    if let Ok(found) = found {
        let _ = node::plan_row(node, key, found, 10);
    }
    for index in 0..node.len() {
        let _ = (node.key(index), node.cell(index), node.child(index + 1));
    }
    let mut other = page.to_vec();
    if let Ok(leaf) = Node::leaf(page) {
        let _ = node::purge_gain_bytes(leaf, TxnId(30));
        if let Ok(cut) = node::choose_leaf_cut(leaf, key, 20) {
            let _ = node::build_right(leaf, &cut, &mut other);
        }
    }
    if let Ok(inner) = Node::inner(page)
        && let Ok(cut) = node::choose_inner_cut(inner, key)
    {
        let _ = node::build_right(inner, &cut, &mut other);
    }
    let _ = node::merged_bytes(node, node, key);
    let _ = node::build_merged(node, node, key, &mut other);
}

#[test]
fn a_long_value_part_is_read_back() {
    let mut page = vec![9; PAGE_BYTES];
    let data: Vec<u8> = (0..PAGE_BYTES - OVERFLOW_HEADER_BYTES).map(|n| n as u8).collect();
    for data in [&data[..], &data[..100], &[]] {
        let change = PageChange::Overflow { data };
        change.check(&page).unwrap();
        change.apply(&mut page);
        assert_eq!(overflow_data(&page), Ok(data));
        assert_eq!(header::max_txn(&page), 0);
    }
    let too_long = vec![0; PAGE_BYTES - OVERFLOW_HEADER_BYTES + 1];
    assert!(PageChange::Overflow { data: &too_long }.check(&page).is_err());
}

#[test]
fn bits_change_only_if_all_of_them_change() {
    let mut page = vec![0; PAGE_BYTES];
    header::set_kind(&mut page, header::kind::BITMAP);
    let set = |first, count| PageChange::SetBits { first, count };
    set(10, 5).check(&page).unwrap();
    set(10, 5).apply(&mut page);
    assert!(set(14, 2).check(&page).is_err(), "bit 14 is set");
    assert!(set(u32::MAX, 2).check(&page).is_err());
    let clear = PageChange::ClearBits { first: 10, count: 6 };
    assert!(clear.check(&page).is_err(), "bit 15 is clear");
    let clear = PageChange::ClearBits { first: 10, count: 5 };
    clear.check(&page).unwrap();
    clear.apply(&mut page);
    set(10, 5).check(&page).unwrap();
}

#[test]
fn the_number_of_bitmap_pages_grows_by_one() {
    let mut page = vec![0; PAGE_BYTES];
    header::set_kind(&mut page, header::kind::PARTITION_HEADER);
    let change = |count| PageChange::BitmapPages { count: BitmapCount(count) };
    assert!(change(2).check(&page).is_err());
    change(1).check(&page).unwrap();
    change(1).apply(&mut page);
    assert_eq!(BitmapCount::of(&page), BitmapCount(1));
}

#[test]
fn a_page_whose_prefix_is_not_its_fences_common_one_is_not_rebuilt() {
    let row = Row { stamp: TxnId(3), ghost: true, overflow: false, value: b"" };
    for prefix_bytes in [0_u8, 5, 7, 200] {
        let mut page = vec![0; PAGE_BYTES];
        let mut builder = Builder::new(&mut page, Shape::Leaf, [b"apple-1", b"apple-5"]).unwrap();
        builder.push_row(Key::whole(b"apple-3"), row, 0).unwrap();
        builder.finish();
        PageChange::Purge { horizon: TxnId(9) }.check(&page).unwrap();
        page[42] = prefix_bytes;
        assert!(PageChange::Purge { horizon: TxnId(9) }.check(&page).is_err(), "prefix of {prefix_bytes}");
        assert!(PageChange::Row { key: b"apple-4", row }.check(&page).is_err(), "prefix of {prefix_bytes}");
    }
}

#[test]
fn rows_stay_within_their_leaf() {
    let mut page = vec![0; PAGE_BYTES];
    Builder::new(&mut page, Shape::Leaf, [b"b", b"d"]).unwrap().finish();
    let change = |key| PageChange::Row {
        key,
        row: Row { stamp: TxnId(5), ghost: false, overflow: false, value: b"v" },
    };
    assert!(change(b"a").check(&page).is_err());
    assert!(change(b"d").check(&page).is_err());
    change(b"b").check(&page).unwrap();
    change(b"b").apply(&mut page);
    assert_eq!(header::max_txn(&page), 5);
    assert!(PageChange::TruncateRight { separator: b"b" }.check(&page).is_err());
    PageChange::TruncateRight { separator: b"c" }.check(&page).unwrap();
}
