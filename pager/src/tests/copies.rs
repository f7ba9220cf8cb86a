//! Copies of pages for backups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hamal_storage::sim::SimStorage;
use hamal_storage::{Error, Storage};

use super::rig::{Rig, small, value};
use crate::{Copied, PageNo, PartitionId, header};

const P1: PartitionId = PartitionId(1);

#[test]
fn a_copy_is_whole_and_not_older_than_the_call_whatever_others_do() {
    const PAGES: u32 = 600;
    let rig = Rig::new(Arc::new(SimStorage::new(1)), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, PAGES, 50);
    // What each page holds at least: pages are told apart by the remainder.
    let floors: Vec<AtomicU64> = (0..PAGES).map(|page| AtomicU64::new(u64::from(page))).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // More pages than fit: they are evicted, written back and read again all the time.
            for round in 1..40 {
                for page in (0..PAGES).map(|n| n * 7 % PAGES) {
                    let value = u64::from(round * PAGES + page);
                    rig.rewrite(&partition, page, value);
                    floors[page as usize].store(value, Ordering::Release);
                }
            }
            stop.store(true, Ordering::Release);
        });
        let (mut image, mut copies) = (vec![0; 4096], 0);
        while !stop.load(Ordering::Acquire) || copies < PAGES {
            let page = copies % PAGES;
            let floor = floors[page as usize].load(Ordering::Acquire);
            assert_eq!(partition.copy_page(PageNo(page), &mut image).unwrap(), Copied::Page);
            header::check_image(&image, (P1, PageNo(page)), 7, "the copy", 0).unwrap();
            let found = value(&image);
            assert!(found >= floor && found % u64::from(PAGES) == u64::from(page), "{found} after {floor}");
            copies += 1;
        }
    });
}

#[test]
fn a_copy_brings_nothing_into_memory_and_finds_damage() {
    let sim = SimStorage::new(1);
    let storage: Arc<dyn Storage> = Arc::new(sim.clone());
    let rig = Rig::new(Arc::clone(&storage), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 40, 50);
    rig.clean();
    drop((partition, rig));
    let rig = Rig::new(storage, small());
    let partition = rig.pager.open_partition(P1).unwrap();
    let mut image = vec![0; 4096];
    for page in 0..40 {
        assert_eq!(partition.copy_page(PageNo(page), &mut image).unwrap(), Copied::Page);
        assert_eq!(value(&image), u64::from(page));
    }
    assert_eq!(rig.pager.stats().resident_bytes, 0);
    // The file has room for more than was written, and ends somewhere.
    assert!(partition.file_pages() > 50);
    assert_eq!(partition.copy_page(PageNo(50), &mut image).unwrap(), Copied::NeverWritten);
    assert_eq!(partition.copy_page(PageNo(1 << 30), &mut image).unwrap(), Copied::NeverWritten);
    sim.flip_bit("part/1.dat", 8 * (4096 * 7 + 100)).unwrap();
    let error = partition.copy_page(PageNo(7), &mut image).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("part/1.dat"), "{error}");
}
