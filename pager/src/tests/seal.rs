//! Partitions that are not used any more, though others still have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hamal_storage::sim::SimStorage;
use hamal_storage::{Error, Storage};
use hamal_wal::Lsn;

use super::rig::{Rig, read, small};
use crate::{PageClass, PageNo, PartitionId};

const P1: PartitionId = PartitionId(1);
const P2: PartitionId = PartitionId(2);

#[test]
fn a_sealed_partition_is_read_from_memory_only_and_leaves_without_being_written() {
    let disk = SimStorage::new(1);
    let rig = Rig::new(Arc::new(disk.clone()), small());
    let (one, two) = (rig.pager.create_partition(P1).unwrap(), rig.pager.create_partition(P2).unwrap());
    rig.format_all(&one, 8, 4);
    rig.format_all(&two, 8, 4);
    rig.clean();
    rig.rewrite(&one, 3, 33);
    rig.rewrite(&two, 3, 33);
    let before = disk.read_file("part/1.dat").unwrap();
    let dirty = rig.pager.seal_partition(P1);
    assert_eq!(dirty.iter().map(|d| (d.partition, d.page)).collect::<Vec<_>>(), [(P1, PageNo(3))]);
    assert!(one.fix_exclusive(PageNo(5)).unwrap().check_unsealed().is_err(), "not to be changed");
    rig.pager.remove_sealed(P1);
    assert_eq!(rig.pager.dirty_pages().len(), 1, "that of the other partition");
    for page in 0..9 {
        let refused = one.fix_shared(PageNo(page)).map(drop).unwrap_err();
        assert!(matches!(refused, Error::Offline { file } if file == "part/1.dat"));
    }
    assert!(one.fix_new(PageNo(2), PageClass::Plain).is_err() && one.ensure_file_pages(1000).is_err());
    rig.clean();
    assert_eq!(disk.read_file("part/1.dat").unwrap(), before, "not written any more");
    // Another may have its id meanwhile.
    let again = rig.pager.open_partition(P1).unwrap();
    assert_eq!((read(&again, 3), read(&two, 3)), (3, 33));
    assert!(one.fix_shared(PageNo(3)).is_err());
    let offline = rig.pager.offline_partition(P1).unwrap();
    assert!(matches!(offline.fix_shared(PageNo(0)).map(drop), Err(Error::Offline { .. })));
}

#[test]
fn sealing_among_readers_and_writers_leaves_no_page_and_no_change_behind() {
    for seed in 0..20 {
        let rig = Rig::new(Arc::new(SimStorage::new(seed)), small());
        let one = rig.pager.create_partition(P1).unwrap();
        // More than fits.
        rig.format_all(&one, 400, 4);
        let sealed = AtomicBool::new(false);
        thread::scope(|scope| {
            for worker in 0..4_u32 {
                let (rig, one, sealed) = (&rig, &one, &sealed);
                scope.spawn(move || {
                    for step in 0..u32::MAX {
                        let page = PageNo((worker * 97 + step * 31) % 400);
                        let was_sealed = sealed.load(Ordering::SeqCst);
                        match one.fix_exclusive(page) {
                            Ok(mut fixed) if fixed.check_unsealed().is_ok() => {
                                assert!(!was_sealed, "seed {seed}: changed after the seal");
                                rig.change(&mut fixed, u64::from(step));
                            }
                            Ok(_) => {}
                            Err(Error::Offline { .. }) => return,
                            Err(error) => panic!("seed {seed}: {error}"),
                        }
                    }
                });
            }
            for _ in 0..50 * seed {
                thread::yield_now();
            }
            rig.pager.seal_partition(P1);
            sealed.store(true, Ordering::SeqCst);
            rig.pager.remove_sealed(P1);
        });
        assert!(rig.pager.dirty_pages().is_empty(), "seed {seed}");
        assert_eq!(rig.pager.stats().resident_bytes, 0, "seed {seed}: no frame is lost");
    }
}

#[test]
fn a_file_that_is_gone_replaced_or_cut_is_noticed() {
    let disk = SimStorage::new(1);
    let rig = Rig::new(Arc::new(disk.clone()), small());
    let one = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&one, 8, 4);
    rig.clean();
    let misplaced = || rig.pager.misplaced_files().unwrap().into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(misplaced(), []);
    let storage: &dyn Storage = &disk;
    storage.rename("part/1.dat", "part/x").unwrap();
    assert_eq!(misplaced(), [P1], "gone");
    storage.create("part/1.dat").unwrap().allocate(0, 1 << 20).unwrap();
    assert_eq!(misplaced(), [P1], "replaced");
    storage.rename("part/x", "part/1.dat").unwrap();
    assert_eq!(misplaced(), []);
    storage.open("part/1.dat").unwrap().set_len(4096).unwrap();
    assert_eq!(misplaced(), [P1], "cut short");
    rig.pager.seal_partition(P1);
    assert_eq!(misplaced(), [], "known already");
}

#[test]
fn one_partition_is_written_back_alone() {
    let rig = Rig::new(Arc::new(SimStorage::new(1)), small());
    let (one, two) = (rig.pager.create_partition(P1).unwrap(), rig.pager.create_partition(P2).unwrap());
    rig.format_all(&one, 40, 4);
    rig.format_all(&two, 40, 4);
    rig.pager.write_back_partition(P1).unwrap();
    let dirty = rig.pager.dirty_pages();
    assert!(dirty.len() == 40 && dirty.iter().all(|d| d.partition == P2 && d.rec_lsn > Lsn::NEVER));
}
