//! Backups while a guest writes: what is restored is the disk at one moment of the beginning,
//! whatever the guest wrote while the backup was made; a chain of increments; a daemon that is
//! killed in the middle; bytes that rot.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use towpath_tests::daemon::Vblk;
use towpath_tests::nbd::qemu_nbd_for_one;
use towpath_tests::paths;
use towpath_tests::process::Process;

use crate::kills::{Guest, LANES};
use crate::snapshot::{holds, of_one_moment};
use crate::{PATIENCE, create_image};

const MIB: u64 = 1 << 20;
/// Of which the guest writes the first 4 MiB.
const IMAGE: u64 = 48 * MIB;
/// Bytes of a block (`vblk::backup::BLOCK`).
const BLOCK: u64 = 256 << 10;

/// An image whose second half is not empty.
fn image(path: &Path) -> Result<()> {
    create_image(path, IMAGE)?;
    let file = File::options().write(true).open(path)?;
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..MIB)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_le_bytes()[7]
        })
        .collect();
    (24..40).try_for_each(|at| Ok(file.write_all_at(&noise, at * MIB + at)?))
}

struct Scene {
    vblk: Vblk,
    guest: Guest,
}

impl Scene {
    fn new() -> Result<Scene> {
        let dir = tempfile::tempdir()?;
        image(&dir.path().join("image"))?;
        Scene::of(dir, "{dir}/image")
    }

    /// On `storage`, whose bytes are those of the image in `dir`.
    fn of(dir: TempDir, storage: &str) -> Result<Scene> {
        let disk = format!("{storage},socket={{dir}}/disk,queues=1,name=d,bitmap={{dir}}/bitmap");
        let vblk = Vblk::serve(dir, &[&disk], &[])?;
        let guest = Guest::connect(&vblk)?;
        Ok(Scene { vblk, guest })
    }

    /// A full backup and an incremental one, with `between` in between, and a copy.
    fn each_kind(&mut self, between: impl FnOnce(&Vblk) -> Result<()>) -> Result<()> {
        self.work_a_little()?;
        let full = self.begin("full", &["--rate", "24M"])?;
        let status = self.finish()?;
        println!("{status}");
        ensure!(
            status["copied_first"].as_u64() > Some(0),
            "the guest waited for nothing: {status}"
        );
        between(&self.vblk)?;
        self.work_a_little()?;
        let part = self.begin("part", &["--incremental"])?;
        let status = self.finish()?;
        ensure!(
            status["sort"] == "incremental" && status["note"].is_null(),
            "{status}"
        );
        self.work_a_little()?;
        let before = self.guest.written();
        let copy = self.path("copy");
        println!("{}", self.vblk.client(&["snapshot", "d", &copy])?.trim());
        self.finish()?;
        of_one_moment(Path::new(&copy), &before, &before)?;
        self.check("full", &full)?;
        self.check("part", &part)?;
        self.guest.settle()?;
        self.guest.check(&File::open(self.path("image"))?)
    }

    fn path(&self, name: &str) -> String {
        self.vblk.path(name).display().to_string()
    }

