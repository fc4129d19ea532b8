//! H7 and H14: frames of every length and in every framing.

use anyhow::{Result, ensure};
use towpath_common::testing::net::frame::{BROADCAST, TPID, TPID_SERVICE, station};
use towpath_common::testing::net::{Cut, Frame, HEADER, Header, framed, pieces};
use towpath_common::testing::{Form, Segment};

use crate::harness::{Scene, VICTIM, WITNESS};

#[test]
fn h07_chains_shorter_than_a_header() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    v.write(Header::default(), &[0xff; 100])?;
    // Shorter than a header, a header alone, and a header with less than an Ethernet header.
    scene.discarded("victim", &[("runt", 26)], || {
        (0..26).try_for_each(|len| v.post(&[Segment::readable(v.data, len)], Form::Direct))
    })?;
    // The same in pieces of a byte.
    scene.discarded("victim", &[("runt", 25)], || {
        (1..26).try_for_each(|len| v.post(&pieces(v.data, len, 1, false), Form::Indirect))
    })?;
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h07_any_framing_of_a_frame_works() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    for form in [Form::Direct, Form::Indirect] {
        for piece in [1, 2, 3, 5, 7, 11, 13, 64, 100] {
            let len = if form == Form::Direct {
                32 * piece
            } else {
                100
            };
            let mut frame = v.frame(station(WITNESS));
            frame
                .payload
                .truncate(usize::try_from(len.clamp(34, 114) - 14)?);
            let total = v.write(Header::default(), &frame.bytes())?;
            let cut = framed(v.data, total, Cut::Pieces(piece));
            if form == Form::Direct && cut.len() > 60 {
                continue;
            }
            v.post(&cut, form)?;
            v.arrives(&frame)?;
        }
        let frame = v.frame(station(WITNESS));
        let total = v.write(Header::default(), &frame.bytes())?;
        v.post(&framed(v.data, total, Cut::Header), form)?;
        v.arrives(&frame)?;
        // Cut at every byte of what is looked at.
        for at in 1..total.min(160) {
            let frame = v.frame(station(WITNESS));
            v.write(Header::default(), &frame.bytes())?;
            let parts = [
                Segment::readable(v.data, at),
                Segment::readable(v.data + u64::from(at), total - at),
            ];
            v.post(&parts, form)?;
            v.arrives(&frame)?;
        }
    }
    drop(v);
    scene.finish()
}

#[test]
fn h14_frames_of_every_small_length_and_the_largest() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let whole = Frame::new(BROADCAST, station(VICTIM))
        .numbered(1, 100)
        .bytes();
    scene.discarded("victim", &[("runt", 14)], || {
        (0..14).try_for_each(|len| v.send(&whole[..len]))
    })?;
    // An Ethernet header alone is a frame, as are all lengths from there on.
    for len in 14..100 {
        v.send(&whole[..len])?;
        let frame = Frame::parse(&whole[..len]);
        ensure!(frame.is_some(), "{len} bytes");
        v.arrives(&frame.unwrap_or_else(|| Frame::new(BROADCAST, BROADCAST)))?;
    }
    // As long as the MTU of 1500 allows, and longer.
    let long = Frame::new(station(WITNESS), station(VICTIM)).numbered(2, 1500);
    v.send(&long.bytes())?;
    v.arrives(&long)?;
    let lengths = [1501, 9000, 9216, 65_000, 65_535, 66_000, 80_000, 130_000];
    let giants = u64::try_from(lengths.len())?;
    scene.discarded("victim", &[("giant", giants)], || {
        lengths.into_iter().try_for_each(|len| {
            let giant = Frame::new(station(WITNESS), station(VICTIM)).numbered(3, len);
            v.send(&giant.bytes())
        })
    })?;
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h14_a_tag_cut_short_at_every_byte() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    for tpid in [TPID, TPID_SERVICE] {
        let tagged = Frame::new(BROADCAST, station(VICTIM))
            .tag(tpid, 0)
            .tag(tpid, 0)
            .numbered(4, 60)
            .bytes();
        // The second type, and each byte of the first tag: a tag that is not whole.
        for len in 14..18 {
            scene.discarded("victim", &[("bad_tag", 1)], || v.send(&tagged[..len]))?;
        }
        for len in 18..40 {
            // A tag with nothing behind it, and then with a second one.
            scene.discarded("victim", &[("bad_tag", 1)], || v.send(&tagged[..len]))?;
        }
    }
    ensure!(
        scene.forget()? == 0,
        "a frame with half a tag was forwarded"
    );
    // A priority tag that is whole is taken off, whatever stands behind it.
    let tagged = Frame::new(BROADCAST, station(VICTIM))
        .tag(TPID, 0xe000)
        .numbered(5, 60);
    v.send(&tagged.bytes())?;
    let mut plain = tagged.clone();
    plain.tags.clear();
    v.arrives(&plain)?;
    ensure!(HEADER == 12, "of virtio 1.0 and later");
    drop(v);
    scene.finish()
}
