//! Environment variables of this crate that hold a number or a switch. What cannot be read is an error that names the
//! variable: a mistyped value would otherwise be as if it were not there.

use crate::error::Error;

/// From how many columns of a step on products are computed in tiles.
pub const MMQ_FROM: &str = "IKQ_CUDA_MMQ_FROM";
/// From how many tokens of a step on experts in RAM are computed on a GPU; 0: never.
pub const STREAM_FROM: &str = "IKQ_CUDA_STREAM_FROM";
/// KiB of a slab of experts.
pub const SLAB_KIB: &str = "IKQ_CUDA_SLAB_KIB";
/// KiB of the weights that are decoded at a time for cuBLAS.
pub const BLAS_KIB: &str = "IKQ_CUDA_BLAS_KIB";
/// 1: every launch is waited for.
pub const SYNC: &str = "IKQ_CUDA_SYNC";
/// 0: nothing is recorded as a graph.
pub const GRAPHS: &str = "IKQ_CUDA_GRAPHS";
/// 0: no GPU is used.
pub const CUDA: &str = "IKQ_CUDA";

/// Reads all of them, so that a mistyped one is told of whether this model uses it or not.
///
/// # Errors
/// [`Error::Variable`].
pub fn check() -> Result<(), Error> {
    for name in [MMQ_FROM, STREAM_FROM] {
        whole_number(name, 0)?;
    }
    for name in [SLAB_KIB, BLAS_KIB] {
        kib(name)?;
    }
    for name in [SYNC, GRAPHS] {
        switch(name)?;
    }
    Ok(())
}

/// A whole number of at least `least`; `None` where the variable is not set, or empty.
///
/// # Errors
/// [`Error::Variable`] for other texts.
pub fn whole_number(name: &'static str, least: usize) -> Result<Option<usize>, Error> {
    let n = read(name, |text| text.parse().ok().filter(|n| *n >= least));
    n.map_err(|value| Error::Variable { name, value, expected: format!("a whole number of {least} or more") })
}

/// A number of KiB, of at least 1, as bytes; `None` where the variable is not set, or empty.
///
/// # Errors
/// [`Error::Variable`] for other texts.
pub fn kib(name: &'static str) -> Result<Option<usize>, Error> {
    let bytes = read(name, |text| text.parse::<usize>().ok().filter(|n| *n > 0)?.checked_mul(1024));
    bytes.map_err(|value| Error::Variable { name, value, expected: "a number of KiB, 1 or more".into() })
}

/// Whether a variable says 1 or 0; `None` where it is not set, or empty.
///
/// # Errors
/// [`Error::Variable`] for other texts.
pub fn switch(name: &'static str) -> Result<Option<bool>, Error> {
    let is_on = read(name, |text| ["0", "1"].iter().position(|word| *word == text).map(|i| i == 1));
    is_on.map_err(|value| Error::Variable { name, value, expected: "0 or 1".into() })
}

/// What a variable says; the text that `parse` does not take is the error.
fn read<T>(name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, String> {
    let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = value.to_string_lossy();
    parse(text.trim()).map(Some).ok_or_else(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_says_nothing() {
        assert!(matches!(whole_number("IKQ_NO_SUCH_VARIABLE", 0), Ok(None)));
        assert!(matches!(kib("IKQ_NO_SUCH_VARIABLE"), Ok(None)));
        assert!(matches!(switch("IKQ_NO_SUCH_VARIABLE"), Ok(None)));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        // cargo sets it for tests, and it is none of these
        const NAME: &str = "CARGO_PKG_NAME";
        for error in [whole_number(NAME, 1).err(), kib(NAME).err(), switch(NAME).err()] {
            let told = error.expect("no number").to_string();
            assert!(told.starts_with("CARGO_PKG_NAME=ikq-cuda: expected "), "{told}");
        }
        const MAJOR: &str = "CARGO_PKG_VERSION_MAJOR";
        let major = env!("CARGO_PKG_VERSION_MAJOR").parse::<usize>().expect("a number");
        assert_eq!(whole_number(MAJOR, 0).expect("a number"), Some(major));
        assert!(whole_number(MAJOR, major + 1).is_err());
    }
}
