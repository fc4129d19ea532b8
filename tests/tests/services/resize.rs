//! A disk gets another size while it is served: the front-end is told, the new range works, the
//! lost one is refused.

use std::fs;

use anyhow::{Result, ensure};
use towpath_common::testing::blk::{BlkClient, ClientOptions, Op};
use towpath_tests::daemon::Vblk;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use crate::{PATIENCE, create_image};

const MIB: u64 = 1 << 20;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

#[test]
fn a_connected_disk_grows_and_shrinks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, 4 * MIB)?;
    let disk = "{dir}/image,socket={dir}/disk,queues=1,name=d,shrink";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let mut options = ClientOptions::default();
    options.wanted.protocol |= Protocol::BACKEND_REQ;
    let mut client = BlkClient::connect(&vblk.path("disk"), options)?;
    let channel = client.frontend().backend_channel(PATIENCE)?;
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
