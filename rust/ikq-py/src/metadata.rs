//! GGUF metadata, whose values are converted to and from Python objects.
//!
//! The type of a value is named by a string: `uint8` ... `float64`, `bool`, `string`, `array[TYPE]`.

use ikq_gguf::{Array, Bytes, Value, ValueType};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::errors::{FormatError, Raise};

/// The key-value pairs of a GGUF file in their order; each keeps the bytes that it had in its file.
#[pyclass(module = "ikq._ikq")]
#[derive(Default)]
pub struct Metadata {
    pub inner: ikq_gguf::Metadata,
}

#[pymethods]
impl Metadata {
    #[new]
    fn new() -> Metadata {
        Metadata::default()
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    fn copy(&self) -> Metadata {
        Metadata { inner: self.inner.clone() }
    }

    fn keys(&self) -> Vec<String> {
        self.inner.iter().map(|kv| kv.key().to_string()).collect()
    }

    fn contains(&self, key: &str) -> bool {
        self.inner.get(key).is_some()
    }

    /// The value of `key`, or None.
    fn get<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.inner.get(key).map(|v| to_python(py, v)).transpose()
    }

    /// The type of the value of `key`, or None.
    fn type_of(&self, key: &str) -> Option<String> {
        self.inner.get(key).map(type_name)
    }

    /// Sets `key` to a value of the type that `type_name` names.
    fn set(&mut self, py: Python<'_>, key: &str, type_name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let wrong = |why: String| FormatError::new_err(format!("key `{key}`: {why}"));
        let ty = Type::parse(type_name).ok_or_else(|| {
            wrong(format!("unknown value type `{type_name}`; use {} or array[TYPE]", scalar_names()))
        })?;
        let value = from_python(py, &ty, value).map_err(|e| match e.is_instance_of::<FormatError>(py) {
            true => wrong(e.value(py).to_string()),
            false => wrong(format!("the value is no {type_name}: {}", e.value(py))),
        })?;
        self.inner.set(key, value);
        Ok(())
    }

    /// Removes `key`, and returns whether it was there.
    fn remove(&mut self, key: &str) -> bool {
        self.inner.remove(key)
    }
}

/// The type of a value, for an array together with the type of its elements.
enum Type {
    Scalar(ValueType),
    Array(Box<Type>),
}

impl Type {
    fn parse(name: &str) -> Option<Type> {
        match name.strip_prefix("array[").and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => Type::parse(inner).map(|t| Type::Array(Box::new(t))),
            None => scalar_types().find(|t| t.name() == name).map(Type::Scalar),
        }
    }

    fn value_type(&self) -> ValueType {
        match self {
            Type::Scalar(ty) => *ty,
            Type::Array(_) => ValueType::Array,
        }
    }
}

fn scalar_types() -> impl Iterator<Item = ValueType> {
    ValueType::ALL.iter().copied().filter(|t| *t != ValueType::Array)
}

fn scalar_names() -> String {
    scalar_types().map(ValueType::name).collect::<Vec<_>>().join(", ")
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Array(a) if a.element_type() == ValueType::Array => {
            let inner = a.iter().next().map_or("array".to_string(), |v| type_name(&v));
            format!("array[{inner}]")
        }
        Value::Array(a) => format!("array[{}]", a.element_type().name()),
        other => other.value_type().name().to_string(),
    }
}

/// Converts a GGUF string to `str`, or to `bytes` if it is not valid UTF-8.
fn string<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyAny> {
    match std::str::from_utf8(bytes) {
        Ok(s) => PyString::new(py, s).into_any(),
        Err(_) => PyBytes::new(py, bytes).into_any(),
    }
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::U8(v) => v.into_pyobject(py)?.into_any(),
        Value::I8(v) => v.into_pyobject(py)?.into_any(),
        Value::U16(v) => v.into_pyobject(py)?.into_any(),
        Value::I16(v) => v.into_pyobject(py)?.into_any(),
        Value::U32(v) => v.into_pyobject(py)?.into_any(),
        Value::I32(v) => v.into_pyobject(py)?.into_any(),
        Value::U64(v) => v.into_pyobject(py)?.into_any(),
        Value::I64(v) => v.into_pyobject(py)?.into_any(),
        Value::F32(v) => v.into_pyobject(py)?.into_any(),
        Value::F64(v) => v.into_pyobject(py)?.into_any(),
        Value::Bool(v) => v.into_pyobject(py)?.to_owned().into_any(),
        Value::String(v) => string(py, v),
        Value::Array(a) if a.element_type() == ValueType::String => {
            let list = PyList::empty(py);
            a.strings().try_for_each(|s| list.append(string(py, s)))?;
            list.into_any()
        }
        Value::Array(a) => {
            let list = PyList::empty(py);
            a.iter().try_for_each(|v| list.append(to_python(py, &v)?))?;
            list.into_any()
        }
    })
}

fn from_python(py: Python<'_>, ty: &Type, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    Ok(match ty {
        Type::Scalar(ValueType::U8) => Value::U8(value.extract()?),
        Type::Scalar(ValueType::I8) => Value::I8(value.extract()?),
        Type::Scalar(ValueType::U16) => Value::U16(value.extract()?),
        Type::Scalar(ValueType::I16) => Value::I16(value.extract()?),
        Type::Scalar(ValueType::U32) => Value::U32(value.extract()?),
        Type::Scalar(ValueType::I32) => Value::I32(value.extract()?),
        Type::Scalar(ValueType::U64) => Value::U64(value.extract()?),
        Type::Scalar(ValueType::I64) => Value::I64(value.extract()?),
        Type::Scalar(ValueType::F32) => Value::F32(value.extract()?),
        Type::Scalar(ValueType::F64) => Value::F64(value.extract()?),
        Type::Scalar(ValueType::Bool) => Value::Bool(value.extract()?),
        Type::Scalar(ValueType::String | ValueType::Array) => Value::String(match value.cast::<PyBytes>() {
            Ok(bytes) => Bytes::from(bytes.as_bytes().to_vec()),
            Err(_) => Bytes::from(value.extract::<String>()?.into_bytes()),
        }),
        Type::Array(inner) => {
            // one item at a time: those of a vocabulary would take many times the memory of their bytes
            let (mut items, mut failed) = (value.try_iter()?, None);
            let values =
                std::iter::from_fn(|| match items.next()?.and_then(|v| from_python(py, inner, &v)) {
                    Ok(value) => Some(value),
                    Err(e) => {
                        failed = Some(e);
                        None
                    }
                });
            let array = Array::new(inner.value_type(), values);
            match failed {
                Some(e) => return Err(e),
                None => Value::Array(array.map_err(|e| e.raise(py))?),
            }
        }
    })
}
