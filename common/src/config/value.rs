//! Values with a rule: each type can only be made from something that obeys it.
//!
//! The same conversions serve TOML (`serde(try_from)`) and the command line (`FromStr`), so a
//! value means the same and fails the same in both. Messages name the value and what is allowed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A value that breaks the rule of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A number outside its range.
    #[error("{what} must be {min} to {max}, not {value}")]
    Range {
        /// The name of the value.
        what: &'static str,
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
        /// What was given.
        value: i64,
    },
    /// A text of the wrong form.
    #[error("{what} {value:?} is not valid: {rule}")]
    Form {
        /// The name of the value.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is right.
        rule: &'static str,
    },
}

impl ValueError {
    /// A [`ValueError::Form`].
    pub fn form(what: &'static str, value: impl Into<String>, rule: &'static str) -> Self {
        Self::Form {
            what,
            value: value.into(),
            rule,
        }
    }
}

/// Defines a whole number with a name and an inclusive range: `TryFrom<i64>`, `FromStr`, `get`.
#[macro_export]
macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident($repr:ty), $what:literal, $min:literal..=$max:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(try_from = "i64")]
        pub struct $name($repr);

        impl $name {
            /// Smallest value.
            pub const MIN: Self = Self($min);
            /// Largest value.
            pub const MAX: Self = Self($max);

            /// The number itself.
            pub const fn get(self) -> $repr {
                self.0
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "integer", "minimum": $min, "maximum": $max})
            }
        }

        impl TryFrom<i64> for $name {
            type Error = $crate::config::ValueError;

            fn try_from(value: i64) -> Result<Self, Self::Error> {
                <$repr>::try_from(value)
                    .ok()
                    .filter(|number| ($min..=$max).contains(number))
                    .map(Self)
                    .ok_or($crate::config::ValueError::Range {
                        what: $what,
                        min: $min,
                        max: $max,
                        value,
                    })
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::config::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let number = text.trim().parse::<i64>().map_err(|_| {
                    $crate::config::ValueError::form($what, text, "write a whole number")
                })?;
                Self::try_from(number)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

ranged! {
    /// A share of a worker's time relative to others that want it; 100 is the usual share.
    Weight(u32), "weight", 1..=10_000
}

impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}

ranged! {
    /// The most a disk or port may use, in percent of one core, even if the core is idle.
    Cap(u32), "cap", 1..=6_400
}

ranged! {
    /// The number of a CPU as the kernel counts them, from 0.
    CpuId(u16), "cpu", 0..=8_191
}

/// Different CPUs, in the order given; one worker each. Written `[2, 3]` or, on a command line,
/// `2,4-6`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<CpuId>")]
pub struct CpuList(Vec<CpuId>);

impl CpuList {
    /// The CPUs.
    pub fn as_slice(&self) -> &[CpuId] {
        &self.0
    }
}

impl TryFrom<Vec<CpuId>> for CpuList {
    type Error = ValueError;

    fn try_from(cpus: Vec<CpuId>) -> Result<Self, ValueError> {
        let twice = cpus
            .iter()
            .enumerate()
            .find(|(index, cpu)| cpus[..*index].contains(cpu));
        match twice {
            Some((_, cpu)) => Err(ValueError::form(
                "cpu",
                cpu.to_string(),
                "name each CPU once",
            )),
            None => Ok(Self(cpus)),
        }
    }
}

impl FromStr for CpuList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut cpus = Vec::new();
        for item in text.split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (first.parse::<CpuId>()?, last.parse::<CpuId>()?);
            cpus.extend((first.get()..=last.get()).map(CpuId));
        }
        cpus.try_into()
    }
}

/// What a worker does when it finds nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Poll while there is work, then sleep until a guest notifies.
    #[default]
    Adaptive,
    /// Poll for ever: lowest latency, a full core each.
    Busy,
    /// Sleep as soon as there is nothing to do: least CPU.
    Interrupt,
}

impl FromStr for Poll {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "adaptive" => Ok(Self::Adaptive),
            "busy" => Ok(Self::Busy),
            "interrupt" => Ok(Self::Interrupt),
            _ => Err(ValueError::form(
                "poll",
                text,
                "use adaptive, busy or interrupt",
            )),
        }
    }
}

/// Which end of a vhost-user socket the daemon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SocketMode {
    /// The daemon listens, the VMM connects.
    #[default]
    Server,
    /// The VMM listens, the daemon connects and reconnects.
    Client,
}

/// The name of a disk, port or other thing an operator refers to.
///
/// 1 to [`Name::MAX_LEN`] of letters, digits, `.`, `_` and `-`, starting with a letter or digit:
/// safe in URLs, metric labels, file names and shells.
/// Shared: thousands of things may belong to one.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[A-Za-z0-9][A-Za-z0-9._-]*$", "maxLength" = Name::MAX_LEN))]
pub struct Name(Arc<str>);

impl Name {
    /// Longest name in bytes.
    pub const MAX_LEN: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest valid name to any text: what is not allowed becomes `-`, the rest is cut.
    pub fn sanitized(text: &str) -> Self {
        let kept: String = text
            .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
            .chars()
            .map(|c| if Self::allows(c) { c } else { '-' })
            .take(Self::MAX_LEN)
            .collect();
        Self(match kept.as_str() {
            "" => "unnamed".into(),
            kept => kept.into(),
        })
    }

