//! The control queue: what a driver asks of its card besides frames (virtio 1.3, 5.1.6.5).
//!
//! A command is class, command and data in readable buffers; the answer is one byte, `OK` or `ERR`.
//! [`Control::handle`] is given a private copy of the readable bytes and changes the card's state,
//! or does not: a command that is cut short, unknown, out of range, or of a feature that was not
//! negotiated changes nothing and is answered by `ERR`. Bytes behind a command's data are ignored.
//!
//! Many front-ends (QEMU, Cloud Hypervisor) serve this queue themselves and tell us by
//! `SET_VRING_ENABLE` which queue pairs are in use; then nothing ever arrives here.

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use crate::features;
use crate::mac::Mac;
use crate::net::Offloads;
use crate::vlan::Vid;

/// The answer to a command that was carried out.
pub const OK: u8 = 0;
/// The answer to one that was not.
pub const ERR: u8 = 1;

/// Most bytes of a command, class and command included: a table of several hundred addresses. A
/// longer one is answered by `ERR`, which drivers take as "filter yourself".
pub const MAX_COMMAND: usize = 4096;

/// Bits of `GUEST_OFFLOADS_SET` (virtio 1.3, 5.1.6.5.6.1): numbers of the feature bits.
const OFFLOADS: u64 = features::GUEST_CSUM
    | features::GUEST_TSO4
    | features::GUEST_TSO6
    | features::GUEST_ECN
    | features::GUEST_USO4
    | features::GUEST_USO6;

/// Which frames the driver wants beside those to its own address (5.1.6.5.1). The switch sends it
/// what belongs to its port, so these are noted and change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Promiscuous,
    /// All multicast.
    AllMulticast,
    /// All unicast.
    AllUnicast,
    /// No multicast.
    NoMulticast,
    /// No unicast.
    NoUnicast,
    /// No broadcast.
    NoBroadcast,
}

/// A command, validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`: use so many queue pairs, 1 to what is offered.
    QueuePairs(u16),
    /// `VIRTIO_NET_CTRL_RX`: turn a receive mode on or off.
    Receive(Mode, bool),
    /// `VIRTIO_NET_CTRL_MAC_TABLE_SET`: so many unicast and multicast addresses to receive.
    MacTable(usize, usize),
    /// `VIRTIO_NET_CTRL_MAC_ADDR_SET`: the driver's own address.
    MacAddress(Mac),
    /// `VIRTIO_NET_CTRL_VLAN`: receive a VLAN, or no longer. VLAN 0 is untagged frames.
    Vlan(Option<Vid>, bool),
    /// `VIRTIO_NET_CTRL_ANNOUNCE_ACK`: it has announced itself.
    AnnounceAck,
    /// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`: of the offloads negotiated, take these from now on; by
    /// their feature bits.
    GuestOffloads(u64),
}

/// Why a command is answered by `ERR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Shorter than its kind is.
    #[error("control command of {0} bytes is cut short")]
    Truncated(usize),
    /// Longer than [`MAX_COMMAND`].
    #[error("control command of {0} bytes; at most {MAX_COMMAND} are read")]
    TooLong(usize),
    /// Nothing virtio-net knows, or nothing this card implements.
    #[error("control command {1} of class {0} is not known")]
    Unknown(u8, u8),
    /// Its feature was not negotiated.
    #[error("control command {1} of class {0} was not negotiated")]
    NotNegotiated(u8, u8),
    /// Zero queue pairs, or more than there are.
    #[error("{asked} queue pairs asked for; there are {max}")]
    QueuePairs {
        /// How many the driver wants.
        asked: u16,
        /// How many there are.
        max: u16,
    },
    /// An address no station can have.
    #[error("{0} is not the address of a station")]
    Address(Mac),
    /// Not a VLAN id.
    #[error("{0} is not a VLAN id")]
    Vlan(u16),
    /// A switch that is neither 0 nor 1.
    #[error("{0} is neither on nor off")]
    Switch(u8),
    /// Offloads that were not negotiated.
    #[error("offloads {0:#x} were not negotiated")]
    Offloads(u64),
}

/// What stands before a command's data.
type Kind = (u8, u8);

