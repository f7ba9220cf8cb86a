//! Models of the pieces with memory orderings, run exhaustively by loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p hamal-pager --release`.
//!
//! They run the code that ships (`state`, `dirty`); only atomics and locks are loom's. Each model has siblings that
//! plant one mistake in that code, or swap two steps, and must fail: so the model is known to see that far.

mod dirty;
mod state;

use loom::model::Builder;

/// Runs a model with at most this many preemptions per execution.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
