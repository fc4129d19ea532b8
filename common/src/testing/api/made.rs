//! Values made from a schema, and the same with one thing wrong.
//!
//! What schemars writes is understood, and no more of JSON Schema. Words that mean something to the
//! daemon (a name, a path, a rate) stand for some of the strings, so that requests get further than
//! the first check.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::Union;
use serde_json::{Map, Number, Value, json};

/// Most elements of an array, and keys of an object that takes any.
const MANY: usize = 3;
/// A key that no schema has.
pub(super) const ODD_KEY: &str = "no_such_key";

/// What was done to a value.
#[derive(Clone, Debug)]
pub(super) struct Spoilt {
    /// The value before.
    pub(super) before: Value,
    /// The value now.
    pub(super) value: Value,
    /// What an error should name, one of these: the key, and what stands there.
    pub(super) names: Vec<String>,
}

/// Values that `schema` takes.
pub(super) fn valid(schema: &Value, words: &[&str]) -> BoxedStrategy<Value> {
    if let Some(value) = schema.get("const") {
        return Just(value.clone()).boxed();
    }
    for choice in ["oneOf", "anyOf"] {
        if let Some(all) = schema[choice].as_array() {
            return Union::new(all.iter().map(|one| valid(one, words))).boxed();
        }
    }
    match &schema["type"] {
        Value::Array(kinds) => {
            let kinds = kinds.iter().filter_map(Value::as_str);
            Union::new(kinds.map(|kind| of_kind(kind, schema, words))).boxed()
        }
        Value::String(kind) => of_kind(kind, schema, words),
        _ => select(junk()).boxed(),
    }
}

fn of_kind(kind: &str, schema: &Value, words: &[&str]) -> BoxedStrategy<Value> {
    match kind {
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "integer" => integer(schema),
        "number" => any::<f32>()
            .prop_map(|number| Number::from_f64(number.into()).map_or(Value::Null, Value::from))
            .boxed(),
        "string" => string(schema, words),
        "array" => {
            let item = valid(&schema["items"], words);
            let items = prop::collection::vec(item, 0..=MANY);
            items.prop_map(Value::from).boxed()
        }
        "object" => object(schema, words),
        _ => Just(Value::Null).boxed(),
    }
}

/// Between the bounds, and often at one of them.
fn integer(schema: &Value) -> BoxedStrategy<Value> {
    let bound = |key: &str| schema[key].as_number().and_then(Number::as_i128);
    let (min, max) = match schema["format"].as_str() {
        Some("uint64" | "uint") => (0, u64::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    };
    let min: i128 = bound("minimum").unwrap_or(min);
    let max: i128 = bound("maximum").unwrap_or(max);
    let near = max.min(min.saturating_add(100));
    let number = prop_oneof![Just(min), Just(max), min..=near, min..=max];
    let value = |number| Number::from_i128(number).map_or(Value::Null, Value::from);
    number.prop_map(value).boxed()
}

/// Words, those of them that the schema takes, and what its pattern says or anything.
fn string(schema: &Value, words: &[&str]) -> BoxedStrategy<Value> {
    let other = match schema["pattern"].as_str() {
        Some(pattern) => {
            // What it makes begins and ends there anyway.
            let inside = pattern.trim_start_matches('^').trim_end_matches('$');
            proptest::string::string_regex(inside).map(Strategy::boxed)
        }
        None => Ok(prop_oneof!["[ -~]{0,12}", any::<String>()].boxed()),
    };
    let words = words.iter().map(|word| (*word).to_owned());
    let words = words.filter(|word| jsonschema::is_valid(schema, &json!(word)));
    let words: Vec<String> = words.collect();
    let all = match (other, words.is_empty()) {
        (Ok(other), true) => other,
        (Ok(other), false) => prop_oneof![3 => select(words), 1 => other].boxed(),
        (Err(_), _) => select(words).boxed(),
    };
    all.prop_map(Value::from).boxed()
}

/// What is required, and each of the rest or not.
fn object(schema: &Value, words: &[&str]) -> BoxedStrategy<Value> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let required = |key: &str| {
        let all = schema["required"].as_array().into_iter().flatten();
        all.into_iter().any(|one| one == key)
    };
    let members = properties.map(|(key, schema)| {
        let value = valid(schema, words);
        let value = match required(key) {
            true => value.prop_map(Some).boxed(),
            false => prop::option::weighted(0.4, value).boxed(),
        };
        value.prop_map({
            let key = key.clone();
            move |value| value.map(|value| (key.clone(), value))
        })
    });
    let members: Vec<_> = members.collect();
    let more = if schema["additionalProperties"] == true {
        MANY
    } else {
        0
    };
    let more = prop::collection::vec(("[a-z]{1,8}", select(junk())), 0..=more);
    let whole = (members, more).prop_map(|(members, more)| {
        let members = members.into_iter().flatten();
        Value::Object(members.chain(more).collect::<Map<_, _>>())
    });
    whole.boxed()
}

