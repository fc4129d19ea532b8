//! Guests that break the rules of the ring: chains, heads, indices, tables. On the transmit ring
//! the switch finds out by itself, on the receive ring when it has a frame for it.

use anyhow::{Result, ensure};
use towpath_common::testing::net::frame::{BROADCAST, station};
use towpath_common::testing::net::{Frame, Header};
use towpath_common::testing::split::{Desc, INDIRECT, NEXT, WRITE};
use towpath_common::testing::{
    Driver, Form, Frontend, GuestMemory, Segment, SplitDriver, Wanted, feature,
};
use vhost::vhost_user::message::FrontendReq as Request;

use crate::harness::{MIB, PATIENCE, QUEUE, Scene, VICTIM, Victim, WITNESS, desc, until, wanted};
use crate::maps::refused;

/// A descriptor on either ring; `flags` besides what its ring wants.
type Part = fn(&Victim, u16, u16) -> Desc;

fn sent(v: &Victim, flags: u16, next: u16) -> Desc {
    desc(v.line, 16, flags, next)
}

fn received(v: &Victim, flags: u16, next: u16) -> Desc {
    desc(v.data, 2048, flags | WRITE, next)
}

/// Runs an attack on a fresh victim's transmit ring, and on another's receive ring.
fn both(
    scene: &Scene,
    reason: &str,
    attack: impl Fn(&Victim, Part) -> Result<(Vec<Desc>, Vec<u16>)>,
) -> Result<()> {
    scene.breaks(reason, |v| {
        let (descs, heads) = attack(v, sent)?;
        v.offer(&descs, &heads)
    })?;
    scene.breaks_receive(reason, |v| {
        let (descs, heads) = attack(v, received)?;
        v.offer_receive(&descs, &heads)
    })
}

/// An indirect table in the upper half of the victim's data buffer, and the descriptor to it.
fn table(v: &Victim, table: &[Desc], len: Option<u32>) -> Result<Desc> {
    let at = v.data + u64::from(crate::harness::DATA / 2);
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.bytes()).collect();
    v.memory.write(at, &bytes)?;
    let len = len.map_or_else(|| u32::try_from(bytes.len()), Ok)?;
    Ok(desc(at, len, INDIRECT, 0))
}

#[test]
fn h01_a_chain_that_never_ends() -> Result<()> {
    let scene = Scene::new()?;
    both(&scene, "loop", |v, part| {
        Ok((vec![part(v, NEXT, 0)], vec![0]))
    })?;
    both(&scene, "loop", |v, part| {
        Ok((vec![part(v, NEXT, 1), part(v, NEXT, 0)], vec![0]))
    })?;
    both(&scene, "loop", |v, part| {
        let all = (0..QUEUE).map(|i| part(v, NEXT, (i + 1) % QUEUE));
        Ok((all.collect(), vec![0]))
    })?;
    both(&scene, "loop", |v, part| {
        let one = table(v, &[part(v, NEXT, 1), part(v, NEXT, 0)], None)?;
        Ok((vec![one], vec![0]))
    })?;
    scene.finish()
}

#[test]
fn h02_a_next_outside_its_table() -> Result<()> {
    let scene = Scene::new()?;
    for next in [QUEUE, QUEUE + 1, u16::MAX] {
        both(&scene, "bad_next", |v, part| {
            Ok((vec![part(v, NEXT, next)], vec![0]))
        })?;
        both(&scene, "bad_next", |v, part| {
            let one = table(v, &[part(v, NEXT, next), part(v, NEXT, 0)], None)?;
            Ok((vec![one], vec![0]))
        })?;
    }
    scene.finish()
}

#[test]
fn h03_a_head_outside_the_table() -> Result<()> {
    let scene = Scene::new()?;
    for head in [QUEUE, 0x8000, u16::MAX] {
        both(&scene, "bad_head", |v, part| {
            Ok((vec![part(v, 0, 0)], vec![head]))
        })?;
    }
    scene.finish()
}

