//! Tests with files that the reference programs wrote, in `../shared/models`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{TempDir, shared_models};
use ikq_gguf::{Kv, Layout, Metadata, Model, Options, SplitBy, TensorSpec, Value, Writer, is_split_key};

/// Tensors of each type, F32 left out.
fn census(model: &Model) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for t in model.tensors().iter().filter(|t| t.ty.id() != 0) {
        *counts.entry(t.ty.to_string()).or_default() += 1;
    }
    counts
}

fn copy(model: &Model, target: &Path, options: &Options) -> Vec<std::path::PathBuf> {
    let specs: Vec<TensorSpec> = model.tensors().iter().map(|t| t.spec()).collect();
    let layout = Layout::new(model.metadata(), specs, options).expect("a plan");
    let writer = Writer::create(target, layout).expect("created");
    for (i, t) in model.tensors().iter().enumerate() {
        writer.write_at(i, 0, &t.data).expect("written");
    }
    writer.finish().expect("complete")
}

#[test]
fn the_samples_have_the_listed_types() {
    let Some(models) = shared_models() else { return };
    // shared/models/samples/README.md
    let expected: [(&str, &[(&str, usize)]); 4] = [
        ("tiny-moe-iq4-ks.gguf", &[("iq4_ks", 17), ("q5_k", 4), ("q6_k", 1), ("q8_0", 8)]),
        ("tiny-moe-iq3-k-r4.gguf", &[("iq3_k", 1), ("iq3_k_r4", 16), ("q5_k", 5), ("q8_0", 8)]),
        ("tiny-moe-iq2-kt.gguf", &[("iq2_kt", 10), ("iq3_k", 3), ("iq4_k", 4), ("q4_k", 8), ("q5_k", 5)]),
        ("tiny-moe-q8-0-00002-of-00003.gguf", &[("q8_0", 30)]),
    ];
    for (name, types) in expected {
        let model = Model::open(models.join("samples").join(name)).expect(name);
        let types = types.iter().map(|(t, n)| (t.to_string(), *n)).collect();
        assert_eq!((model.tensors().len(), census(&model)), (51, types), "{name}");
    }
    let source = Model::open(models.join("tiny-moe-bf16.gguf")).expect("the source");
    assert_eq!((source.tensors().len(), census(&source)["bf16"]), (51, 30));

    let imatrix = Model::open(models.join("samples/imatrix-llamacpp.gguf")).expect("an imatrix");
    assert_eq!(imatrix.metadata().get("general.type").and_then(Value::as_str), Some("imatrix"));
    assert_eq!(imatrix.metadata().get("imatrix.chunk_size").and_then(Value::as_u64), Some(512));
    assert_eq!(imatrix.tensors().len(), 2 * 33);
}

#[test]
fn the_split_set_equals_the_whole() {
    let Some(models) = shared_models() else { return };
    let set = Model::open(models.join("samples/tiny-moe-q8-0-00001-of-00003.gguf")).expect("the set");
    assert_eq!(set.shards().iter().map(|s| s.n_tensors).collect::<Vec<_>>(), [20, 20, 11]);
    assert_eq!(set.total_size(), 9_924_832);
    let source = Model::open(models.join("tiny-moe-bf16.gguf")).expect("the source");
    for s in source.tensors() {
        let t = set.require(&s.name).expect("all tensors");
        assert_eq!(t.ne, s.ne);
        // tensors that were not quantized have the same bytes
        assert!(t.ty != s.ty || t.data == s.data, "{}", s.name);
    }

    // joined to one file, it is as long as the unsplit one of the reference and has the same tensors
    let dir = TempDir::new();
    let whole = copy(&set, &dir.path("whole.gguf"), &Options::default());
    assert_eq!(fs::metadata(&whole[0]).expect("there").len(), 9_924_512);
    let merged = Model::open(&whole[0]).expect("readable");
    assert_eq!(merged.tensors().len(), set.tensors().len());
    for (a, b) in merged.tensors().iter().zip(set.tensors()) {
        assert!((&a.name, a.ne, a.ty) == (&b.name, b.ne, b.ty) && a.data == b.data, "{}", a.name);
    }
    let kept: Vec<&Kv> = set.metadata().iter().filter(|kv| !is_split_key(kv.key())).collect();
    assert_eq!(merged.metadata().iter().collect::<Vec<_>>(), kept);

    // split again, in either way, it has the bytes of the reference's shards
    for split in [SplitBy::MaxTensors(20), SplitBy::Counts(vec![20, 20, 11])] {
        let options = Options { split: Some(split), ..Options::default() };
        for (ours, theirs) in copy(&merged, &dir.path("again.gguf"), &options).iter().zip(set.shards()) {
            assert!(fs::read(ours).expect("there") == theirs.file[..], "{}", ours.display());
        }
    }
}

#[test]
fn copies_are_byte_identical() {
    let Some(models) = shared_models() else { return };
    let dir = TempDir::new();
    let names =
        ["tiny-moe-iq4-ks.gguf", "tiny-moe-iq3-k-r4.gguf", "tiny-moe-iq2-kt.gguf", "imatrix-llamacpp.gguf"];
    let mut paths: Vec<_> = names.iter().map(|n| models.join("samples").join(n)).collect();
    paths.push(models.join("tiny-moe-bf16.gguf"));
    for path in paths {
        let model = Model::open(&path).expect("readable");
        let copied = copy(&model, &dir.path("copy.gguf"), &Options::default());
        assert!(fs::read(&copied[0]).expect("there") == model.shards()[0].file[..], "{}", path.display());
    }
}

#[test]
fn metadata_encodes_to_the_bytes_it_was_read_from() {
    let Some(models) = shared_models() else { return };
    let model = Model::open(models.join("tiny-moe-bf16.gguf")).expect("readable");
    assert_eq!(model.metadata().len(), 28);
    let again: Metadata = model.metadata().iter().map(|kv| Kv::new(kv.key(), kv.value().clone())).collect();
    assert_eq!(&again, model.metadata());
    // the vocabulary, element by element
    let tokens =
        model.metadata().get("tokenizer.ggml.tokens").and_then(Value::as_array).expect("a vocabulary");
    let strings: Vec<&[u8]> = tokens.strings().collect();
    assert_eq!((strings.len() as u64, ikq_gguf::Array::of_strings(&strings)), (tokens.len(), tokens.clone()));
}
