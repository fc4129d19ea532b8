//! A disk gets another size while it is served: the front-end is told, the new range works, the
//! lost one is refused.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use towpath_common::testing::RawFrontend;
use towpath_common::testing::blk::{BlkClient, ClientOptions, Op};
use towpath_tests::daemon::Vblk;
use towpath_tests::nbd::nbdkit;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use crate::{PATIENCE, create_image};

const MIB: u64 = 1 << 20;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// A front-end of the disk at the socket `disk` that wants to be told of changes, and where it is.
fn connect(vblk: &Vblk) -> Result<(BlkClient, RawFrontend)> {
    let mut options = ClientOptions::default();
    options.wanted.protocol |= Protocol::BACKEND_REQ;
    let mut client = BlkClient::connect(&vblk.path("disk"), options)?;
    let channel = client.frontend().backend_channel(PATIENCE)?;
    Ok((client, channel))
}

#[test]
fn a_connected_disk_grows_and_shrinks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, 4 * MIB)?;
    let disk = "{dir}/image,socket={dir}/disk,queues=1,name=d,shrink";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let (mut client, channel) = connect(&vblk)?;
    ensure!(client.capacity()? == 4 * MIB / 512);
    ensure!(client.write(4 * MIB / 512, &[7; 4096]).is_err());

    let said = vblk.client(&["disk", "resize", "d", "16M"])?;
    ensure!(said.contains("has 16777216 bytes now"), "{said}");
    ensure!(channel.recv()?.request == CONFIG_CHANGE);
    ensure!(client.capacity()? == 16 * MIB / 512);
    ensure!(fs::metadata(&image)?.len() == 16 * MIB);
    client.write(16 * MIB / 512 - 8, &[7; 4096])?;
    let mut back = [0; 4096];
    client.read(16 * MIB / 512 - 8, &mut back)?;
    ensure!(back == [7; 4096]);

    let refused = vblk
        .client(&["disk", "resize", "d", "8M"])
        .unwrap_err()
        .to_string();
    ensure!(refused.contains("--shrink"), "{refused}");
    ensure!(client.capacity()? == 16 * MIB / 512);
    vblk.client(&["disk", "resize", "d", "8M", "--shrink"])?;
    ensure!(channel.recv()?.request == CONFIG_CHANGE);
    ensure!(client.capacity()? == 8 * MIB / 512);
    ensure!(fs::metadata(&image)?.len() == 8 * MIB);
    let lost = client.request(Op::Out, 16 * MIB / 512 - 8, 4096)?;
    ensure!(lost.status == 1, "a write past the end: {}", lost.status);
    client.write(8 * MIB / 512 - 8, &[9; 4096])?;

    // Grown by somebody else: vblk looks again.
    fs::File::options()
        .write(true)
        .open(&image)?
        .set_len(32 * MIB)?;
    vblk.client(&["disk", "resize", "d"])?;
    ensure!(client.capacity()? == 32 * MIB / 512);
    for bad in ["0", "1000", "5K"] {
        let refused = vblk.client(&["disk", "resize", "d", bad, "--shrink"]);
        let refused = refused
            .map(|_| "done".to_owned())
            .unwrap_or_else(|e| e.to_string());
        ensure!(
            bad == "5K" || refused.contains("whole blocks"),
            "{bad}: {refused}"
        );
    }
    drop(client);
    vblk.daemon().stop()
}

#[test]
fn a_stripe_grows_and_shrinks_with_its_parts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let parts = ["a", "b"].map(|name| dir.path().join(name));
    for part in &parts {
        create_image(part, 2 * MIB)?;
    }
    let disk = "stripe:64K:{dir}/a|{dir}/b,socket={dir}/disk,queues=1,name=d,shrink";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let (mut client, channel) = connect(&vblk)?;
    ensure!(client.capacity()? == 4 * MIB / 512);
    client.write(4 * MIB / 512 - 8, &[5; 4096])?;

    vblk.client(&["disk", "resize", "d", "16M"])?;
    ensure!(channel.recv()?.request == CONFIG_CHANGE);
    ensure!(client.capacity()? == 16 * MIB / 512);
    let lengths = || {
        parts
            .each_ref()
            .map(|p| fs::metadata(p).map_or(0, |m| m.len()))
    };
    ensure!(lengths() == [8 * MIB; 2], "{:?}", lengths());
    // Whole chunks of both, up to the end.
    let end = 16 * MIB / 512;
    client.write(end - 256, &[7; 128 << 10])?;
    for part in &parts {
        let bytes = fs::read(part)?;
        ensure!(bytes.ends_with(&[7; 64 << 10]), "{}", part.display());
    }
    let mut back = [0; 4096];
    client.read(4 * MIB / 512 - 8, &mut back)?;
    ensure!(back == [5; 4096]);
    ensure!(client.write(end, &[7; 4096]).is_err());

    let refused = vblk.client(&["disk", "resize", "d", "20544K"]);
    let refused = refused.unwrap_err().to_string();
    ensure!(refused.contains("a multiple of 131072"), "{refused}");
    vblk.client(&["disk", "resize", "d", "8M", "--shrink"])?;
    ensure!(channel.recv()?.request == CONFIG_CHANGE);
    ensure!(lengths() == [4 * MIB; 2], "{:?}", lengths());
    ensure!(client.write(8 * MIB / 512, &[7; 4096]).is_err());
    client.write(8 * MIB / 512 - 8, &[9; 4096])?;

    // As large as the smallest has become.
    for (part, len) in parts.iter().zip([32 * MIB, 24 * MIB]) {
        fs::File::options().write(true).open(part)?.set_len(len)?;
    }
    vblk.client(&["disk", "resize", "d"])?;
    ensure!(client.capacity()? == 48 * MIB / 512);
    client.write(48 * MIB / 512 - 8, &[9; 4096])?;
    drop(client);
    vblk.daemon().stop()
}

