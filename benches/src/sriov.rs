//! sriov-manager's figures: how long a plan takes for a host full of cards, and how long an apply
//! takes in an emulated guest, beside a script of `ip` that does the same by hand.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use sriov_manager::address::PciAddr;
use sriov_manager::attribute::Attributes;
use sriov_manager::inventory::{Group, Host, Interface, Inventory, Member, Pf, Room, Vf};
use sriov_manager::plan::{Action, Plan};
use sriov_manager::spec::Spec;
use sriov_manager::values::Mac;
use towpath_common::config::Document;
use towpath_tests::vm::Vm;

/// A host with so many cards, each with so many VFs.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Cards.
    pub pfs: u16,
    /// VFs of each.
    pub vfs: u16,
}

/// What a plan is made of, and how many steps it must have.
#[derive(Debug)]
pub struct Case {
    /// What it is.
    pub name: &'static str,
    inventory: Inventory,
    spec: Spec,
    steps: usize,
}

fn address(pf: u16) -> PciAddr {
    PciAddr::new(u32::from(pf), 1, 0, 0)
}

fn group(number: u32, address: PciAddr, driver: &str) -> Group {
    Group {
        number,
        kind: "DMA-FQ".to_owned(),
        members: vec![Member {
            address,
            driver: Some(driver.to_owned()),
            bridge: false,
        }],
    }
}

fn card(pf: u16, total: u16) -> Pf {
    let mac = Some(Mac::local(u64::from(pf) << 16));
    Pf {
        address: address(pf),
        vendor: 0x8086,
        device: 0x1592,
        class: 0x02_0000,
        driver: Some("ice".to_owned()),
        modules: Vec::new(),
        interface: Some(Interface {
            index: u32::from(pf) + 2,
            name: format!("eth{pf}"),
            mac,
            permanent: mac,
            up: true,
            carrier: true,
        }),
        total,
        autoprobe: Some(true),
        offset: 8,
        stride: 1,
        vf_device: 0x1889,
        msix: false,
        room: Room::default(),
        group: Some(u32::from(pf) * 1000),
        numa: Some(0),
        pcie: None,
        reset: vec!["flr".to_owned()],
        eswitch: None,
        nvme: None,
        guards: Vec::new(),
        wedged: None,
        lacks: Default::default(),
        vfs: Vec::new(),
    }
}

/// A VF as the specification wants it, but for its own address.
fn vf(pf: &Pf, index: u16, attributes: Attributes) -> Option<Vf> {
    Some(Vf {
        index,
        address: pf.address.vf(pf.offset, pf.stride, index)?,
        driver: Some("vfio-pci".to_owned()),
        driver_override: Some("vfio-pci".to_owned()),
        interface: None,
        group: Some(pf.group? + 1 + u32::from(index)),
        numa: pf.numa,
        reset: vec!["flr".to_owned()],
        attributes,
        counters: None,
        msix: None,
        resources: None,
        uses: Vec::new(),
    })
}

fn specification(size: Size) -> Result<Spec> {
    let mut text = "[[pool]]\nname = \"fast\"\n".to_owned();
    for pf in 0..size.pfs {
        write!(
            text,
            "[[pf]]\nmatch = {{ address = \"{}\" }}\nvfs = {}\n[[pf.vf]]\nrange = \"0-{}\"\n\
             pool = \"fast\"\nmac = \"derived\"\nvlan = 100\nqos = 3\nmax_rate = 1000\n\
             spoof_check = true\ntrust = false\n",
            address(pf),
            size.vfs,
            size.vfs - 1
        )?;
    }
    Ok(Spec::parse(&Document::new("bench", text))?)
}

fn host(size: Size) -> Inventory {
    Inventory {
        pfs: (0..size.pfs).map(|pf| card(pf, size.vfs)).collect(),
        groups: (0..size.pfs)
            .map(|pf| group(u32::from(pf) * 1000, address(pf), "ice"))
            .collect(),
        host: Host {
            iommu: true,
            interrupt_remapping: true,
            unsafe_interrupts: false,
            vfio_pci: true,
            iommufd: true,
            id: "bench".to_owned(),
        },
    }
}

/// The host after `plan`: its VFs with what their steps say.
fn carried_out(mut inventory: Inventory, plan: &Plan, size: Size) -> Result<Inventory> {
    for pf in &mut inventory.pfs {
        let mut told = vec![Attributes::default(); usize::from(size.vfs)];
        for step in plan.of(pf.address) {
            if let Action::Attribute { vf, attribute } = step.action {
                told[usize::from(vf)].set(attribute);
            }
        }
        let vfs = (0..).zip(told).map(|(index, told)| vf(pf, index, told));
        pf.vfs = vfs
            .collect::<Option<_>>()
            .ok_or_else(|| anyhow!("no buses left"))?;
        let groups = pf.vfs.iter().filter_map(|vf| Some((vf.group?, vf.address)));
        let groups = groups.map(|(number, address)| group(number, address, "vfio-pci"));
        inventory.groups.extend(groups);
    }
    inventory.groups.sort_by_key(|group| group.number);
    Ok(inventory)
}