/// The feature that a command stands on (5.1.3 and 5.1.6.5); none if the command is unknown.
fn needs(kind: Kind) -> Option<u64> {
    Some(match kind {
        (0, 0 | 1) | (1, 0) => features::CTRL_RX,
        (0, 2..=5) => features::CTRL_RX_EXTRA,
        (1, 1) => features::CTRL_MAC_ADDR,
        (2, 0 | 1) => features::CTRL_VLAN,
        (3, 0) => features::GUEST_ANNOUNCE,
        (4, 0) => features::MQ,
        (5, 0) => features::CTRL_GUEST_OFFLOADS,
        _ => return None,
    })
}

/// The addresses of a table's half: how many, and what follows them.
fn table(data: &[u8]) -> Option<(usize, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let rest = rest.get(count.checked_mul(6)?..)?;
    Some((count, rest))
}

/// Understand a command of a driver that negotiated `features`, to a card with `max` queue pairs.
///
/// # Errors
/// [`Refusal`].
pub fn parse(bytes: &[u8], features: u64, max: u16) -> Result<Command, Refusal> {
    if bytes.len() > MAX_COMMAND {
        return Err(Refusal::TooLong(bytes.len()));
    }
    let short = Refusal::Truncated(bytes.len());
    let (&[class, command], data) = bytes.split_first_chunk().ok_or(short)?;
    let needed = needs((class, command)).ok_or(Refusal::Unknown(class, command))?;
    if features & needed == 0 {
        return Err(Refusal::NotNegotiated(class, command));
    }
    let word = || data.first_chunk().copied().map(u16::from_le_bytes);
    match class {
        0 => {
            let mode = match command {
                0 => Mode::Promiscuous,
                1 => Mode::AllMulticast,
                2 => Mode::AllUnicast,
                3 => Mode::NoMulticast,
                4 => Mode::NoUnicast,
                _ => Mode::NoBroadcast,
            };
            match *data.first().ok_or(short)? {
                on @ (0 | 1) => Ok(Command::Receive(mode, on == 1)),
                other => Err(Refusal::Switch(other)),
            }
        }
        1 if command == 0 => {
            let (unicast, rest) = table(data).ok_or(short)?;
            let (multicast, _) = table(rest).ok_or(short)?;
            Ok(Command::MacTable(unicast, multicast))
        }
        1 => {
            let mac = Mac(*data.first_chunk().ok_or(short)?);
            let station = !mac.is_multicast() && !mac.is_zero();
            let refused = Refusal::Address(mac);
            station.then_some(Command::MacAddress(mac)).ok_or(refused)
        }
        2 => match word().ok_or(short)? {
            0 => Ok(Command::Vlan(None, command == 0)),
            vid => match Vid::new(vid) {
                Some(vid) => Ok(Command::Vlan(Some(vid), command == 0)),
                None => Err(Refusal::Vlan(vid)),
            },
        },
        3 => Ok(Command::AnnounceAck),
        4 => match word().ok_or(short)? {
            asked if (1..=max).contains(&asked) => Ok(Command::QueuePairs(asked)),
            asked => Err(Refusal::QueuePairs { asked, max }),
        },
        _ => {
            let offloads = u64::from_le_bytes(*data.first_chunk().ok_or(short)?);
            match offloads & !(features & OFFLOADS) {
                0 => Ok(Command::GuestOffloads(offloads)),
                surplus => Err(Refusal::Offloads(surplus)),
            }
        }
    }
}

/// What a driver has said through its control queue since it negotiated features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    features: u64,
    max: u16,
    pairs: u16,
    offloads: u64,
    mac: Option<Mac>,
    /// Commands carried out.
    pub done: u64,
    /// Commands answered by `ERR`.
    pub refused: u64,
}

impl Control {
    /// For a driver that negotiated `features`, and a card with `max` queue pairs. One of them is
    /// in use (5.1.6.5.5: others only after the driver says so).
    #[must_use]
    pub fn new(features: u64, max: u16) -> Control {
        Control {
            features,
            max,
            pairs: 1,
            offloads: features & OFFLOADS,
            mac: None,
            done: 0,
            refused: 0,
        }
    }

