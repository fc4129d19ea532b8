//! Devlink, for one thing: how a PF's embedded switch is run.
//!
//! A message of generic netlink is a header of four bytes (command, version, reserved) and
//! attributes. The number of the family "devlink" is asked for first; it differs from boot to boot
//! (Documentation/netlink/specs/devlink.yaml and genetlink.yaml in the kernel's sources).

use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    Nla, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;

use super::talk::{Purpose, talk};
use crate::address::PciAddr;
use crate::kernel::WriteError;
use crate::values::EswitchMode;

/// The family of families.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const ESWITCH_GET: u8 = 29;
const ESWITCH_SET: u8 = 30;
const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;
const MODE: u16 = 25;
const MODE_LEGACY: u16 = 0;
const MODE_SWITCHDEV: u16 = 1;

/// What devlink knows a device by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The bus, such as `pci`.
    pub bus: &'static str,
    /// Its name there.
    pub name: String,
}

impl Device {
    /// The function at `address`.
    pub fn pci(address: PciAddr) -> Self {
        let name = address.to_string();
        Self { bus: "pci", name }
    }
}

/// A message of generic netlink.
#[derive(Clone, Debug)]
struct Message {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Some((header, rest)) = buffer.split_at_mut_checked(4) {
            header.copy_from_slice(&[self.command, 1, 0, 0]);
            self.attributes.as_slice().emit(rest);
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (start, rest) = payload
            .split_at_checked(4)
            .ok_or_else(|| DecodeError::from("a message shorter than its header"))?;
        let mut attributes = Vec::new();
        for attribute in NlasIterator::new(rest) {
            let attribute = attribute?;
            attributes.push(DefaultNla::new(
                attribute.kind(),
                attribute.value().to_vec(),
            ));
        }
        Ok(Self {
            family: header.message_type,
            command: start[0],
            attributes,
        })
    }
}

fn string(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat())
}

/// The 16-bit attribute `kind` in the first of `answers`.
fn number(answers: &[Message], kind: u16) -> Option<u16> {
    let found = answers
        .first()?
        .attributes
        .iter()
        .find(|one| one.kind() == kind)?;
    let mut bytes = vec![0; found.value_len()];
    found.emit_value(&mut bytes);
    Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// A message about `device`; `None` on kernels without devlink.
fn about(device: &Device, command: u8) -> Result<Option<Message>, WriteError> {
    let question = Message {
        family: CONTROLLER,
        command: GET_FAMILY,
        attributes: vec![string(FAMILY_NAME, "devlink")],
    };
    let families = match talk(NETLINK_GENERIC, question, Purpose::Get) {
        Ok(families) => families,
        Err(error) if is(&error, &[Errno::NOENT]) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(family) = number(&families, FAMILY_ID) else {
        return Ok(None);
    };
    Ok(Some(Message {
        family,
        command,
        attributes: vec![string(BUS_NAME, device.bus), string(DEV_NAME, &device.name)],
    }))
}

fn is(error: &WriteError, codes: &[Errno]) -> bool {
    let WriteError::Refused { errno, .. } = error else {
        return false;
    };
    codes.iter().any(|code| code.raw_os_error() == *errno)
}

/// How the switch of `device` is run; `None` if its driver does not speak devlink, or has no switch.
///
/// # Errors
/// What the kernel says.
pub fn eswitch(device: &Device) -> io::Result<Option<EswitchMode>> {
    let Some(question) = about(device, ESWITCH_GET).map_err(super::plain)? else {
        return Ok(None);
    };
    match talk(NETLINK_GENERIC, question, Purpose::Get) {
        Ok(answers) => Ok(match number(&answers, MODE) {
            Some(MODE_LEGACY) => Some(EswitchMode::Legacy),
            Some(MODE_SWITCHDEV) => Some(EswitchMode::Switchdev),
            _ => None,
        }),
        // EPERM: only root may ask, and to others it is unknown.
        Err(error) if is(&error, &[Errno::NODEV, Errno::OPNOTSUPP, Errno::PERM]) => Ok(None),
        Err(error) => Err(super::plain(error)),
    }
}

/// Changes how the switch of `device` is run.
///
/// # Errors
/// [`WriteError`].
pub fn set_eswitch(device: &Device, mode: EswitchMode) -> Result<(), WriteError> {
    let Some(mut question) = about(device, ESWITCH_SET)? else {
        return Err(WriteError::refused(Errno::OPNOTSUPP.raw_os_error()));
    };
    let number = match mode {
        EswitchMode::Legacy => MODE_LEGACY,
        EswitchMode::Switchdev => MODE_SWITCHDEV,
    };
    let mode = DefaultNla::new(MODE, number.to_ne_bytes().to_vec());
    question.attributes.push(mode);
    talk(NETLINK_GENERIC, question, Purpose::Change).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};

    #[test]
    fn messages_read_back_as_they_were_written() {
        let message = Message {
            family: 21,
            command: ESWITCH_SET,
            attributes: vec![string(BUS_NAME, "pci"), DefaultNla::new(MODE, vec![1, 0])],
        };
        let whole = NetlinkPayload::InnerMessage(message);
        let mut whole = NetlinkMessage::new(NetlinkHeader::default(), whole);
        whole.finalize();
        let mut bytes = vec![0; whole.buffer_len()];
        whole.serialize(&mut bytes);
        // Header, command and version, then "pci" with its length, kind and end.
        assert_eq!(
            bytes[16..28],
            [30, 1, 0, 0, 8, 0, 1, 0, b'p', b'c', b'i', 0]
        );
        let NetlinkPayload::InnerMessage(read) = NetlinkMessage::<Message>::deserialize(&bytes)
            .unwrap()
            .payload
        else {
            panic!("no message")
        };
        assert_eq!((read.family, read.command), (21, ESWITCH_SET));
        assert_eq!(number(&[read], MODE), Some(MODE_SWITCHDEV));
    }
}
