//! Against reports that LVM made, and against LVM itself on loop devices: its metadata need no
//! device-mapper.

use std::path::PathBuf;
use std::process::Command;

use super::report::Report;
use super::segments::Layout;
use super::*;
use crate::config::Cache;
use crate::engine::router::Router;
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::storage::Storage;
use crate::storage::map::{Leg, Map};
use crate::testing::{Bench, FLUSH, Laid, Loop, OUT};

/// LVM 2.03.16, two loop devices, extents of 4 MiB: a linear volume in two segments, a striped one.
const INACTIVE: &str = include_str!("recorded/inactive.json");

fn volume(lv: &str) -> Volume {
    Volume::parse(&format!("tvg/{lv}")).unwrap()
}

fn layout(report: &Report, lv: &str) -> Result<Layout, String> {
    Layout::of(report, &volume(lv)).map_err(|e| e.to_string())
}

#[test]
fn segments_are_where_lvm_says() {
    const MIB: u64 = 1 << 20;
    let report = report::parse(INACTIVE.as_bytes()).unwrap();
    let lin = layout(&report, "lin").unwrap();
    let at = |child, mib| Leg {
        child,
        offset: mib * MIB,
    };
    let legs: Vec<_> = lin
        .pieces
        .iter()
        .map(|p| (p.start, p.len, p.legs.to_vec()))
        .collect();
    let first = (0, 40 * MIB, vec![at(0, 1)]);
    // Extent 18 of 4 MiB, after the first MiB.
    assert_eq!(legs, [first, (40 * MIB, 20 * MIB, vec![at(0, 73)])]);
    let striped = layout(&report, "str").unwrap();
    let map = Map::Volume(striped.pieces.clone().into());
    assert_eq!(striped.devices.len(), 2);
    let third = map.run(2 * 65536 + 5).unwrap();
    assert_eq!(
        (third.child, third.offset, third.len),
        (0, 41 * MIB + 65536 + 5, 65531)
    );
    let fourth = map.run(3 * 65536).unwrap();
    assert_eq!(
        (fourth.child, fourth.offset, fourth.len),
        (1, MIB + 65536, 65536)
    );
    assert_eq!(map.run(64 * MIB), None);
}

/// What is said of the volume, changed as LVM would say it, and what is refused then.
const OF_THE_VOLUME: &[(&str, &str, &str)] = &[
    (
        "\"lv_role\":\"public\"",
        "\"lv_role\":\"public,origin,thickorigin\"",
        "it has snapshots",
    ),
    ("\"origin\":\"\"", "\"origin\":\"base\"", "it is a snapshot"),
    ("\"pool_lv\":\"\"", "\"pool_lv\":\"pool\"", "in a pool"),
    ("\"move_pv\":\"\"", "\"move_pv\":\"/dev/loop0\"", "a pvmove"),
    (
        "\"lv_converting\":\"\"",
        "\"lv_converting\":\"converting\"",
        "converted",
    ),
    (
        "\"lv_layout\":\"linear\"",
        "\"lv_layout\":\"cache\"",
        "its layout is cache",
    ),
    (
        "\"lv_layout\":\"linear\"",
        "\"lv_layout\":\"thin,sparse\"",
        "its layout is thin",
    ),
    (
        "\"lv_attr\":\"-wi-",
        "\"lv_attr\":\"-ri-",
        "may not be written",
    ),
    (
        "\"lv_attr\":\"-wi-XX----",
        "\"lv_attr\":\"-wi-XX--p-",
        "missing",
    ),
    (
        "\"lv_merging\":\"\"",
        "\"lv_merging\":\"merging\"",
        "merged",
    ),
    (
        "\"lv_suspended\":\"unknown\"",
        "\"lv_suspended\":\"suspended\"",
        "suspended",
    ),
    (
        "\"lv_role\":\"public\"",
        "\"lv_role\":\"private\"",
        "a part of another",
    ),
];

