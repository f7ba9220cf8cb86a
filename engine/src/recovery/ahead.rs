//! Reading the log in a thread of its own, ahead of the thread that looks at the records.
//!
//! I1. The records come in the order of the log, and an error behind those that are before it: as without the other thread.
//! I2. Memory is bounded: [`BATCHES`] batches are read ahead, each of about one read of the log.
//! I3. The other thread reads and nothing else, and has ended when [`each`] returns.

use std::ops::ControlFlow;
use std::{io, thread};

use crossbeam::channel::{Receiver, Sender, bounded};
use hamal_wal::{Frame, FrameBatch, Scanner};

use crate::{Error, ErrorKind, Result};

/// Batches that are read ahead at most.
const BATCHES: usize = 4;

/// Shows all records to `visit`, until the end of the log, or until `visit` breaks, with what is returned. An error says that the log could not
/// be read. `alone_bytes`: when so much has been read, the rest is read by another thread, if it can be started; `None`: never.
pub(super) fn each<B>(
    scanner: &mut Scanner,
    alone_bytes: Option<u64>,
    mut visit: impl FnMut(&Frame<'_>) -> ControlFlow<B>,
) -> Result<Option<B>> {
    let mut left_bytes = alone_bytes.unwrap_or(u64::MAX);
    while left_bytes > 0 {
        let Some(frame) = scanner.next_frame()? else { return Ok(None) };
        left_bytes = left_bytes.saturating_sub(frame.end.0 - frame.lsn.0);
        if let ControlFlow::Break(with) = visit(&frame) {
            return Ok(Some(with));
        }
    }
    let (full, batches) = bounded(BATCHES);
    let (spare, empty) = bounded(BATCHES);
    let both = thread::scope(|scope| {
        let reading = &mut *scanner;
        let name = "hamal-log-reader".to_owned();
        // It has its ends of the queues to itself: when it ends, they end.
        let read = move || read(reading, &full, &empty);
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
    mut visit: impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<()> {
    let error = each(scanner, alone_bytes, |frame| {
        visit(frame).map_or_else(ControlFlow::Break, ControlFlow::Continue)
    })?;
    error.map_or(Ok(()), Err)
}

/// The other thread: reads until there is no more, or nobody wants it.
fn read(scanner: &mut Scanner, full: &Sender<FrameBatch>, empty: &Receiver<FrameBatch>) -> Result<()> {
    while let Some(batch) = scanner.next_batch(empty.try_recv().unwrap_or_default())? {
        if full.send(batch).is_err() {
            break;
        }
    }
    Ok(())
}

fn look_at<B>(
    batches: Receiver<FrameBatch>,
    spare: &Sender<FrameBatch>,
    visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    for batch in batches {
        batch.frames().try_for_each(|frame| visit(&frame))?;
        // If there are enough already, it goes.
        let _enough = spare.try_send(batch);
    }
    ControlFlow::Continue(())
}
