//! Tests of writing: round trips, threads, and what happens to files on success and failure.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use common::{TempDir, data, specs, write};
use ikq_gguf::{
    Array, Bytes, Error, Kv, Layout, Metadata, Model, Options, SplitBy, TensorSpec, TensorType, Value,
    ValueType, Writer,
};

fn every_value() -> Metadata {
    let inner = Value::Array(Array::from(&[1u16, 2][..]));
    let values: Vec<Value> = vec![
        1u8.into(),
        (-1i8).into(),
        2u16.into(),
        (-2i16).into(),
        3u32.into(),
        (-3i32).into(),
        1.5f32.into(),
        true.into(),
        "text with \u{e9} and \0".into(),
        u64::MAX.into(),
        i64::MIN.into(),
        2.5f64.into(),
        Value::String(Bytes::from(b"\xff raw".to_vec())),
        Array::from(&[true, false][..]).into(),
        Array::of_strings(["a", "", "long enough"]).into(),
        Array::new(ValueType::Array, [inner.clone(), inner]).expect("arrays").into(),
        Array::new(ValueType::F32, [] as [f32; 0]).expect("empty").into(),
    ];
    values.into_iter().enumerate().map(|(i, v)| Kv::new(format!("key.{i}"), v)).collect()
}

#[test]
fn what_is_written_is_read() {
    let dir = TempDir::new();
    let metadata = every_value();
    for split in [None, Some(SplitBy::MaxTensors(2)), Some(SplitBy::MaxBytes(1500))] {
        for alignment in [None, Some(8), Some(4096)] {
            let options = Options { alignment, split: split.clone(), ..Options::default() };
            let planned = Layout::new(&metadata, specs(5), &options).expect("a plan");
            let files = write(&dir.path("m.gguf"), &metadata, 5, &options).expect("written");
            let sizes: Vec<u64> = files.iter().map(|f| fs::metadata(f).expect("there").len()).collect();
            assert_eq!(sizes, planned.shards().iter().map(|s| s.size).collect::<Vec<_>>());
            assert_eq!(planned.total_size(), sizes.iter().sum::<u64>());

            let model = Model::open(&files[0]).expect("readable");
            assert_eq!(model.tensors().len(), 5);
            assert_eq!(model.shards().len(), files.len());
            for kv in &metadata {
                let read = model.metadata().iter().find(|r| r.key() == kv.key()).expect("kept");
                assert_eq!(read, kv);
            }
            for (i, t) in model.tensors().iter().enumerate() {
                assert_eq!(t.data[..], data(i)[..]);
                assert_eq!((t.spec(), t.file_offset % alignment.unwrap_or(32)), (specs(5)[i].clone(), 0));
            }
        }
    }
}

#[test]
fn padding_is_zero() {
    let dir = TempDir::new();
    let files = write(&dir.path("m.gguf"), &Metadata::new(), 2, &Options::default()).expect("written");
    let bytes = fs::read(&files[0]).expect("readable");
    // 24 + 2 * (8 + 2 + 4 + 16 + 4 + 8) = 108; tensors of 60 bytes at 128 and 192
    assert_eq!(bytes.len(), 256);
    for padding in [108..128, 188..192, 252..256] {
        assert!(bytes[padding.clone()].iter().all(|b| *b == 0), "{padding:?}");
    }
}

#[test]
fn unknown_types_are_copied() {
    let dir = TempDir::new();
    let spec = TensorSpec { name: "u".into(), dims: vec![3, 3], ty: TensorType::Unknown(9999), size: 64 };
    let layout = Layout::new(&Metadata::new(), vec![spec.clone()], &Options::default()).expect("a plan");
    let writer = Writer::create(dir.path("u.gguf"), layout).expect("created");
    writer.write_at(0, 0, &[7; 64]).expect("written");
    writer.finish().expect("complete");
    let model = Model::open(dir.path("u.gguf")).expect("readable");
    assert_eq!((model.tensors()[0].spec(), &model.tensors()[0].data[..]), (spec, &[7; 64][..]));
}

