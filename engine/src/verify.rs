//! stub
use crate::{Result, VerifyProgress, VerifyReport, engine::Engine};
use std::ops::ControlFlow;
pub(crate) fn run(
    _e: &Engine,
    _p: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
) -> Result<VerifyReport> {
    unimplemented!()
}
