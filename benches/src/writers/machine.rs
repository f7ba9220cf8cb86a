//! What the machine itself gives to some threads that share nothing: the most that any engine's threads can gain on it at the time.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Outcome;
use crate::rows::mix;

/// Steps between two looks at the clock.
const STEPS: u64 = 4096;

/// Steps of plain arithmetic per second, of all threads together, measured for a moment.
#[expect(clippy::cast_precision_loss, reason = "a measurement")]
pub fn compute(threads: usize, how_long: Duration) -> Outcome<f64> {
    let over = &AtomicBool::new(false);
    let start = &Barrier::new(threads + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64)
            .map(|seed| {
                scope.spawn(move || {
                    start.wait();
                    let (mut word, mut steps) = (seed, 0_u64);
                    while !over.load(Ordering::Relaxed) {
                        word = (0..STEPS).fold(word, |word, _| mix(black_box(word)));
                        steps += STEPS;
                    }
                    steps
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        thread::sleep(how_long);
        over.store(true, Ordering::Relaxed);
        let elapsed = began.elapsed();
        let mut steps = 0;
        for worker in workers {
            steps += worker.join().map_err(|_| "a computing thread panicked")?;
        }
        Ok(steps as f64 / elapsed.as_secs_f64())
    })
}
