//! Disjoint blocks of an output matrix, for threads to write.
//!
//! An output holds one column of `n_rows` floats per token, one after another; a unit of work makes a block of
//! rows of some columns, which is not one slice. [`Tiles`] hands out such blocks so that no two overlap.

use std::marker::PhantomData;
use std::ops::Range;

/// An output that is cut into tiles. Columns and rows are cut into ranges; each pair of ranges is a tile.
pub struct Tile<'a> {
    /// First element of the first column's first row.
    start: *mut f32,
    n_rows: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is the only way to reach its elements (see `tiles`), like a `&mut [f32]`, which is Send.
unsafe impl Send for Tile<'_> {}

impl Tile<'_> {
    /// Rows of the output that the tile has.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns of the output that the tile has.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The tile's rows of output column `column`.
    ///
    /// # Panics
    /// When the column is not among [`Tile::columns`].
    pub fn column(&mut self, column: usize) -> &mut [f32] {
        assert!(self.columns.contains(&column), "column {column} is outside the tile");
        // SAFETY: `tiles` made `start` from a slice of whole columns of `n_rows` elements that outlives
        // `'a`; column and rows lie inside it, and no other tile has a row of this column in this range.
        unsafe {
            let first = self.start.add(column * self.n_rows + self.rows.start);
            std::slice::from_raw_parts_mut(first, self.rows.len())
        }
    }
}

/// Cuts `out` (columns of `n_rows` elements) into blocks of `step` rows and the column ranges given, rows
/// varying fastest. Ranges must be in ascending order and not overlap.
///
/// # Panics
/// When `out` does not hold the columns, or ranges overlap.
pub fn tiles<'a>(
    out: &'a mut [f32],
    n_rows: usize,
    step: usize,
    columns: impl IntoIterator<Item = Range<usize>>,
) -> Vec<Tile<'a>> {
    assert!(step > 0, "tiles of no rows");
    let (start, mut from) = (out.as_mut_ptr(), 0);
    let mut tiles = Vec::new();
    for columns in columns {
        assert!(columns.start >= from && columns.end >= columns.start, "column ranges overlap");
        assert!(columns.end * n_rows <= out.len(), "columns {columns:?} lie outside the output");
        from = columns.end;
        for first in (0..n_rows).step_by(step) {
            let rows = first..n_rows.min(first + step);
            tiles.push(Tile { start, n_rows, rows, columns: columns.clone(), output: PhantomData });
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_element_once() {
        let (n_rows, n_columns) = (7, 5);
        let mut out = vec![0.0; n_rows * n_columns];
        let mut all = tiles(&mut out, n_rows, 3, [0..2, 2..2, 2..5]);
        assert_eq!(all.len(), 9);
        for tile in &mut all {
            for column in tile.columns() {
                tile.column(column).iter_mut().for_each(|x| *x += 1.0);
            }
        }
        drop(all);
        assert_eq!(out, vec![1.0; n_rows * n_columns]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_ranges_are_refused() {
        tiles(&mut [0.0; 8], 2, 1, [0..3, 2..4]);
    }

    #[test]
    #[should_panic(expected = "outside the tile")]
    fn other_columns_are_out_of_reach() {
        tiles(&mut [0.0; 8], 2, 1, [0..2, 2..4])[0].column(2);
    }
}
