//! Encoding with error feedback: later columns are adjusted for the errors of earlier ones, as far as the inputs of
//! both are correlated. So the error of the *products* becomes small, although that of the weights does not.
//!
//! ```text
//! for every block of a row                                          (sixteen rows at a time, one per lane)
//!     m = x - adjustments for the errors of earlier columns         matrix product with the factor N
//!     scales of m from the type's own encoder                       ikq-encode, weighed by w
//!     for every sub-block: a few scales around that one are tried
//!         codes column by column, or group by group,                the scale with the least e^2 w is kept
//!         with feedback inside the sub-block too
//!     after every 256 columns: codes chosen again, with all others known
//! if the factors have the covariance itself: rounds over the whole row, in which scales and codes are chosen again
//! scales of the row divided by its gain under the covariance        g = sum(x H y) / sum(x H x)
//! ```
//! [`Factors`] has N, w and R of a covariance. [`encode_rows`] is the entry point; [`has_feedback`] tells which
//! types there are. A [`form::Form`] describes how the fields of a type give scales, and a [`coder::Coder`] finds
//! its codes; everything else is the same for all types (`body.rs`). The bytes of a row depend on that row and the
//! factors, never on other rows.
//!
//! [`Factors`]: ikq_covariance::Factors

mod body;
mod coder;
mod descent;
mod form;
mod groups;
mod integers;
mod lanes;
mod passes;
mod points;
mod rounds;
mod types;

pub use body::{encode_rows, working_bytes};
pub use types::has_feedback;

#[cfg(test)]
mod tests {
    use ikq_covariance::{Factors, Wanted, add_products, triangle};
    use ikq_simd::IsaKind;

    /// Numbers in -1..1, the same everywhere.
    pub fn noise(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Tokens in whose inputs columns are each correlated with the ones before.
    pub fn tokens(k: usize) -> Vec<f32> {
        let mut x = noise(5, 2 * k * k);
        for token in x.chunks_exact_mut(k) {
            for j in 1..k {
                token[j] += 0.8 * token[j - 1];
            }
        }
        x
    }

    /// Factors for these inputs.
    pub fn factors(k: usize) -> Factors {
        let mut sums = vec![0.0; triangle(k)];
        add_products(IsaKind::Scalar, &tokens(k), k, 0..k, &mut sums);
        Factors::new(IsaKind::Scalar, &sums, k, 1e6).expect("a covariance")
    }

    /// The same, for further rounds.
    pub fn whole_factors(k: usize) -> Factors {
        let mut sums = vec![0.0; triangle(k)];
        add_products(IsaKind::Scalar, &tokens(k), k, 0..k, &mut sums);
        let wanted = Wanted { whole: true, cross: None };
        Factors::with(IsaKind::Scalar, &sums, k, 1e6, wanted).expect("a covariance")
    }
}