/// What is said of its segments and its group.
const OF_THE_GROUP: &[(&str, &str, &str)] = &[
    ("/dev/loop0:0-9", "pvmove0:0-9", "a pvmove is under way"),
    (
        "/dev/loop0:0-9",
        "/dev/loop1:0-9",
        "does not know of its extents",
    ),
    ("/dev/loop0:0-9", "/dev/loop0:0-8", "not understood"),
    ("/dev/loop0:0-9", "/dev/loop0:0", "no range"),
    ("/dev/loop0:0-9", "/dev/loop0:9-0", "no range"),
    (
        "\"segtype\":\"linear\", \"seg_start\":\"41943040\"",
        "\"segtype\":\"zero\", \"seg_start\":\"41943040\"",
        "is zero",
    ),
    (
        "\"seg_start\":\"41943040\"",
        "\"seg_start\":\"41943552\"",
        "a gap",
    ),
    (
        "\"lv_size\":\"62914560\"",
        "\"lv_size\":\"62914561\"",
        "make up its size",
    ),
    (
        "\"vg_lock_type\":\"\"",
        "\"vg_lock_type\":\"sanlock\"",
        "other hosts",
    ),
    (
        "\"vg_attr\":\"wz--n-\"",
        "\"vg_attr\":\"wz-pn-\"",
        "missing",
    ),
    (
        "\"pv_missing\":\"\"",
        "\"pv_missing\":\"missing\"",
        "loop0 is missing",
    ),
];

#[test]
fn what_makes_segments_unsafe_is_refused_with_the_reason() {
    let lin = "\"lv_name\":\"lin\", \"lv_uuid\":\"PY6a5R-fBBa-158x-ibVF-02SN-lJoI-piDqK5\", \
               \"lv_dm_path\":\"/dev/mapper/tvg-lin\", \"lv_size\":\"62914560\", ";
    for (from, to, why) in OF_THE_VOLUME {
        let at = INACTIVE.find(lin).unwrap() + lin.len();
        let (before, after) = INACTIVE.split_at(at);
        let text = format!("{before}{}", after.replacen(from, to, 1));
        assert_ne!(text, INACTIVE);
        let report = report::parse(text.as_bytes()).unwrap();
        let error = layout(&report, "lin").unwrap_err();
        assert!(error.contains(why), "{to}: {error}");
        layout(&report, "str").unwrap();
    }
    for (from, to, why) in OF_THE_GROUP {
        let text = INACTIVE.replacen(from, to, 1);
        assert_ne!(text, INACTIVE, "{from}");
        let report = report::parse(text.as_bytes()).unwrap();
        let error = layout(&report, "lin").unwrap_err();
        assert!(error.contains(why), "{to}: {error}");
    }
    let report = report::parse(INACTIVE.as_bytes()).unwrap();
    let error = layout(&report, "nope").unwrap_err();
    assert!(error.contains("volumes of tvg: lin, plain, str"), "{error}");
    for text in ["", "{}", "{\"report\":[]}", "{\"report\":[{\"vg\":[]}]}"] {
        assert!(report::parse(text.as_bytes()).is_err());
    }
}

/// Run lvm on these devices alone, without device-mapper; false if it cannot.
fn lvm(devices: &[&Loop], words: &[&str]) -> bool {
    let all: Vec<String> = devices
        .iter()
        .map(|d| format!("\"a|^{}$|\"", d.path().display()))
        .collect();
    let config = format!(
        "devices {{ filter=[{}, \"r|.*|\"] use_devicesfile=0 }} backup {{ backup=0 archive=0 }} \
         activation {{ udev_sync=0 udev_rules=0 }}",
        all.join(", ")
    );
    let output = Command::new("lvm")
        .args(words)
        .args(["--driverloaded", "n", "--config", &config])
        .env("DM_DISABLE_UDEV", "1")
        .output();
    match output {
        Ok(output) if output.status.success() => true,
        other => {
            println!("lvm {words:?}: {other:?}");
            false
        }
    }
}

/// A group of two physical volumes with a striped volume.
fn make_group(devices: &[&Loop], paths: &[&str], group: &str) -> bool {
    lvm(devices, &["pvcreate", paths[0], paths[1]])
        && lvm(
            devices,
            &["vgcreate", "-s", "4m", group, paths[0], paths[1]],
        )
        && lvm(
            devices,
            &[
                "lvcreate", "-an", "-Zn", "-Wn", "-i", "2", "-I", "64k", "-L", "16m", "-n", "str",
                group,
            ],
        )
}

