//! Candidate scales of sub-blocks, at which groups are rounded quickly. Each gives the sums `A = sum w x g` and `B
//! = sum w g^2` over the values g of the entries, and so the parabola `s^2 B - 2 s A` of the error over the scale
//! s.

use ikq_simd::Isa;

use super::grid_block::{CHUNK, GridSearch, Shifts, Signs, odd_number_of_signs};

/// Scale candidates tried per sub-block and shift.
pub(super) const N_CANDIDATES: usize = 16;

/// A lower bound of the levels, as a share of a sub-block's largest element.
const LOWEST: f32 = 0.125;

/// The range of scales that are tried for a sub-block of a type.
#[derive(Clone, Copy)]
pub struct Ladder {
    /// The largest scale, as a multiple of the one that puts the largest element on the highest level.
    pub first: f32,
    /// The ratio of a candidate to the one before it, below 1.
    pub ratio: f32,
    /// Integer scales are tried exactly if their estimated error exceeds the least estimated one by no more than
    /// this share.
    pub close: f32,
}

/// The candidates of a chunk's sub-blocks, one sub-block per lane (8 sub-blocks are in two lanes each).
#[derive(Clone)]
pub struct Parabolas {
    /// Twice the sums A.
    pub(super) a: [[f32; 16]; 2 * N_CANDIDATES],
    pub(super) b: [[f32; 16]; 2 * N_CANDIDATES],
    pub(super) n: usize,
    /// The scale at the lowest vertex of all parabolas.
    pub(super) best: [f32; 16],
}

/// A chunk, rearranged so that a vector has the same element of 16 groups of different sub-blocks.
struct Sheets {
    n: usize,
    x: [[[f32; 16]; 8]; 4],
    wx: [[[f32; 16]; 8]; 4],
    w: [[[f32; 16]; 8]; 4],
    first_key: [[f32; 16]; 4],
}

