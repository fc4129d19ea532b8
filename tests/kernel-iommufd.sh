#!/usr/bin/env bash
# Puts a guest kernel with iommufd, device nodes of VFIO and netdevsim into .cache/kernel-iommufd.
#
# Debian builds none of the three (up to its 7.3, looked for in linux-config-*: "# CONFIG_IOMMUFD is
# not set"), Ubuntu builds all of them. Fetching Ubuntu's takes a minute, building one twenty. The
# archive is read with a configuration of apt's own that lasts as long as this script, and believed
# by the keys in Debian's package ubuntu-keyring; nothing is installed.
#
# Usage: tests/kernel-iommufd.sh     fetch what is missing
set -euo pipefail
cd "$(dirname "$0")/.."

ARCHIVE=${UBUNTU_ARCHIVE:-http://archive.ubuntu.com/ubuntu}
SUITE=${UBUNTU_SUITE:-noble-updates}
CACHE=${TOWPATH_CACHE:-.cache}
WANTED=(CONFIG_IOMMUFD=m CONFIG_VFIO_DEVICE_CDEV=y CONFIG_NETDEVSIM=m)

say() { printf 'kernel-iommufd: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

if [ -s "$CACHE/kernel-iommufd/vmlinuz" ] && [ -d "$CACHE/kernel-iommufd/lib/modules" ]; then
    say "present"
    exit 0
fi
command -v zstd >/dev/null || die "zstd is missing, which modules are packed with: apt-get install zstd"
mkdir -p "$CACHE"
work=$(mktemp -d "$(realpath "$CACHE")/kernel-iommufd.XXXXXX")
trap 'rm -rf "$work"' EXIT

# apt would fetch as its own user, who may not enter this directory.
(cd "$work" && apt-get download -q -o APT::Sandbox::User=root ubuntu-keyring) ||
    die "no package ubuntu-keyring in the apt sources; run: tests/packages.sh, then try again"
dpkg -x "$work"/ubuntu-keyring_*.deb "$work/keys"
mkdir -p "$work"/{parts,state/lists/partial,cache/archives/partial}
cat >"$work/parts/ubuntu.sources" <<END
Types: deb
URIs: $ARCHIVE
Suites: $SUITE
Components: main
Signed-By: $work/keys/usr/share/keyrings/ubuntu-archive-keyring.gpg
END
cat >"$work/apt.conf" <<END
Dir::State "$work/state";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/parts";
APT::Architecture "amd64";
APT::Sandbox::User "root";
END
export APT_CONFIG=$work/apt.conf
apt-get update -q
version=$(apt-cache pkgnames linux-image-unsigned- |
    sed -nE 's/^linux-image-unsigned-([0-9.]+-[0-9]+-generic)$/\1/p' | sort -V | tail -n 1)
[ -n "$version" ] || die "no linux-image-unsigned-*-generic in $ARCHIVE $SUITE"
say "fetching $version for guests: unpacked into $CACHE/kernel-iommufd, not installed"
(cd "$work" && apt-get download -q "linux-image-unsigned-$version" "linux-modules-$version")
for package in "$work"/linux-*.deb; do dpkg -x "$package" "$work/root"; done
for line in "${WANTED[@]}"; do
    grep -qx "$line" "$work/root/boot/config-$version" || die "$version lacks $line"
done
mkdir -p "$work/kernel/lib"
mv "$work/root/boot/vmlinuz-$version" "$work/kernel/vmlinuz"
mv "$work"/root/{lib,usr/lib}/modules "$work/kernel/lib/" 2>/dev/null || true
[ -d "$work/kernel/lib/modules/$version" ] || die "linux-modules-$version holds no modules"
depmod -b "$work/kernel" "$version"
rm -rf "$CACHE/kernel-iommufd"
mv "$work/kernel" "$CACHE/kernel-iommufd"
say "present"
