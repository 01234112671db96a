//! JSON as tokens and key sets need it: bounded in depth, and no member twice, so that no two readers can see
//! different things in one text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::metadata::Datum;

/// How deep values may be nested.
pub(super) const MAX_DEPTH: u32 = 64;

/// Reads one object and nothing after it.
pub(super) fn object(bytes: &[u8]) -> Option<BTreeMap<Arc<str>, Datum>> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let datum = Depth(MAX_DEPTH).deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    match datum {
        Datum::Object(members) => Some(members),
        _ => None,
    }
}

/// A value that may be nested so much deeper.
#[derive(Clone, Copy)]
struct Depth(u32);

impl Depth {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Datum;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Datum, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Datum;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Datum, E> {
        Ok(Datum::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Datum, E> {
        Ok(Datum::Flag(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Datum, E> {
        Ok(Datum::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Datum, E> {
        Ok(Datum::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Datum, E> {
        Ok(Datum::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Datum, E> {
        Ok(Datum::Text(Arc::from(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Datum, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Datum::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Datum, A::Error> {
        let inner = self.deeper()?;
        let mut object = BTreeMap::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if object.insert(Arc::from(name.as_str()), value).is_some() {
                return Err(A::Error::custom(format!("{name:?} stands twice")));
            }
        }
        Ok(Datum::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_meaning_only() {
        assert!(object(br#"{"a": {"b": [1, 2.5, "x", null, true]}}"#).is_some());
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":1} {}"#,
            r#"{"a":1e999}"#,
            "[]",
            "",
            "null",
            "{\"a\":\"\u{1}\"}",
            "{a:1}",
            r#"{"a":1,}"#,
            r#"{"a":"\ud800"}"#,
        ] {
            assert_eq!(object(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), None, "no UTF-8");
    }

    #[test]
    fn depth_has_a_bound() {
        let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(63).as_bytes()).is_some());
        assert!(object(nested(64).as_bytes()).is_none());
        assert!(object(nested(100_000).as_bytes()).is_none());
    }
}
