//! Reading the log, and taking its records apart, in a thread of its own, ahead of the thread that looks at them.
//!
//! I1. The records come in the order of the log, and an error behind those that are before it: as without the other thread.
//! I2. Memory is bounded: [`BATCHES`] batches are read ahead, and each thread has one. A batch is what one read of the log brings, or one record
//!     if that is longer, and about as much again beside it. The memory of one with a long record is not kept.
//! I3. The other thread reads and takes apart, and nothing else, and has ended when [`each`] returns.

use std::ops::ControlFlow;
use std::{io, thread};

use crossbeam::channel::{Receiver, Sender, bounded};
use hamal_wal::Scanner;

use super::changes::RecordBatch;
use crate::{Error, ErrorKind, Result};

/// Batches that are read ahead at most. Several, for the other thread comes to read whenever the system lets it.
const BATCHES: usize = 32;
/// A batch's memory is used again if its records take so much of the log at most, bytes.
const MOST_KEPT_BYTES: u64 = 1 << 20;

/// Shows all records to `visit`, batch after batch, until the end of the log, or until `visit` breaks, with what is returned. An error says that
/// the log could not be read. `alone_bytes`: when so much has been read, the rest is read by another thread, if it can be started; `None`: never.
pub(super) fn each<B>(
    scanner: &mut Scanner,
    alone_bytes: Option<u64>,
    mut visit: impl FnMut(&RecordBatch) -> ControlFlow<B>,
) -> Result<Option<B>> {
    let mut left_bytes = alone_bytes.unwrap_or(u64::MAX);
    let mut batch = RecordBatch::default();
    while left_bytes > 0 {
        let Some(next) = read(scanner, batch)? else { return Ok(None) };
        left_bytes = left_bytes.saturating_sub(next.log_bytes());
        if let ControlFlow::Break(with) = visit(&next) {
            return Ok(Some(with));
        }
        batch = next;
    }
    let (full, batches) = bounded(BATCHES);
    let (spare, empty) = bounded(BATCHES);
    let both = thread::scope(|scope| {
        let reading = &mut *scanner;
        let name = "hamal-log-reader".to_owned();
        // It has its ends of the queues to itself: when it ends, they end.
        let read = move || read_all(reading, &full, &empty);
        let reader = thread::Builder::new().name(name).spawn_scoped(scope, read)?;
        let broken = look_at(batches, &spare, &mut visit).break_value();
        let read = reader.join().unwrap_or_else(|panic| {
            let text = super::panic_text(&*panic);
            Err(Error::new(ErrorKind::Poisoned, format!("reading the log panicked: {text}")))
        });
        // What was looked at is before what could not be read.
        Ok(if broken.is_some() { Ok(broken) } else { read.map(|()| None) })
    });
    both.unwrap_or_else(|error: io::Error| {
        tracing::warn!(%error, "a thread that reads the log could not be started");
        each(scanner, None, visit)
    })
}

/// The same, for who breaks with errors alone.
pub(super) fn try_each(
    scanner: &mut Scanner,
    alone_bytes: Option<u64>,
    mut visit: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let error = each(scanner, alone_bytes, |batch| {
        visit(batch).map_or_else(ControlFlow::Break, ControlFlow::Continue)
    })?;
    error.map_or(Ok(()), Err)
}

/// The next records, in the memory of an old batch; `None` at the end of the log.
fn read(scanner: &mut Scanner, mut old: RecordBatch) -> Result<Option<RecordBatch>> {
    let frames = scanner.next_batch(old.take_frames())?;
    Ok(frames.map(|frames| RecordBatch::new(frames, old)))
}

/// The other thread: reads until there is no more, or nobody wants it.
fn read_all(scanner: &mut Scanner, full: &Sender<RecordBatch>, empty: &Receiver<RecordBatch>) -> Result<()> {
    while let Some(batch) = read(scanner, empty.try_recv().unwrap_or_default())? {
        if full.send(batch).is_err() {
            break;
        }
    }
    Ok(())
}

fn look_at<B>(
    batches: Receiver<RecordBatch>,
    spare: &Sender<RecordBatch>,
    visit: &mut impl FnMut(&RecordBatch) -> ControlFlow<B>,
) -> ControlFlow<B> {
    for batch in batches {
        visit(&batch)?;
        if batch.log_bytes() <= MOST_KEPT_BYTES {
            // If there are enough already, it goes.
            let _enough = spare.try_send(batch);
        }
    }
    ControlFlow::Continue(())
}