/// What stands where something else should.
fn junk() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!(99_999_999_999_u64),
        json!("%ff odd"),
        json!([]),
        json!([1]),
        json!({}),
        json!({ ODD_KEY: 1 }),
    ]
}

/// `values` with one thing changed: something else in a place, a key too few, a key too many. It
/// may still be one that the schema takes.
pub(super) fn spoilt(values: BoxedStrategy<Value>) -> impl Strategy<Value = Spoilt> {
    let what = (any::<[Index; 2]>(), 0..4_usize, select(junk()));
    (values, what).prop_map(|(mut value, ([place, which], how, other))| {
        let (before, mut places) = (value.clone(), Vec::new());
        walk(&value, &mut String::new(), &mut places);
        let pointer = places.swap_remove(place.index(places.len()));
        let key = pointer.rsplit('/').next().unwrap_or_default().to_owned();
        // A place in an array has no name.
        let mut names: Vec<String> = [key]
            .into_iter()
            .filter(|key| !key.is_empty() && key.parse::<usize>().is_err())
            .collect();
        let here = value.pointer(&pointer).and_then(Value::as_object);
        if here.is_some_and(|members| members.len() == 1) {
            // It may stand for a choice, and then the error is about the whole.
            names.push("map".to_owned());
        }
        match (value.pointer_mut(&pointer), how) {
            (Some(Value::Object(members)), 0) if !members.is_empty() => {
                let keys: Vec<String> = members.keys().cloned().collect();
                let key = which.get(&keys);
                members.remove(key);
                names.push(key.clone());
            }
            (Some(Value::Object(members)), 1) => {
                members.insert(ODD_KEY.to_owned(), other);
                names.push(ODD_KEY.to_owned());
            }
            (Some(here), _) => {
                // Of an object, a key that is gone may be named, or one that is new.
                let objects = [&*here, &other].map(Value::as_object);
                names.extend(
                    objects
                        .into_iter()
                        .flatten()
                        .flat_map(|keys| keys.keys().cloned()),
                );
                names.push(shown(&other));
                *here = other;
            }
            (None, _) => {}
        }
        names.retain(|name| !name.is_empty());
        Spoilt {
            before,
            value,
            names,
        }
    })
}

/// `value` as an error shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "sequence".to_owned(),
        Value::Object(_) => "map".to_owned(),
        Value::String(text) => text.clone(),
        plain => plain.to_string(),
    }
}

/// Where `value` has something, as JSON pointers.
fn walk(value: &Value, at: &mut String, places: &mut Vec<String>) {
    places.push(at.clone());
    let mut step = |key: &str, value: &Value| {
        let len = at.len();
        at.push('/');
        at.push_str(&super::escaped(key));
        walk(value, at, places);
        at.truncate(len);
    };
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                step(&index.to_string(), item);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                step(key, member);
            }
        }
        _ => {}
    }
}
