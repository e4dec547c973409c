//! [`Missing`]: what a matrix should make good that earlier ones missed.

/// What is known of each token, and summed up with its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// What the input lacks, beside that of the unquantized model.
    Inputs,
    /// What the product lacks when this matrix is not quantized, for a matrix of so many rows.
    Products(usize),
}

impl Missing {
    /// Floats of a token, which are rows of the sums, for inputs of `k` columns.
    pub fn n_rows(self, k: usize) -> usize {
        match self {
            Missing::Inputs => k,
            Missing::Products(n_rows) => n_rows,
        }
    }
}
