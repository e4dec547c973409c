//! The bytes that encoders write are part of what a resumed or reused output relies on: when they change, so must the
//! number that hashes carry.

use ikq_encode::{EncodeOptions, encodable, encode_rows};
use ikq_formats::matrix_bytes;
use ikq_quantize::ENCODERS;
use xxhash_rust::xxh3::Xxh3;

/// Number of the encoders, and the hashes of what they write by default and with scales as fitted.
const KNOWN: (u64, [u64; 2]) = (3, [7_630_607_335_406_167_071, 9_644_749_515_459_387_389]);

const N_ROWS: usize = 16;
const N_PER_ROW: usize = 1024;

#[test]
fn bytes_are_those_of_the_number() {
    // sums of uniform numbers: nearly normal, with a few columns that stand out
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let x: Vec<f32> = (0..N_ROWS * N_PER_ROW)
        .map(|i| {
            let v = uniform() + uniform() + uniform() + uniform();
            if i % 61 == 0 { 4.0 * v } else { 0.25 * v }
        })
        .collect();
    let importance: Vec<f32> = (0..N_PER_ROW).map(|_| (uniform() + 0.6).powi(3)).collect();
    let hashes = [false, true].map(|biased| {
        let options = EncodeOptions { biased, ..EncodeOptions::default() };
        let mut hasher = Xxh3::new();
        for ty in encodable().iter().copied() {
            let n_bytes = matrix_bytes(ty, N_ROWS, N_PER_ROW).expect("16 rows of 1024 fit every type");
            let mut out = vec![0; n_bytes];
            for w in [None, Some(&importance[..])] {
                encode_rows(ikq_simd::best(), ty, &x, N_PER_ROW, w, options, &mut out).expect("finite rows");
                hasher.update(&out);
            }
        }
        hasher.digest()
    });
    assert_eq!(
        (ENCODERS, hashes),
        KNOWN,
        "encoders write other bytes than they did: count ENCODERS up (ikq-quantize/src/hash.rs), and note the new hash here"
    );
}
