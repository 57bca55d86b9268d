# Quorate: the commands for a newcomer, a developer and CI. Every target does its own set-up.

.PHONY: help setup demo cluster cluster-down test outages mutations soak bench lint docs deny fuzz ci

help:            ## Show this list
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:           ## Install what is missing, and build RocksDB once for this machine
	@command -v cargo >/dev/null || { echo "setup: Rust is missing: install it from https://rustup.rs and run this again" >&2; exit 1; }
	@.ci/rocksdb

build: setup
	@[ -x target/debug/quorated ] || echo "build: compiling Quorate: two to three minutes on two cores, the first time" >&2
	@cargo build --workspace --bins

demo: build      ## Show what Quorate promises, on a real cluster of three nodes on this machine
	@target/debug/quorate-testnet story

cluster: build   ## Leave a cluster running in ./.testnet, and print commands to try
	@target/debug/quorate-testnet up --nodes 3 --dir .testnet

cluster-down:    ## Stop the cluster in ./.testnet
	@[ -x target/debug/quorate-testnet ] || $(MAKE) --no-print-directory build
	@target/debug/quorate-testnet down --dir .testnet

# Tests of real nodes wait more than they compute, so one more runs than there are processors.
test: setup      ## Run every test: 15 to 20 minutes on two cores
	@cargo build --workspace --bins --quiet
	RUST_TEST_THREADS=$$(($$(nproc) + 1)) cargo test --workspace

outages: setup   ## Run what goes wrong elsewhere, and print as a table what happens here
	.ci/outages

mutations: setup ## Break promises one at a time, and see their tests fail: a minute or two for each
	.ci/mutations

soak: setup      ## Run the long random tests, three to four hours, and print seeds and figures
	.ci/soak

bench: setup     ## Measure what Quorate costs, in one table, some minutes
	@cargo build --release --bins -p quorate-node -p quorate -p quorate-testnet
	@target/release/quorate-testnet bench

lint: setup      ## Check formatting and lints; a warning is an error
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --bins -- -D warnings

docs: setup      ## Build the API documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features quorate-testnet/bad-disks --quiet

deny: setup      ## Check licences, sources and banned crates
	.ci/deny

fuzz: setup      ## Fuzz every format: FUZZ_SECONDS (60) for each target, FUZZ_JOBS (one per processor) at a time
	.ci/fuzz

ci: setup        ## Run everything that must pass before a change lands
	.ci/run
