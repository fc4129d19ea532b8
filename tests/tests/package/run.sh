# Runs on the Debian, line by line until one fails; its standard output is the test's.
export DEBIAN_FRONTEND=noninteractive
pid() { systemctl show -p MainPID --value "$1"; }
# The daemon is up, in another process than before.
again() {
    for _ in $(seq 600); do
        [ "$(pid "$1")" != "$2" ] && systemctl is-active --quiet "$1" && return 0
        sleep 0.1
    done
    systemctl status "$1" >&2 || true
    journalctl -u "$1" -n 30 >&2 || true
    echo "$1 did not come back"; return 1
}
# What the front-ends do goes on.
alive() {
    for tenant in disk ports; do
        kill -0 "$(cat /run/$tenant.pid)" || { echo "$tenant: $(cat /run/$tenant.out)"; return 1; }
    done
}
echo "systemd $(systemctl --version | head -n 1 | cut -d' ' -f2)"

# Installed, and neither enabled nor started: the configuration comes first.
dpkg -i towpath_1.0.0_amd64.deb >&2
for unit in vblk vswitch sriov-manager; do
    [ "$(systemctl is-enabled $unit || true)" = disabled ]
    [ "$(systemctl is-active $unit || true)" = inactive ]
done
[ -d /var/lib/towpath ]
systemd-analyze verify vblk.service vblk@a.service vswitch.service sriov-manager.service >&2
echo installed

vblk create /var/lib/towpath/a.img 16M
cat >>/etc/towpath/vblk.toml <<'TOML'
[[disk]]
name = "a"
path = "/var/lib/towpath/a.img"
socket = "/run/towpath/a.sock"
cache = "buffered"
TOML
cat >>/etc/towpath/vswitch.toml <<'TOML'
[[port]]
name = "p0"
socket = "/run/towpath/p0.sock"
[[port]]
name = "p1"
socket = "/run/towpath/p1.sock"
TOML
systemctl enable --now vblk vswitch >&2
vblk disk list >&2
vswitch port show >&2
./tenant disk /run/towpath/a.sock /run/stop >/run/disk.out 2>&1 & echo $! >/run/disk.pid
./tenant ports /run/towpath/p0.sock /run/towpath/p1.sock /run/stop >/run/ports.out 2>&1 & echo $! >/run/ports.pid
for tenant in disk ports; do
    for _ in $(seq 300); do
        if grep -q attached /run/$tenant.out; then break; fi
        sleep 0.1
    done
done
grep -q attached /run/disk.out
grep -q attached /run/ports.out
sleep 2
alive
echo attached

# A mistake in the file is refused, with its place, and nothing changes; then a disk comes in.
cp /etc/towpath/vblk.toml /run/good
echo 'nonsense = 1' >>/etc/towpath/vblk.toml
if systemctl reload vblk; then echo 'a mistake was taken'; exit 1; fi
cp /run/good /etc/towpath/vblk.toml
printf '[[disk]]\nname = "b"\npath = "null:1M"\nsocket = "/run/towpath/b.sock"\n' >>/etc/towpath/vblk.toml
systemctl reload vblk
vblk disk show b >&2
alive
echo reloaded

for round in 1 2 3; do
    for unit in vblk vswitch; do
        before=$(pid $unit); systemctl restart $unit; again $unit "$before"
        before=$(pid $unit); kill -9 "$before"; again $unit "$before"
    done
    sleep 1
    alive
done
echo restarted

# So does one that the kernel ends because memory is short.
for unit in vblk vswitch; do
    before=$(pid $unit)
    echo 1000 >"/proc/$before/oom_score_adj"
    echo f >/proc/sysrq-trigger
    again $unit "$before"
    [ "$(journalctl -k --no-pager | grep -c "Killed process $before ($unit)")" = 1 ]
done
sleep 1
alive
echo starved

# An upgrade restarts what runs.
v=$(pid vblk); s=$(pid vswitch)
dpkg -i towpath_1.1.0_amd64.deb >&2
again vblk "$v"
again vswitch "$s"
sleep 1
alive
[ "$(dpkg-query -W -f '${Version}' towpath)" = 1.1.0 ]
grep -q nonsense /etc/towpath/vblk.toml && exit 1
grep -q 'name = "a"' /etc/towpath/vblk.toml
echo upgraded

# A daemon that hangs is found out by its watchdog.
mkdir -p /etc/systemd/system/vblk.service.d
printf '[Service]\nWatchdogSec=5s\n' >/etc/systemd/system/vblk.service.d/short.conf
systemctl daemon-reload
before=$(pid vblk); systemctl restart vblk; again vblk "$before"
before=$(pid vblk); kill -STOP "$before"; again vblk "$before"
sleep 1
alive
echo watched

touch /run/stop
for _ in $(seq 300); do
    kill -0 "$(cat /run/disk.pid)" 2>/dev/null || kill -0 "$(cat /run/ports.pid)" 2>/dev/null || break
    sleep 0.1
done
grep '^disk: ' /run/disk.out || { cat /run/disk.out; exit 1; }
grep '^ports: ' /run/ports.out || { cat /run/ports.out; exit 1; }

# Rights: what systemd makes of the units.
for unit in vblk vswitch; do
    systemd-analyze security $unit.service --no-pager | tail -n 1
done

# Gone, without a trace but the operator's own files.
dpkg -r towpath >&2
for process in /proc/[0-9]*; do
    case $(cat "$process/comm" 2>/dev/null) in
    vblk | vswitch) echo "$process is still there"; exit 1 ;;
    esac
done
[ -e /etc/towpath/vblk.toml ]
dpkg -P towpath >&2
[ ! -e /etc/towpath/vblk.toml ]
[ -e /var/lib/towpath/a.img ]
[ ! -e /usr/bin/vblk ]
echo removed
