//! vblk on logical volumes, in a guest, since device-mapper is needed: linear, striped and thin
//! ones, snapshots of them, volumes by their segments that are moved or cached meanwhile, and what
//! is refused.

use anyhow::Result;
use towpath_tests::vm::Vm;

use crate::{FUNCTIONS, finish};

const SCENARIO: &str = r#"
mkdir -p /etc/lvm
cat >/etc/lvm/lvm.conf <<END
global { thin_check_executable="" cache_check_executable="" }
activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }
devices { use_devicesfile=0 }
backup { backup=0 archive=0 }
END
for n in 0 1; do
    truncate -s 128M /tmp/pv$n
    losetup /dev/loop$n /tmp/pv$n
done
lvm pvcreate /dev/loop0 /dev/loop1
lvm vgcreate -s 1m vg /dev/loop0 /dev/loop1
lvm lvcreate -y -Wn -L 16m -n lin vg
lvm lvcreate -y -Wn -L 16m -i 2 -I 64k -n str vg
lvm lvcreate -y -Wn -an -L 4m -n idle vg
lvm lvcreate -y --type thin-pool -L 32m -n pool vg
lvm lvchange --errorwhenfull y vg/pool
lvm lvcreate -y -V 64m --thinpool vg/pool -n thin
echo "volumes"

serve() { code vblk serve --control /run/x --disk "$1,socket=/run/xs"; }

# What is no guest's, or not there, or not active.
is $(serve lvm:vg/nope) 1
said 'there is no volume vg/nope'
is $(serve lvm:vg/idle) 1
said 'lvchange --activate y vg/idle'
is $(serve lvm:vg/pool) 1
said 'a part of another volume'
is $(serve lvm:vg/thin,map=segments) 1
said 'map = "file"'
echo "refused"

cat >/etc/towpath.toml <<END
[daemon]
control = "/run/c"
[[disk]]
name = "lin"
path = "lvm:vg/lin"
socket = "/run/lin"
[[disk]]
name = "thin"
path = "lvm:vg/thin"
socket = "/run/thin"
on_error = "hold"
[[disk]]
name = "str"
path = "lvm:vg/str"
map = "segments"
socket = "/run/str"
END
vblk serve --config /etc/towpath.toml 2>/tmp/log &
until vblk disk list --control /run/c >/tmp/list; do sleep 0.2; done
cat /tmp/list >&2
is $(code vblk disk show lin --control /run/c) 0
said 'size       16M'
is $(code vblk disk show str --control /run/c) 0
said 'size       16M'
# What guests write is where device-mapper has it: through it, and past it.
holds() { # device, seed
    tenant pattern $2 16777216 >/tmp/pattern
    dd if=$1 iflag=direct bs=1M count=16 2>/dev/null | cmp - /tmp/pattern
}
is $(code tenant fill /run/str 1) 0
is $(code tenant fill /run/lin 2) 0
holds /dev/mapper/vg-str 1
holds /dev/mapper/vg-lin 2
is $(code tenant verify /run/str 1) 0
echo "written"
# It is held: by its name and by its device, from us and from others.
is $(serve lvm:vg/lin) 1
is $(serve /dev/mapper/vg-str) 1
echo "served"

is $(code vblk snapshot lin lvm:other/x --control /run/c) 1
said 'lvm:vg/NAME'
is $(code vblk snapshot lin lvm:vg/lin-monday --control /run/c) 0
said 'its guest waited'
is $(code vblk snapshot thin lvm:vg/thin-monday --control /run/c) 0
said 'its guest waited'
is $(code vblk snapshot str lvm:vg/x --control /run/c) 1
said 'served by its segments'
lvm lvs --noheadings -o lv_name,segtype,origin vg >/tmp/out
grep -q 'lin-monday *linear *lin' /tmp/out
grep -q 'thin-monday *thin *thin' /tmp/out
# A snapshot keeps what there was, and has room for a fifth of it.
is $(code tenant fill /run/lin 3 500) 0
lvm lvchange -y -K -ay vg/lin-monday
holds /dev/mapper/vg-lin--monday 2
is $(code tenant verify /run/lin 3 500) 0
echo "snapshots"

# A snapshot by other means: the segments of its origin are not used any more.
lvm lvcreate -y -s -L 4m -n other vg/str
until vblk disk show str --control /run/c | grep -q 'through device-mapper'; do sleep 0.2; done
is $(serve lvm:vg/str,map=segments) 1
said 'it has snapshots'
grep -q 'do not hold any more' /tmp/log
echo "moved"

