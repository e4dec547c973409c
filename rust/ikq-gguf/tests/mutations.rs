//! Mutated files: whatever the bytes are, reading ends without a panic and without allocating much more
//! than the file's size. The tests are deterministic, so that a failure can be repeated.

mod common;

use std::alloc::{GlobalAlloc, Layout as MemoryLayout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use common::{TempDir, shared_models, write};
use ikq_gguf::{Array, Kv, Metadata, Model, Options, Value, ValueType};

/// Counts what is allocated, so that the tests can bound the peak.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Tests take turns, so that each counts only its own allocations.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: hands every call to the system's allocator unchanged and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: MemoryLayout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: MemoryLayout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of memory that may be allocated per byte of the file, besides [`CONSTANT`]. A pair has at least 13 bytes
/// in the file and about 120 in memory (struct, key, offset, sorted index), a tensor entry 24 and about 240 while
/// it is located; but names are unique, which takes bytes of the file. The copy of the file in memory counts once.
/// The densest files below reach 8.
const FACTOR: usize = 10;
const CONSTANT: usize = 1 << 20;

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Random(u64);

impl Random {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers at which readers go wrong.
const NASTY: [u64; 14] =
    [0, 1, 2, 7, 8, 9, 13, 255, 1 << 31, u32::MAX as u64, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX];

/// Changes the bytes one to four times, each time at a place among the first `region` bytes, or their number.
fn mutate(bytes: &mut Vec<u8>, region: usize, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let region = region.min(bytes.len());
        if region == 0 {
            return;
        }
        let at = random.below(region);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 | 4 => {
                let n = if random.below(2) == 0 { 4 } else { 8 };
                let value = NASTY[random.below(NASTY.len())].to_le_bytes();
                let end = (at + n).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            5 => {
                // copies a piece from elsewhere, as if an entry were duplicated or lost
                let len = random.below(64).min(region - at);
                let from = random.below(region - len + 1);
                bytes.copy_within(from..from + len, at);
            }
            6 => {
                let len = random.below(32).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
            _ => {
                let piece: Vec<u8> = (0..random.below(32)).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, piece);
            }
        }
    }
}

/// Reads everything that a model offers.
fn walk(model: &Model) -> u64 {
    fn value(v: &Value) -> u64 {
        let inner =
            v.as_array().map_or(0, |a| a.iter().map(|e| value(&e)).sum::<u64>() + a.strings().count() as u64);
        inner + v.as_u64().unwrap_or(1) % 3 + v.to_string().len() as u64
    }
    let mut sum = 0u64;
    for kv in model.metadata() {
        sum = sum.wrapping_add(value(kv.value())).wrapping_add(kv.raw().len() as u64);
    }
    for t in model.tensors() {
        assert!(model.tensor(&t.name).is_some_and(|found| found.file_offset == t.file_offset));
        sum = sum.wrapping_add(t.data.iter().map(|b| u64::from(*b)).sum::<u64>());
        sum = sum.wrapping_add(t.n_elements()).wrapping_add(t.n_rows()).wrapping_add(t.dims().len() as u64);
        let _ = t.quant_type();
    }
    sum
}

/// Reads `n` mutants of `original`. Returns how many were still valid.
fn fuzz(original: &[u8], region: usize, n: u64, seed: u64) -> u64 {
    let mut good = 0;
    for i in 0..n {
        let mut bytes = original.to_vec();
        mutate(&mut bytes, region, &mut Random(seed ^ i));
        bytes.shrink_to_fit();
        let len = bytes.len();
        let before = NOW.load(Relaxed) - bytes.capacity();
        PEAK.store(NOW.load(Relaxed), Relaxed);
        match Model::from_bytes("mutant", bytes) {
            Ok(model) => {
                good += 1;
                std::hint::black_box(walk(&model));
            }
            Err(e) => assert!(!e.to_string().is_empty()),
        }
        let peak = PEAK.load(Relaxed) - before;
        assert!(peak <= FACTOR * len + CONSTANT, "mutant {i}: {peak} bytes for a file of {len}");
    }
    good
}

fn small_file() -> Vec<u8> {
    let dir = TempDir::new();
    let inner = Value::Array(Array::of_strings(["x", "yy"]));
    let mut metadata = Metadata::from(vec![
        Kv::new("general.architecture", "llama"),
        Kv::new("general.alignment", 32u32),
        Kv::new("floats", Array::from(&[1f32, 2.0][..])),
        Kv::new("nested", Array::new(ValueType::Array, [inner.clone(), inner]).expect("arrays")),
        Kv::new("flag", true),
    ]);
    metadata.set("wide", u64::MAX);
    let files = write(&dir.path("m.gguf"), &metadata, 4, &Options::default()).expect("written");
    std::fs::read(&files[0]).expect("readable")
}

#[test]
fn ten_thousand_mutants_of_a_small_file() {
    let _turn = take_turn();
    let bytes = small_file();
    let good = fuzz(&bytes, bytes.len(), 10_000, 0x6767_7566);
    // both outcomes must be frequent, or the mutations test nothing
    assert!((500..9_500).contains(&good), "{good} of 10000 were readable");
}

#[test]
fn mutants_of_a_real_header() {
    let _turn = take_turn();
    let Some(models) = shared_models() else { return };
    let bytes = std::fs::read(models.join("samples/tiny-moe-q8-0-00003-of-00003.gguf")).expect("readable");
    fuzz(&bytes, 2000, 300, 1);
    // the shard with the vocabulary without its tensor data: it is never valid, but its header is always parsed
    let bytes = std::fs::read(models.join("samples/tiny-moe-q8-0-00001-of-00003.gguf")).expect("readable");
    let header = Model::from_bytes("sample", bytes.clone()).expect("good").tensors()[0].file_offset as usize;
    fuzz(&bytes[..header], header, 10_000, 2);
}

#[test]
fn the_densest_files_stay_within_the_bound() {
    let _turn = take_turn();
    let n = 100_000u64;
    let head = |n_tensors: u64, n_kv: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_kv.to_le_bytes());
        bytes
    };
    let name = |i: u64| [(i >> 14) as u8 & 127, (i >> 7) as u8 & 127, i as u8 & 127];
    let mut pairs = head(0, n);
    let mut tensors = head(n, 0);
    for i in 0..n {
        pairs.extend(3u64.to_le_bytes());
        pairs.extend(name(i));
        pairs.extend([0, 0, 0, 0, 9]); // a byte
        tensors.extend(3u64.to_le_bytes());
        tensors.extend(name(i));
        tensors.extend([0; 4]); // no dimensions
        tensors.extend(9999u32.to_le_bytes());
        tensors.extend((32 * i).to_le_bytes());
    }
    let mut lies = head(1 << 20, 1 << 20);
    lies.resize(14 << 20, 0xff);
    let mut empty = tensors.clone();
    empty.resize(tensors.len() + 32 * n as usize, 0);
    for (what, bytes, good) in
        [("pairs", pairs, true), ("tensors", tensors, false), ("lies", lies, false), ("data", empty, true)]
    {
        let len = bytes.len();
        let before = NOW.load(Relaxed) - bytes.capacity();
        PEAK.store(NOW.load(Relaxed), Relaxed);
        let model = Model::from_bytes(what, bytes);
        let peak = PEAK.load(Relaxed) - before;
        assert_eq!(model.is_ok(), good, "{what}");
        assert!(peak <= FACTOR * len + CONSTANT, "{what}: {peak} bytes for a file of {len}");
    }
}
