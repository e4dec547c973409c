//! [`Metadata`]: key-value pairs in file order, each with its bytes in the file.

use crate::bytes::Bytes;
use crate::value::Value;

/// One key-value pair. It keeps its bytes from the file, so that it can be written again byte for byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Kv {
    key: String,
    value: Value,
    raw: Bytes,
}

impl Kv {
    /// A new pair.
    pub fn new(key: impl Into<String>, value: impl Into<Value>) -> Kv {
        let (key, value) = (key.into(), value.into());
        let raw = Bytes::from(encode_kv(&key, &value));
        let value = match value {
            Value::Array(array) => Value::Array(array.within(&raw)),
            other => other,
        };
        Kv { key, value, raw }
    }

    /// A pair that was read; `raw` has its bytes.
    pub(crate) fn from_file(key: String, value: Value, raw: Bytes) -> Kv {
        Kv { key, value, raw }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The bytes of the whole pair (key, type, value) in the file.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }
}

/// A key-value pair as bytes: key, type id, value.
pub fn encode_kv(key: &str, value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 32);
    out.extend((key.len() as u64).to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    out.extend(value.value_type().id().to_le_bytes());
    value.encode_into(&mut out);
    out
}

/// Key-value pairs in order. Keys are unique in a file that was read; the writer refuses pairs with equal keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    pairs: Vec<Kv>,
}

impl Metadata {
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.iter().find(|kv| kv.key == key).map(|kv| &kv.value)
    }

    /// Replaces the value of `key` at its place, or appends the pair.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let kv = Kv::new(key, value);
        match self.pairs.iter_mut().find(|old| old.key == key) {
            Some(old) => *old = kv,
            None => self.pairs.push(kv),
        }
    }

    /// Removes `key`. Returns whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let before = self.pairs.len();
        self.pairs.retain(|kv| kv.key != key);
        self.pairs.len() < before
    }

    /// Appends a pair without looking for its key among the others.
    pub fn push(&mut self, kv: Kv) {
        self.pairs.push(kv);
    }

    /// The pairs in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Kv> {
        self.pairs.iter()
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl From<Vec<Kv>> for Metadata {
    fn from(pairs: Vec<Kv>) -> Metadata {
        Metadata { pairs }
    }
}

impl<'a> IntoIterator for &'a Metadata {
    type Item = &'a Kv;
    type IntoIter = std::slice::Iter<'a, Kv>;

    fn into_iter(self) -> Self::IntoIter {
        self.pairs.iter()
    }
}

impl FromIterator<Kv> for Metadata {
    fn from_iter<T: IntoIterator<Item = Kv>>(pairs: T) -> Metadata {
        Metadata { pairs: pairs.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_the_bytes_of_the_specification() {
        let expected = [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', 4, 0, 0, 0, 5, 0, 0, 0];
        assert_eq!(encode_kv("ab", &Value::U32(5)), expected);
        assert_eq!(*Kv::new("ab", 5u32).raw, expected);
    }

    #[test]
    fn set_keeps_the_place() {
        let mut m = Metadata::new();
        m.set("a", 1u32);
        m.set("b", 2u32);
        m.set("a", "new");
        let keys: Vec<&str> = m.iter().map(|kv| kv.key.as_str()).collect();
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(m.get("a").and_then(Value::as_str), Some("new"));
        assert!(m.remove("a") && !m.remove("a"));
        assert_eq!(m.len(), 1);
    }
}
