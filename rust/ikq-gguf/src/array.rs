//! [`Array`]: a metadata array, whose elements are decoded when they are read.

use std::fmt;

use crate::MAX_ARRAY_DEPTH;
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::{Error, Fault};
use crate::value::{Value, ValueType};

/// An array of metadata values, kept as the bytes of the file. Opening a file with a vocabulary of 150,000 strings
/// takes one pass over their lengths; nothing more is done until the array is iterated.
#[derive(Clone, PartialEq)]
pub struct Array {
    element_type: ValueType,
    len: u64,
    raw: Bytes,
}

impl Array {
    /// An array of `items`, which must all have type `element_type` (an empty array has one too).
    ///
    /// # Errors
    /// [`Error::MixedArray`] for an item of another type.
    pub fn new(
        element_type: ValueType,
        items: impl IntoIterator<Item = impl Into<Value>>,
    ) -> Result<Array, Error> {
        let mut raw = Vec::new();
        let mut len = 0;
        for item in items {
            let item = item.into();
            if item.value_type() != element_type {
                return Err(Error::MixedArray {
                    index: len as usize,
                    expected: element_type.name(),
                    found: item.value_type().name(),
                });
            }
            item.encode_into(&mut raw);
            len += 1;
        }
        Ok(Array { element_type, len, raw: raw.into() })
    }

    /// An array of strings (text or raw bytes).
    pub fn of_strings(items: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Array {
        let mut raw = Vec::new();
        let mut len = 0;
        for item in items {
            let item = item.as_ref();
            raw.extend((item.len() as u64).to_le_bytes());
            raw.extend_from_slice(item);
            len += 1;
        }
        Array { element_type: ValueType::String, len, raw: raw.into() }
    }

    /// The same array as a view of `encoded`, which ends with its elements, so that they are not kept twice.
    pub(crate) fn within(self, encoded: &Bytes) -> Array {
        let n = encoded.len();
        let raw = encoded.slice(n - self.raw.len()..n).filter(|view| **view == *self.raw);
        Array { raw: raw.unwrap_or(self.raw), ..self }
    }

    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of the elements in the file, little endian; scalars take `len` times their size.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The elements in order. Strings and inner arrays are views, not copies.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let mut at = 0;
        (0..self.len).map_while(move |_| {
            let rest = self.raw.slice(at..self.raw.len())?;
            let mut cursor = Cursor::new(&rest);
            // checked when the file was opened, and again here, because a mapped file can change
            let value = read_value(&mut cursor, &rest, self.element_type, 0).ok()?;
            at += cursor.at();
            Some(value)
        })
    }

    /// The strings of an array of strings, as bytes; nothing for other arrays.
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> + '_ {
        let n = if self.element_type == ValueType::String { self.len } else { 0 };
        let mut cursor = Cursor::new(&self.raw);
        (0..n).map_while(move |_| {
            let len = cursor.u64("string").ok()?;
            cursor.take(len, "string").ok()
        })
    }

    /// Every element as `u64`; `None` when one is not an integer or is negative.
    pub fn to_u64s(&self) -> Option<Vec<u64>> {
        self.iter().map(|v| v.as_u64()).collect()
    }

    /// Every element as `i64`; `None` when one is not an integer or does not fit.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        self.iter().map(|v| v.as_i64()).collect()
    }

    /// Every element as `f64`; `None` when one is not a number.
    pub fn to_f64s(&self) -> Option<Vec<f64>> {
        self.iter().map(|v| v.as_f64()).collect()
    }

    /// Every element as text; `None` when the elements are not strings or one is not UTF-8.
    pub fn to_strs(&self) -> Option<Vec<&str>> {
        if self.element_type != ValueType::String {
            return None;
        }
        self.strings().map(|s| std::str::from_utf8(s).ok()).collect()
    }
}

/// Reads one value of type `ty`; `view` is all of the memory that `cursor` reads.
///
/// # Errors
/// [`Fault::Truncated`], [`Fault::Count`], [`Fault::ValueType`], [`Fault::ArrayDepth`], the last two
/// without their key.
pub(crate) fn read_value(
    cursor: &mut Cursor<'_>,
    view: &Bytes,
    ty: ValueType,
    depth: u32,
) -> Result<Value, Fault> {
    let lost = |c: &Cursor<'_>| Fault::Truncated {
        offset: c.offset(),
        what: "value",
        of: None,
        needed: 1,
        file_len: view.len() as u64,
    };
    match ty {
        ValueType::String => {
            let len = cursor.u64("string length")?;
            let range = cursor.skip(len, "string")?;
            view.slice(range).map(Value::String).ok_or_else(|| lost(cursor))
        }
        ValueType::Array => {
            let (element_type, len) = array_head(cursor, depth)?;
            let start = cursor.at();
            skip_elements(cursor, element_type, len, depth)?;
            let raw = view.slice(start..cursor.at()).ok_or_else(|| lost(cursor))?;
            Ok(Value::Array(Array { element_type, len, raw }))
        }
        _ => {
            let bytes = cursor.take(ty.min_bytes(), ty.name())?;
            Value::from_fixed(ty, bytes).ok_or_else(|| lost(cursor))
        }
    }
}

