//! Storage of rows.

use super::*;
use ikq_simd::available;

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 31 + seed * 17 + 1) as f32 * 0.618).sin() * 3.0).collect()
}

fn shapes(ty: CacheType) -> [PageShape; 4] {
    let whole = "whole blocks";
    let keys = PageShape::keys(ty, 3, 96).expect(whole);
    let values = PageShape::values(ty, 3, 96).expect(whole);
    [keys.clone(), values, PageShape::latent(ty, 64, 32).expect(whole), keys.rotated()]
}

#[test]
fn sizes_and_what_is_refused() {
    let keys = PageShape::keys(CacheType::F16, 2, 40).expect("any size");
    assert_eq!(keys.page_bytes(), 2 * PAGE * 80);
    // rows are filled up
    let values = PageShape::values(CacheType::F16, 2, 40).expect("any size");
    assert_eq!(values.page_bytes(), 2 * PAGE * 96);
    assert_eq!(PageShape::values(CacheType::Q8_0, 1, 96).map(|s| s.page_bytes()), Ok(PAGE * 102));
    let refused = Err(CacheError::HeadSize { ty: CacheType::Q4_0, d: 80 });
    assert_eq!(PageShape::keys(CacheType::Q4_0, 2, 80), refused);
    let mut pages = Pages::new(PageShape::keys(CacheType::F32, 1 << 30, 1 << 20).expect("any size"));
    assert!(matches!(pages.grow(1 << 20), Err(CacheError::Memory { .. })));
    assert_eq!((pages.n_pages(), pages.bytes()), (0, 0));
}

#[test]
fn rows_come_back_and_places_stay_apart() {
    for kind in available() {
        for ty in CacheType::ALL {
            for shape in shapes(ty) {
                let (n_head, d) = (shape.n_head(), shape.d());
                let mut pages = Pages::new(shape.clone());
                for n in [1, 3, 2] {
                    pages.grow(n).expect("fits");
                }
                assert_eq!((pages.n_pages(), pages.bytes()), (6, 6 * shape.page_bytes()));
                assert!((0..6).all(|p| (pages.page(p).as_ptr() as usize).is_multiple_of(64)));
                // several sequences' tokens in a step, in any order
                let slots = [(4, 0), (2, 255), (2, 16), (0, 3), (2, 17), (5, 100), (4, 1), (2, 31)];
                let places: Vec<Place> = (slots.iter().enumerate())
                    .map(|(i, &(page, slot))| Place { at: At { page, slot }, column: i as u32 })
                    .collect();
                let columns = numbers(slots.len() * n_head * d, 1);
                pages.store(kind, &places, &columns);
                for page in 0..6 {
                    for head in 0..n_head {
                        let mut rows = vec![f32::NAN; PAGE * d];
                        pages.decode(kind, head, page, 0..PAGE, &mut rows);
                        for (slot, row) in rows.chunks_exact(d).enumerate() {
                            let column = slots.iter().position(|s| *s == (page, slot as u32));
                            let expected = column.map_or(vec![0.0; d], |c| {
                                let mut row = columns[(c * n_head + head) * d..][..d].to_vec();
                                let mut bytes = vec![0; ty.row_bytes(d).expect("whole blocks")];
                                if let Some(rotation) = shape.rotation() {
                                    rotation.apply(kind, &mut row);
                                }
                                encode(kind, ty, shape.fit(), &row, &mut bytes);
                                decode(kind, ty, &bytes, &mut row);
                                if let Some(rotation) = shape.rotation() {
                                    rotation.undo(kind, &mut row);
                                }
                                row
                            });
                            assert_eq!(row, expected, "{} {} {page} {slot}", kind.name(), ty.name());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn pages_are_copied_saved_and_restored() {
    let kind = ikq_simd::best();
    for ty in CacheType::ALL {
        for shape in shapes(ty) {
            let column = shape.n_head() * shape.d();
            let mut pages = Pages::new(shape.clone());
            pages.grow(2).expect("fits");
            pages.grow(1).expect("fits");
            let place = |page, slot| Place { at: At { page, slot }, column: 0 };
            pages.store(kind, &[place(0, 7)], &numbers(column, 1));
            let bytes = pages.page(0).to_vec();
            pages.copy(0, 1);
            pages.copy(1, 2);
            pages.copy(2, 2);
            pages.store(kind, &[place(1, 8)], &numbers(column, 2));
            assert!(pages.page(0) == bytes && pages.page(2) == bytes && pages.page(1) != bytes);
            pages.page_mut(1).copy_from_slice(&bytes);
            assert!(pages.page(1) == bytes);
        }
    }
}

#[test]
fn the_later_column_stays() {
    let kind = ikq_simd::best();
    let mut pages = Pages::new(PageShape::keys(CacheType::F32, 1, 16).expect("any size"));
    pages.grow(1).expect("fits");
    let at = At { page: 0, slot: 5 };
    pages.store(kind, &[Place { at, column: 1 }, Place { at, column: 0 }], &numbers(32, 1));
    let mut row = vec![0.0; 16];
    pages.decode(kind, 0, 0, 5..6, &mut row);
    assert_eq!(row, numbers(32, 1)[..16]);
}

#[test]
#[should_panic(expected = "page 1 of 1")]
fn pages_that_are_not_there_are_out_of_reach() {
    let mut pages = Pages::new(PageShape::keys(CacheType::F32, 1, 16).expect("any size"));
    pages.grow(1).expect("fits");
    pages.rows_mut(&[Place { at: At { page: 1, slot: 0 }, column: 0 }]);
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_not_stored_takes_no_memory() {
    let resident_pages = || -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("linux");
        statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of pages")
    };
    let before = resident_pages();
    let mut pages = Pages::new(PageShape::keys(CacheType::F16, 8, 128).expect("any size"));
    pages.grow(2048).expect("fits");
    pages.store(IsaKind::Scalar, &[Place { at: At { page: 1000, slot: 9 }, column: 0 }], &[1.0; 1024]);
    // one GiB; other tests run beside this one, and take a few MiB
    assert_eq!(pages.bytes(), 1 << 30);
    assert!(resident_pages() < before + (256 << 20) / 4096);
}