    /// Let the guest work until `done` says so.
    fn work(&mut self, mut done: impl FnMut(&Vblk) -> Result<bool>) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        for turn in 0_u64.. {
            self.guest.post()?;
            if self.guest.reap()? == 0 {
                std::thread::yield_now();
            }
            if turn % 512 == 511 && done(&self.vblk)? {
                break;
            }
            ensure!(Instant::now() < until, "it does not end");
        }
        Ok(())
    }

    fn work_a_little(&mut self) -> Result<()> {
        let mut turns = 0;
        self.work(|_| {
            turns += 1;
            Ok(turns > 3)
        })
    }

    fn status(vblk: &Vblk) -> Result<Value> {
        vblk.get("/v1/disks/d/backup")
    }

    /// Begin a backup to the file `name` while the guest works: records written before and after.
    fn begin(&mut self, name: &str, more: &[&str]) -> Result<[Vec<u64>; 2]> {
        let to = self.path(name);
        let mut words = vec!["backup", "d", "--to", &to, "--detach"];
        words.extend(more);
        let before = self.guest.written();
        let (vblk, guest) = (&self.vblk, &mut self.guest);
        let said = std::thread::scope(|scope| {
            let asking = scope.spawn(|| vblk.client(&words));
            while !asking.is_finished() {
                guest.post()?;
                guest.reap()?;
            }
            let joined = asking.join();
            joined.map_err(|_| anyhow::anyhow!("the client panicked"))?
        })?;
        println!("{}", said.trim());
        Ok([before, self.guest.written()])
    }

    /// Begin a backup to the file `name`; what the command says.
    fn ask(&self, name: &str, more: &[&str]) -> Result<String> {
        let to = self.path(name);
        let mut words = vec!["backup", "d", "--to", &to, "--detach"];
        words.extend(more);
        self.vblk.client(&words)
    }

    /// Wait until something was copied, and not all.
    fn underway(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = Self::status(&self.vblk)?;
            ensure!(status["state"] == "running", "too soon to look: {status}");
            if status["done_bytes"].as_u64() > Some(0) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "nothing is copied: {status}");
        }
    }

    /// Work until the backup has ended; how it ended.
    fn finish(&mut self) -> Result<Value> {
        self.work(|vblk| Ok(Self::status(vblk)?["state"] != "running"))?;
        let status = Self::status(&self.vblk)?;
        ensure!(status["state"] == "done", "{status}");
        Ok(status)
    }

    /// Restore `name`, and find there one moment of each lane between `moments`.
    fn check(&self, name: &str, [before, after]: &[Vec<u64>; 2]) -> Result<()> {
        let (from, to) = (self.path(name), self.path("restored"));
        let said = self.vblk.tool(&["verify", &from])?;
        ensure!(said.starts_with("all "), "{said}");
        self.vblk.tool(&["restore", &from, &to])?;
        let restored = File::open(&to)?;
        ensure!(restored.metadata()?.len() == IMAGE);
        for lane in 0..LANES {
            let at = usize::from(lane);
            let mut moments = before[at]..=after[at] + 1;
            let found = moments.find(|count| holds(&restored, lane, *count).unwrap_or(false));
            found.with_context(|| {
                let (before, after) = (before[at], after[at]);
                format!("{name}, lane {lane}: no moment from {before} to {after} records")
            })?;
        }
        // What nobody wrote.
        let rest = |file: &File| -> Result<Vec<u8>> {
            let mut bytes = vec![0; usize::try_from(IMAGE - 4 * MIB)?];
            file.read_exact_at(&mut bytes, 4 * MIB)?;
            Ok(bytes)
        };
        let same = rest(&restored)? == rest(&File::open(self.path("image"))?)?;
        ensure!(same, "{name}: bytes that nobody wrote differ");
        Ok(fs::remove_file(&to)?)
    }
}

#[test]
fn a_chain_of_backups_holds_the_moments_at_which_they_began() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.work_a_little()?;
    let full = scene.begin("full", &["--rate", "24M"])?;
    let busy = scene.path("full");
    let second = scene
        .vblk
        .client(&["backup", "d", "--to", &format!("{busy}2")]);
    let refused = second.unwrap_err().to_string();
    ensure!(
        refused.contains("is being resized, copied or backed up"),
        "{refused}"
    );
    let status = scene.finish()?;
    println!("{status}");
    ensure!(status["sort"] == "full" && status["total_bytes"] == IMAGE);
    ensure!(
        status["copied_first"].as_u64() > Some(0),
        "the guest waited for nothing"
    );
    scene.check("full", &full)?;
    let mut moments = vec![("full".to_owned(), full)];
    for round in 0..2 {
        scene.work_a_little()?;
        let name = format!("part{round}");
        let at = scene.begin(&name, &["--incremental", "--rate", "8M"])?;
        let status = scene.finish()?;
        println!("{status}");
        ensure!(status["sort"] == "incremental" && status["note"].is_null());
        ensure!(status["total_bytes"].as_u64() <= Some(4 * MIB), "{status}");
        moments.push((name, at));
    }
    // Each still restores to its own moment.
    for (name, at) in &moments {
        scene.check(name, at)?;
    }
    ensure!(
        scene
            .vblk
            .metric("towpath_vblk_backups_total", "outcome=\"done\"")?
            == 3.0
    );
    ensure!(scene.vblk.metric("towpath_vblk_copied_first_total", "")? > 0.0);
    ensure!(scene.vblk.metric("towpath_vblk_changed_bytes", "")? > 0.0);
    // A disk that is served is not restored to, nor is a file overwritten by accident.
    let (from, served) = (scene.path("full"), scene.path("image"));
    let refused = scene.vblk.tool(&["restore", &from, &served, "--overwrite"]);
    let refused = refused.unwrap_err().to_string();
    ensure!(
        refused.contains("in use") || refused.contains("vblk"),
        "{refused}"
    );
    let refused = scene.vblk.tool(&["restore", &from, &busy]).unwrap_err();
    ensure!(refused.to_string().contains("--overwrite"), "{refused}");
    scene.guest.settle()?;
    scene.guest.check(&File::open(&served)?)?;
    rot(&scene)
}