/// Everything from nothing; everything as it is; and everything as it is with one VLAN wrong.
///
/// # Errors
/// When the model contradicts itself.
pub fn cases(size: Size) -> Result<[Case; 3]> {
    let (spec, bare) = (specification(size)?, host(size));
    let (plan, _) = Plan::make(&bare, &spec);
    ensure!(plan.refusals.is_empty(), "{:?}", plan.refusals.first());
    let full = carried_out(bare.clone(), &plan, size)?;
    let mut odd = full.clone();
    let last = odd.pfs.last_mut().and_then(|pf| pf.vfs.last_mut());
    last.ok_or_else(|| anyhow!("a host without VFs"))?
        .attributes
        .tag = None;
    let case = |name, inventory, steps| Case {
        name,
        inventory,
        spec: spec.clone(),
        steps,
    };
    Ok([
        case("make all VFs", bare, plan.steps.len()),
        case("nothing to do", full, 0),
        case("one VLAN drifted", odd, 1),
    ])
}

impl Case {
    /// How long one plan takes.
    ///
    /// # Errors
    /// When it is not the plan it should be.
    pub fn run(&self) -> Result<(Duration, usize)> {
        let start = Instant::now();
        let (plan, _) = Plan::make(&self.inventory, &self.spec);
        let took = start.elapsed();
        ensure!(
            plan.refusals.is_empty() && plan.steps.len() == self.steps,
            "{}: {} steps, {:?}",
            self.name,
            plan.steps.len(),
            plan.refusals.first()
        );
        Ok((took, self.steps))
    }
}

/// Seven VFs with everything that igb's driver takes, by hand and by sriov-manager in turns.
const STORY: &str = r#"
ip() { /bin/ip "$@"; }
PF=$(readlink -f /sys/class/net/eth0/device)
ip link set eth0 up
mkdir -p /etc/towpath
{
    printf '[[pf]]\nmatch = { name = "eth0" }\nvfs = 7\n'
    for n in 0 1 2 3 4 5 6; do
        printf '[[pf.vf]]\nindex = %d\nmac = "52:54:00:00:02:0%d"\nvlan = %d\nqos = 3\n' $n $n 10$n
        printf 'max_rate = 200\nspoof_check = false\ntrust = true\ndriver = "vfio-pci"\n'
    done
} >/etc/towpath/sriov-manager.toml
cat >/by-hand <<'END'
set -e
cd $PF
echo 0 >sriov_drivers_autoprobe
echo 7 >sriov_numvfs
for n in 0 1 2 3 4 5 6; do
    /bin/ip link set eth0 vf $n mac 52:54:00:00:02:0$n vlan 10$n qos 3 spoofchk off trust on
    echo vfio-pci >virtfn$n/driver_override
done
for n in 0 1 2 3 4 5 6; do
    basename $(readlink -f virtfn$n) >/sys/bus/pci/drivers_probe
done
for n in 0 1 2 3 4 5 6; do
    until /bin/ip link set eth0 vf $n max_tx_rate 200 2>/dev/null; do sleep 0.1; done
done
echo 1 >sriov_drivers_autoprobe
END
export PF
now() { cut -d' ' -f1 /proc/uptime; }
for turn in 1 2 3 4 5 6 7; do
    for way in "sh /by-hand" "sriov-manager apply"; do
        until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
        sleep 1
        before=$(now)
        $way >/tmp/out 2>&1 || { cat /tmp/out; exit 9; }
        echo "took $before $(now) $way"
        [ "$(readlink -f $PF/virtfn6/driver)" = /sys/bus/pci/drivers/vfio-pci ]
        sriov-manager plan >/tmp/out || { cat /tmp/out; exit 9; }
        echo 0 >$PF/sriov_numvfs
    done
done
# The daemon, with all that it keeps of seven VFs; looked at often, for what that leaves behind.
sriov-manager serve >/tmp/log 2>&1 &
daemon=$!
until sriov-manager status >/tmp/out 2>&1; do kill -0 $daemon; sleep 0.2; done
for turn in 1 2 3 4 5 6 7 8 9 10; do sriov-manager repair >/tmp/out; done
echo "memory $(awk '/^VmRSS/ { print $2 }' /proc/$daemon/status)"
kill $daemon
wait $daemon
"#;

/// What a guest showed.
#[derive(Debug, Default)]
pub struct Figures {
    /// Seconds of each turn by hand.
    pub hand: Vec<f64>,
    /// Seconds of each turn by sriov-manager, each after the one by hand.
    pub ours: Vec<f64>,
    /// KiB of memory that the daemon has.
    pub memory: u64,
}

/// Turns by hand and by sriov-manager, which leave the same, and then the daemon.
///
/// # Errors
/// When the guest does not run.
pub fn in_a_guest() -> Result<Figures> {
    let devices = [
        "-device intel-iommu,intremap=on,caching-mode=on",
        "-machine kernel-irqchip=split",
        "-netdev hubport,id=h1,hubid=0 -device igb,bus=slot0,netdev=h1",
    ];
    let mut vm = Vm::builder("sriov-figures")
        .sriov(&devices)
        .kernel_arguments("intel_iommu=on")
        .script(STORY)
        .boot()?;
    let mut figures = Figures::default();
    for line in vm.finish(Duration::from_secs(600))? {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["took", before, after, way, ..] => {
                let took = after.parse::<f64>()? - before.parse::<f64>()?;
                match *way {
                    "sh" => figures.hand.push(took),
                    _ => figures.ours.push(took),
                }
            }
            ["memory", kib] => figures.memory = kib.parse()?,
            _ => {}
        }
    }
    let turns = figures.ours.len();
    let whole = turns > 0 && figures.hand.len() == turns && figures.memory > 0;
    ensure!(whole, "no figures: {figures:?}");
    Ok(figures)
}
