#!/usr/bin/env bash
# A Debian package of all daemons, in target/debian: binaries, units, man pages, completions,
# documents. cargo-deb makes it, and is installed into .cache/tools if it is not there.
#
# Usage: systemd/package.sh [--version VERSION] [--dev]
#   --version   the package's version [that of the workspace]
#   --dev       of the binaries in target/debug, as they are: for tests
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_DEB=3.8.0
TOOLS=${TOWPATH_CACHE:-.cache}/tools
profile=release version=
while [ $# -gt 0 ]; do
    case $1 in
    --version) version=${2:?--version wants one}; shift 2 ;;
    --dev) profile=dev; shift ;;
    *) echo "package: $1 is not known here; see the head of $0" >&2; exit 2 ;;
    esac
done

target=${CARGO_TARGET_DIR:-target}
if [ "$profile" = release ]; then
    cargo build --release --quiet --package vblk --package vswitch --package sriov-manager
    binaries=$target/release
else
    binaries=$target/debug
fi
if ! "$TOOLS/bin/cargo-deb" --version 2>/dev/null | grep -q "$CARGO_DEB"; then
    echo "package: installing cargo-deb $CARGO_DEB into $TOOLS" >&2
    cargo install --quiet --locked --root "$TOOLS" cargo-deb --version "$CARGO_DEB"
fi

# What the binaries tell of themselves.
assets=target/package
rm -rf "$assets"
mkdir -p "$assets"/{man,bash,zsh,fish}
for daemon in vblk vswitch sriov-manager; do
    "$binaries/$daemon" man "$assets/man"
    "$binaries/$daemon" completion bash >"$assets/bash/$daemon"
    "$binaries/$daemon" completion zsh >"$assets/zsh/_$daemon"
    "$binaries/$daemon" completion fish >"$assets/fish/$daemon.fish"
done
gzip -9n "$assets"/man/*.1

"$TOOLS/bin/cargo-deb" --package vblk --no-build --profile "$profile" \
    ${version:+--deb-version "$version"}
