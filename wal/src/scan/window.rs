//! The piece of the stream that a scan has in memory.

use hamal_storage::Result;

use super::Source;

/// Stream bytes from `start` on.
#[derive(Debug, Default)]
pub(super) struct Window {
    start: u64,
    /// Bytes that are the stream's; what is behind them in `buffer` is left from earlier, so that it need not be cleared each time.
    len: usize,
    buffer: Vec<u8>,
}

impl Window {
    /// Nothing yet, at a position.
    pub(super) fn at(start: u64) -> Window {
        Window { start, ..Window::default() }
    }

    /// The first position behind it.
    pub(super) fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// Its bytes from a position in it on.
    pub(super) fn from(&self, position: u64) -> &[u8] {
        &self.buffer[self.offset(position)..self.len]
    }

    /// Where in [`Window::take`]'s bytes a position in it is.
    pub(super) fn offset(&self, position: u64) -> usize {
        (position - self.start) as usize
    }

    /// Drops what is before a position in it, and reads up to `to`, which exists and is not before its end. If that fails only the
    /// dropping is done.
    pub(super) fn move_to(&mut self, position: u64, to: u64, source: &Source) -> Result<()> {
        let (end, from) = (self.end(), self.offset(position));
        self.buffer.copy_within(from..self.len, 0);
        self.len = (end - position) as usize;
        self.start = position;
        let wanted = (to - position) as usize;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        source.read(end, &mut self.buffer[self.len..wanted])?;
        self.len = wanted;
        Ok(())
    }

    /// Gives its buffer away, up to a position in it, and goes on with another one from there. The bytes behind that position stay.
    pub(super) fn take(&mut self, position: u64, mut other: Vec<u8>) -> Vec<u8> {
        let rest = self.from(position);
        let len = rest.len();
        if other.len() < len {
            other.resize(len, 0);
        }
        other[..len].copy_from_slice(rest);
        (self.start, self.len) = (position, len);
        std::mem::replace(&mut self.buffer, other)
    }
}
