//! M13: front-ends that misuse the fds a queue is told and tells through. `hostile_net` has this
//! file too.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use towpath_common::testing::Driver;
use vhost::vhost_user::message::FrontendReq as Request;

use crate::harness::{RING, Scene};
use crate::maps::refused;

/// Fills an eventfd's counter, and has every write to it wait from now on.
fn clog(fd: BorrowedFd<'_>) -> Result<()> {
    // A counter that is not at zero is read first: to fill it is then one write.
    let flags = fcntl_getfl(fd)?;
    fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    let _ = rustix::io::read(fd, &mut [0; 8]);
    rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes())?;
    fcntl_setfl(fd, flags - OFlags::NONBLOCK)?;
    Ok(())
}

#[test]
fn m13_a_full_and_blocking_call_eventfd_holds_nobody_up() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    v.works()?;
    clog(v.ring.events().call_fd())?;
    for _ in 0..100 {
        // Every completion calls.
        v.ring.arm();
        v.quietly()?;
    }
    scene.unaffected()?;
    // A fresh one is called at once: what was announced on the old one may have been missed.
    let call = eventfd(0, EventfdFlags::CLOEXEC)?;
    clog(call.as_fd())?;
    v.frontend
        .set_vring_fd(Request::SET_VRING_CALL, RING, Some(call.as_fd()))?;
    clog(call.as_fd())?;
    v.ring.arm();
    v.quietly()?;
    // And the session can still be led: the ring is stopped, drained, and started again.
    v.frontend.stop_queue(RING)?;
    drop(v);
    scene.finish()
}

#[test]
fn m13_a_full_and_blocking_error_eventfd_holds_nobody_up() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    clog(v.ring.events().err_fd())?;
    v.offer(&[], &[u16::MAX])?;
    scene.is_latched("bad_head")?;
    scene.unaffected()?;
    drop(v);
    scene.finish()
}

#[test]
fn m13_fds_that_are_no_eventfds_are_refused() -> Result<()> {
    let scene = Scene::new()?;
    let (reader, writer) = rustix::pipe::pipe()?;
    let file = tempfile::tempfile()?;
    let memfd = rustix::fs::memfd_create("[eventfd]", rustix::fs::MemfdFlags::CLOEXEC)?;
    let path = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, 0.into())?;
    let requests = [
        Request::SET_VRING_KICK,
        Request::SET_VRING_CALL,
        Request::SET_VRING_ERR,
    ];
    for request in requests {
        for fd in [
            reader.as_fd(),
            writer.as_fd(),
            file.as_fd(),
            memfd.as_fd(),
            path.as_fd(),
        ] {
            let mut frontend = scene.frontend()?;
            refused(frontend.set_vring_fd(request, 0, Some(fd)))?;
            scene.error_says("is not an eventfd")?;
        }
    }
    // None at all is fine: the queue is polled.
    let mut v = scene.victim()?;
    v.frontend
        .set_vring_fd(Request::SET_VRING_CALL, RING, None)?;
    v.frontend
        .set_vring_fd(Request::SET_VRING_KICK, RING, None)?;
    v.frontend.stop_queue(RING)?;
    drop(v);
    scene.finish()
}

#[test]
fn m13_a_storm_of_kicks() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let stop = AtomicBool::new(false);
    let kick = v.ring.events().kick_fd().try_clone_to_owned()?;
    std::thread::scope(|threads| {
        let storm = threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::io::write(&kick, &1u64.to_ne_bytes());
            }
        });
        let calm = (0..50)
            .try_for_each(|_| v.works())
            .and_then(|()| scene.unaffected());
        stop.store(true, Ordering::Relaxed);
        if storm.join().is_err() {
            bail!("the storm panicked");
        }
        calm
    })?;
    // A kick eventfd that is full and never read.
    clog(v.ring.events().kick_fd())?;
    scene.unaffected()?;
    ensure!(v.frontend.stop_queue(RING)? > 0, "no work was done");
    drop(v);
    scene.finish()
}
