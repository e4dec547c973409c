//! Moving rows: where positions are removed, those behind them move down.

use ikq_simd::IsaKind;

use super::pages::{At, Pages};
use crate::ops::{Pairing, rotate};

/// How keys with a rotary part are turned when they move.
pub struct Turn<'a> {
    pub pairing: Pairing,
    /// Cosines and sines of the angles that take rows back by as far as they move down.
    pub cos_sin: &'a [f32],
    /// Where the rotary part of a row begins.
    pub offset: usize,
}

impl Pages {
    /// Copies rows of all heads from places to places, one after another in the order given, and turns them. Rows that
    /// are not turned keep their bytes; those that are, are decoded and encoded again.
    ///
    /// # Panics
    /// When there are no such places, or a row is shorter than the part to be turned.
    pub fn move_rows(&mut self, kind: IsaKind, moves: &[(At, At)], turn: Option<&Turn<'_>>) {
        let (mut row, mut floats) = (Vec::new(), [Vec::new(), Vec::new()]);
        for &(from, to) in moves {
            for head in 0..self.shape().n_head() {
                self.take(head, from, &mut row);
                if let Some(Turn { pairing, cos_sin, offset }) = turn {
                    self.change_row(kind, &mut row, &mut floats, |row| {
                        rotate(kind, *pairing, cos_sin, &mut row[*offset..]);
                    });
                }
                self.put(head, to, &row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{CacheType, PageShape, Place};
    use ikq_simd::available;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed * 17 + 1) as f32 * 0.618).sin() * 3.0).collect()
    }

    const N_HEAD: usize = 2;
    const D: usize = 96;

    /// Pages with `rows` at the positions from 0 on, in two pages of which the second comes first.
    fn stored(kind: IsaKind, shape: &PageShape, rows: &[Vec<f32>], table: &[u32]) -> Pages {
        let mut pages = Pages::new(shape.clone());
        pages.grow(3).expect("fits");
        let places: Vec<Place> =
            (0..rows.len()).map(|p| Place { at: At::of(table, p), column: p as u32 }).collect();
        pages.store(kind, &places, &rows.concat());
        pages
    }

    #[test]
    fn removing_positions_is_as_if_they_had_never_been() {
        let (n_rot, offset, n_past) = (32, 48, 270);
        let angles = |position: f64| -> Vec<f32> {
            let turned = (0..n_rot / 2).map(|i| position * 10_000f64.powf(-2.0 * i as f64 / n_rot as f64));
            turned.clone().map(|a| a.cos() as f32).chain(turned.map(|a| a.sin() as f32)).collect()
        };
        let table = [2, 0];
        for kind in available() {
            for (ty, bound) in [(CacheType::F32, 1e-5), (CacheType::F16, 4e-3), (CacheType::Q8_0, 0.05)] {
                for rotated in [false, true] {
                    // turned, blocks of 32 may have all of their size in one element, and errors come back together
                    let bound = if rotated && ty == CacheType::Q8_0 { 32.0 * bound / 2.0 } else { bound };
                    let plain = PageShape::keys(ty, N_HEAD, D).expect("whole blocks");
                    let shape = if rotated { plain.rotated() } else { plain };
                    for (gone, pairing) in
                        [(2..5, Pairing::Norm), (0..40, Pairing::Neox), (3..3, Pairing::Norm)]
                    {
                        let mut rows: Vec<_> = (0..n_past).map(|i| numbers(N_HEAD * D, i)).collect();
                        let mut kept = rows.clone();
                        kept.drain(gone.clone());
                        for rows in [&mut rows, &mut kept] {
                            for (position, row) in rows.iter_mut().enumerate() {
                                let cos_sin = angles(position as f64);
                                for head in row.chunks_exact_mut(D) {
                                    rotate(kind, pairing, &cos_sin, &mut head[offset..]);
                                }
                            }
                        }
                        let mut pages = stored(kind, &shape, &rows, &table);
                        let back = angles(-(gone.len() as f64));
                        let moves: Vec<(At, At)> = (gone.end..n_past)
                            .map(|p| (At::of(&table, p), At::of(&table, p - gone.len())))
                            .collect();
                        pages.move_rows(kind, &moves, Some(&Turn { pairing, cos_sin: &back, offset }));
                        let mut row = vec![0.0; D];
                        for (position, kept) in kept.iter().enumerate() {
                            let At { page, slot } = At::of(&table, position);
                            for (head, kept) in kept.chunks_exact(D).enumerate() {
                                let slot = slot as usize;
                                pages.decode(kind, head, page, slot..slot + 1, &mut row);
                                // numbers up to 3, rounded twice by up to half a step
                                for (found, kept) in row.iter().zip(kept) {
                                    assert!((found - kept).abs() < bound, "{} {position}", ty.name());
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_turned_keep_their_bytes() {
        let kind = ikq_simd::best();
        for ty in CacheType::ALL {
            let keys = PageShape::keys(ty, N_HEAD, D).expect("whole blocks");
            for shape in
                [keys.clone(), keys.rotated(), PageShape::values(ty, N_HEAD, D).expect("whole blocks")]
            {
                let rows: Vec<_> = (0..20).map(|i| numbers(N_HEAD * D, i)).collect();
                let mut moved = stored(kind, &shape, &rows, &[0]);
                let at = |page, slot| At { page, slot };
                let moves: Vec<(At, At)> = (0..20).map(|i| (at(0, i), at(1, i + 7))).collect();
                moved.move_rows(kind, &moves, None);
                let mut direct = Pages::new(shape);
                direct.grow(2).expect("fits");
                let places: Vec<Place> = (0..20).map(|i| Place { at: at(1, i + 7), column: i }).collect();
                direct.store(kind, &places, &rows.concat());
                assert!(moved.page(1) == direct.page(1), "{}", ty.name());
            }
        }
    }
}
