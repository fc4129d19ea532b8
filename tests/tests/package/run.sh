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
[ -d /etc/towpath/vblk ]
systemd-analyze verify vblk.service vblk.socket vblk@a.service vblk@a.socket vswitch.service vswitch.socket sriov-manager.service >&2
echo installed

vblk create /var/lib/towpath/a.img 16M
chown towpath: /var/lib/towpath/a.img
cat >>/etc/towpath/vblk.toml <<'TOML'
[[disk]]
name = "a"
path = "/var/lib/towpath/a.img"
socket = "/run/towpath/vm/a.sock"
cache = "buffered"
[control]
read = ["group:nogroup"]
[landlock]
paths = ["/var/lib/towpath"]
TOML
cat >>/etc/towpath/vswitch.toml <<'TOML'
[[port]]
name = "p0"
socket = "/run/towpath/p0.sock"
[[port]]
name = "p1"
socket = "/run/towpath/p1.sock"
TOML
systemctl enable --now vblk vswitch.socket >&2
systemctl enable vswitch >&2
# The switch begins when it is asked for something.
[ "$(systemctl is-active vswitch || true)" = inactive ]
vblk disk list >&2
vswitch port show >&2
[ "$(systemctl is-active vswitch)" = active ]
# Nobody is root, or can become it, and the sandbox stands.
for unit in vblk vswitch; do
    status=/proc/$(pid $unit)/status
    grep -q "^Uid:[[:space:]]*$(id -u towpath)[[:space:]]" "$status"
    grep -q '^NoNewPrivs:[[:space:]]*1' "$status"
    grep '^CapEff' "$status" >&2
    # Those of the unit, and three of its own.
    [ "$(sed -n 's/^Seccomp_filters:[[:space:]]*//p' "$status")" -gt 3 ]
    journalctl -u $unit --no-pager | grep -q 'system calls are limited'
done
grep -q '^CapEff:[[:space:]]*0*$' "/proc/$(pid vblk)/status"
journalctl -u vblk --no-pager | grep -q 'files are limited'
# Events are found by their identifiers, and explained.
for unit in vblk vswitch; do
    journalctl -u $unit MESSAGE_ID=10ca3bc0115b49ab89f7004cdc82d332 --no-pager | grep -q serving
    journalctl -u $unit TOWPATH_EVENT=serving -x --no-pager | grep -q 'Every socket listens'
done
[ "$(stat -c %G /run/towpath/vm/a.sock)" = towpath-vm ]
echo confined

# Nobody but the group may look, and it may not change anything; others may neither. vswitch has no
# lists, so its socket's mode decides.
look() { setpriv --reuid=nobody --regid="$1" --clear-groups vblk disk list >/run/said 2>&1; }
look nogroup
if look games; then echo 'a stranger was answered'; exit 1; fi
grep -q 'may not look' /run/said
if setpriv --reuid=nobody --regid=nogroup --clear-groups vblk reload >/run/said 2>&1; then exit 1; fi
grep -q 'may look and not change anything' /run/said
if setpriv --reuid=nobody --regid=nogroup --clear-groups vswitch port show >/run/said 2>&1; then exit 1; fi
echo guarded

./tenant disk /run/towpath/vm/a.sock /run/stop >/run/disk.out 2>&1 & echo $! >/run/disk.pid
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
cat /run/good >/etc/towpath/vblk.toml
printf '[[disk]]\nname = "b"\npath = "null:1M"\nsocket = "/run/towpath/b.sock"\n' >>/etc/towpath/vblk.toml
systemctl reload vblk
vblk disk show b >&2
# What Landlock keeps out of reach is refused with the remedy.
cp /etc/towpath/vblk.toml /run/good
mkdir -p /srv/more
truncate -s 1M /srv/more/c.img
chown -R towpath: /srv/more
printf '[[disk]]\nname = "c"\npath = "/srv/more/c.img"\nsocket = "/run/towpath/vm/c.sock"\n' >>/etc/towpath/vblk.toml
if vblk reload >/run/said 2>&1; then echo 'a directory out of reach was reached'; exit 1; fi
grep -q 'add a directory to `paths`' /run/said
cat /run/good >/etc/towpath/vblk.toml
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