    /// The same, after what the driver said before its rings were set up again. What it cannot have
    /// said does not count.
    #[must_use]
    pub fn resumed(self, pairs: Option<u16>, offloads: Option<u64>) -> Control {
        let pairs = pairs.filter(|pairs| (1..=self.max).contains(pairs));
        Control {
            pairs: pairs.unwrap_or(self.pairs),
            offloads: offloads.map_or(self.offloads, |bits| bits & self.offloads),
            ..self
        }
    }

    /// Carry out the command in `bytes`: what changed, to be answered by [`OK`].
    ///
    /// # Errors
    /// [`Refusal`], to be answered by [`ERR`]; nothing has changed.
    pub fn handle(&mut self, bytes: &[u8]) -> Result<Command, Refusal> {
        let command = parse(bytes, self.features, self.max).inspect_err(|_| {
            self.refused = self.refused.saturating_add(1);
        })?;
        match command {
            Command::QueuePairs(pairs) => self.pairs = pairs,
            Command::MacAddress(mac) => self.mac = Some(mac),
            Command::GuestOffloads(offloads) => self.offloads = offloads,
            Command::Receive(..)
            | Command::MacTable(..)
            | Command::Vlan(..)
            | Command::AnnounceAck => {}
        }
        self.done = self.done.saturating_add(1);
        Ok(command)
    }

    /// Queue pairs in use, as far as this queue says: one of them may not be enabled all the same.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// What the driver takes as it is.
    #[must_use]
    pub fn accepts(&self) -> Offloads {
        features::accepts(self.features & !OFFLOADS | self.offloads)
    }

    /// The address the driver gave itself, if it did.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = u64::MAX;

    fn told(bytes: &[u8]) -> Result<Command, Refusal> {
        parse(bytes, ALL, 4)
    }

    #[test]
    fn h17_queue_pairs_out_of_range_are_refused_with_their_numbers() {
        let mut control = Control::new(ALL, 4);
        for asked in [1u16, 4, 2] {
            let bytes = [&[4, 0][..], &asked.to_le_bytes()].concat();
            assert_eq!(control.handle(&bytes), Ok(Command::QueuePairs(asked)));
            assert_eq!(control.pairs(), asked);
        }
        for asked in [0u16, 5, 0x0100, 65_535] {
            let bytes = [&[4, 0][..], &asked.to_le_bytes()].concat();
            let refused = Refusal::QueuePairs { asked, max: 4 };
            assert_eq!(control.handle(&bytes), Err(refused));
        }
        assert_eq!(control.pairs(), 2, "what is refused changes nothing");
        assert_eq!((control.done, control.refused), (3, 4));
    }

