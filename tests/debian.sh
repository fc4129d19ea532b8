#!/usr/bin/env bash
# A small Debian with systemd, as an image of a disk: .cache/debian/root.img, made once, of the
# release and from the mirrors that this machine's own apt uses. It runs what stands in a tar
# archive on its second disk, prints to its second serial port, and powers off.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=${TOWPATH_CACHE:-.cache}/debian
IMAGE=$CACHE/root.img
[ -s "$IMAGE" ] && exit 0
say() { printf 'debian: %s\n' "$*" >&2; }

. /etc/os-release
# Whatever file serves Debian's main archive here.
entry=$(apt-get indextargets --format '$(CODENAME)|$(ORIGIN)|$(COMPONENT)|$(SOURCESENTRY)' \
    'Created-By: Packages' |
    awk -F'|' -v c="$VERSION_CODENAME" '$1 == c && $2 == "Debian" && $3 == "main" { print $4; exit }')
[ -n "$entry" ] || { say "no apt source serves Debian $VERSION_CODENAME main"; exit 1; }
say "making a Debian $VERSION_CODENAME with systemd (a minute or two)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,udev,dbus \
    "$VERSION_CODENAME" "$root" "${entry%:*}"

cat >"$root/etc/systemd/system/scenario.service" <<'UNIT'
[Unit]
Description=what this machine is for
After=multi-user.target
[Service]
Type=idle
ExecStart=/usr/local/sbin/scenario
[Install]
WantedBy=multi-user.target
UNIT
cat >"$root/usr/local/sbin/scenario" <<'RUN'
#!/bin/sh
exec </dev/null >/dev/ttyS1 2>/dev/ttyS0
stty -F /dev/ttyS1 raw -echo
mkdir -p /run/scenario
tar -xf /dev/vdb -C /run/scenario
cd /run/scenario
sh -eux ./run
echo "exit: $?"
systemctl poweroff --force
RUN
chmod 755 "$root/usr/local/sbin/scenario"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../scenario.service "$root/etc/systemd/system/multi-user.target.wants/"
echo machine >"$root/etc/hostname"
: >"$root/etc/machine-id"
echo '/dev/vda / ext4 rw,noatime 0 0' >"$root/etc/fstab"
# Slow under emulation, and of no use here.
for unit in systemd-update-utmp.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    systemd-random-seed.service e2scrub_reap.service e2scrub_all.timer fstrim.timer \
    systemd-timesyncd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$CACHE"
truncate -s 1G "$work/root.img"
mkfs.ext4 -q -F -d "$root" "$work/root.img"
cp --sparse=always "$work/root.img" "$IMAGE.new"
mv "$IMAGE.new" "$IMAGE"