#[test]
fn threads_write_pieces_in_any_order() {
    let dir = TempDir::new();
    let n = 24;
    let options = Options { split: Some(SplitBy::MaxTensors(7)), ..Options::default() };
    let layout = Layout::new(&Metadata::new(), specs(n), &options).expect("a plan");
    let writer = Writer::create(dir.path("m.gguf"), layout).expect("created");
    std::thread::scope(|s| {
        for thread in 0..5 {
            let writer = &writer;
            // piece p of 12 bytes of tensor i belongs to thread (i + p) mod 5, the last piece first
            s.spawn(move || {
                for (i, p) in (0..n).flat_map(|i| (0..5).rev().map(move |p| (i, p))) {
                    if (i + p) % 5 == thread {
                        writer.write_at(i, 12 * p as u64, &data(i)[12 * p..12 * p + 12]).expect("written");
                    }
                }
            });
        }
    });
    assert!((0..n).all(|i| writer.written(i) == 60));
    let files = writer.finish().expect("complete");
    let model = Model::open(&files[0]).expect("readable");
    assert!(model.tensors().iter().enumerate().all(|(i, t)| t.data[..] == data(i)[..]));
}

#[test]
fn the_old_file_stays_until_the_new_one_is_whole() {
    let dir = TempDir::new();
    let path = dir.path("m.gguf");
    let files = write(&path, &Metadata::new(), 1, &Options::default()).expect("written");
    let old = fs::read(&files[0]).expect("readable");
    let mapped = Model::open(&path).expect("readable");

    let start = || {
        let layout = Layout::new(&every_value(), specs(2), &Options::default()).expect("a plan");
        Writer::create(&path, layout).expect("created")
    };
    let dropped = start();
    dropped.write_at(0, 0, &data(0)).expect("written");
    assert_eq!(dir.files().len(), 2);
    assert!(dir.files()[0].starts_with(".m.gguf."), "{:?}", dir.files());
    drop(dropped);
    assert_eq!((dir.files(), fs::read(&path).expect("readable")), (vec!["m.gguf".to_string()], old.clone()));

    let incomplete = start();
    incomplete.write_at(0, 0, &data(0)).expect("written");
    incomplete.write_at(1, 0, &data(1)[..20]).expect("written");
    incomplete.write_at(1, 32, &data(1)[32..]).expect("written");
    incomplete.write_at(1, 32, &data(1)[32..]).expect("a second time does not count");
    let err = incomplete.finish().expect_err("12 bytes are missing");
    assert!(matches!(err, Error::Incomplete { written: 48, size: 60, first_gap: 20, .. }), "{err}");
    assert_eq!((dir.files(), fs::read(&path).expect("readable")), (vec!["m.gguf".to_string()], old));

    let whole = start();
    (0..2).for_each(|i| whole.write_at(i, 0, &data(i)).expect("written"));
    whole.finish().expect("complete");
    assert_eq!(dir.files(), ["m.gguf"]);
    assert_eq!(Model::open(&path).expect("readable").tensors().len(), 2);
    assert_eq!(mapped.tensors()[0].data[..], data(0)[..]); // of the replaced file
}

#[test]
fn writes_outside_a_tensor_are_refused() {
    let dir = TempDir::new();
    let layout = Layout::new(&Metadata::new(), specs(1), &Options::default()).expect("a plan");
    let writer = Writer::create(dir.path("m.gguf"), layout).expect("created");
    assert!(matches!(writer.write_at(1, 0, &[0]), Err(Error::WriteIndex { index: 1, n_tensors: 1 })));
    for offset in [59, 60, u64::MAX] {
        assert!(matches!(writer.write_at(0, offset, &[0; 2]), Err(Error::WriteRange { .. })));
    }
    assert_eq!((writer.written(0), writer.written(1)), (0, 0));
}