#[test]
fn an_export_grows_once_its_server_has_more() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (far, socket) = (dir.path().join("far"), dir.path().join("far.sock"));
    create_image(&far, 4 * MIB)?;
    let length = |len: u64| fs::File::options().write(true).open(&far)?.set_len(len);
    let server = match nbdkit(&socket, &far) {
        Ok(server) => server,
        Err(error) => {
            println!("skipped: {error:#}");
            return Ok(());
        }
    };
    let disk = "nbd:unix:{dir}/far.sock,socket={dir}/disk,queues=1,name=d,connections=2,shrink";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let (mut client, channel) = connect(&vblk)?;
    client.write(0, &[3; 4096])?;
    let refused = |vblk: &Vblk, more: &[&str]| -> Result<String> {
        let all = [&["disk", "resize", "d"], more].concat();
        Ok(vblk.client(&all).unwrap_err().to_string())
    };
    let said = refused(&vblk, &["8M"])?;
    ensure!(said.contains("has 4194304 bytes, not 8388608"), "{said}");

    // What was written and not flushed is nothing that was lost with the old connections.
    length(8 * MIB)?;
    ensure!(client.capacity()? == 4 * MIB / 512, "nobody asked for it");
    vblk.client(&["disk", "resize", "d"])?;
    ensure!(channel.recv()?.request == CONFIG_CHANGE);
    ensure!(client.capacity()? == 8 * MIB / 512);
    client.write(8 * MIB / 512 - 8, &[7; 4096])?;
    ensure!(client.request(Op::Flush, 0, 0)?.status == 0);
    ensure!(fs::read(&far)?.ends_with(&[7; 4096]));
    let mut back = [0; 4096];
    client.read(0, &mut back)?;
    ensure!(back == [3; 4096]);
    let losses = vblk.metric("towpath_vblk_storage_losses_total", "disk=\"d\"")?;
    ensure!(losses == 0.0, "{losses} connections were lost");

    // A server that is started anew with more of it is another one until somebody says so.
    drop(server);
    length(16 * MIB)?;
    let server = nbdkit(&socket, &far)?;
    let until = Instant::now() + PATIENCE;
    while !vblk.get("/v1/disks/d")?["trouble"]
        .as_str()
        .is_some_and(|why| why.contains("`vblk disk resize`"))
    {
        ensure!(Instant::now() < until, "it says nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    vblk.client(&["disk", "resize", "d"])?;
    ensure!(client.capacity()? == 16 * MIB / 512);
    client.write(16 * MIB / 512 - 8, &[9; 4096])?;
    ensure!(client.request(Op::Flush, 0, 0)?.status == 0);

    length(2 * MIB)?;
    let said = refused(&vblk, &["--shrink"])?;
    ensure!(
        said.contains("2097152 bytes now, and had 16777216"),
        "{said}"
    );
    drop(client);
    vblk.daemon().stop()?;
    drop(server);
    Ok(())
}

#[test]
fn a_disk_that_may_not_shrink_does_not() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), 4 * MIB)?;
    let mut vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,name=d"], &[])?;
    let refused = vblk.client(&["disk", "resize", "d", "2M", "--shrink"]);
    let refused = refused.unwrap_err().to_string();
    ensure!(refused.contains("shrink = true"), "{refused}");
    ensure!(fs::metadata(vblk.path("image"))?.len() == 4 * MIB);
    vblk.daemon().stop()
}
