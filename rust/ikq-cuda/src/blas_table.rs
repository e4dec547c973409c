//! [`Table`]: the user's choice of the products that cuBLAS computes, as `ikq bench cuda` has measured it for a device.
//!
//! It is used only where `IKQ_CUDA_BLAS` names its file. No table is used by itself: sums have an order that depends on the
//! sizes of a product there, so that a token's last bits would hang on a measurement.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ikq_formats::QuantType;
use serde::Deserialize;
use serde_json::error::Category;

use crate::blas;
use crate::error::Error;
use crate::loader::Facts;

/// The version of the file's form.
const FORMAT: u32 = 1;

/// The file: what a table has, and more that people read.
#[derive(Debug, Deserialize)]
struct File {
    ikq_cuda_blas: u32,
    device: String,
    compute_capability: String,
    n_multiprocessors: usize,
    /// Rows of a matrix and elements of a row.
    smallest: [usize; 2],
    from: BTreeMap<String, Option<usize>>,
}

/// From how many columns on cuBLAS is quicker than tiles, for each type of weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    path: PathBuf,
    device: String,
    compute_capability: String,
    n_multiprocessors: usize,
    /// The rows and the elements of a row that the smallest matrix had that was measured.
    smallest: [usize; 2],
    from: BTreeMap<QuantType, usize>,
    /// Most bytes of weights that are decoded at a time.
    piece: usize,
}

impl Table {
    /// The table that `IKQ_CUDA_BLAS` names, if it names one.
    ///
    /// # Errors
    /// [`Error::Table`] for files that cannot be read, or are no tables; [`Error::Variable`].
    pub fn of_environment() -> Result<Option<Table>, Error> {
        let named = std::env::var_os("IKQ_CUDA_BLAS").filter(|name| !name.is_empty());
        let Some(name) = named else { return Ok(None) };
        let table = Table::read(PathBuf::from(name))?;
        Ok(Some(Table { piece: blas::most_bytes()?, ..table }))
    }

    fn read(path: PathBuf) -> Result<Table, Error> {
        let wrong = |why: String| Error::Table { path: path.clone(), why };
        let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
        let table = Table::parse(&text).map_err(wrong)?;
        Ok(Table { path, ..table })
    }

    fn parse(text: &str) -> Result<Table, String> {
        let file: File = serde_json::from_str(text).map_err(|e| told(&e))?;
        if file.ikq_cuda_blas != FORMAT {
            return Err(format!("it has form {}, and this version reads {FORMAT}", file.ikq_cuda_blas));
        }
        if file.smallest.contains(&0) {
            return Err(format!("smallest: {:?} is no matrix", file.smallest));
        }
        let mut from = BTreeMap::new();
        for (name, n_columns) in file.from {
            let ty = QuantType::parse(&name).map_err(|_| format!("from: there is no type {name}"))?;
            if !is_offered(ty) {
                return Err(format!("from: {name} is not multiplied by cuBLAS"));
            }
            match n_columns {
                Some(0) => return Err(format!("from: {name} has 0 columns")),
                Some(n) => drop(from.insert(ty, n)),
                None => {}
            }
        }
        Ok(Table {
            path: PathBuf::new(),
            device: file.device,
            compute_capability: file.compute_capability,
            n_multiprocessors: file.n_multiprocessors,
            smallest: file.smallest,
            from,
            piece: 0,
        })
    }

    /// Most bytes of weights that are decoded at a time.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Checks that the table was measured on such a device.
    ///
    /// # Errors
    /// [`Error::Table`] if not.
    pub fn check(&self, facts: &Facts) -> Result<(), Error> {
        let capability = format!("{}.{}", facts.sm / 10, facts.sm % 10);
        let here = (&facts.name, &capability, facts.n_multiprocessors);
        let there = (&self.device, &self.compute_capability, self.n_multiprocessors);
        if here == there {
            return Ok(());
        }
        let told = |(name, capability, n): (&String, &String, usize)| {
            format!("{name} (compute capability {capability}, {n} multiprocessors)")
        };
        let why = format!("it is of {}, and this is {}", told(there), told(here));
        Err(Error::Table { path: self.path.clone(), why })
    }