#[test]
fn targets_that_cannot_be_replaced() {
    let dir = TempDir::new();
    let create = |path: &std::path::Path, split: Option<SplitBy>| {
        let options = Options { split, ..Options::default() };
        Writer::create(path, Layout::new(&Metadata::new(), specs(1), &options).expect("a plan"))
            .expect_err("must be refused")
    };
    assert!(matches!(create(&dir.0, None), Error::IsDirectory { .. }));
    assert!(matches!(create("/dev/null".as_ref(), None), Error::NotRegularFile { .. }));
    assert!(matches!(create("/".as_ref(), None), Error::TargetName { .. }));
    let err = create(&dir.path("none/m.gguf"), None);
    assert_eq!(err.os_error().map(std::io::Error::kind), Some(ErrorKind::NotFound));
    assert!(err.to_string().contains("none/m.gguf"), "{err}");
    fs::create_dir(dir.path("m-00001-of-00001.gguf")).expect("made");
    assert!(matches!(create(&dir.path("m.gguf"), Some(SplitBy::MaxTensors(9))), Error::IsDirectory { .. }));
}

#[test]
fn links_are_followed_and_long_names_work() {
    let dir = TempDir::new();
    fs::write(dir.path("real.gguf"), b"old").expect("written");
    std::os::unix::fs::symlink(dir.path("real.gguf"), dir.path("link.gguf")).expect("linked");
    write(&dir.path("link.gguf"), &Metadata::new(), 1, &Options::default()).expect("written");
    assert!(fs::symlink_metadata(dir.path("link.gguf")).expect("there").is_symlink());
    assert_eq!(Model::open(dir.path("real.gguf")).expect("readable").tensors().len(), 1);

    let long = format!("{}.gguf", "\u{e9}".repeat(125)); // 255 bytes
    write(&dir.path(&long), &Metadata::new(), 1, &Options::default()).expect("written");
    assert!(dir.files().contains(&long));
}

#[test]
fn shards_are_named_after_the_target() {
    let dir = TempDir::new();
    let options = Options { split: Some(SplitBy::MaxTensors(1)), ..Options::default() };
    for target in ["m.gguf", "m", "m-00003-of-00009.gguf"] {
        let files = write(&dir.path(target), &Metadata::new(), 2, &options).expect("written");
        assert_eq!(files, [dir.path("m-00001-of-00002.gguf"), dir.path("m-00002-of-00002.gguf")]);
    }
    assert_eq!(dir.files().len(), 2);
}

const LIMITED_DIR: &str = "IKQ_GGUF_TEST_LIMITED_DIR";

/// The child of the next test: runs with a file size limit of 4 KiB.
#[test]
fn child_with_a_file_size_limit() {
    let Some(dir) = std::env::var_os(LIMITED_DIR) else { return };
    let target = std::path::Path::new(&dir).join("m.gguf");
    let big = TensorSpec::new("t", &[4096], ikq_formats::QuantType::F32).expect("fits");
    let layout = Layout::new(&Metadata::new(), vec![big], &Options::default()).expect("a plan");
    let needed = layout.total_size();
    let err = Writer::create(&target, layout).expect_err("16 KiB do not fit 4 KiB");
    assert!(matches!(err, Error::FileTooLarge { needed_bytes, .. } if needed_bytes == needed), "{err}");
    assert!(err.to_string().contains("m.gguf") && err.to_string().contains(&needed.to_string()), "{err}");
}

#[test]
fn a_file_size_limit_is_reported_and_leaves_nothing() {
    let dir = TempDir::new();
    fs::write(dir.path("m.gguf"), b"old").expect("written");
    let exe = std::env::current_exe().expect("this test");
    // the limit counts 512-byte units in sh; the signal is ignored as Python does
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact child_with_a_file_size_limit"])
        .arg(exe)
        .env(LIMITED_DIR, &dir.0)
        .output()
        .expect("sh runs");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(dir.files(), ["m.gguf"]);
    assert_eq!(fs::read(dir.path("m.gguf")).expect("there"), b"old");
}

