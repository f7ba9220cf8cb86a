//! Models of the ring and of group commit: the code that ships, run through every interleaving, and every value that a
//! load may see, that loom can think of (up to a number of preemptions).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hamal-wal --release --lib`
//!
//! Each ordering that an invariant names has a model that passes with it and a twin, `..._is_needed`, that runs the same
//! model with that ordering weakened and must fail; the twin's expected message says how it fails.

use std::sync::Arc;
use std::time::Duration;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use crate::frame::{HEADER_BYTES, Header};
use crate::group::{Group, RoomWait};
use crate::ring::{Orderings, Ring, Sound};

/// One frame of the models: three words of header, one of payload.
const FRAME_BYTES: u64 = 32;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn payload(number: u8) -> [u8; 8] {
    [number; 8]
}

/// Claims (waiting until it can), reserves and publishes one frame.
fn append<O: Orderings>(ring: &Ring<O>, number: u8) -> u64 {
    while !ring.try_claim(FRAME_BYTES) {
        thread::yield_now();
    }
    reserve_and_publish(ring, number)
}

fn reserve_and_publish<O: Orderings>(ring: &Ring<O>, number: u8) -> u64 {
    let lsn = ring.reserve(FRAME_BYTES);
    let crc = crc32c::crc32c(&payload(number));
    ring.publish(&Header::sealed(crc, (HEADER_BYTES + 8) as u32, lsn, 1, 0), &payload(number));
    lsn
}

/// Takes one frame out of the ring, checks every byte of it, and returns which it is.
fn drain_one<O: Orderings>(ring: &Ring<O>, at: u64) -> u8 {
    let end = ring.published_end(at, at + FRAME_BYTES, u64::MAX);
    assert!(end >= at + FRAME_BYTES, "the walk stopped before what it was asked for");
    let number = check_one(ring, at);
    ring.retire(at, at + FRAME_BYTES);
    number
}

fn check_one<O: Orderings>(ring: &Ring<O>, at: u64) -> u8 {
    let mut bytes = [0; FRAME_BYTES as usize];
    ring.copy_out(at, &mut bytes);
    check_bytes(&bytes, at)
}

fn check_bytes(bytes: &[u8], at: u64) -> u8 {
    let header = Header::decode(bytes.first_chunk().expect("a header's bytes"));
    let sound = header.plausible(at).is_ok() && header.verify(bytes).is_ok();
    assert!(sound, "the flusher read bytes that were not published");
    bytes[HEADER_BYTES]
}

// (a) Publish and observe: I3.

/// The flusher is not the thread that made the ring: loom never again shows a thread that has yielded a value that it
/// has seen before, and whoever makes an atomic has seen its first value.
fn two_appenders_and_the_flusher<O: Orderings + 'static>() {
    model(|| {
        let ring = Arc::new(Ring::<O>::new(64, 0));
        let flusher = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let mut seen = [drain_one(&ring, 0), drain_one(&ring, FRAME_BYTES)];
                seen.sort_unstable();
                assert_eq!(seen, [1, 2], "nothing lost, nothing twice");
            })
        };
        let appender = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || append(&ring, 1))
        };
        append(&ring, 2);
        flusher.join().expect("joined");
        appender.join().expect("joined");
    });
}

#[test]
fn the_flusher_reads_only_published_frames_and_loses_none() {
    two_appenders_and_the_flusher::<Sound>();
}

struct RelaxedPublish;
impl Orderings for RelaxedPublish {
    const PUBLISH: Ordering = Ordering::Relaxed;
}

/// The first word may become visible before the rest: the checksum over what was copied fails.
#[test]
#[should_panic(expected = "bytes that were not published")]
fn release_at_publish_is_needed() {
    two_appenders_and_the_flusher::<RelaxedPublish>();
}

struct RelaxedObserve;
impl Orderings for RelaxedObserve {
    const OBSERVE: Ordering = Ordering::Relaxed;
}

/// The rest may be read as it was before the first word was seen: same failure.
#[test]
#[should_panic(expected = "bytes that were not published")]
fn acquire_at_observe_is_needed() {
    two_appenders_and_the_flusher::<RelaxedObserve>();
}

// (a) Zeroing and the next lap: I2, I4.

/// A ring of one frame: every record waits for the one before it to be drained and zeroed.
fn two_laps_of_a_ring_of_one<O: Orderings + 'static>() {
    model(|| {
        let ring = Arc::new(Ring::<O>::new(32, 0));
        let appender = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                append(&ring, 1);
                append(&ring, 2);
            })
        };
        assert_eq!([drain_one(&ring, 0), drain_one(&ring, FRAME_BYTES)], [1, 2]);
        appender.join().expect("joined");
    });
}

#[test]
fn a_recycled_place_is_zero_for_whoever_claims_it() {
    two_laps_of_a_ring_of_one::<Sound>();
}

struct RelaxedFree;
impl Orderings for RelaxedFree {
    const FREE: Ordering = Ordering::Relaxed;
}

/// The appender learns that the place is free before it learns of the zeros.
#[test]
#[should_panic(expected = "still holds an older frame")]
fn release_at_free_is_needed() {
    two_laps_of_a_ring_of_one::<RelaxedFree>();
}

/// A claims before the flush, B after it; B reserves first, so A gets the recycled place though only B saw it freed.
fn an_early_claim_gets_a_late_place<O: Orderings + 'static>() {
    model(|| {
        let ring = Arc::new(Ring::<O>::new(64, 0));
        append(&ring, 0);
        assert!(ring.try_claim(FRAME_BYTES));
        let early = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || reserve_and_publish(&ring, 1))
        };
        let late = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || append(&ring, 2))
        };
        assert_eq!(drain_one(&ring, 0), 0);
        let mut seen = [drain_one(&ring, FRAME_BYTES), drain_one(&ring, 2 * FRAME_BYTES)];
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
        early.join().expect("joined");
        late.join().expect("joined");
    });
}