    #[test]
    fn each_command_is_understood() {
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        let table = [&[1, 0, 2, 0, 0, 0][..], &[7; 12], &[1, 0, 0, 0], &[9; 6]].concat();
        let vid = Vid::new(4094);
        for (bytes, command) in [
            (&[0, 0, 1][..], Command::Receive(Mode::Promiscuous, true)),
            (&[0, 1, 0], Command::Receive(Mode::AllMulticast, false)),
            (&[0, 5, 1], Command::Receive(Mode::NoBroadcast, true)),
            (&table, Command::MacTable(2, 1)),
            (&[1, 1, 0x52, 0x54, 0, 1, 2, 3], Command::MacAddress(mac)),
            (&[2, 0, 0xfe, 0x0f], Command::Vlan(vid, true)),
            (&[2, 1, 0xfe, 0x0f], Command::Vlan(vid, false)),
            (&[2, 0, 0, 0], Command::Vlan(None, true)),
            (&[3, 0], Command::AnnounceAck),
            (
                &[5, 0, 2, 1, 0, 0, 0, 0, 0, 0],
                Command::GuestOffloads(features::GUEST_CSUM | features::GUEST_TSO6),
            ),
        ] {
            assert_eq!(told(bytes), Ok(command));
            // Bytes behind it do not matter, and each byte of it does.
            assert_eq!(told(&[bytes, &[0xff; 9]].concat()), Ok(command));
            for cut in 0..bytes.len() {
                assert_eq!(told(&bytes[..cut]), Err(Refusal::Truncated(cut)));
            }
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let group = Mac([1, 0, 0, 0, 0, 1]);
        let huge = [&[1, 0][..], &[0xff; 40]].concat();
        for (bytes, why) in [
            (&[4, 1, 1, 0][..], Refusal::Unknown(4, 1)),
            (&[0, 6, 1], Refusal::Unknown(0, 6)),
            (&[6, 0, 0, 0, 0, 0], Refusal::Unknown(6, 0)),
            (&[255, 255], Refusal::Unknown(255, 255)),
            (&[0, 0, 2], Refusal::Switch(2)),
            (&[1, 1, 1, 0, 0, 0, 0, 1], Refusal::Address(group)),
            (&[1, 1, 0, 0, 0, 0, 0, 0], Refusal::Address(Mac::default())),
            (&[2, 0, 0xff, 0x0f], Refusal::Vlan(4095)),
            (&[2, 0, 0x01, 0x10], Refusal::Vlan(4097)),
            (&huge, Refusal::Truncated(42)),
            (&[3, 0, 0].repeat(2000), Refusal::TooLong(6000)),
        ] {
            assert_eq!(told(bytes), Err(why));
        }
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        for (features, kind) in [
            (features::CTRL_RX, [0, 0]),
            (features::CTRL_RX, [1, 0]),
            (features::CTRL_RX_EXTRA, [0, 2]),
            (features::CTRL_MAC_ADDR, [1, 1]),
            (features::CTRL_VLAN, [2, 1]),
            (features::GUEST_ANNOUNCE, [3, 0]),
            (features::MQ, [4, 0]),
            (features::CTRL_GUEST_OFFLOADS, [5, 0]),
        ] {
            let [class, command] = kind;
            let refused = Err(Refusal::NotNegotiated(class, command));
            assert_eq!(parse(&kind, ALL & !features, 1), refused);
            assert_ne!(parse(&kind, features, 1), refused);
        }
    }

    #[test]
    fn offloads_can_be_turned_off_and_on_but_not_beyond_what_was_negotiated() {
        let negotiated =
            features::CTRL_GUEST_OFFLOADS | features::GUEST_CSUM | features::GUEST_TSO4;
        let mut control = Control::new(negotiated, 1);
        let both = Offloads::CSUM.with(Offloads::TSO4);
        assert_eq!(control.accepts(), both);
        let mut set = |bits: u64| {
            let said = control.handle(&[&[5, 0][..], &bits.to_le_bytes()].concat());
            (said.map(drop), control.accepts())
        };
        assert_eq!(set(0), (Ok(()), Offloads::NONE));
        assert_eq!(set(features::GUEST_CSUM), (Ok(()), Offloads::CSUM));
        let tso6 = features::GUEST_TSO6;
        let refused = Err(Refusal::Offloads(tso6));
        assert_eq!(set(tso6 | features::GUEST_CSUM), (refused, Offloads::CSUM));
        assert_eq!(set(negotiated & OFFLOADS), (Ok(()), both));
        let surplus = Err(Refusal::Offloads(1 << 63));
        assert_eq!(set(1 << 63), (surplus, both), "no offload at all");
    }

    proptest! {
        /// Any bytes, any features: an answer, and a state that keeps its promises.
        #[test]
        fn any_bytes_leave_the_card_in_order(
            commands in prop::collection::vec(
                (0u8..8, 0u8..8, prop::collection::vec(any::<u8>(), 0..40)),
                0..40,
            ),
            features: u64,
            max in 1u16..=9,
        ) {
            let mut control = Control::new(features, max);
            let negotiated = features::accepts(features);
            for (class, command, data) in &commands {
                let bytes = [&[*class, *command][..], data].concat();
                let before = control;
                let said = control.handle(&bytes);
                prop_assert!((1..=max).contains(&control.pairs()));
                prop_assert!(negotiated.has(control.accepts()));
                prop_assert!(control.mac().is_none_or(|mac| !mac.is_multicast()));
                if said.is_err() {
                    let refused = before.refused + 1;
                    prop_assert_eq!(control, Control { refused, ..before });
                }
            }
            prop_assert_eq!(control.done + control.refused, commands.len() as u64);
        }

        #[test]
        fn any_table_is_counted_or_refused(unicast: u32, small in 0u32..4, len in 0usize..64) {
            for count in [unicast, small] {
                let bytes = [&[1, 0][..], &count.to_le_bytes(), &vec![0; len]].concat();
                let fits = u64::from(count) * 6 + 4 <= len as u64;
                prop_assert_eq!(told(&bytes).is_ok(), fits);
            }
        }
    }
}
