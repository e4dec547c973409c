//! `--override-kv KEY=TYPE:VALUE`: metadata that the output (and the rules) see changed.

use ikq_gguf::{Metadata, Value};

use crate::error::Error;

/// One override.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub key: String,
    pub value: OverrideValue,
}

/// The types that the option knows.
#[derive(Clone, Debug, PartialEq)]
pub enum OverrideValue {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
}

impl Override {
    /// Parses `KEY=TYPE:VALUE` with TYPE int, float, bool or str.
    ///
    /// # Errors
    /// [`Error::Override`] saying what is wrong.
    pub fn parse(text: &str) -> Result<Override, Error> {
        let bad = |why: String| Error::Override { text: text.to_string(), why };
        let (key, rest) = text.split_once('=').ok_or_else(|| bad("there is no `=`".into()))?;
        let (ty, value) = rest.split_once(':').ok_or_else(|| bad("there is no `:` after the type".into()))?;
        if key.is_empty() {
            return Err(bad("there is no key".into()));
        }
        let not = |what: &str| bad(format!("`{value}` is not {what}"));
        let value = match ty {
            "int" => OverrideValue::Int(value.parse().map_err(|_| not("a whole number"))?),
            "float" => {
                let number = value.parse().ok().filter(|v: &f64| v.is_finite());
                OverrideValue::Float(number.ok_or_else(|| not("a number"))?)
            }
            "bool" => OverrideValue::Bool(value.parse().map_err(|_| not("true or false"))?),
            "str" => OverrideValue::Str(value.to_string()),
            other => return Err(bad(format!("the type `{other}` is none of int, float, bool, str"))),
        };
        Ok(Override { key: key.to_string(), value })
    }

    /// Sets the key. A whole number keeps the width that the key has, and is 32 bits wide where the
    /// key is new and they suffice: readers insist on the type they expect.
    ///
    /// # Errors
    /// A number that the present type cannot hold.
    pub fn apply(&self, metadata: &mut Metadata) -> Result<(), Error> {
        let value = match &self.value {
            OverrideValue::Int(n) => {
                int_like(metadata.get(&self.key), *n).ok_or_else(|| Error::Override {
                    text: format!("{}=int:{n}", self.key),
                    why: "the type that the key has in the model cannot hold it".into(),
                })?
            }
            OverrideValue::Float(v) => match metadata.get(&self.key) {
                Some(Value::F64(_)) => Value::F64(*v),
                _ => Value::F32(*v as f32),
            },
            OverrideValue::Bool(v) => Value::Bool(*v),
            OverrideValue::Str(v) => Value::from(v.as_str()),
        };
        metadata.set(&self.key, value);
        Ok(())
    }
}

/// `n` in the type of `old`, where that is an integer's.
fn int_like(old: Option<&Value>, n: i64) -> Option<Value> {
    Some(match old {
        Some(Value::U8(_)) => Value::U8(n.try_into().ok()?),
        Some(Value::I8(_)) => Value::I8(n.try_into().ok()?),
        Some(Value::U16(_)) => Value::U16(n.try_into().ok()?),
        Some(Value::I16(_)) => Value::I16(n.try_into().ok()?),
        Some(Value::U32(_)) => Value::U32(n.try_into().ok()?),
        Some(Value::I32(_)) => Value::I32(n.try_into().ok()?),
        Some(Value::U64(_)) => Value::U64(n.try_into().ok()?),
        Some(Value::I64(_)) => Value::I64(n),
        _ => match (u32::try_from(n), i32::try_from(n)) {
            (Ok(n), _) => Value::U32(n),
            (_, Ok(n)) => Value::I32(n),
            _ => Value::I64(n),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, old: Option<Value>) -> Option<Value> {
        let mut metadata = Metadata::new();
        if let Some(old) = old {
            metadata.set("k", old);
        }
        Override::parse(text).expect("valid").apply(&mut metadata).ok()?;
        metadata.get("k").cloned()
    }

    #[test]
    fn values_keep_the_type_of_their_key() {
        assert_eq!(applied("k=int:7", None), Some(Value::U32(7)));
        assert_eq!(applied("k=int:-7", None), Some(Value::I32(-7)));
        assert_eq!(applied("k=int:7", Some(Value::U64(1))), Some(Value::U64(7)));
        assert_eq!(applied("k=int:300", Some(Value::U8(1))), None);
        assert_eq!(applied("k=float:0.5", None), Some(Value::F32(0.5)));
        assert_eq!(applied("k=bool:true", Some(Value::Bool(false))), Some(Value::Bool(true)));
        assert_eq!(applied("k=str:a=b:c", None), Some(Value::from("a=b:c")));
    }

    #[test]
    fn faults_are_named() {
        for (text, what) in [
            ("k", "no `=`"),
            ("k=7", "no `:`"),
            ("=int:7", "no key"),
            ("k=int:x", "whole number"),
            ("k=float:nan", "number"),
            ("k=bool:1", "true or false"),
            ("k=u32:1", "none of int"),
        ] {
            let message = Override::parse(text).expect_err(text).to_string();
            assert!(message.contains(what), "{text}: {message}");
        }
    }
}