#[test]
fn what_one_claim_knows_of_free_places_travels_along_the_reservations() {
    an_early_claim_gets_a_late_place::<Sound>();
}

struct RelaxedReserve;
impl Orderings for RelaxedReserve {
    const RESERVE: Ordering = Ordering::Relaxed;
}

#[test]
#[should_panic(expected = "still holds an older frame")]
fn acquire_release_at_reserve_is_needed() {
    an_early_claim_gets_a_late_place::<RelaxedReserve>();
}

// Reading back what is not durable yet: I5.

fn a_reader_beside_a_flush<O: Orderings + 'static>() {
    model(|| {
        let ring = Arc::new(Ring::<O>::new(32, 0));
        let group = Arc::new(Group::<true>::new(0));
        append(&ring, 7);
        let reader = {
            let (ring, group) = (Arc::clone(&ring), Arc::clone(&group));
            thread::spawn(move || {
                let frame = ring.peek(0, FRAME_BYTES);
                if group.durable() == 0 {
                    let frame = frame.expect("the flusher read bytes that were not published");
                    assert_eq!(check_bytes(&frame, 0), 7);
                }
            })
        };
        let end = ring.published_end(0, FRAME_BYTES, u64::MAX);
        assert_eq!(check_one(&ring, 0), 7);
        group.advance(end);
        ring.retire(0, end);
        reader.join().expect("joined");
    });
}

#[test]
fn a_copy_that_caught_zeros_is_never_taken_for_the_frame() {
    a_reader_beside_a_flush::<Sound>();
}

struct NoReadFence;
impl Orderings for NoReadFence {
    const READ_FENCE: bool = false;
}

/// The reader sees the zeros and still the old frontier.
#[test]
#[should_panic(expected = "bytes that were not published")]
fn the_fences_around_a_read_are_needed() {
    a_reader_beside_a_flush::<NoReadFence>();
}

// (b) Group commit: one leader at a time, no lost wake-up.

fn committers<const SOUND: bool, const COUNT: usize>() {
    model(|| {
        let group = Arc::new(Group::<SOUND>::new(0));
        let published = Arc::new(AtomicU64::new(0));
        let leaders = Arc::new(AtomicU64::new(0));
        let commit = {
            let (group, published) = (Arc::clone(&group), Arc::clone(&published));
            move || {
                let own_end = published.fetch_add(1, Ordering::AcqRel) + 1;
                let flush = |at_least| {
                    assert_eq!(leaders.fetch_add(1, Ordering::AcqRel), 0, "two leaders");
                    let end = published.load(Ordering::Acquire);
                    assert!(end >= at_least);
                    assert!(end > group.durable(), "a flush of nothing");
                    leaders.fetch_sub(1, Ordering::AcqRel);
                    group.advance(end);
                    Ok(())
                };
                group.reach(own_end, &|| Duration::ZERO, flush).expect("no flush fails");
                assert!(group.durable() >= own_end);
            }
        };
        let others: Vec<_> = (1..COUNT).map(|_| thread::spawn(commit.clone())).collect();
        commit();
        for other in others {
            other.join().expect("joined");
        }
        assert_eq!(group.durable(), COUNT as u64);
    });
}

#[test]
fn every_committer_is_led_or_leads_and_none_sleeps_on() {
    committers::<true, 2>();
    committers::<true, 3>();
}

/// With a gap between the check and the wait, the leader's notification falls into it: a follower sleeps for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn checking_under_the_lock_is_needed() {
    committers::<false, 2>();
}

fn a_waiter_and_a_giver<const SOUND: bool>() {
    model(|| {
        let group = Arc::new(Group::<SOUND>::new(0));
        let room = Arc::new(AtomicU64::new(0));
        let giver = {
            let (group, room) = (Arc::clone(&group), Arc::clone(&room));
            thread::spawn(move || {
                room.fetch_add(1, Ordering::Relaxed);
                group.room_given();
            })
        };
        let claim = || room.load(Ordering::Relaxed) == 1;
        assert_eq!(group.wait_for_room(claim, || None).expect("not poisoned"), RoomWait::Claimed);
        giver.join().expect("joined");
    });
}

#[test]
fn room_given_back_wakes_who_waits_for_it() {
    a_waiter_and_a_giver::<true>();
}

/// Without the giver's fence it may miss the waiter while the waiter misses the room.
#[test]
#[should_panic(expected = "deadlock")]
fn the_fence_of_the_giver_is_needed() {
    a_waiter_and_a_giver::<false>();
}

/// A leader that fails wakes everybody, and nobody leads after it.
#[test]
fn a_failure_reaches_every_waiter() {
    model(|| {
        let group = Arc::new(Group::<true>::new(0));
        let flushes = Arc::new(AtomicU64::new(0));
        let commit = {
            let (group, flushes) = (Arc::clone(&group), Arc::clone(&flushes));
            move || {
                let flush = |_| {
                    flushes.fetch_add(1, Ordering::AcqRel);
                    Err(hamal_storage::Error::Invalid("planted".to_owned()))
                };
                group.reach(1, &|| Duration::ZERO, flush).expect_err("no flush succeeds");
            }
        };
        let other = thread::spawn(commit.clone());
        commit();
        other.join().expect("joined");
        assert_eq!(flushes.load(Ordering::Acquire), 1, "a failed flush is not tried again");
        assert!(group.check().is_err() && group.cause().is_some());
    });
}
