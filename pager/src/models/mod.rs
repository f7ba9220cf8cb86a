//! Models of the pieces with memory orderings, run by loom: `RUSTFLAGS="--cfg loom" cargo test -p hamal-pager --release`.
