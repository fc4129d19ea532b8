//! Why a step is made: said only when somebody reads it. A plan for a full host has a hundred
//! thousand steps, and a text for each took most of its time.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::attribute::Attribute;

/// Why a step is made. Written down as its sentence, and read back as that.
#[derive(Clone, Debug)]
pub enum Reason {
    /// What is always said.
    Fixed(&'static str),
    /// What is there now.
    Now(Attribute),
    /// Anything else. Boxed: a plan's steps are many, and their size is most of its time.
    Text(Box<str>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(text) => f.write_str(text),
            Self::Now(attribute) => write!(f, "it is {attribute}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What is read back is equal to what was written.
impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Reason {}

impl From<&'static str> for Reason {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl JsonSchema for Reason {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Reason".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_read_back_as_they_were_written() {
        for (reason, text) in [
            (Reason::Fixed("it is new"), "it is new"),
            (Reason::from("it has 3".to_owned()), "it has 3"),
            (Reason::Now(Attribute::Trust(true)), "it is trust on"),
        ] {
            let written = serde_json::to_string(&reason).unwrap();
            assert_eq!(written, format!("{text:?}"));
            let read: Reason = serde_json::from_str(&written).unwrap();
            assert_eq!(read, reason);
        }
        assert_ne!(Reason::Fixed("it is new"), Reason::Fixed("it is old"));
    }
}