#[test]
fn partial_files_outlive_their_writer_and_go_on() {
    let dir = TempDir::new();
    let options = Options { split: Some(SplitBy::MaxTensors(1)), ..Options::default() };
    let layout = || Layout::new(&Metadata::new(), specs(2), &options).expect("a plan");
    let target = dir.path("m.gguf");
    let first = Writer::resume(&target, layout(), &[]).expect("created");
    first.write_at(0, 0, &data(0)).expect("written");
    assert!(matches!(first.finish(), Err(Error::Incomplete { .. })));
    let parts = ["m-00001-of-00002.gguf.part", "m-00002-of-00002.gguf.part"];
    assert_eq!(dir.files(), parts);

    // a partial file of another size is begun anew
    fs::write(dir.path(parts[1]), b"short").expect("written");
    let second = Writer::resume(&target, layout(), &[]).expect("created");
    let len = data(0).len();
    let (kept, anew) = (fs::read(dir.path(parts[0])), fs::read(dir.path(parts[1])));
    assert!(kept.expect("there").windows(len).any(|w| w == data(0)));
    assert!(!anew.expect("there").starts_with(b"short"));
    assert!(matches!(second.mark(0, 1, len as u64), Err(Error::WriteRange { .. })));
    second.mark(0, 0, len as u64).expect("in range");
    second.write_at(1, 0, &data(1)).expect("written");
    let files = second.finish().expect("whole");
    assert_eq!(dir.files(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    assert_eq!(Model::open(&files[0]).expect("readable").tensors()[1].data[..], data(1)[..]);

    // a file that is complete stays as it is, without a partial file beside it
    let third = Writer::resume(&target, layout(), &[true, false]).expect("created");
    assert_eq!(dir.files().iter().filter(|f| f.ends_with(".part")).count(), 1);
    assert!(third.is_in_place(0) && !third.is_in_place(1));
    third.discard();
    assert_eq!(dir.files().len(), 2);

    // a partial file that an earlier run had begun beside it is removed when this one finishes
    fs::write(dir.path(parts[0]), b"begun").expect("written");
    let fourth = Writer::resume(&target, layout(), &[true, false]).expect("created");
    fourth.write_at(1, 0, &data(1)).expect("written");
    fourth.finish().expect("whole");
    assert_eq!(dir.files(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
}

#[test]
fn numbers_per_tensor_are_filled_in_behind_the_data() {
    let dir = TempDir::new();
    let per_tensor = Some(ikq_gguf::PerTensor { key: "k".into(), n_numbers: 3 });
    for split in [None, Some(SplitBy::MaxTensors(2)), Some(SplitBy::MaxBytes(700))] {
        let options = Options { split, per_tensor: per_tensor.clone(), ..Options::default() };
        let mut metadata = Metadata::new();
        metadata.set("k", 7u32); // an old pair of that name does not stay
        let layout = Layout::new(&metadata, specs(5), &options).expect("a plan");
        let total = layout.total_size();
        let writer = Writer::create(dir.path("n.gguf"), layout).expect("created");
        for i in 0..5 {
            writer.write_at(i, 0, &data(i)).expect("written");
            writer.set_per_tensor(i, &[i as u64, 10, u64::MAX]).expect("room");
        }
        assert!(matches!(writer.set_per_tensor(0, &[1]), Err(Error::WriteRange { .. })));
        let files = writer.finish().expect("whole");
        let model = Model::open(&files[0]).expect("readable");
        assert_eq!(model.total_size(), total);
        let numbers: Vec<u64> = model
            .shards()
            .iter()
            .flat_map(|s| {
                s.metadata.get("k").and_then(Value::as_array).and_then(|a| a.to_u64s()).expect("numbers")
            })
            .collect();
        assert_eq!(numbers, (0..5).flat_map(|i| [i, 10, u64::MAX]).collect::<Vec<u64>>());
        (0..5).for_each(|i| assert_eq!(model.tensors()[i].data[..], data(i)[..]));
    }
}
