//! Free pages on a partition of many bitmap pages.

use std::collections::BTreeSet;

use super::*;
use crate::tree::testing::Fixture;

/// Takes `count` pages for good, in a record of its own, as structure changes do.
fn take(f: &Fixture, count: u32) -> PageNo {
    let reservation = f.space.reserve(&f.journal, count).unwrap();
    let change = reservation.set_bits();
    let mut admission = f.journal.admit(Author::System, 1, change.encoded_bytes(), 0).unwrap();
    let mut bitmap = f.space.partition().fix_exclusive(reservation.bitmap()).unwrap();
    change.check(bitmap.bytes()).unwrap();
    f.journal.write(&mut admission, Author::System, &mut [(&mut bitmap, change)], None).unwrap();
    reservation.first()
}

/// Gives pages back in a record of its own; an error if any of them is free already.
fn give_back(f: &Fixture, first: u32, count: u32) -> Result<()> {
    let change = PageChange::ClearBits { first: f.space.geometry().bit_of(PageNo(first)), count };
    let mut admission = f.journal.admit(Author::System, 1, change.encoded_bytes(), 0)?;
    let mut bitmap = f.space.partition().fix_exclusive(f.space.geometry().bitmap_of(PageNo(first)))?;
    change.check(bitmap.bytes())?;
    f.journal.write(&mut admission, Author::System, &mut [(&mut bitmap, change)], None)?;
    f.space.freed(PageNo(first));
    Ok(())
}

#[test]
fn nobody_gets_a_page_that_is_promised_or_taken() {
    let f = Fixture::new(4096);
    let promised: Vec<_> = (0..50).map(|_| f.space.reserve(&f.journal, 1).unwrap()).collect();
    let mut seen: BTreeSet<_> = promised.iter().map(Reservation::first).collect();
    assert_eq!(seen.len(), 50);
    for count in [1, 7, 100, 1] {
        let first = take(&f, count);
        for page in first.0..first.0 + count {
            assert!(seen.insert(PageNo(page)), "page {page} is given out twice");
        }
    }
    assert_eq!(seen.first(), Some(&PageNo(6)));
    drop(promised);
    assert_eq!(take(&f, 1), PageNo(6), "what was not taken is free again, the lowest first");
}

#[test]
fn freed_pages_are_taken_again_before_the_file_grows() {
    let f = Fixture::new(4096);
    let first = take(&f, 20);
    let last = take(&f, 1);
    give_back(&f, first.0 + 5, 3).unwrap();
    let again = give_back(&f, first.0 + 5, 1).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Corrupt);
    assert_eq!(take(&f, 4).0, last.0 + 1, "a run of four does not fit into three");
    assert_eq!(take(&f, 3).0, first.0 + 5);
    assert_eq!(take(&f, 1).0, last.0 + 5);
}

#[test]
fn a_full_bitmap_gets_a_successor() {
    let f = Fixture::new(4096);
    let coverage = f.space.geometry().coverage();
    let mut in_use = BTreeSet::from([0, 1, 2, 3, 4, 5]);
    for count in [coverage - 100, 200, 94, coverage - 300, 99, 1, 2, 1000] {
        let first = take(&f, count);
        for page in first.0..first.0 + count {
            assert!(in_use.insert(page), "page {page} is given out twice");
            assert!(!f.space.geometry().is_bitmap(PageNo(page)));
        }
    }
    assert_eq!(f.space.bitmap_pages().unwrap(), 3);
    let differences = &mut |fault: Fault| Err(fault.into_error(f.space.partition()));
    let free = f.space.check_bitmaps(&|page| in_use.contains(&page.0), differences).unwrap();
    let file_pages = f.space.partition().file_pages();
    assert_eq!(free, u64::from(file_pages) - in_use.len() as u64 - 2, "bitmaps 1 and 2 are in use as well");
    // A difference in either direction is named.
    let missing = *in_use.last().unwrap();
    let mut faults = Vec::new();
    let collect = &mut |fault: Fault| {
        faults.push((fault.page.0, fault.found));
        Ok(())
    };
    let last = file_pages - 1;
    assert!(!in_use.contains(&last));
    let claimed = |page: PageNo| (in_use.contains(&page.0) && page.0 != missing) || page.0 == last;
    f.space.check_bitmaps(&claimed, collect).unwrap();
    assert_eq!(faults, [(missing, "a leaked page".into()), (last, "a free page".into())]);
    assert!(f.space.reserve(&f.journal, coverage).is_err(), "no bitmap has so many");
    assert!(f.space.reserve(&f.journal, 0).is_err());
}

#[test]
fn a_foreign_header_is_refused() {
    let f = Fixture::new(4096);
    f.space.check_header().unwrap();
    for at in [4, 40, 48, 52, 56, 64] {
        let mut page = f.space.partition().fix_exclusive(HEADER_PAGE).unwrap();
        page.edit(|bytes| bytes[at] ^= 0x40);
        drop(page);
        assert_eq!(f.space.check_header().unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
        f.space.partition().fix_exclusive(HEADER_PAGE).unwrap().edit(|bytes| bytes[at] ^= 0x40);
    }
    f.space.partition().fix_exclusive(HEADER_PAGE).unwrap().edit(|bytes| bytes[62] = 1);
    assert_eq!(f.space.bitmap_pages().unwrap_err().kind(), ErrorKind::Corrupt);
}
