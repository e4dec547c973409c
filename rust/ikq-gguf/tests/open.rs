//! Tests of opening files and split sets, and of every way in which that fails.

mod common;

use std::fs;
use std::path::Path;

use common::{TempDir, data, write};
use ikq_gguf::{Error, Fault, Kv, Metadata, Model, Options, SplitBy, Value, shard_file_name};

fn split_options(max_tensors: usize) -> Options {
    Options { split: Some(SplitBy::MaxTensors(max_tensors)), ..Options::default() }
}

/// Seven tensors in three shards.
fn split_set(dir: &TempDir) -> Vec<std::path::PathBuf> {
    let mut metadata = Metadata::new();
    metadata.set("general.name", "seven");
    write(&dir.path("m.gguf"), &metadata, 7, &split_options(3)).expect("written")
}

fn open_err(path: impl AsRef<Path>) -> Error {
    let err = Model::open(path).expect_err("must be refused");
    let text = err.to_string();
    assert!(!text.contains('\n') && text.len() > 10, "{text}");
    err
}

#[test]
fn what_is_no_file() {
    let dir = TempDir::new();
    let missing = open_err(dir.path("none.gguf"));
    assert_eq!(missing.os_error().map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
    assert!(missing.to_string().contains("none.gguf"), "{missing}");
    assert!(matches!(open_err(&dir.0), Error::IsDirectory { .. }));
    fs::write(dir.path("empty.gguf"), b"").expect("written");
    assert!(matches!(open_err(dir.path("empty.gguf")), Error::Empty { .. }));
    assert!(matches!(open_err("/dev/null"), Error::NotRegularFile { .. }));
    fs::write(dir.path("text.gguf"), b"hello, world").expect("written");
    let text = open_err(dir.path("text.gguf"));
    assert!(matches!(text, Error::Malformed { fault: Fault::Magic { .. }, .. }));
    assert_eq!(text.path(), Some(dir.path("text.gguf").as_path()));
}

#[test]
fn a_truncated_file_names_what_is_missing() {
    let dir = TempDir::new();
    let path = dir.path("m.gguf");
    write(&path, &Metadata::new(), 2, &Options::default()).expect("written");
    let bytes = fs::read(&path).expect("readable");
    fs::write(&path, &bytes[..bytes.len() - 32]).expect("written");
    let err = open_err(&path);
    assert!(matches!(err, Error::Malformed { fault: Fault::TensorOutOfFile { .. }, .. }));
    assert!(err.to_string().contains("`t1`") && err.to_string().contains("m.gguf"), "{err}");
}

#[test]
fn any_shard_opens_the_set() {
    let dir = TempDir::new();
    for path in split_set(&dir) {
        let model = Model::open(&path).expect("whole");
        assert_eq!(model.metadata().get("general.name").and_then(Value::as_str), Some("seven"));
        assert_eq!(model.shards().iter().map(|s| s.n_tensors).collect::<Vec<_>>(), [3, 3, 1]);
        let names: Vec<&str> = model.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["t0", "t1", "t2", "t3", "t4", "t5", "t6"]);
        for (i, t) in model.tensors().iter().enumerate() {
            assert_eq!((&t.data[..], t.shard), (&data(i)[..], i as u32 / 3));
            let file = fs::read(&model.shards()[t.shard as usize].path).expect("readable");
            assert_eq!(file[t.file_offset as usize..][..60], t.data[..]);
            assert!(t.data.is_mapped());
        }
        assert_eq!(model.index("t5"), Some(5));
        assert_eq!(model.tensor("t7").map(|t| &t.name), None);
        let sizes: u64 = model.shards().iter().map(|s| fs::metadata(&s.path).expect("there").len()).sum();
        assert_eq!(model.total_size(), sizes);
    }
    let alone = Model::open_file(dir.path("m-00002-of-00003.gguf")).expect("a file of its own");
    assert_eq!((alone.tensors().len(), alone.shards().len()), (3, 1));
}

#[test]
fn views_outlive_the_model_and_its_files() {
    let dir = TempDir::new();
    let paths = split_set(&dir);
    let view = Model::open(&paths[0]).expect("whole").require("t6").expect("there").data.clone();
    paths.iter().for_each(|p| fs::remove_file(p).expect("removable"));
    view.will_need();
    assert_eq!(view[..], data(6)[..]);
    view.release();
    assert_eq!(view[..], data(6)[..]);
}

#[test]
fn an_unknown_name_is_answered_with_near_ones() {
    let dir = TempDir::new();
    let model = Model::open(&split_set(&dir)[0]).expect("whole");
    let Err(Error::NoTensor { suggestions, .. }) = model.require("t77") else { panic!("not there") };
    assert!(suggestions.contains(&"t6".to_string()) || suggestions.contains(&"t0".to_string()));
}