/// One byte of the full backup is changed: the increment needs that block, and it is named.
fn rot(scene: &Scene) -> Result<()> {
    let data = File::options()
        .write(true)
        .read(true)
        .open(scene.path("full"))?;
    let at = 30 * MIB + 12_345;
    let mut byte = [0];
    data.read_exact_at(&mut byte, at)?;
    data.write_all_at(&[!byte[0]], at)?;
    let last = scene.path("part1");
    let wanted = format!("block {} (byte {})", at / BLOCK, at / BLOCK * BLOCK);
    let said = scene.vblk.tool(&["verify", &last]).err();
    let said = said.context("rot goes unnoticed")?.to_string();
    ensure!(said.contains("1 of 192 blocks"), "{said}");
    let program = towpath_tests::daemon::program("vblk")?;
    let said = Command::new(program)
        .args(["verify", &last, "--json"])
        .output()?;
    let answer: Value = serde_json::from_slice(&said.stdout)?;
    let data = &answer["data"];
    let counts = (&data["blocks"], &data["corrupt_blocks"]);
    ensure!(
        !said.status.success() && counts == (&192.into(), &1.into()),
        "{answer}"
    );
    let named = data["errors"][0].as_str();
    ensure!(
        answer["status"] == "failed" && named.is_some_and(|e| e.contains(&wanted)),
        "{answer}"
    );
    let to = scene.path("rotten");
    let said = scene.vblk.tool(&["restore", &last, &to]).err();
    let said = said.context("rot is restored")?.to_string();
    ensure!(said.contains(&wanted) && said.contains("/full"), "{said}");
    ensure!(!Path::new(&to).exists(), "half a disk was left behind");
    Ok(())
}

#[test]
fn a_backup_goes_on_after_its_daemon_was_killed() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.work_a_little()?;
    scene.begin("full", &["--rate", "16M"])?;
    scene.work(|vblk| Ok(Scene::status(vblk)?["done_bytes"].as_u64() > Some(IMAGE / 3)))?;
    scene.vblk.daemon().kill()?;
    scene.vblk.start_again()?;
    scene.guest.reconnect(&scene.vblk)?;
    scene.work_a_little()?;
    let again = scene.begin("full", &[]).unwrap_err().to_string();
    ensure!(again.contains("--resume"), "{again}");
    let full = scene.begin("full", &["--resume"])?;
    let status = scene.finish()?;
    println!("{status}");
    ensure!(status["note"].is_null(), "{status}");
    ensure!(
        status["total_bytes"].as_u64() <= Some(IMAGE - IMAGE / 6),
        "{status}"
    );
    scene.check("full", &full)?;
    // The same with an increment; and one that is cancelled. The guest rests, or it would have its
    // blocks copied first, at any rate.
    scene.work_a_little()?;
    scene.guest.settle()?;
    scene.ask("part", &["--incremental", "--rate", "1M"])?;
    scene.underway()?;
    scene.vblk.daemon().kill()?;
    scene.vblk.start_again()?;
    scene.guest.reconnect(&scene.vblk)?;
    scene.work_a_little()?;
    scene.guest.settle()?;
    scene.ask("part", &["--incremental", "--resume", "--rate", "1M"])?;
    scene.underway()?;
    scene.vblk.client(&["backup", "d", "--cancel"])?;
    let status = Scene::status(&scene.vblk)?;
    ensure!(status["state"] == "failed", "{status}");
    let part = scene.begin("part", &["--incremental", "--resume"])?;
    let status = scene.finish()?;
    ensure!(
        status["sort"] == "incremental" && status["note"].is_null(),
        "{status}"
    );
    scene.check("part", &part)?;
    // Somebody else changes the image while vblk is away: nothing is built upon the bitmap.
    scene.guest.settle()?;
    scene.vblk.daemon().stop()?;
    let image = File::options().write(true).open(scene.path("image"))?;
    image.write_all_at(&[9; 512], 20 * MIB)?;
    scene.vblk.start_again()?;
    scene.guest.reconnect(&scene.vblk)?;
    let whole = scene.begin("whole", &["--incremental"])?;
    let status = scene.finish()?;
    let note = status["note"].as_str().unwrap_or_default();
    ensure!(
        status["sort"] == "full" && note.contains("did not serve it"),
        "{status}"
    );
    scene.check("whole", &whole)?;
    scene.guest.settle()?;
    scene.vblk.daemon().stop()
}