#[test]
fn h04_an_available_index_that_jumps() -> Result<()> {
    let scene = Scene::new()?;
    for idx in [QUEUE + 1, 0x8000, u16::MAX] {
        scene.breaks("avail_jump", |v| {
            v.ring.poke_avail_idx(idx);
            Ok(v.ring.events().kick()?)
        })?;
        scene.breaks_receive("avail_jump", |v| {
            v.rx.poke_avail_idx(idx);
            Ok(v.rx.events().kick()?)
        })?;
    }
    // Backwards, after honest work.
    scene.breaks("avail_jump", |v| {
        v.works()?;
        v.works()?;
        v.ring.poke_avail_idx(1);
        Ok(v.ring.events().kick()?)
    })?;
    // An index that wraps is no jump.
    let mut v = scene.victim()?;
    v.frontend.stop_queue(1)?;
    v.ring = SplitDriver::new(&v.memory, QUEUE, v.frontend.features())?;
    v.ring.age(u16::MAX - 3);
    v.frontend.start_queue(1, &v.memory, &v.ring.setup())?;
    for _ in 0..10 {
        v.works()?;
    }
    ensure!(v.ring.used_idx() < 10, "used {}", v.ring.used_idx());
    drop(v);
    scene.finish()
}

#[test]
fn h05_a_head_that_is_in_flight() -> Result<()> {
    let scene = Scene::new()?;
    both(&scene, "head_in_flight", |v, part| {
        Ok((vec![part(v, 0, 0)], vec![0, 0]))
    })?;
    both(&scene, "head_in_flight", |v, part| {
        Ok((vec![part(v, 0, 0), part(v, 0, 0)], vec![0, 1, 1, 0]))
    })?;
    scene.finish()
}

#[test]
fn h06_descriptors_of_no_bytes() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let nothing = Segment::readable(v.data, 0);
    // Among others they do no harm.
    for form in [Form::Direct, Form::Indirect] {
        let frame = v.frame(station(WITNESS));
        let len = v.write(Header::default(), &frame.bytes())?;
        let parts = [
            nothing,
            Segment::readable(v.data, 12),
            nothing,
            nothing,
            Segment::readable(v.data + 12, len - 12),
            nothing,
        ];
        v.post(&parts, form)?;
        v.arrives(&frame)?;
    }
    // Alone they are no frame.
    scene.discarded("victim", &[("runt", 2)], || {
        v.post(&[nothing], Form::Direct)?;
        v.post(&vec![nothing; usize::from(QUEUE)], Form::Direct)
    })?;
    // Nothing but zeroes: descriptors of nothing at address 0, all in one chain.
    scene.discarded("victim", &[("runt", 1)], || {
        v.offer(&[Desc::default()], &[0])
    })?;
    drop(v);
    // A receive buffer without room for a header is none.
    scene.breaks_receive("request", |v| {
        v.offer_receive(&[desc(v.data, 0, WRITE, 0)], &[0])
    })?;
    scene.breaks_receive("request", |v| {
        let all: Vec<Desc> = (0..QUEUE)
            .map(|i| {
                desc(
                    v.data,
                    0,
                    WRITE | if i + 1 < QUEUE { NEXT } else { 0 },
                    i + 1,
                )
            })
            .collect();
        v.offer_receive(&all, &[0])
    })?;
    // An endless list of them is a loop like any other.
    scene.breaks("loop", |v| v.offer(&[desc(v.data, 0, NEXT, 0)], &[0]))?;
    scene.finish()
}

