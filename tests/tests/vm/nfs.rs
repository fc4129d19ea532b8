//! vblk on an NFS mount whose server goes away: another disk on the same worker goes on, the daemon
//! ends when it is told to, and starts again without the disk that nobody answers for.
//!
//! Server and client are one guest; what user space tells nfsd at its request (exports, addresses)
//! is written into its caches beforehand (Documentation/filesystems/nfs/rpc-cache.rst).

use anyhow::Result;
use towpath_tests::vm::Vm;

use crate::{FUNCTIONS, finish};

const SCENARIO: &str = r#"
ifconfig lo 127.0.0.1 up
mkdir -p /export /nfs /var/lib/nfs/v4recovery
mount -t tmpfs none /export
truncate -s 8M /export/image
mount -t nfsd nfsd /proc/fs/nfsd
until=$(($(date +%s) + 100000))
echo "nfsd 127.0.0.1 $until us" >/proc/net/rpc/auth.unix.ip/channel
# Export number 0, read and write, from any port, nobody squashed, no subtree checked.
echo "us 1 \\x00000000 $until /export" >/proc/net/rpc/nfsd.fh/channel
echo "us /export $until 9250 65534 65534 0" >/proc/net/rpc/nfsd.export/channel
echo "-2 -3 +4 +4.1 +4.2" >/proc/fs/nfsd/versions
echo 4 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace
options=vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,hard,timeo=20,retrans=1
mount -t nfs4 -o $options 127.0.0.1:/ /nfs
truncate -s 8M /tmp/image
serve() {
    vblk serve --control /run/c --disk /nfs/image,socket=/run/far,name=far \
        --disk /tmp/image,socket=/run/near,name=near,cache=buffered &
}
serve
until vblk disk list --control /run/c >/tmp/list; do sleep 0.2; done
is $(code tenant fill /run/far 1) 0
is $(code tenant verify /run/far 1) 0
tenant pattern 1 8388608 | cmp - /export/image
echo "served"
tenant disk /run/far /tmp/stop >/tmp/far 2>&1 & far=$!
until grep -q attached /tmp/far; do sleep 0.1; done
ifconfig lo down
sleep 1
is $(code tenant fill /run/near 2) 0
is $(code tenant verify /run/near 2) 0
is $(code vblk disk list --control /run/c) 0
echo "isolated"
ifconfig lo 127.0.0.1 up
touch /tmp/stop
wait $far
is $(code tenant verify /run/near 2) 0
echo "back"
rm /tmp/stop
tenant disk /run/far /tmp/stop >/tmp/far 2>&1 & far=$!
until grep -q attached /tmp/far; do sleep 0.1; done
ifconfig lo down
sleep 1
vblk=$(pidof vblk)
kill $vblk
for n in $(seq 60); do [ -d /proc/$vblk ] || break; sleep 1; done
[ ! -d /proc/$vblk ] || { cat /proc/$vblk/status /proc/$vblk/task/*/stack; exit 9; }
echo "stopped"
"#;

#[test]
fn an_nfs_server_that_goes_away_holds_up_its_own_disk_alone() -> Result<()> {
    let vm = Vm::builder("nfs")
        .nfs()
        .memory(&[512])
        .script(&format!("{FUNCTIONS}{SCENARIO}"))
        .boot()?;
    finish(vm, &["served", "isolated", "back", "stopped"])
}
