//! SeaBIOS boots from a disk: its own driver, in real mode, one request at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::lines::Lines;
use towpath_tests::paths;
use towpath_tests::process::{Process, command};

use crate::{MIB, create_image};

/// Some hundred times what it takes.
const PATIENCE: Duration = Duration::from_secs(240);

const TEXT: &[u8] = b"read from the second sector\n\0";

/// Loaded to 0x7c00: reads the second sector, writes it as the third one, prints it to the first
/// serial port, and ends QEMU by isa-debug-exit with 0x10, or with 1 if the BIOS failed.
const SECTOR: [u8; 64] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xc0, // mov es, ax
    0x8e, 0xd0, // mov ss, ax
    0xbc, 0x00, 0x7c, // mov sp, 0x7c00
    0xbb, 0x00, 0x7e, // mov bx, 0x7e00
    0xb8, 0x01, 0x02, // mov ax, 0x0201: read one sector
    0xb9, 0x02, 0x00, // mov cx, 2
    0xb6, 0x00, // mov dh, 0
    0xcd, 0x13, // int 0x13
    0x72, 0x1e, // jc failed
    0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
    0xb9, 0x03, 0x00, // mov cx, 3
    0xb6, 0x00, // mov dh, 0
    0xcd, 0x13, // int 0x13
    0x72, 0x12, // jc failed
    0xbe, 0x00, 0x7e, // mov si, 0x7e00
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x06, // jz done
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xf5, // jmp next
    0xb0, 0x10, // done: mov al, 0x10
    0xeb, 0x02, // jmp end
    0xb0, 0x01, // failed: mov al, 1
    0xba, 0xf4, 0x00, // end: mov dx, 0xf4
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, // jmp to itself, in the next byte
];

#[test]
fn seabios_boots_from_the_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, 16 * MIB)?;
    let disk = File::options().read(true).write(true).open(&image)?;
    disk.write_all_at(&SECTOR, 0)?;
    disk.write_all_at(&[0xfe], SECTOR.len() as u64)?;
    disk.write_all_at(&[0x55, 0xaa], 510)?;
    disk.write_all_at(TEXT, 512)?;
    let mut vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,name=d"], &[])?;
    let mut qemu = command(&paths::program("qemu-system-x86_64")?);
    let words = "-nodefaults -no-user-config -display none -nic none -M q35 -accel tcg -m 64M \
         -object memory-backend-memfd,id=mem,size=64M,share=on -machine memory-backend=mem \
         -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=0x04";
    qemu.args(words.split_whitespace());
    let socket = vblk.path("disk");
    let chardev = format!("socket,id=c,path={},reconnect-ms=200", socket.display());
    qemu.args(["-chardev", &chardev, "-device"]);
    qemu.arg("vhost-user-blk-pci,chardev=c,disable-legacy=on,bootindex=0");
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start(&mut qemu)?;
    let output = process.child().stdout.take().context("it is piped")?;
    let output = Lines::follow(output, None);
    let status = process.wait(PATIENCE)?;
    let printed = output.tail(20);
    ensure!(status.code() == Some(0x10 << 1 | 1), "{status}: {printed}");
    ensure!(printed.contains("read from the second sector"), "{printed}");
    let (mut second, mut third) = ([0; 512], [0; 512]);
    disk.read_exact_at(&mut second, 512)?;
    disk.read_exact_at(&mut third, 1024)?;
    ensure!(second == third, "what the BIOS wrote is not there");
    let reads = vblk.metric("towpath_vblk_requests_total", "type=\"read\"")?;
    ensure!(reads >= 2.0, "{reads} reads");
    vblk.daemon().stop()
}
