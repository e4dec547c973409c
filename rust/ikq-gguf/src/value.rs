//! [`Value`]: a metadata value of any GGUF type.

use std::borrow::Cow;
use std::fmt;

use crate::array::Array;
use crate::bytes::Bytes;

macro_rules! value_types {
    ($($name:ident = $id:literal, $text:literal, $size:expr;)*) => {
        /// The type of a metadata value; the discriminant is its id in the file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ValueType { $($name = $id,)* }

        impl ValueType {
            /// Every type, in order of id.
            pub const ALL: &'static [ValueType] = &[$(ValueType::$name,)*];

            /// The type with this id.
            pub const fn from_id(id: u32) -> Option<ValueType> {
                match id {
                    $($id => Some(ValueType::$name),)*
                    _ => None,
                }
            }

            /// Name as the specification writes it, in lower case.
            pub const fn name(self) -> &'static str {
                match self { $(ValueType::$name => $text,)* }
            }

            /// Bytes of one value; `None` for strings and arrays.
            pub const fn fixed_bytes(self) -> Option<usize> {
                match self { $(ValueType::$name => $size,)* }
            }
        }
    };
}

// ids and sizes are those of the GGUF specification (ggml/docs/gguf.md)
value_types! {
    U8 = 0, "uint8", Some(1);
    I8 = 1, "int8", Some(1);
    U16 = 2, "uint16", Some(2);
    I16 = 3, "int16", Some(2);
    U32 = 4, "uint32", Some(4);
    I32 = 5, "int32", Some(4);
    F32 = 6, "float32", Some(4);
    Bool = 7, "bool", Some(1);
    String = 8, "string", None;
    Array = 9, "array", None;
    U64 = 10, "uint64", Some(8);
    I64 = 11, "int64", Some(8);
    F64 = 12, "float64", Some(8);
}

impl ValueType {
    /// Id in the file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Fewest bytes that a value of the type takes in an array.
    pub(crate) const fn min_bytes(self) -> u64 {
        match self {
            ValueType::String => 8,
            ValueType::Array => 12,
            _ => match self.fixed_bytes() {
                Some(n) => n as u64,
                None => 1,
            },
        }
    }
}

/// A metadata value. Strings and arrays are views of the file, or own their bytes if they were made by
/// `Value::from(...)` or [`Array`]'s constructors.
///
/// A string need not be UTF-8; [`Value::as_bytes`] gives the bytes of the file.
#[derive(Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Bytes),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The type of the value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value if it is an integer of any type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U64(v) => Some(v),
            _ => self.as_i64().and_then(|v| u64::try_from(v).ok()),
        }
    }

    /// The value if it is an integer of any type that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => i64::try_from(v).ok(),
            Value::I64(v) => Some(v),
            _ => None,
        }
    }

    /// The value if it is a float, or an integer as a float (rounded above 2^53).
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            Value::U64(v) => Some(v as f64),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    /// The value if it is a bool (in a file, any byte but 0 is true).
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The value if it is a string and UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        self.as_bytes().and_then(|b| std::str::from_utf8(b).ok())
    }

    /// The value if it is a string, with bytes that are not UTF-8 replaced by U+FFFD.
    pub fn to_str_lossy(&self) -> Option<Cow<'_, str>> {
        self.as_bytes().map(String::from_utf8_lossy)
    }

    /// The bytes of the value if it is a string.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    /// The value if it is an array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }

    /// Appends the bytes that the value has in a file, without its type.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.push(*v),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::String(v) => {
                out.extend((v.len() as u64).to_le_bytes());
                out.extend_from_slice(v);
            }
            Value::Array(v) => {
                out.extend(v.element_type().id().to_le_bytes());
                out.extend(v.len().to_le_bytes());
                out.extend_from_slice(v.raw());
            }
        }
    }

    /// Reads a value of a type with a fixed size from its bytes; `None` for other types or lengths.
    pub(crate) fn from_fixed(ty: ValueType, bytes: &[u8]) -> Option<Value> {
        Some(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::Bool => Value::Bool(u8::from_le_bytes(bytes.try_into().ok()?) != 0),
            ValueType::U64 => Value::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::String | ValueType::Array => return None,
        })
    }
}

impl fmt::Display for Value {
    /// Writes numbers plainly, strings without quotes (bytes that are not UTF-8 replaced), and at most eight
    /// elements of an array.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => f.write_str(&String::from_utf8_lossy(v)),
            Value::Array(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(v) => write!(f, "{:?}", String::from_utf8_lossy(v)),
            other => write!(f, "{}({other})", other.value_type().name()),
        }
    }
}

macro_rules! from_scalar {
    ($($rust:ty => $name:ident),*) => {
        $(impl From<$rust> for Value {
            fn from(v: $rust) -> Value {
                Value::$name(v)
            }
        })*
    };
}
from_scalar!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
             u64 => U64, i64 => I64, f64 => F64, Array => Array);

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(Bytes::from(v.as_bytes().to_vec()))
    }
}

impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::String(Bytes::from(v.into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_file() {
        for (id, ty) in ValueType::ALL.iter().enumerate() {
            assert_eq!((ty.id() as usize, ValueType::from_id(id as u32)), (id, Some(*ty)));
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn scalars_come_back_from_their_bytes() {
        let values = [
            Value::U8(200),
            Value::I8(-3),
            Value::U16(60_000),
            Value::I16(-30_000),
            Value::U32(4_000_000_000),
            Value::I32(-2_000_000_000),
            Value::F32(-1.5),
            Value::Bool(true),
            Value::U64(u64::MAX),
            Value::I64(i64::MIN),
            Value::F64(1e300),
        ];
        for v in values {
            let mut bytes = Vec::new();
            v.encode_into(&mut bytes);
            assert_eq!(Some(bytes.len()), v.value_type().fixed_bytes());
            assert_eq!(Value::from_fixed(v.value_type(), &bytes), Some(v));
        }
    }

    #[test]
    fn getters_convert_only_what_fits() {
        assert_eq!(Value::I8(-1).as_u64(), None);
        assert_eq!(Value::U64(u64::MAX).as_i64(), None);
        assert_eq!(Value::U64(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(Value::I32(7).as_u64(), Some(7));
        assert_eq!(Value::U16(7).as_f64(), Some(7.0));
        assert_eq!(Value::Bool(true).as_u64(), None);
        assert_eq!(Value::F32(1.0).as_i64(), None);
        let odd = Value::String(Bytes::from(vec![b'a', 0xff]));
        assert_eq!((odd.as_str(), odd.as_bytes()), (None, Some(&[b'a', 0xff][..])));
        assert_eq!(odd.to_string(), "a\u{fffd}");
    }
}