/// Write four chunks, and look for them where the images must have them; the request.
fn write_stripes(bench: &mut Bench<Router<Uring>>, images: &[PathBuf]) -> Laid {
    let data = [bench.ram.place(4 << 16, 4096, 0)];
    let bytes: Vec<u8> = (0..4u8).flat_map(|n| vec![n + 1; 1 << 16]).collect();
    bench.ram.fill(&data, &bytes);
    let write = bench.ram.request(OUT, 0, &data);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&write).status, Status::Ok);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    // The first extents of both, after the first MiB: chunks 1 and 3, chunks 2 and 4.
    for (image, fill) in images.iter().zip([[1u8, 3], [2, 4]]) {
        let content = std::fs::read(image).unwrap();
        let at = |n: usize| &content[(1 << 20) + (n << 16)..][..1 << 16];
        assert!(at(0).iter().all(|b| *b == fill[0]) && at(1).iter().all(|b| *b == fill[1]));
    }
    write
}

#[test]
fn a_volume_is_written_where_its_segments_are_until_they_change() {
    if has_device_mapper() {
        println!("skipped: volumes have to be active where there is a device-mapper");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let images: Vec<_> = ["a", "b"].iter().map(|n| dir.path().join(n)).collect();
    for image in &images {
        std::fs::File::create(image)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
    }
    let (Some(a), Some(b)) = (Loop::new(&images[0], 512), Loop::new(&images[1], 512)) else {
        return;
    };
    let group = format!("towpath-{}", std::process::id());
    let devices = [&a, &b];
    let paths: Vec<&str> = devices.iter().map(|d| d.path().to_str().unwrap()).collect();
    let target = format!("{group}/str");
    if !make_group(&devices, &paths, &group) {
        println!("skipped: lvm cannot make volumes here");
        return;
    }
    let volume = Volume::parse(&target).unwrap();
    let spec = Spec {
        path: Default::default(),
        read_only: false,
        cache: Cache::Direct,
        block_size: None,
        serial: None,
    };
    let disk = open_segments(&volume, &spec, Serial::new("s").unwrap()).unwrap();
    assert_eq!(disk.size(), 16 << 20);
    let before = Layout::of(&report::fetch(&group).unwrap(), &volume).unwrap();
    let mut bench = Bench::new(Router::new(Uring::new(64).unwrap()), disk, 32);
    let again = write_stripes(&mut bench, &images);
    // Another volume, and a longer one: the segments hold, and the generation moves on.
    let held = |before: &Layout| segments::still_holds(&volume, before);
    let first = held(&before).unwrap();
    assert!(lvm(
        &devices,
        &[
            "lvcreate", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "x", &group
        ]
    ));
    assert!(lvm(&devices, &["lvextend", "-L", "24m", &target]));
    assert_eq!(held(&before).unwrap(), first + 2);
    // Another volume under its name: they do not.
    assert!(lvm(&devices, &["lvremove", "-f", &target]));
    assert!(held(&before).unwrap_err().to_string().contains("no volume"));
    assert!(lvm(
        &devices,
        &[
            "lvcreate", "-an", "-Zn", "-Wn", "-L", "16m", "-n", "str", &group
        ]
    ));
    assert!(held(&before).unwrap_err().to_string().contains("moved"));
    let Storage::Segments(segments) = bench.target.storage() else {
        panic!("no segments")
    };
    segments.watch().break_off();
    assert!(
        bench
            .target
            .storage()
            .health()
            .trouble
            .unwrap()
            .contains("its requests fail")
    );
    assert_eq!(bench.run(&again).status, Status::IoErr);
}

#[test]
fn lvm_is_quoted_when_it_refuses() {
    let nowhere = Volume::parse("towpath-nowhere/x").unwrap();
    let spec = Spec {
        path: Default::default(),
        read_only: false,
        cache: Cache::Direct,
        block_size: None,
        serial: None,
    };
    let error = open(&nowhere, &spec).unwrap_err().to_string();
    assert!(error.contains("lvm fullreport: "), "{error}");
    let error = snapshot(&nowhere, &Volume::parse("other/x").unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("lvm:towpath-nowhere/NAME"), "{error}");
}