    /// Whether cuBLAS multiplies a matrix (of so many rows, and elements of a row) with so many columns. What is smaller
    /// than everything that was measured is not its.
    pub fn takes(&self, ty: QuantType, [n_rows, n]: [usize; 2], n_columns: usize) -> bool {
        let is_wide = self.from.get(&ty).is_some_and(|from| n_columns >= *from);
        is_wide && n_columns > MOST_RECORDED && n_rows >= self.smallest[0] && n >= self.smallest[1]
    }
}

/// What is wrong with a file that is no table.
fn told(error: &serde_json::Error) -> String {
    let at = format!("line {}, column {}", error.line(), error.column());
    match error.classify() {
        Category::Eof => format!("the file is cut: it ends at {at}, in the middle of the table"),
        Category::Syntax | Category::Io => format!("the file is no JSON text (at {at})"),
        Category::Data => format!("the file is JSON, but no table of `ikq bench cuda`: {error}"),
    }
}

/// Steps of up to so many columns are recorded as graphs, which have kernels of this program only.
pub const MOST_RECORDED: usize = 64;

/// Whether products with weights of a type can be cuBLAS's: those whose values bf16 keeps as well as products need. It has the
/// range of floats, and an error of at most 2^-8 of each value, where codes of 8 bits have one of 2^-8 of the largest value of a
/// block. Weights of F16 and F32 would lose what they are chosen for.
pub fn is_offered(ty: QuantType) -> bool {
    crate::plan::device_type(ty).is_ok_and(|plain| plain == ty)
        && (crate::plan::reads_codes(ty) || ty == QuantType::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: &str) -> String {
        format!(
            r#"{{"ikq_cuda_blas": 1, "device": "a card", "compute_capability": "9.0", "n_multiprocessors": 4,
                "smallest": [64, 128], "from": {from}, "measured": []}}"#
        )
    }

    #[test]
    fn what_was_measured_is_taken() {
        let table = Table::parse(&text(r#"{"IQ4_KS": 128, "Q4_K": null, "BF16": 1}"#)).expect("a table");
        let takes = |ty, n_rows, n, n_columns| table.takes(ty, [n_rows, n], n_columns);
        assert!(takes(QuantType::IQ4_KS, 64, 128, 128) && !takes(QuantType::IQ4_KS, 64, 128, 127));
        assert!(!takes(QuantType::IQ4_KS, 63, 128, 128) && !takes(QuantType::IQ4_KS, 64, 127, 128));
        assert!(!takes(QuantType::Q4_K, 64, 128, 1 << 20), "never");
        assert!(!takes(QuantType::Q8_0, 64, 128, 1 << 20), "not measured");
        assert!(takes(QuantType::BF16, 64, 128, 65) && !takes(QuantType::BF16, 64, 128, 64), "graphs");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for (text, why) in [
            ("{".to_string(), "the file is cut"),
            (text(r#"{"Q9_9": 128}"#), "no type Q9_9"),
            (text(r#"{"F16": 128}"#), "F16 is not multiplied"),
            (text(r#"{"Q4_K_R4": 128}"#), "Q4_K_R4 is not multiplied"),
            (text(r#"{"Q4_K": 0}"#), "0 columns"),
            (text(r#"{"Q4_K": -3}"#), "invalid value"),
            (text("{}").replace("64", "0"), "no matrix"),
            (text("{}").replace("\"ikq_cuda_blas\": 1", "\"ikq_cuda_blas\": 2"), "form 2"),
            (text("{}").replace("device", "gadget"), "missing field"),
        ] {
            let told = Table::parse(&text).expect_err("no table");
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn another_device_has_another_table() {
        let table = Table::parse(&text("{}")).expect("a table");
        let facts = Facts {
            ordinal: 0,
            name: "a card".into(),
            sm: 90,
            memory_bytes: 0,
            n_multiprocessors: 4,
            shared_bytes: 0,
        };
        assert!(table.check(&facts).is_ok());
        for other in [
            Facts { name: "another".into(), ..facts.clone() },
            Facts { sm: 80, ..facts.clone() },
            Facts { n_multiprocessors: 5, ..facts.clone() },
        ] {
            assert!(table.check(&other).is_err());
        }
    }
}