#[test]
fn h08_addresses_and_sums_that_wrap() -> Result<()> {
    let scene = Scene::new()?;
    let wild = [
        (u64::MAX, 1),
        (u64::MAX - 10, 4096),
        (0, u32::MAX),
        (MIB - 1, 2),
        (MIB, 64),
        (1 << 63, 1),
        (0xffff_ffff, 2048),
    ];
    for (addr, len) in wild {
        both(&scene, "bad_address", |v, part| {
            let flags = part(v, 0, 0).flags;
            Ok((vec![desc(addr, len, flags, 0)], vec![0]))
        })?;
    }
    // Lengths that add up to 2^32 and a little: no frame at all, to 32 bits.
    let memory = GuestMemory::new(32 * MIB)?;
    let mut v = scene.victim_on(&memory)?;
    let each = 1u32 << 24;
    let mut parts = vec![Segment::readable(0, each); 255];
    parts.push(Segment::readable(0, each + 100));
    scene.discarded("victim", &[("giant", 1)], || v.post(&parts, Form::Indirect))?;
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h08_rings_in_odd_places() -> Result<()> {
    let scene = Scene::new()?;
    let places = [(0, MIB), (MIB, MIB), (4 * MIB, MIB)];
    let memory = GuestMemory::with_regions(&places)?;
    // Across two regions that adjoin, across the end of one, outside, misaligned, wrapping.
    let uva = |gpa: u64| memory.uva(gpa);
    let bad = [
        [uva(MIB - 64)?, uva(0)?, uva(4096)?],
        [uva(0)?, uva(MIB - 64)?, uva(4096)?],
        [uva(0)?, uva(4096)?, uva(MIB - 64)?],
        [uva(5 * MIB - 64)?, uva(0)?, uva(4096)?],
        [uva(0)? + 8, uva(4096)?, uva(8192)?],
        [uva(0)?, uva(4096)? + 2, uva(8192)?],
        [uva(0)?, uva(4096)?, uva(8192)? + 1],
        [0, 0, 0],
        [u64::MAX - 15, uva(0)?, uva(4096)?],
    ];
    for index in [0, 1] {
        for [table, used, avail] in bad {
            let mut frontend = scene.frontend()?;
            frontend.set_memory(&memory)?;
            frontend.set_vring(Request::SET_VRING_NUM, index, QUEUE.into())?;
            let mut payload = [index.to_ne_bytes(), [0; 4]].concat();
            for word in [table, used, avail, 0] {
                payload.extend_from_slice(&word.to_ne_bytes());
            }
            let told = frontend.tell(Request::SET_VRING_ADDR, &payload, &[]);
            let events = towpath_common::testing::driver::Events::new()?;
            let kick = Some(events.kick_fd());
            let kicked =
                told.and_then(|()| frontend.set_vring_fd(Request::SET_VRING_KICK, index, kick));
            refused(kicked)?;
        }
    }
    scene.victim()?.works()?;
    scene.finish()
}

#[test]
fn h08_a_ring_under_its_own_frames() -> Result<()> {
    let scene = Scene::new()?;
    // A frame that is the ring it is sent by, and one that is received over a ring.
    for part in 0..3 {
        let mut v = scene.victim()?;
        let place = v.ring.places()[part];
        let len = 6 + 2 * u32::from(QUEUE);
        v.offer(&[desc(place, len, 0, 0)], &[0])?;
        until("a frame taken", || {
            Ok((v.ring.used_idx() == 1).then_some(()))
        })?;
        scene.unaffected()?;
        drop(v);
        for offset in [0, 2, 4] {
            let mut v = scene.victim()?;
            v.withdraw()?;
            let place = v.rx.places()[part] + offset;
            v.offer_receive(&[desc(place, 200, WRITE, 0)], &[0])?;
            let frame = Frame::new(BROADCAST, station(WITNESS)).payload(&[0xff; 150]);
            for _ in 0..3 {
                scene.say(&frame)?;
            }
            scene.unaffected()?;
            // Whatever became of the ring, the other one works, and this one can be stopped.
            v.transmits()?;
            v.frontend.stop_queue(0)?;
        }
    }
    scene.finish()
}

#[test]
fn h09_an_indirect_table_that_is_none() -> Result<()> {
    let scene = Scene::new()?;
    for len in [0, 8, 15, 17, 0xffff_fff0, u32::MAX] {
        both(&scene, "bad_indirect", |v, part| {
            Ok((vec![table(v, &[part(v, NEXT, 1)], Some(len))?], vec![0]))
        })?;
    }
    // Nested, and followed by another descriptor.
    both(&scene, "bad_indirect", |v, _| {
        let inner = desc(v.data, 16, INDIRECT, 0);
        Ok((vec![table(v, &[inner], None)?], vec![0]))
    })?;
    both(&scene, "bad_indirect", |v, part| {
        let mut one = table(v, &[part(v, 0, 0)], None)?;
        one.flags |= NEXT;
        one.next = 1;
        Ok((vec![one, part(v, 0, 0)], vec![0]))
    })?;
    // A table outside memory, and one that leaves it half way.
    for at in [MIB, MIB - 16, u64::MAX - 15] {
        both(&scene, "bad_address", |v, part| {
            if at < MIB {
                v.memory.write(at, &part(v, NEXT, 1).bytes())?;
            }
            Ok((vec![desc(at, 32, INDIRECT, 0)], vec![0]))
        })?;
    }
    // Without the feature there are no tables.
    let before = scene.violations("victim")?;
    let plain = Wanted {
        features: wanted().features & !feature::INDIRECT_DESC,
        ..wanted()
    };
    let mut v = scene.victim_with(plain, &GuestMemory::new(MIB)?)?;
    let one = table(&v, &[sent(&v, 0, 0)], None)?;
    v.offer(&[one], &[0])?;
    ensure!(v.ring.events().broken(PATIENCE)?, "a table was taken");
    scene.is_latched("bad_indirect")?;
    ensure!(scene.violations("victim")? != before, "not counted");
    drop(v);
    scene.finish()
}

#[test]
fn h10_buffers_of_the_wrong_direction() -> Result<()> {
    let scene = Scene::new()?;
    // To send: nothing may be writable.
    for extra in [0, 1] {
        scene.breaks("request", |v| {
            let mut all = vec![desc(v.data, 100, WRITE, 0)];
            if extra == 1 {
                all.insert(0, desc(v.data, 100, NEXT, 1));
            }
            v.offer(&all, &[0])
        })?;
    }
    // To receive: nothing may be readable.
    for extra in [0, 1] {
        scene.breaks_receive("request", |v| {
            let mut all = vec![desc(v.data, 2048, 0, 0)];
            if extra == 1 {
                all[0].flags = NEXT;
                all[0].next = 1;
                all.push(desc(v.data, 2048, WRITE, 0));
            }
            v.offer_receive(&all, &[0])
        })?;
    }
    both(&scene, "readable_after_writable", |v, _| {
        let parts = vec![desc(v.data, 512, NEXT | WRITE, 1), desc(v.data, 512, 0, 0)];
        Ok((parts, vec![0]))
    })?;
    scene.finish()
}

#[test]
fn h12_packed_rings_are_not_offered_and_refused() -> Result<()> {
    let scene = Scene::new()?;
    let mut all = wanted();
    all.features |= feature::PACKED;
    let mut frontend = Frontend::connect(&scene.socket("victim"), all, PATIENCE)?;
    ensure!(
        frontend.offered() & feature::PACKED == 0,
        "packed rings offered"
    );
    let bits = frontend.features() | feature::PACKED;
    refused(frontend.tell(Request::SET_FEATURES, &bits.to_ne_bytes(), &[]))?;
    scene.error_says("not offered")?;
    drop(frontend);
    scene.victim()?.works()?;
    scene.finish()
}

#[test]
fn h16_no_sense_in_notifications() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    // Where the driver wants to be called: anywhere, at any time.
    for round in 0..200u16 {
        v.ring.poke_used_event(round.wrapping_mul(0x4321));
        v.rx.poke_used_event(round.wrapping_mul(0x1234));
        v.ring.poke_avail_flags(round);
        v.quietly()?;
        v.ring.events().kick()?;
        v.rx.events().kick()?;
    }
    scene.unaffected()?;
    drop(v);
    // A receiver that is never called: its frames are there all the same.
    let mut v = scene.victim()?;
    v.send(
        &Frame::new(BROADCAST, station(VICTIM))
            .numbered(0, 100)
            .bytes(),
    )?;
    for number in 0..20 {
        let frame = Frame::new(station(VICTIM), station(WITNESS)).numbered(number, 100);
        scene.say(&frame)?;
    }
    until("frames received", || {
        Ok((v.rx.used_idx() == 20).then_some(()))
    })?;
    v.transmits()?;
    drop(v);
    scene.finish()
}
