//! Ten thousand seeded mutants of an importance matrix: the reader answers or refuses, it never
//! panics and never allocates more than the file could justify.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use ikq_quantize::imatrix::Imatrix;

/// Counts live bytes and remembers their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn seed_file() -> Vec<u8> {
    let mut out = 6i32.to_le_bytes().to_vec();
    for i in 0..6 {
        let name = format!("blk.{i}.ffn_up_exps.weight");
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(20i32.to_le_bytes());
        out.extend(32i32.to_le_bytes());
        (0..32).for_each(|k| out.extend((k as f32 * 0.5).to_le_bytes()));
    }
    out.extend(20i32.to_le_bytes());
    out.extend(8i32.to_le_bytes());
    out.extend(b"text.txt");
    out
}

/// A few edits: flipped bits, lengths replaced by extremes, cuts, repetitions.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => {
                let extremes = [i32::MAX, i32::MIN, -1, 0, 1 << 24, 65536];
                let value = extremes[random.below(extremes.len())].to_le_bytes();
                for (b, v) in bytes[at..].iter_mut().zip(value) {
                    *b = v;
                }
            }
            2 => bytes.truncate(at.max(1)),
            3 => bytes.extend_from_within(at..),
            _ => bytes[at] = random.next() as u8,
        }
    }
    bytes
}

#[test]
fn mutants_neither_panic_nor_allocate_wildly() {
    let seed = seed_file();
    assert!(Imatrix::from_dat(Path::new("seed"), &seed).is_ok(), "the unmutated file is valid");
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut accepted, mut refused) = (0, 0);
    for i in 0..10_000 {
        let bytes = mutate(&seed, &mut random);
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        match Imatrix::from_dat(Path::new("mutant"), &bytes) {
            Ok(_) => accepted += 1,
            Err(e) => {
                refused += 1;
                assert!(e.to_string().contains("mutant"), "{e}");
            }
        }
        let used = PEAK.load(Ordering::Relaxed) - before;
        // values as many bytes as the file has, names, and a vector entry per 13-byte entry
        let bound = 16 * bytes.len() + 65_536;
        assert!(used <= bound, "mutant {i} of {} bytes: {used} bytes allocated", bytes.len());
    }
    assert!(accepted > 100 && refused > 1000, "{accepted} accepted, {refused} refused");
}
