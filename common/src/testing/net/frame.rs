//! Ethernet frames that can be told apart and checked when they arrive.
//!
//! [`Frame`] builds any frame, tags and all. A numbered one carries a sequence number and a pattern
//! that follows from it, so that [`number`] finds a lost, doubled, foreign, cut or spoilt frame.

/// A MAC address.
pub type Mac = [u8; 6];

/// All stations.
pub const BROADCAST: Mac = [0xff; 6];
/// Type of frames made here, if nothing else is said: for local experiments (IEEE 802, 9.2.4).
pub const EXPERIMENT: u16 = 0x88b5;
/// Type of a customer VLAN tag (IEEE 802.1Q, table 9-1).
pub const TPID: u16 = 0x8100;
/// Type of a service VLAN tag.
pub const TPID_SERVICE: u16 = 0x88a8;
/// Bytes of both addresses and a type.
pub const ETHERNET: usize = 14;
/// Bytes of a tag.
pub const TAG: usize = 4;
/// Bytes at the start of a numbered payload: magic, number, length of the payload, check of them.
pub const NUMBERED: usize = 20;
/// The first word of a numbered payload.
const MAGIC: u32 = 0x746f_7770;

/// The address of station `n`, locally administered.
#[must_use]
pub fn station(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    [0x02, 0x54, a, b, c, d]
}

/// A frame in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Destination.
    pub to: Mac,
    /// Source.
    pub from: Mac,
    /// Tags, outermost first: type, then priority, drop eligibility and VLAN id.
    pub tags: Vec<(u16, u16)>,
    /// Type of the payload, or its length.
    pub ethertype: u16,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// An empty untagged frame.
    #[must_use]
    pub fn new(to: Mac, from: Mac) -> Self {
        Self {
            to,
            from,
            tags: Vec::new(),
            ethertype: EXPERIMENT,
            payload: Vec::new(),
        }
    }

    /// Another tag, inside those there are.
    #[must_use]
    pub fn tag(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.push((tpid, tci));
        self
    }

    /// In VLAN `vid`, by a customer tag of priority 0.
    #[must_use]
    pub fn vlan(self, vid: u16) -> Self {
        self.tag(TPID, vid)
    }

    /// Of another type.
    #[must_use]
    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethertype = ethertype;
        self
    }

    /// With this payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// With a payload of `len` bytes ([`NUMBERED`] at least) that [`number`] reads as `number`.
    #[must_use]
    pub fn numbered(mut self, number: u64, len: usize) -> Self {
        self.payload = numbered(number, len);
        self
    }

    /// As it is sent, without frame check sequence and padding.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to, self.from].concat();
        for (tpid, tci) in &self.tags {
            bytes.extend_from_slice(&tpid.to_be_bytes());
            bytes.extend_from_slice(&tci.to_be_bytes());
        }
        bytes.extend_from_slice(&self.ethertype.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The frame in `bytes`: as many tags as stand there, whatever their ids; none if it is cut
    /// short.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (to, rest) = bytes.split_first_chunk()?;
        let (from, mut rest) = rest.split_first_chunk()?;
        let mut frame = Self::new(*to, *from);
        loop {
            let (word, after) = rest.split_first_chunk()?;
            frame.ethertype = u16::from_be_bytes(*word);
            if !matches!(frame.ethertype, TPID | TPID_SERVICE) {
                frame.payload = after.to_vec();
                return Some(frame);
            }
            let (tci, after) = after.split_first_chunk()?;
            frame.tags.push((frame.ethertype, u16::from_be_bytes(*tci)));
            rest = after;
        }
    }

    /// The number of its payload, if it is a numbered one without a fault.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        number(&self.payload)
    }
}

/// A payload of `len` bytes ([`NUMBERED`] at least) that follows from `number`.
#[must_use]
pub fn numbered(number: u64, len: usize) -> Vec<u8> {
    let len = len.max(NUMBERED);
    let mut bytes = MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    let mut state = number ^ (len as u64) << 40 ^ 0x9e37_79b9_7f4a_7c15;
    while bytes.len() < len {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let word = (state ^ (state >> 29)).to_be_bytes();
        let room = if bytes.len() < NUMBERED {
            NUMBERED
        } else {
            len
        } - bytes.len();
        bytes.extend_from_slice(&word[..word.len().min(room)]);
    }
    bytes
}

/// The number of a numbered payload; `None` if it is none, or cut, or any byte of it is wrong.
/// Zero bytes may follow it, as padding does.
#[must_use]
pub fn number(payload: &[u8]) -> Option<u64> {
    let (magic, rest) = payload.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*rest.first_chunk()?)).ok()?;
    let number = u64::from_be_bytes(*number);
    let (body, padding) = payload.split_at_checked(len)?;
    let whole = u32::from_be_bytes(*magic) == MAGIC
        && body == numbered(number, len)
        && padding.iter().all(|byte| *byte == 0);
    whole.then_some(number)
}
