//! Any bytes as an importance matrix of the `.dat` form: read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ikq_quantize::imatrix::Imatrix::from_dat(std::path::Path::new("fuzzed"), bytes);
});