impl GridSearch<'_> {
    /// The elements that entries are to approximate: as they are, or their magnitudes. Where the number of minus
    /// signs has to be even and is not, the element whose wrong sign costs least is negated.
    #[inline(always)]
    fn targets(&self, x: &[f32; CHUNK], w: &[f32; CHUNK]) -> [f32; CHUNK] {
        let mut out = *x;
        if matches!(self.signs, Signs::InLevels) {
            return out;
        }
        for v in &mut out {
            *v = v.abs();
        }
        if matches!(self.signs, Signs::Free) {
            return out;
        }
        for start in (0..CHUNK).step_by(8) {
            if !odd_number_of_signs(&x[start..][..8]) {
                continue;
            }
            let first = start / self.sub_block * self.sub_block;
            let floor = LOWEST * out[first..][..self.sub_block].iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let mut least = (f32::INFINITY, start);
            for j in start..start + 8 {
                // a wrong sign costs 4 w x y
                let cost = w[j] * out[j] * out[j].max(floor);
                if cost < least.0 {
                    least = (cost, j);
                }
            }
            out[least.1] = -out[least.1];
        }
        out
    }

    #[inline(always)]
    fn sheets(&self, x: &[f32; CHUNK], w: &[f32; CHUNK]) -> Sheets {
        let dims = self.grid.dims();
        let n = CHUNK / dims / 16;
        let zero = [[[0.0; 16]; 8]; 4];
        let mut out = Sheets { n, x: zero, wx: zero, w: zero, first_key: [[0.0; 16]; 4] };
        for v in 0..n {
            for lane in 0..16 {
                let (sub, half) = (lane % self.n_sub(), lane / self.n_sub());
                let start = sub * self.sub_block + dims * (v + n * half);
                out.first_key[v][lane] = self.grid.first_key(&w[start..][..dims]);
                for j in 0..dims {
                    let (x, w) = (x[start + j], w[start + j]);
                    out.x[v][j][lane] = x;
                    out.w[v][j][lane] = w;
                    out.wx[v][j][lane] = w * x;
                }
            }
        }
        out
    }

    /// Sums over the lanes of the same sub-block, in all of these lanes.
    #[inline(always)]
    fn by_sub_block<I: Isa>(&self, isa: I, v: I::F) -> I::F {
        match self.n_sub() {
            16 => v,
            _ => {
                let v = isa.array(v);
                isa.load_f(&std::array::from_fn(|i| v[i % 8] + v[i % 8 + 8]))
            }
        }
    }

    /// The candidates of a chunk's sub-blocks. Elements behind a row's end have weight 0.
    #[inline(always)]
    pub(super) fn parabolas<I: Isa>(&self, isa: I, x: &[f32; CHUNK], w: &[f32; CHUNK]) -> Parabolas {
        let targets = self.targets(x, w);
        let sheets = self.sheets(&targets, w);
        let n_sub = self.n_sub();
        let amax: [f32; 16] = std::array::from_fn(|i| {
            let sub = &x[i % n_sub * self.sub_block..][..self.sub_block];
            sub.iter().fold(0.0, |m: f32, v| m.max(v.abs()))
        });
        let zero = isa.splat_f(0.0);
        let amax = isa.load_f(&amax);
        // for a sub-block of zeros any finite inverse will do
        let top = isa.splat_f(self.grid.top_level());
        let inverse = isa.if_gt(amax, zero, isa.div_f(top, amax), isa.splat_f(1.0));
        let n_runs = if matches!(self.shifts, Shifts::SubBlock(_)) { 2 } else { 1 };
        let mut out = Parabolas {
            a: [[0.0; 16]; 2 * N_CANDIDATES],
            b: [[0.0; 16]; 2 * N_CANDIDATES],
            n: n_runs * N_CANDIDATES,
            best: [0.0; 16],
        };
        let (mut best, mut least) = (zero, zero);
        let mut factor = 1.0 / self.ladder.first;
        for c in 0..out.n {
            if c == N_CANDIDATES {
                factor = 1.0 / self.ladder.first;
            }
            let inverse = isa.mul_f(inverse, isa.splat_f(factor));
            // a shift, and another to choose from
            let shifts = match self.shifts {
                Shifts::None => [Some(0.0), None],
                Shifts::SubBlock(shift) => [Some(if c < N_CANDIDATES { shift } else { -shift }), None],
                Shifts::Group(shift) => [Some(shift), Some(-shift)],
            };
            let (mut a, mut b) = (zero, zero);
            for v in 0..sheets.n {
                let (mut least, mut sums) = (isa.splat_f(f32::INFINITY), (zero, zero));
                for shift in shifts.into_iter().flatten() {
                    let (x, wx, w) = (&sheets.x[v], &sheets.wx[v], &sheets.w[v]);
                    let (a, b) = self.grid.rounded(isa, x, wx, w, (inverse, shift), &sheets.first_key[v]);
                    // the error at the scale 1 / inverse, times inverse^2
                    let error = isa.sub_f(b, isa.mul_f(isa.add_f(a, a), inverse));
                    sums = (isa.if_gt(least, error, a, sums.0), isa.if_gt(least, error, b, sums.1));
                    least = isa.min_f(error, least);
                }
                a = isa.add_f(a, sums.0);
                b = isa.add_f(b, sums.1);
            }
            let (a, b) = (self.by_sub_block(isa, a), self.by_sub_block(isa, b));
            // entries have no zeros, so b is positive where there are elements
            let scale = isa.if_gt(b, zero, isa.div_f(a, b), zero);
            let vertex = isa.sub_f(zero, isa.mul_f(a, scale));
            let wanted = isa.max_f(scale, zero);
            best = isa.if_gt(least, vertex, wanted, best);
            least = isa.min_f(vertex, least);
            isa.store_f(isa.add_f(a, a), &mut out.a[c]);
            isa.store_f(b, &mut out.b[c]);
            factor /= self.ladder.ratio;
        }
        isa.store_f(best, &mut out.best);
        out
    }
}
