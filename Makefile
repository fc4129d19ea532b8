# Two commands matter: `make demo` shows it working, `make test` proves it. `make help` lists all.

# rustup puts cargo where sudo's PATH does not look.
export PATH := $(HOME)/.cargo/bin:$(PATH)
export CARGO_TERM_COLOR ?= auto

RUSTDOC = RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet

.PHONY: help demo test check bench fuzz deb iommufd packages cargo

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: packages cargo ## VMs on a disk that vblk serves and on vswitch, with figures (root; about two minutes)
	@echo "demo: building (a first release build takes a few minutes)"
	@cargo run --quiet --release --package towpath-tests --bin demo

test: packages cargo ## everything: style, documents, unit tests, real VMs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(RUSTDOC)
	cargo test --package towpath-tests --test tidy --test documents
	cargo test --workspace --no-fail-fast

check: cargo ## the quick part of `make test`: style and unit tests, no VM, no root
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace --lib --bins
	cargo test --package towpath-tests --test tidy

bench: cargo ## vblk and vswitch against their peers and the machine's own limits, as ratios
	@tests/packages.sh --bench
	cargo build --release --package vblk --package vswitch
	cargo run --release --package towpath-benches --bin ring
	cargo run --release --package towpath-benches --bin forward
	cargo run --release --package towpath-benches --bin bench -- $(ARGS)
	cargo run --release --package towpath-benches --bin storage -- $(STORAGE_ARGS)
	cargo run --release --package towpath-benches --bin net -- $(NET_ARGS)
	cargo run --release --package towpath-benches --bin sriov

iommufd: packages cargo ## sriov-manager on a kernel with iommufd and netdevsim, which is fetched (200 MB)
	@tests/kernel-iommufd.sh
	cargo test --package towpath-tests --test sriov modern:: -- --nocapture

# The targets of tests/fuzz, and how long one is run.
T ?= frames
S ?= 60
fuzz: cargo ## one fuzz target for S seconds: T=frames S=60 (a nightly toolchain and cargo-fuzz)
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { \
	    echo "needs: rustup toolchain install nightly && cargo install cargo-fuzz" >&2; exit 1; }
	cargo +nightly fuzz run --fuzz-dir tests/fuzz $(T) -- -max_total_time=$(S) -timeout=60

deb: cargo ## a Debian package of the daemons, in target/debian
	@systemd/package.sh

packages: ## Debian packages and a guest kernel, only what is missing (root)
	@tests/packages.sh

cargo:
	@command -v cargo >/dev/null || { \
	    echo "cargo is missing: install rustup (https://rustup.rs), it brings the rest" >&2; \
	    exit 1; }
