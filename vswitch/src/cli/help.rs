//! Texts of `--help`.

pub(super) const EXAMPLES: &str = "\
Examples:
  vswitch serve --port p0,socket=/run/towpath/p0.sock --port p1,socket=/run/towpath/p1.sock
  vswitch port show
  vswitch port add p2,socket=/run/towpath/p2.sock,access=10 --persist
  vswitch port set p2,guards.byte_rate=120M
  vswitch fdb show --vlan 10
  vswitch stats --watch

Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.";

pub(super) const SERVE: &str = "\
Examples:
  vswitch serve --port p0,socket=/run/a.sock,access=10 --port p1,socket=/run/b.sock,access=10
  vswitch serve --port web,socket=/run/web.sock --uplink tap0 --cpu 2,3
  vswitch serve --port fw,socket=/run/fw.sock,trunk=10:20:30-40,native=1 --uplink tap0
  vswitch serve --config /etc/towpath/vswitch.toml --cpu 2,3

With QEMU, a port is attached by
  -object memory-backend-memfd,id=mem,size=4G,share=on -machine memory-backend=mem
  -chardev socket,id=c0,path=/run/towpath/p0.sock,reconnect-ms=200
  -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0

Signals: SIGTERM and SIGINT send what was taken and exit, SIGHUP reloads.";

pub(super) const ATTACH: &str = "\
Examples:
  vswitch attach p0 --print qemu                   words for a command line
  vswitch attach p0 --print libvirt                XML for virsh edit
  vswitch attach p0 --qmp /run/vm.qmp --bus slot0  into a machine that runs";

pub(super) const PORT_SYNTAX: &str = "\
A port for a virtual machine; repeat for more. OPTIONS, separated by commas (,, for a comma in a \
value):
  client            connect to SOCKET instead of listening on it (mode=client|server)
  access=VLAN       one VLAN, untagged [1]
  trunk=VLANS       many VLANs, tagged, such as 10:20:30-40
  native=VLAN       the VLAN of a trunk's untagged frames [none: they are dropped]
  mac=ADDRESS       drop frames from other addresses [learn them]
  macs=A+B+…        further addresses that it may send from
  isolated          reaches uplinks only, and no other guest
  queues=N          most pairs of queues a guest may use, 1 to 64 [16]
  mtu=N             largest payload of a frame, 68 to 9216 [1500]
  no-offloads       do not offer checksum and segmentation offloads
  weight=N          share of the worker's time, 1 to 10000 [100]
  cap=PERCENT       most of a core it may use, 1 to 6400 [no limit]
  guards.GUARD=…    a limit or \"off\" for guards.mac_limit [64], guards.broadcast_limit [1000],
                    guards.multicast_limit, guards.unknown_limit [10000], guards.packet_rate,
                    guards.packet_burst, guards.byte_rate, guards.byte_burst [off]; true or false
                    for guards.bpdu_guard and guards.source_guard [true]";

pub(super) const UPLINK_SYNTAX: &str = "\
A TAP interface to the host's network, created if it does not exist; repeat for more. OPTIONS, \
separated by commas: name= [the interface's], and of --port access=, trunk=, native=, queues=, \
mtu=, no-offloads, weight=, cap= and guards.GUARD= (off unless given). Without access and trunk, \
an uplink carries all VLANs, tagged, and VLAN 1 untagged.";

pub(super) const PORT: &str = "\
OPTIONS are those of `vswitch serve --port` (see `vswitch serve --help`).";

pub(super) const SET: &str = "\
OPTIONS are those of `vswitch serve --port` (see `vswitch serve --help`). An uplink takes those \
that it has as well.

Examples:
  vswitch port set web,access=20
  vswitch port set web,guards.byte_rate=120M,guards.mac_limit=off --persist
  vswitch port set tap0,trunk=10:20";

pub(super) const UPLINK: &str = "\
OPTIONS are those of `vswitch serve --uplink` (see `vswitch serve --help`). `vswitch port show`, \
`port set` and `port remove` are for uplinks, too.";

pub(super) const DIRECTIONS: &str = "\
Directions are the switch's: rx is what it received from a port, which is what the guest \
transmitted; tx is what it sent to a port.";

pub(super) const CONFIG_DIFF: &str = "\
+ is new, - goes, ~ changes, each key with its old and its new value. A change that `ends its
session` takes a port away from a machine that uses it, for as long as the machine takes to connect
again; what is `set up anew` has no machine now; all else is applied as it runs.

Exit codes: 0 no difference, 1 differences, 2 the file is refused or the daemon gives no answer.";