    /// This name with `-number` appended, still within [`Name::MAX_LEN`].
    #[must_use]
    pub fn numbered(&self, number: usize) -> Self {
        let suffix = format!("-{number}");
        let room = Self::MAX_LEN.saturating_sub(suffix.len());
        let kept = self.0.chars().take(room).chain(suffix.chars());
        Self(kept.collect::<String>().into())
    }

    fn allows(c: char) -> bool {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
    }
}

impl TryFrom<String> for Name {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= Self::MAX_LEN && text.chars().all(Self::allows) {
            return Ok(Self(text.into()));
        }
        let rule = "use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit";
        Err(ValueError::form("name", text, rule))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The path of a unix socket, short enough for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// `sun_path` holds 108 bytes including the final NUL (unix(7)).
    pub const MAX_LEN: usize = 107;

    /// A path known to be valid when the program is written.
    pub fn literal(path: &'static str) -> Self {
        debug_assert!(!path.is_empty() && path.len() <= Self::MAX_LEN);
        Self(path.into())
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for SocketPath {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if text.is_empty() || text.len() > Self::MAX_LEN || text.contains('\0') {
            let rule = "use a path of 1 to 107 bytes, such as /run/towpath/disk.sock";
            return Err(ValueError::form("socket", text, rule));
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for SocketPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A number of bytes, written as `4G`, `512MiB`, `64K` or plain bytes; units are powers of 1024.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String")]
pub struct ByteSize(u64);

impl ByteSize {
    /// Units from small to large, each 1024 times the one before.
    const UNITS: [&str; 5] = ["K", "M", "G", "T", "P"];

    /// From a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    fn parse(text: &str) -> Option<u64> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let unit = unit.trim_start().to_ascii_uppercase();
        let unit = unit
            .strip_suffix("IB")
            .or(unit.strip_suffix('B'))
            .unwrap_or(&unit);
        let power = match unit {
            "" => 0,
            unit => Self::UNITS.iter().position(|known| *known == unit)? + 1,
        };
        number.checked_mul(1024_u64.checked_pow(u32::try_from(power).ok()?)?)
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rule = "write bytes or a number with K, M, G, T or P (powers of 1024), such as 4G";
        Self::parse(text.trim())
            .map(Self)
            .ok_or_else(|| ValueError::form("size", text, rule))
    }
}

impl TryFrom<String> for ByteSize {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

/// The largest unit that divides it exactly, so that it reads back as the same size.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |power: &usize| self.0 != 0 && self.0.trailing_zeros() as usize >= power * 10;
        let power = (0..=Self::UNITS.len()).rev().find(exact).unwrap_or(0);
        let unit = power.checked_sub(1).map_or("", |index| Self::UNITS[index]);
        f.pad(&format!("{}{unit}", self.0 >> (power * 10)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_and_named_in_the_error() {
        assert_eq!(Weight::try_from(1).unwrap(), Weight::MIN);
        assert_eq!("10000".parse::<Weight>().unwrap(), Weight::MAX);
        assert_eq!(
            Cap::try_from(-5).unwrap_err().to_string(),
            "cap must be 1 to 6400, not -5"
        );
        assert_eq!(
            "x".parse::<CpuId>().unwrap_err().to_string(),
            "cpu \"x\" is not valid: write a whole number"
        );
    }

    #[test]
    fn cpu_lists_take_ranges_and_refuse_repetition() {
        let list: CpuList = "2,4-6".parse().unwrap();
        assert_eq!(list.as_slice(), [CpuId(2), CpuId(4), CpuId(5), CpuId(6)]);
        assert_eq!(
            "1,0-2".parse::<CpuList>().unwrap_err().to_string(),
            "cpu \"1\" is not valid: name each CPU once"
        );
        assert!("".parse::<CpuList>().is_err());
        assert!("0-".parse::<CpuList>().is_err());
    }

    #[test]
    fn names_are_safe_everywhere() {
        for good in ["a", "0", "web-1.data_2"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_text_has_a_nearest_name() {
        for (text, name) in [
            ("my disk", "my-disk"),
            ("..", "unnamed"),
            ("_é1", "1"),
            ("", "unnamed"),
        ] {
            let sanitized = Name::sanitized(text);
            assert_eq!(sanitized.as_str(), name);
            assert_eq!(sanitized.as_str().parse::<Name>().unwrap(), sanitized);
        }
        let long = Name::sanitized(&"x".repeat(99)).numbered(12);
        assert_eq!(long.as_str().len(), Name::MAX_LEN);
        assert!(long.as_str().ends_with("x-12"));
    }

    #[test]
    fn sizes_read_back_as_they_print() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("64 kb", 64 << 10),
            ("16P", 16 << 50),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes, "{text}");
            assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
        assert_eq!(ByteSize::from_bytes(1536).to_string(), "1536");
        assert_eq!(ByteSize::from_bytes(3 << 30).to_string(), "3G");
        for bad in ["", "G", "-1", "4X", "1.5G", "99999P"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn socket_paths_fit_the_kernel() {
        assert!("x".repeat(107).parse::<SocketPath>().is_ok());
        assert!("x".repeat(108).parse::<SocketPath>().is_err());
        assert!("".parse::<SocketPath>().is_err());
    }
}
