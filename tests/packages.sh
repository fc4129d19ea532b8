#!/usr/bin/env bash
# Puts in place what the tests and the demo need from Debian, and nothing else:
#   1. packages: QEMU, busybox, fio, testpmd, NBD servers, promtool, a C linker (list below);
#   2. a guest kernel, unpacked (not installed) into .cache/kernel.
#
# Running it again costs nothing: what is present is not looked for on the network, and with
# everything present neither root nor a network is needed.
#
# QEMU must be 9.2 or newer (reconnect-ms of a socket). Debian 12 has that only in backports. If
# no configured source carries backports, the entry is derived from the machine's own apt sources:
# the mirror and the keyring that already serve the release, and the suite <codename>-backports.
# apt itself says what is configured (apt-get indextargets), so both file formats are understood,
# and APT_CONFIG may point all of this at another configuration.
#
# `make bench` also wants the switches that vswitch is measured against: with --bench, they are in
# the list, and no service of theirs is started: the bench runs its own in scratch directories.
#
# Usage: tests/packages.sh            install what is missing
#        tests/packages.sh --bench    the same, with the peers of the bench; may precede --check
#        tests/packages.sh --check    change nothing; exit 1 and say what is missing
#        tests/packages.sh --source   print the backports entry that would be added
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(qemu-system-x86 qemu-utils busybox-static kmod xz-utils e2fsprogs xfsprogs fio gcc
    libc6-dev iproute2 ethtool tcpdump tshark dpdk-dev nbdkit nbd-server openssl dmsetup
    lvm2 mmdebstrap prometheus)
BENCH_PACKAGES=(openvswitch-switch-dpdk dpdk)
QEMU_AT_LEAST=1:9.2            # -chardev socket,reconnect-ms=
KERNEL_SERIES=6.12             # the series whose modules tests/src/initramfs.rs knows
CACHE=${TOWPATH_CACHE:-.cache}

say() { printf 'packages: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

qemu_is_new() { # version
    dpkg --compare-versions "$1" ge "$QEMU_AT_LEAST"
}

missing_packages() {
    local p
    for p in "${PACKAGES[@]}"; do
        if ! installed "$p"; then
            echo "$p"
        elif [ "$p" = qemu-system-x86 ] &&
            ! qemu_is_new "$(dpkg-query -W -f '${Version}' "$p")"; then
            echo "$p"
        fi
    done
}

kernel_is_there() {
    [ -s "$CACHE/kernel/vmlinuz" ] && [ -d "$CACHE/kernel/lib/modules" ]
}

# What apt is configured to fetch, one line a source: uri release codename origin component entry.
targets() {
    apt-get indextargets --format \
        '$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(SOURCESENTRY)' \
        'Created-By: Packages'
}

# The Signed-By of the entry in FILE that serves URI and RELEASE, in the form of a deb822 field.
signed_by() { # file uri release
    case $1 in
    *.sources)
        awk -v uri="${2%/}" -v release="$3" '
            BEGIN { RS = ""; FS = "\n" }
            {
                field = key = ""; served = suited = 0
                for (i = 1; i <= NF; i++) {
                    if ($i ~ /^#/) continue
                    if ($i !~ /^[ \t]/) { field = tolower($i); sub(/:.*/, "", field) }
                    line = $i; sub(/^[A-Za-z-]+:/, "", line)
                    n = split(line, words, /[ \t]+/)
                    for (w = 1; w <= n; w++) {
                        sub(/\/$/, "", words[w])
                        if (field == "uris" && words[w] == uri) served = 1
                        if (field == "suites" && words[w] == release) suited = 1
                    }
                    if (field == "signed-by") key = key $i "\n"
                }
                if (served && suited && key != "") { printf "%s", key; exit }
            }' "$1"
        ;;
    *)
        sed -nE "s|^deb[[:space:]]+\[[^]]*signed-by=([^] ]+)[^]]*\][[:space:]]+${2%/}/?[[:space:]]+$3[[:space:]].*|Signed-By: \1|p" \
            "$1" | head -n 1
        ;;
    esac
}

# A source entry for backports, made from the one that serves Debian's main archive.
backports_entry() {
    local uri release entry
    IFS='|' read -r uri release entry < <(targets |
        awk -F'|' -v c="$VERSION_CODENAME" \
            '$3 == c && $4 == "Debian" && $5 == "Debian" && $6 == "main" {
                print $1 "|" $2 "|" $7; exit }') || true
    [ -n "${uri:-}" ] || die "no apt source serves Debian $VERSION_CODENAME main;" \
        "add one, run apt-get update, and try again"
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' \
        "$uri" "$VERSION_CODENAME"
    signed_by "${entry%:*}" "$uri" "$release"
}