/// `qemu-nbd` with an export of `image`, which is not there yet, of the size of the disk.
fn export(scene: &Scene, image: &Path) -> Result<Option<(Process, String)>> {
    let Ok(program) = paths::program("qemu-nbd") else {
        println!("skipped: there is no qemu-nbd");
        return Ok(None);
    };
    create_image(image, IMAGE)?;
    let socket = scene.vblk.path("nbd");
    let mut command = Command::new(program);
    command
        .args(["-t", "-e", "8", "-f", "raw", "-k"])
        .arg(&socket)
        .arg(image);
    let server = Process::start(&mut command)?;
    let until = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        ensure!(Instant::now() < until, "qemu-nbd does not listen");
        std::thread::yield_now();
    }
    Ok(Some((server, format!("nbd:unix:{}", socket.display()))))
}

#[test]
fn a_backup_to_an_nbd_export_is_an_image_there() -> Result<()> {
    let mut scene = Scene::new()?;
    let far: PathBuf = scene.vblk.path("far");
    let Some((server, address)) = export(&scene, &far)? else {
        return Ok(());
    };
    scene.work_a_little()?;
    scene.guest.settle()?;
    let refused = scene.vblk.client(&["backup", "d", "--to", &address]);
    let refused = refused.unwrap_err().to_string();
    ensure!(refused.contains("--manifest"), "{refused}");
    let manifest = scene.path("far.manifest");
    let words = ["backup", "d", "--to", &address, "--manifest", &manifest];
    println!("{}", scene.vblk.client(&words)?.trim());
    println!("{}", scene.vblk.tool(&["verify", &manifest])?.trim());
    let answer: Value = serde_json::from_str(&scene.vblk.tool(&["verify", &manifest, "--json"])?)?;
    let data = &answer["data"];
    ensure!(
        data["corrupt_blocks"] == 0 && data["size_bytes"] == IMAGE,
        "{answer}"
    );
    let to = scene.path("back");
    scene.vblk.tool(&["restore", &manifest, &to])?;
    let (back, image) = (fs::read(&to)?, fs::read(scene.path("image"))?);
    ensure!(back == image, "what is restored is another disk");
    drop(server);
    ensure!(
        fs::read(&far)? == image,
        "what is on the server is another disk"
    );
    scene.vblk.daemon().stop()
}

/// Nobody but its worker may read a mirror: the worker does it, and one disk is enough for that.
#[test]
fn a_mirror_is_backed_up_by_its_worker() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["image", "second"] {
        image(&dir.path().join(name))?;
    }
    let here = dir.path().display();
    let mirror = format!("mirror:{here}/image|{here}/second");
    let record = format!("{here}/record");
    let mut command = Command::new(towpath_tests::cargo::program("vblk", "vblk")?);
    command.args(["mirror", "create", &mirror, "--assume-clean", "--record"]);
    let made = command.arg(&record).output()?;
    ensure!(made.status.success(), "{made:?}");
    let mut scene = Scene::of(dir, &format!("{mirror},record={record}"))?;
    scene.each_kind(|vblk| {
        vblk.client(&["mirror", "fail", "d", "2"])?;
        Ok(())
    })?;
    scene.vblk.daemon().stop()
}

/// Nor an export whose server serves one client only.
#[test]
fn an_export_with_one_connection_is_backed_up_over_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (file, socket) = (dir.path().join("image"), dir.path().join("nbd"));
    image(&file)?;
    let _server = qemu_nbd_for_one(&socket, &file)?;
    let mut scene = Scene::of(dir, "nbd:unix:{dir}/nbd")?;
    scene.each_kind(|_| Ok(()))?;
    scene.vblk.daemon().stop()
}