# Moved, and put behind a cache, while they are served by their segments.
lvm lvcreate -y -Wn -L 8m -n mov vg /dev/loop0
lvm lvcreate -y -Wn -L 8m -n slow vg /dev/loop0
by_segments() {
    vblk serve --control /run/c2 --disk lvm:vg/mov,map=segments,socket=/run/mov,name=mov \
        --disk lvm:vg/slow,socket=/run/slow,name=slow,map=$1 2>/tmp/log2 &
    second=$!
    until vblk disk list --control /run/c2 >/tmp/list; do sleep 0.2; done
}
fell_back() {
    until vblk disk show $1 --control /run/c2 | grep -q 'through device-mapper'; do sleep 0.2; done
    until [ $(grep -c 'in flight by the old map' /tmp/log2) -ge $2 ]; do sleep 0.2; done
}
by_segments segments
is $(code tenant fill /run/mov 5) 0
is $(code tenant fill /run/slow 6) 0
# A pvmove that does not look before an hour has passed is under way until told otherwise.
lvm pvmove -i +3600 -n mov /dev/loop0 /dev/loop1 & moving=$!
fell_back mov 1
is $(serve lvm:vg/mov,map=segments) 1
said 'pvmove'
is $(code tenant verify /run/mov 5) 0
is $(code tenant fill /run/mov 7 1024) 0
kill $moving
wait $moving || true
lvm pvmove -i 1
lvm lvs --noheadings -o devices vg/mov | grep -q loop1
dd if=/dev/mapper/vg-mov iflag=direct bs=1M count=8 >/tmp/moved 2>/dev/null
tenant pattern 7 4194304 >/tmp/pattern
tenant pattern 5 8388608 | tail -c 4194304 >>/tmp/pattern
cmp /tmp/moved /tmp/pattern
echo "pvmove"
lvm lvcreate -y --type cache-pool -L 8m -n fast vg /dev/loop1
lvm lvconvert -y --type cache --cachepool vg/fast vg/slow
fell_back slow 2
is $(serve lvm:vg/slow,map=segments) 1
said 'map = "file"'
is $(code tenant verify /run/slow 6) 0
is $(code tenant fill /run/slow 8 1024) 0
kill $second
wait $second || exit 9
# Where they are now is as good as where they were.
by_segments file
grep -q 'do not hold any more' /tmp/log2 && exit 9
is $(code tenant verify /run/slow 8 1024) 0
is $(code tenant verify /run/mov 7 1024) 0
is $(code tenant fill /run/mov 9) 0
tenant pattern 9 8388608 >/tmp/pattern
dd if=/dev/mapper/vg-mov iflag=direct bs=1M count=8 2>/dev/null | cmp - /tmp/pattern
kill $second
wait $second || exit 9
lvm lvremove -y vg/slow vg/mov
echo "cache"
# Extended while it is served by its segments: who follows reads them anew.
lvm lvcreate -y -Wn -L 8m -n grown vg
vblk serve --keep --control /run/c3 --disk lvm:vg/grown,map=segments,socket=/run/grown,name=grown \
    2>/tmp/log3 &
third=$!
until vblk disk list --control /run/c3 >/tmp/list; do sleep 0.2; done
is $(code tenant fill /run/grown 11) 0
lvm lvextend -L 16m vg/grown
is $(code vblk disk resize grown --control /run/c3) 1
said 'after lvextend, restart vblk'
kill -USR2 $third
until vblk disk show grown --control /run/c3 | grep -q 'size *16M'; do sleep 0.2; done
is $(code tenant verify /run/grown 11 2048) 0
is $(code tenant fill /run/grown 12) 0
tenant pattern 12 16777216 >/tmp/pattern
dd if=/dev/mapper/vg-grown iflag=direct bs=1M count=16 2>/dev/null | cmp - /tmp/pattern
vblk disk show grown --control /run/c3 | grep -q 'through device-mapper' && exit 9
kill $third
wait $third || exit 9
lvm lvremove -y vg/grown
echo "grown"
lvm lvremove -y vg/lin-monday
lvm lvextend -L 24m vg/lin
is $(code vblk disk resize lin --control /run/c) 0
said '25165824'
# A pool without room: the guest waits until there is some.
tenant fill /run/thin 4 >/tmp/filled 2>&1 & filling=$!
until vblk disk show thin --control /run/c | grep -q 'held'; do sleep 0.2; done
kill -0 $filling
echo "full"
lvm lvextend -L 96m vg/pool
wait $filling
is $(code tenant verify /run/thin 4) 0
echo "done"
"#;

#[test]
fn vblk_serves_logical_volumes_and_lets_lvm_take_snapshots() -> Result<()> {
    let vm = Vm::builder("volumes")
        .volumes()
        .memory(&[768])
        .script(&format!("{FUNCTIONS}{SCENARIO}"))
        .boot()?;
    let marks = [
        "volumes",
        "refused",
        "written",
        "served",
        "snapshots",
        "moved",
        "pvmove",
        "cache",
        "grown",
        "full",
        "done",
    ];
    finish(vm, &marks)
}
