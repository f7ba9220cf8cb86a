//! stub
use crate::Result;
use crate::journal::{Author, Chain, Journal};
use hamal_pager::{PageNo, Partition};
use std::sync::Arc;
pub(crate) struct Writer<'w> {
    _p: std::marker::PhantomData<&'w ()>,
}
impl<'w> Writer<'w> {
    pub(crate) fn new(_j: &'w Journal, _c: &'w Chain, _p: &Arc<Partition>) -> Self {
        unimplemented!()
    }
    pub(crate) fn write(&mut self, _b: &[u8]) -> Result<()> {
        unimplemented!()
    }
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        unimplemented!()
    }
}
#[derive(Debug)]
pub(crate) struct Reader;
impl Reader {
    pub(crate) fn open(_p: &Arc<Partition>, _r: &[u8]) -> Result<Reader> {
        unimplemented!()
    }
    pub(crate) fn len(&self) -> u64 {
        0
    }
    pub(crate) fn read(&mut self, _b: &mut [u8]) -> Result<usize> {
        unimplemented!()
    }
    pub(crate) fn read_to_end(&mut self, _o: &mut Vec<u8>) -> Result<()> {
        unimplemented!()
    }
    pub(crate) fn seek(&mut self, _t: std::io::SeekFrom) -> std::io::Result<u64> {
        unimplemented!()
    }
}
pub(crate) fn undo_extent(
    _j: &Journal,
    _a: Author<'_>,
    _p: &Arc<Partition>,
    _f: PageNo,
    _c: u32,
) -> Result<()> {
    unimplemented!()
}
pub(crate) fn unlink(_j: &Journal, _c: &Chain, _p: &Arc<Partition>, _r: &[u8]) -> Result<()> {
    unimplemented!()
}
pub(crate) fn free_pending(_j: &Journal, _p: &Arc<Partition>, _m: usize) -> Result<usize> {
    unimplemented!()
}
