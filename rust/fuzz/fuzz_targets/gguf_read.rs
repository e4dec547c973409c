//! Any bytes as a GGUF file: reading must end without panic, and so must looking at all it holds.
#![no_main]

use ikq_gguf::{Layout, Model, Options, Value};
use libfuzzer_sys::fuzz_target;

fn walk(value: &Value) -> usize {
    value.to_string().len() + value.as_array().map_or(0, |a| a.iter().map(|v| walk(&v)).sum())
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::from_bytes("fuzz", bytes.to_vec()) else { return };
    for kv in model.metadata() {
        std::hint::black_box(walk(kv.value()));
    }
    for tensor in model.tensors() {
        let end = tensor.file_offset as usize + tensor.data.len();
        assert!(tensor.data.is_empty() || tensor.data[..] == bytes[tensor.file_offset as usize..end]);
        assert!(model.tensor(&tensor.name).is_some());
    }
    // what can be read can be planned again
    let specs = model.tensors().iter().map(|t| t.spec()).collect();
    Layout::new(model.metadata(), specs, &Options::default()).expect("a plan for a file that was read");
});
