# The commands people use. `just` lists them; every one is also a plain command to copy.

# List the recipes.
default:
    @just --list

# Kill a database at random moments, recover it, and show what recovery did.
demo *args:
    cargo run --release -p hamal-cli -- demo {{args}}

# All tests.
test *args:
    cargo test --workspace {{args}}

# Format everything.
fmt:
    cargo fmt --all

# What must be clean before a change lands: formatting, lints, documentation.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# The API documentation, in a browser.
doc:
    cargo doc -p hamal --no-deps --open

# Crash simulator: random transactions, crashes at random I/Os, recovery, comparison with a model.
simulate *args="--seeds 0..1000":
    cargo run --release -p hamal-fuzz --bin simulate -- {{args}}

# Clients at once, and whether any order of their transactions explains what they saw.
histories *args="--transactions 50000 --crash":
    cargo run --release -p hamal-fuzz --bin histories -- {{args}}

# Waits for row locks, so many, with and without timeouts and cancellations, and a tenth of it by two threads: no wake-up may be lost.
lock-waits waits="1000000":
    HAMAL_LOCK_WAITS={{waits}} cargo test --release -p hamal --lib no_wake_up_is_lost -- --nocapture

# Pages damaged under running databases: each must be healed or reported, and every answer right.
rot *args="--count 10000":
    cargo run --release -p hamal-fuzz --bin rot -- {{args}}

# One fuzz target: log_bytes, page_bytes or operations.
fuzz target="operations" seconds="600":
    cargo fuzz run -s none {{target}} -- -max_total_time={{seconds}}

# Memory-ordering models of the log and the page cache, every interleaving.
loom:
    .ci/run loom

# Benchmarks of one area: pager, wal, tree, commit or recovery.
bench area *args:
    cargo bench -p hamal-benches --bench {{area}} -- {{args}}

# Hamal beside redb and LMDB: the table of docs/benchmarks.md.
peers *args:
    cargo run --release -p hamal-benches --bin peers -- {{args}}

# Many writers: Hamal beside its peers, commits per second.
writers *args:
    cargo run --release -p hamal-benches --bin writers -- {{args}}

# How long recovery takes, by partitions and threads.
recoveries *args:
    cargo run --release -p hamal-benches --bin recoveries -- {{args}}

# A reader beside writers: latency of a get in a snapshot.
readers *args:
    cargo run --release -p hamal-benches --bin readers -- {{args}}

# Transactions of ten times the memory: whether it stays bounded.
huge *args:
    cargo run --release -p hamal-benches --bin huge -- {{args}}

# Dependencies: licences, duplicates, sources.
deny:
    cargo deny check bans licenses sources

# Everything a change must pass, as the workflow on GitHub runs it.
ci *steps:
    .ci/run {{steps}}
