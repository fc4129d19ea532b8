//! A set of VLANs: one bit each, so that membership is one load and one test.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;
use towpath_common::config::ValueError;

use super::Vid;

/// 4096 bits.
const WORDS: usize = 64;

/// What a set looks like in a file and on a command line.
const RULE: &str = "name VLANs 1 to 4094, as in \"10,20,30-40\" (on a command line 10:20:30-40)";

/// A set of VLANs.
///
/// Written `"10,20,30-40"`; on a command line, where commas separate settings, `10:20:30-40`; in
/// TOML also a list of numbers and such texts. A set that is written down names at least one VLAN.
/// 512 bytes on the heap, so that a port that carries one VLAN stays small.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VlanSet(Box<[u64; WORDS]>);

impl VlanSet {
    /// No VLAN.
    #[must_use]
    pub fn none() -> VlanSet {
        VlanSet(Box::new([0; WORDS]))
    }

    /// Every VLAN, 1 to 4094.
    #[must_use]
    pub fn all() -> VlanSet {
        let mut words = [u64::MAX; WORDS];
        words[0] &= !1;
        words[WORDS - 1] &= !(1 << 63);
        VlanSet(Box::new(words))
    }

    /// Whether `vid` is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, vid: Vid) -> bool {
        let (word, bit) = place(vid);
        self.0[word] >> bit & 1 != 0
    }

    /// Adds a VLAN.
    pub fn insert(&mut self, vid: Vid) {
        let (word, bit) = place(vid);
        self.0[word] |= 1 << bit;
    }

    /// Takes a VLAN out.
    pub fn remove(&mut self, vid: Vid) {
        let (word, bit) = place(vid);
        self.0[word] &= !(1 << bit);
    }

    /// How many VLANs are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no VLAN is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The VLANs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Vid> + '_ {
        (1..=4094)
            .filter_map(Vid::new)
            .filter(|vid| self.contains(*vid))
    }

    /// Adds what one item names: `7` or `30-40`.
    fn insert_text(&mut self, item: &str) -> Option<()> {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last): (Vid, Vid) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then(|| {
            (first.get()..=last.get())
                .filter_map(Vid::new)
                .for_each(|vid| self.insert(vid));
        })
    }
}

/// The word, below [`WORDS`], and the bit of a VLAN.
#[inline]
fn place(vid: Vid) -> (usize, u32) {
    let vid = vid.get();
    (usize::from(vid >> 6) % WORDS, u32::from(vid & 63))
}

impl FromIterator<Vid> for VlanSet {
    fn from_iter<I: IntoIterator<Item = Vid>>(vids: I) -> VlanSet {
        let mut set = VlanSet::none();
        vids.into_iter().for_each(|vid| set.insert(vid));
        set
    }
}

impl FromStr for VlanSet {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<VlanSet, ValueError> {
        let mut set = VlanSet::none();
        for item in text.split([',', ':']) {
            set.insert_text(item.trim())
                .ok_or_else(|| ValueError::form("VLAN list", text, RULE))?;
        }
        Ok(set)
    }
}

/// In runs: `10,20,30-40`; nothing for the empty set.
impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| next.get() == last.get() + 1) {
                last = next;
            }
            match last.get() - first.get() {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl JsonSchema for VlanSet {
    fn schema_name() -> Cow<'static, str> {
        "VlanSet".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({
            "type": "string",
            "description": "VLANs, as in \"10,20,30-40\".",
        });
        if generator.contract().is_serialize() {
            return text;
        }
        let item = json!({"type": ["integer", "string"]});
        json_schema!({"anyOf": [text, {"type": "integer"}, {"type": "array", "items": item}]})
    }
}

impl Serialize for VlanSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VlanSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VlanSet, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// Reads a number, a text, or a list of both.
struct Written;

/// One element of a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Number(i64),
    Text(String),
}

impl<'de> Visitor<'de> for Written {
    type Value = VlanSet;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VLANs, as in \"10,20,30-40\" or [10, 20, \"30-40\"]")
    }

    fn visit_i64<E: de::Error>(self, vid: i64) -> Result<VlanSet, E> {
        self.visit_str(&vid.to_string())
    }

    fn visit_u64<E: de::Error>(self, vid: u64) -> Result<VlanSet, E> {
        self.visit_str(&vid.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<VlanSet, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<VlanSet, A::Error> {
        let mut set = VlanSet::none();
        while let Some(item) = list.next_element()? {
            let text = match item {
                Item::Number(vid) => vid.to_string(),
                Item::Text(text) => text,
            };
            set.insert_text(text.trim())
                .ok_or_else(|| de::Error::custom(ValueError::form("VLAN list", text, RULE)))?;
        }
        if set.is_empty() {
            return Err(de::Error::custom(ValueError::form("VLAN list", "[]", RULE)));
        }
        Ok(set)
    }
}