ensure_backports() {
    local parts file
    if targets | awk -F'|' -v c="$VERSION_CODENAME-backports" '$3 == c || $2 == c { found = 1 }
        END { exit !found }'; then
        return
    fi
    eval "$(apt-config shell parts Dir::Etc::sourceparts/d)"
    file=${parts%/}/towpath-backports.sources
    say "adding $file"
    backports_entry >"$file.new"
    mv "$file.new" "$file"
    apt-get update -q
}

candidate() { # package
    LC_ALL=C apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# The newest signed kernel of the series: not -cloud, -rt, -dbg or -unsigned.
kernel_package() {
    local p
    apt-cache pkgnames "linux-image-$KERNEL_SERIES." |
        grep -E "^linux-image-${KERNEL_SERIES//./\\.}\.[0-9.]+(\+[a-z0-9]+)?-amd64$" |
        sort -rV |
        while read -r p; do
            if [ -n "$(candidate "$p")" ]; then
                echo "$p"
                break
            fi
        done
}

fetch_kernel() {
    local package work version
    package=$(kernel_package)
    if [ -z "$package" ]; then
        ensure_backports
        package=$(kernel_package)
    fi
    [ -n "$package" ] || die "no linux-image-$KERNEL_SERIES.*-amd64 in the apt sources"
    say "fetching $package for the guests: unpacked into $CACHE/kernel, not installed"
    mkdir -p "$CACHE"
    work=$(mktemp -d "$(realpath "$CACHE")/kernel.XXXXXX")
    # shellcheck disable=SC2064 # the value of now, not of then
    trap "rm -rf '$work'" EXIT
    # apt would fetch as its own user, who may not enter this directory.
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$package")
    dpkg -x "$work"/*.deb "$work/root"
    mkdir -p "$work/kernel/lib"
    mv "$work"/root/boot/vmlinuz-* "$work/kernel/vmlinuz"
    # Modules are in /lib up to Debian 12, in /usr/lib from Debian 13 on.
    mv "$work"/root/{lib,usr/lib}/modules "$work/kernel/lib/" 2>/dev/null || true
    version=$(ls "$work/kernel/lib/modules") || die "$package holds no modules"
    ln -s . "$work/kernel/usr"
    depmod -b "$work/kernel" "$version"
    rm -rf "$CACHE/kernel"
    mv "$work/kernel" "$CACHE/kernel"
}

# QEMU and its tools come from backports where the release's own QEMU is too old.
install_packages() { # package...
    local from=()
    if ! qemu_is_new "$(candidate qemu-system-x86)"; then
        ensure_backports
        from=(-t "$VERSION_CODENAME-backports")
    fi
    say "installing $*"
    mask_services "$@"
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${from[@]}" "$@"
    qemu_is_new "$(dpkg-query -W -f '${Version}' qemu-system-x86)" ||
        die "apt installed QEMU $(dpkg-query -W -f '${Version}' qemu-system-x86)," \
            "${QEMU_AT_LEAST#*:} or newer is needed"
}

# A package's services stay off: a switch that nobody asked for would poll a processor, a Prometheus
# take a port. A unit that is already there, or masked by the operator, is left as it is.
mask_services() { # package...
    case " $* " in *" openvswitch-switch-dpdk "*)
        installed openvswitch-switch || mask openvswitch-switch ovs-vswitchd ovsdb-server ;;
    esac
    case " $* " in *" prometheus "*)
        mask prometheus ;;
    esac
}

mask() { # unit...
    local unit
    say "masking what is not to run; to use it: systemctl unmask $*"
    for unit in "$@"; do
        [ -e "/etc/systemd/system/$unit.service" ] ||
            ln -s /dev/null "/etc/systemd/system/$unit.service"
    done
}

main() {
    local missing wanted
    if [ "${1:-}" = --bench ]; then
        PACKAGES+=("${BENCH_PACKAGES[@]}")
        shift
    fi
    [ "$(uname -m)" = x86_64 ] || die "the VM tests are for x86_64 machines, this is $(uname -m)"
    command -v dpkg-query >/dev/null ||
        die "this is not Debian; install by hand: ${PACKAGES[*]} (QEMU ${QEMU_AT_LEAST#*:} or newer)"
    . /etc/os-release
    if [ "${1:-}" = --source ]; then
        backports_entry
        return
    fi

    missing=$(missing_packages | tr '\n' ' ')
    wanted=$missing$(kernel_is_there || echo guest-kernel)
    if [ -z "$wanted" ]; then
        say "all present"
        return
    fi
    [ "${1:-}" != --check ] || die "missing: $wanted; run: make packages"
    [ "${ID:-}" = debian ] ||
        die "missing: $wanted; this script knows Debian, and this is ${ID:-something else}"
    [ "$(id -u)" = 0 ] || die "must be root to install: $wanted; run: sudo make packages"

    apt-get update -q
    # shellcheck disable=SC2086 # one word a package
    [ -z "$missing" ] || install_packages $missing
    kernel_is_there || fetch_kernel
    say "all present"
}

main "$@"