# A tenant's own process, begun by its socket.
one=/run/towpath/vblk-one.sock
printf '[[disk]]\nname = "one"\npath = "null:1M"\nsocket = "/run/towpath/vm/one.sock"\n' >/etc/towpath/vblk/one.toml
systemctl start vblk@one.socket
[ "$(systemctl is-active vblk@one.service || true)" = inactive ]
[ "$(stat -c '%U:%G %a' $one)" = 'towpath:towpath 660' ]
vblk disk show one --control $one >&2
[ "$(systemctl is-active vblk@one.service)" = active ]
printf '[[disk]]\nname = "two"\npath = "null:1M"\nsocket = "/run/towpath/vm/two.sock"\n' >>/etc/towpath/vblk/one.toml
systemctl reload vblk@one.service
vblk disk show two --control $one >&2
before=$(pid vblk@one.service); systemctl restart vblk@one.service; again vblk@one.service "$before"
vblk disk show two --control $one >&2
# Stopped, both are gone, and the other daemon has not noticed.
systemctl stop vblk@one.socket vblk@one.service
[ "$(pid vblk@one.service)" = 0 ]
[ ! -e $one ]
alive
systemctl start vblk@one.socket vblk@one.service
echo tenanted

# The journal can be asked for one disk.
vblk disk clear a >&2
journalctl --sync
journalctl --quiet --no-pager TOWPATH_DISK=a >/run/said
grep -q 'cleared by an operator' /run/said
if journalctl --quiet --no-pager TOWPATH_DISK=b | grep 'cleared by an operator'; then exit 1; fi
journalctl --quiet --no-pager TOWPATH_DEVICE=a >/run/said
grep -q 'front-end connected' /run/said
echo told

# Where no card can have VFs, the daemon says so and serves all the same.
systemctl start sriov-manager
sriov-manager status >/run/said
grep -q '^0 VFs, 0 leased' /run/said
systemctl reload sriov-manager
before=$(pid sriov-manager); kill -9 "$before"; again sriov-manager "$before"
[ "$(stat -c '%U %a' /var/lib/towpath/sriov-manager)" = 'root 700' ]
echo watching

# An upgrade restarts what runs; but a daemon whose new build refuses the configuration runs on.
v=$(pid vblk); s=$(pid vswitch); o=$(pid vblk@one.service); r=$(pid sriov-manager)
cp /etc/towpath/vblk.toml /run/good
echo 'nonsense = 1' >>/etc/towpath/vblk.toml
dpkg -i towpath_1.1.0_amd64.deb >/run/said 2>&1 || { cat /run/said; exit 1; }
cat /run/said >&2
[ "$(dpkg-query -W -f '${Version}' towpath)" = 1.1.0 ]
[ "$(grep -c 'was not restarted' /run/said)" = 1 ]
grep -q 'vblk.service was not restarted' /run/said
grep -q 'unknown field `nonsense`' /run/said
again vswitch "$s"
again vblk@one.service "$o"
again sriov-manager "$r"
[ "$(pid vblk)" = "$v" ]
sleep 1
alive
# Repaired, it is restarted by hand, as it was said.
cat /run/good >/etc/towpath/vblk.toml
vblk check --config /etc/towpath/vblk.toml >&2
systemctl restart vblk; again vblk "$v"
sleep 1
alive
grep -q 'name = "a"' /etc/towpath/vblk.toml
echo upgraded

# The way back restarts what runs as well.
v=$(pid vblk); s=$(pid vswitch)
dpkg -i towpath_1.0.0_amd64.deb >&2
again vblk "$v"
again vswitch "$s"
sleep 1
alive
[ "$(dpkg-query -W -f '${Version}' towpath)" = 1.0.0 ]
grep -q nonsense /etc/towpath/vblk.toml && exit 1
grep -q 'name = "a"' /etc/towpath/vblk.toml
echo 'rolled back'

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
for unit in vblk@one.socket vblk@one.service vswitch.socket sriov-manager.service; do
    [ "$(systemctl is-active $unit || true)" != active ]
done
[ ! -e $one ]
for process in /proc/[0-9]*; do
    case $(cat "$process/comm" 2>/dev/null) in
    vblk | vswitch | sriov-manager) echo "$process is still there"; exit 1 ;;
    esac
done
[ -e /etc/towpath/vblk.toml ]
dpkg -P towpath >&2
[ ! -e /etc/towpath/vblk.toml ]
[ -e /var/lib/towpath/a.img ]
[ -e /etc/towpath/vblk/one.toml ]
[ ! -e /etc/towpath/vblk/README ]
[ ! -e /usr/bin/vblk ]
echo removed
