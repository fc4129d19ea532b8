//! JSON that is read as the document says, and mistakes that are told with their place.
//!
//! serde_json alone takes `[7]` for `{"size_bytes": 7}`, in the order of the fields: a promise that
//! nobody gave, and that the next field would break. Here an object is an object.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// Reads `json`.
///
/// # Errors
/// What is wrong, after the way to it, such as `change.port_add.mtu`; of what is no JSON, line and
/// column.
pub(super) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let value: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| {
        let place = error.path().to_string();
        match place.as_str() {
            "." => error.into_inner().to_string(),
            place => format!("{place}: {}", error.inner()),
        }
    })
}

struct Strict(Value);

impl IntoDeserializer<'_, serde_json::Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Strict));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(members) => {
                let members = members.into_iter().map(|(key, value)| (key, Strict(value)));
                visitor.visit_map(MapDeserializer::new(members))
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(members) if members.len() == 1 => {
                let members = members.into_iter().map(|(key, value)| (key, Strict(value)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(members)))
            }
            // What is none is refused in serde_json's words.
            other => other.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Cup {
        size: u8,
        #[serde(default)]
        note: Option<String>,
        #[serde(default)]
        more: Vec<Order>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Order {
        Plain,
        Filled(Box<Cup>),
    }

    fn cup(json: &str) -> Result<Cup, String> {
        read(json.as_bytes())
    }

    #[test]
    fn what_is_right_is_read() {
        let (plain, note) = (r#"{"size": 1}"#, Some("hot".to_owned()));
        let small = cup(plain).unwrap();
        let more = vec![Order::Plain, Order::Filled(Box::new(small))];
        let json =
            format!(r#"{{"size": 2, "note": "hot", "more": ["plain", {{"filled": {plain}}}]}}"#);
        let size = 2;
        assert_eq!(cup(&json), Ok(Cup { size, note, more }));
        let note = cup(r#"{"size": 1, "note": null}"#).unwrap().note;
        assert_eq!(note, None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (json, message) in [
            ("[1]", "invalid type: sequence, expected an object"),
            (
                r#"{"size": 256}"#,
                "size: invalid value: integer `256`, expected u8",
            ),
            (
                r#"{"size": 1, "note": [7]}"#,
                "note: invalid type: sequence, expected a string",
            ),
            (
                r#"{"size": 1, "colour": 7}"#,
                "unknown field `colour`, expected one of",
            ),
            ("{}", "missing field `size`"),
            (
                r#"{"size": 1, "more": [{"filled": [2]}]}"#,
                "more[0].filled: invalid type: sequence",
            ),
            (
                r#"{"size": 1, "more": [{}]}"#,
                "more[0]: invalid value: map",
            ),
            (
                r#"{"size": 1, "more": [{"plain": 1}]}"#,
                "more[0].plain: invalid type: integer `1`",
            ),
            (
                r#"{"size": 1"#,
                "EOF while parsing an object at line 1 column 10",
            ),
        ] {
            let wrong = cup(json).unwrap_err();
            assert!(wrong.contains(message), "{json}: {wrong}");
        }
    }
}