#[test]
fn shards_need_no_file_descriptors() {
    let n_open = || fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    let dir = TempDir::new();
    let n = 600;
    let paths = write(&dir.path("m.gguf"), &Metadata::new(), n, &split_options(1)).expect("written");
    let before = n_open();
    let model = Model::open(&paths[0]).expect("whole");
    // other tests run meanwhile and hold a few each
    assert!(n_open() < before + 100, "{} descriptors", n_open() - before);
    assert_eq!(model.tensors().len(), n);
    assert!(model.tensors().iter().enumerate().all(|(i, t)| t.data[..] == data(i)[..]));
}

#[test]
fn a_missing_shard_is_named() {
    let dir = TempDir::new();
    let paths = split_set(&dir);
    fs::remove_file(&paths[1]).expect("removable");
    let err = open_err(&paths[2]);
    assert!(matches!(err, Error::ShardMissing { number: 2, count: 3, .. }), "{err}");
    assert!(err.to_string().contains("m-00002-of-00003.gguf"), "{err}");
}

#[test]
fn a_renamed_shard_is_refused() {
    let dir = TempDir::new();
    let paths = split_set(&dir);
    fs::copy(&paths[0], dir.path("other.gguf")).expect("copied");
    assert!(matches!(open_err(dir.path("other.gguf")), Error::ShardName { count: 3, .. }));
    fs::copy(&paths[0], dir.path("m-00001-of-00002.gguf")).expect("copied");
    assert!(matches!(open_err(dir.path("m-00001-of-00002.gguf")), Error::ShardName { count: 3, .. }));
    // shards in each other's place
    fs::copy(&paths[1], &paths[2]).expect("copied");
    let err = open_err(&paths[0]);
    assert!(matches!(err, Error::SplitKey { key: "split.no", .. }), "{err}");
    assert_eq!(err.path(), Some(paths[2].as_path()));
}

/// A set of two files made by hand: pairs and the name of a single tensor for each.
fn handmade(dir: &TempDir, shards: [(Vec<Kv>, &str); 2]) -> Error {
    for (i, (pairs, tensor)) in shards.into_iter().enumerate() {
        let mut bytes = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        bytes.extend((pairs.len() as u64).to_le_bytes());
        pairs.iter().for_each(|kv| bytes.extend_from_slice(kv.raw()));
        bytes.extend((tensor.len() as u64).to_le_bytes());
        bytes.extend_from_slice(tensor.as_bytes());
        bytes.extend([0; 4 + 4 + 8]); // no dimensions, F32, offset 0
        bytes.resize(bytes.len().next_multiple_of(32) + 4, 0);
        fs::write(dir.path(&shard_file_name("h", i, 2)), bytes).expect("written");
    }
    open_err(dir.path("h-00001-of-00002.gguf"))
}

fn keys(no: u16, count: u16, tensors: i32) -> Vec<Kv> {
    vec![Kv::new("split.no", no), Kv::new("split.count", count), Kv::new("split.tensors.count", tensors)]
}

#[test]
fn split_keys_are_checked() {
    let dir = TempDir::new();
    let err = handmade(&dir, [(keys(0, 2, 2), "a"), (keys(1, 3, 2), "b")]);
    assert!(matches!(err, Error::SplitKey { key: "split.count", .. }), "{err}");
    let err = handmade(&dir, [(keys(0, 2, 2), "a"), (keys(1, 2, 5), "b")]);
    assert!(matches!(err, Error::SplitKey { key: "split.tensors.count", .. }), "{err}");
    let err = handmade(&dir, [(keys(0, 2, 5), "a"), (keys(1, 2, 5), "b")]);
    assert!(matches!(err, Error::ShardTensors { expected: 5, found: 2, .. }), "{err}");
    let err = handmade(&dir, [(keys(0, 2, -1), "a"), (keys(1, 2, 2), "b")]);
    assert!(matches!(err, Error::SplitKey { key: "split.tensors.count", .. }), "{err}");
    let err = handmade(&dir, [(keys(0, 2, 2), "a"), (keys(1, 2, 2)[1..].to_vec(), "b")]);
    assert!(matches!(err, Error::SplitKey { key: "split.no", .. }) && err.to_string().contains("missing"));
    let err = handmade(&dir, [(vec![Kv::new("split.count", "two")], "a"), (keys(1, 2, 2), "b")]);
    assert!(matches!(err, Error::SplitKey { key: "split.count", .. }), "{err}");
    let err = handmade(&dir, [(vec![Kv::new("split.count", 1u32 << 20)], "a"), (keys(1, 2, 2), "b")]);
    assert!(matches!(err, Error::SplitKey { key: "split.count", .. }), "{err}");
    let err = handmade(&dir, [(keys(0, 2, 2), "same"), (keys(1, 2, 2), "same")]);
    assert!(matches!(err, Error::ShardDuplicate { .. }), "{err}");
}

#[test]
fn a_count_of_zero_or_one_is_a_file_of_its_own() {
    let dir = TempDir::new();
    for count in [0u16, 1] {
        let path = dir.path("single.gguf");
        // merging with the reference leaves split.count = 0
        let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(Kv::new("split.count", count).raw());
        fs::write(&path, bytes).expect("written");
        assert_eq!(Model::open(&path).expect("no set").shards().len(), 1);
    }
}