/// Reads the element type and the count of an array, and checks that the rest of the file could hold that many.
fn array_head(cursor: &mut Cursor<'_>, depth: u32) -> Result<(ValueType, u64), Fault> {
    let offset = cursor.offset();
    if depth >= MAX_ARRAY_DEPTH {
        return Err(Fault::ArrayDepth { offset, key: String::new(), max: MAX_ARRAY_DEPTH });
    }
    let id = cursor.u32("array element type")?;
    let ty = ValueType::from_id(id).ok_or(Fault::ValueType { offset, key: String::new(), id })?;
    let len = cursor.count("array elements", ty.min_bytes(), u64::MAX)?;
    Ok((ty, len))
}

/// Skips `len` elements, and checks them meanwhile.
fn skip_elements(cursor: &mut Cursor<'_>, ty: ValueType, len: u64, depth: u32) -> Result<(), Fault> {
    match ty {
        ValueType::String => {
            for _ in 0..len {
                let n = cursor.u64("string length in an array")?;
                cursor.skip(n, "string in an array")?;
            }
        }
        ValueType::Array => {
            for _ in 0..len {
                let (inner, n) = array_head(cursor, depth + 1)?;
                skip_elements(cursor, inner, n, depth + 1)?;
            }
        }
        _ => {
            // no overflow: `array_head` found len * min_bytes within the file
            cursor.skip(len * ty.min_bytes(), "array")?;
        }
    }
    Ok(())
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, v) in self.iter().take(8).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match v {
                Value::String(_) => write!(f, "{comma}{v:?}")?,
                _ => write!(f, "{comma}{v}")?,
            }
        }
        match self.len {
            0..=8 => f.write_str("]"),
            n => write!(f, ", ... {n} in all]"),
        }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.len, self.element_type.name())
    }
}

macro_rules! from_slice {
    ($($rust:ty => $name:ident),*) => {
        $(impl From<&[$rust]> for Array {
            fn from(items: &[$rust]) -> Array {
                let mut raw = Vec::with_capacity(size_of_val(items));
                for v in items {
                    raw.extend(v.to_le_bytes());
                }
                Array { element_type: ValueType::$name, len: items.len() as u64, raw: raw.into() }
            }
        })*
    };
}
from_slice!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32,
            u64 => U64, i64 => I64, f64 => F64);

impl From<&[bool]> for Array {
    fn from(items: &[bool]) -> Array {
        let raw: Vec<u8> = items.iter().map(|v| u8::from(*v)).collect();
        Array { element_type: ValueType::Bool, len: items.len() as u64, raw: raw.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reread(value: &Value) -> Result<Value, Fault> {
        let mut bytes = Vec::new();
        value.encode_into(&mut bytes);
        let view = Bytes::from(bytes);
        read_value(&mut Cursor::new(&view), &view, value.value_type(), 0)
    }

    fn nested(levels: u32) -> Value {
        let mut v = Value::Array(Array::from(&[1u8, 2][..]));
        for _ in 1..levels {
            v = Array::new(ValueType::Array, [v.clone(), v]).expect("arrays only").into();
        }
        v
    }

    #[test]
    fn arrays_of_every_type_come_back() {
        let arrays = [
            Array::from(&[1u8, 255][..]),
            Array::from(&[-1i8, 1][..]),
            Array::from(&[1u16, 65_535][..]),
            Array::from(&[-1i16, 7][..]),
            Array::from(&[1u32, 2, 3][..]),
            Array::from(&[-1i32][..]),
            Array::from(&[0.5f32, -0.0][..]),
            Array::from(&[true, false][..]),
            Array::from(&[u64::MAX][..]),
            Array::from(&[i64::MIN][..]),
            Array::from(&[1e-300f64][..]),
            Array::of_strings(["a", "", "bcd"]),
            Array::of_strings([&b"\xff\xfe"[..]]),
            Array::from(&[] as &[f32]),
        ];
        for array in arrays {
            let value = Value::Array(array.clone());
            let back = reread(&value).expect("valid");
            assert_eq!(back, value);
            let items: Vec<Value> = array.iter().collect();
            assert_eq!(items.len() as u64, array.len());
            assert_eq!(Array::new(array.element_type(), items).expect("same types"), array);
        }
    }

    #[test]
    fn nested_arrays_have_a_depth_limit() {
        let deepest = nested(MAX_ARRAY_DEPTH);
        assert_eq!(reread(&deepest), Ok(deepest.clone()));
        let inner = deepest.as_array().and_then(|a| a.iter().next()).expect("two elements");
        assert_eq!(inner, nested(MAX_ARRAY_DEPTH - 1));
        assert!(matches!(reread(&nested(MAX_ARRAY_DEPTH + 1)), Err(Fault::ArrayDepth { .. })));
    }

    #[test]
    fn typed_getters() {
        let ints = Array::from(&[1i32, 2][..]);
        assert_eq!(ints.to_u64s(), Some(vec![1, 2]));
        assert_eq!(ints.to_f64s(), Some(vec![1.0, 2.0]));
        assert_eq!(ints.to_strs(), None);
        assert_eq!(Array::from(&[-1i32][..]).to_u64s(), None);
        assert_eq!(Array::of_strings(["x", "y"]).to_strs(), Some(vec!["x", "y"]));
        assert_eq!(Array::from(&[0u8; 12][..]).to_string(), "[0, 0, 0, 0, 0, 0, 0, 0, ... 12 in all]");
    }

    #[test]
    fn mixed_elements_are_refused() {
        let mixed = Array::new(ValueType::U8, [Value::U8(1), Value::I8(1)]);
        assert!(matches!(mixed, Err(Error::MixedArray { index: 1, .. })));
    }
}
