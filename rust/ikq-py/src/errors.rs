//! Turns the errors of the other crates into the exceptions of `ikq.errors`.

use std::ffi::OsString;

use pyo3::exceptions::{PyIsADirectoryError, PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;

pyo3::import_exception!(ikq.errors, IkqError);
pyo3::import_exception!(ikq.errors, DeviceError);
pyo3::import_exception!(ikq.errors, DeviceMemoryError);
pyo3::import_exception!(ikq.errors, FormatError);
pyo3::import_exception!(ikq.errors, MissingImatrixError);
pyo3::import_exception!(ikq.errors, RefusedError);
pyo3::import_exception!(ikq.errors, ShapeError);
pyo3::import_exception!(ikq.errors, UnsupportedError);
pyo3::import_exception!(ikq.errors, UsageError);

/// An error that can be turned into a Python exception.
pub trait Raise {
    fn raise(self, py: Python<'_>) -> PyErr;
}

impl Raise for PyErr {
    fn raise(self, _: Python<'_>) -> PyErr {
        self
    }
}

impl Raise for ikq_formats::Error {
    fn raise(self, _: Python<'_>) -> PyErr {
        use ikq_formats::Error::*;
        let message = self.to_string();
        match self {
            UnknownType { .. } | FieldValue { .. } | CodesClash { .. } => FormatError::new_err(message),
            RowLength { .. } | RowCount { .. } | ByteCount { .. } | I2sLength { .. } | TooLarge { .. } => {
                ShapeError::new_err(message)
            }
            Repack { .. } | NoLayout { .. } => UnsupportedError::new_err(message),
            _ => IkqError::new_err(message),
        }
    }
}

impl Raise for ikq_gguf::Error {
    fn raise(self, py: Python<'_>) -> PyErr {
        use ikq_gguf::Error::*;
        let message = self.to_string();
        let path = self.path().map(|p| p.as_os_str().to_os_string());
        match self {
            NoSpace { ref source, .. } | FileTooLarge { ref source, .. } => {
                os_error(py, source.raw_os_error(), message, path)
            }
            Io { ref source, .. } => match source.raw_os_error() {
                Some(number) => os_error(py, Some(number), reason(source), path),
                None => os_error(py, None, message, path),
            },
            ShardMissing { .. } => os_error(py, Some(ENOENT), message, path),
            IsDirectory { .. } => {
                PyIsADirectoryError::new_err((EISDIR, "is a directory, not a GGUF file".to_string(), path))
            }
            UnknownType { .. } => UnsupportedError::new_err(message),
            // an exception that Python code raised is passed on unchanged
            Make { source, .. } => match source.downcast::<PyErr>() {
                Ok(error) => *error,
                Err(_) => FormatError::new_err(message),
            },
            PlanShape { .. } | PlanDims { .. } | WriteRange { .. } => ShapeError::new_err(message),
            _ => FormatError::new_err(message),
        }
    }
}

/// The system's message without the error number, which `OSError` shows anyway.
fn reason(e: &std::io::Error) -> String {
    e.to_string().split(" (os error").next().unwrap_or_default().to_string()
}

const ENOENT: i32 = 2;
const EISDIR: i32 = 21;

/// The `OSError` (or its subclass) for an error number of the system, with the name of the file.
fn os_error(py: Python<'_>, number: Option<i32>, message: String, path: Option<OsString>) -> PyErr {
    match number {
        // called with a number, the class chooses the subclass (FileNotFoundError, ...)
        Some(number) => match py.get_type::<PyOSError>().call1((number, message, path)) {
            Ok(error) => PyErr::from_value(error),
            Err(e) => e,
        },
        None => PyOSError::new_err(message),
    }
}

impl Raise for ikq_encode::Error {
    fn raise(self, py: Python<'_>) -> PyErr {
        use ikq_encode::Error::*;
        let message = self.to_string();
        match self {
            Format(e) => e.raise(py),
            PartRow { .. } | ImportanceLength { .. } => ShapeError::new_err(message),
            NoEncoder { .. } => UnsupportedError::new_err(message),
            _ => FormatError::new_err(message),
        }
    }
}

impl Raise for ikq_quantize::Error {
    fn raise(self, py: Python<'_>) -> PyErr {
        use ikq_quantize::Error::*;
        let refusal = self.is_refusal();
        let message = self.to_string();
        match self {
            Format(e) => e.raise(py),
            Gguf(e) => e.raise(py),
            Imatrix(ikq_quantize::imatrix::ImatrixError::Io { path, source }) => {
                let path = Some(path.into_os_string());
                os_error(py, source.raw_os_error(), reason(&source), path)
            }
            Imatrix(ikq_quantize::imatrix::ImatrixError::Gguf(e)) => e.raise(py),
            Encode(e) => e.raise(py),
            // an exception that Python code raised is passed on unchanged
            Outside(source) => match source.downcast::<PyErr>() {
                Ok(error) => *error,
                Err(_) => IkqError::new_err(message),
            },
            ImatrixShape { .. } => ShapeError::new_err(message),
            TensorNotFinite { .. } => FormatError::new_err(message),
            MissingImatrix { .. } | IncompleteImatrix { .. } => MissingImatrixError::new_err(message),
            Cancelled => PyKeyboardInterrupt::new_err(message),
            _ if refusal => RefusedError::new_err(message),
            _ => FormatError::new_err(message),
        }
    }
}

impl Raise for ikq_model::Error {
    fn raise(self, py: Python<'_>) -> PyErr {
        use ikq_model::Error::*;
        let message = self.to_string();
        match self {
            Gguf(e) => e.raise(py),
            Shape { .. }
            | Experts { .. }
            | Rows { .. }
            | NoTokens
            | Context { .. }
            | Discard { .. }
            | Hidden { .. }
            | AdapterShape { .. } => ShapeError::new_err(message),
            Cache { .. } | Rewind { .. } | Shift | Turn | NotWeights { .. } | AdapterKind { .. } => {
                UnsupportedError::new_err(message)
            }
            Memory { .. } | CacheMemory { .. } | Option { .. } | Threads(_) => RefusedError::new_err(message),
            DeviceMemory { .. } => DeviceMemoryError::new_err(message),
            Device(_) => DeviceError::new_err(message),
            Closed | SameSequence | OtherModel => PyValueError::new_err(message),
            Io { path, source } => os_error(py, source.raw_os_error(), reason(&source), Some(path.into())),
            _ => FormatError::new_err(message),
        }
    }
}
