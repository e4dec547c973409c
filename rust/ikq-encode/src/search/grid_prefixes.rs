//! Searching large codebooks by prefix, which finds the nearest entry without looking at most of them.

use ikq_simd::Isa;

use super::argmin::{LANE_NUMBERS, first_least};
use super::grid::Costs;

/// Entries that share their first two digits, side by side.
pub(super) struct Prefixes {
    /// The chunks of prefix `p = 16 * first digit + second digit` are `starts[p]..starts[p + 1]`.
    starts: Vec<u16>,
    chunks: Vec<Chunk>,
}

/// Sixteen entries of a prefix; where there are fewer, the last one is repeated.
struct Chunk {
    /// The last two digits.
    digits: [[i32; 16]; 2],
    entries: [f32; 16],
}

impl Prefixes {
    /// Sorts entries by prefix; `digits` has their four digits, sixteen entries at a time.
    pub(super) fn new(digits: &[[[i32; 16]; 4]]) -> Prefixes {
        let mut by_prefix = vec![Vec::new(); 256];
        for (number, (chunk, lane)) in digits.iter().flat_map(|c| (0..16).map(move |l| (c, l))).enumerate() {
            let prefix = (16 * chunk[0][lane] + chunk[1][lane]) as usize;
            by_prefix[prefix].push((number, [chunk[2][lane], chunk[3][lane]]));
        }
        let mut out = Prefixes { starts: vec![0], chunks: Vec::new() };
        for entries in by_prefix {
            for sixteen in entries.chunks(16) {
                let at = |lane: usize| sixteen[lane.min(sixteen.len() - 1)];
                out.chunks.push(Chunk {
                    digits: [0, 1].map(|t| std::array::from_fn(|lane| at(lane).1[t])),
                    entries: std::array::from_fn(|lane| at(lane).0 as f32),
                });
            }
            out.starts.push(out.chunks.len() as u16);
        }
        out
    }

    /// The entry of least cost and its cost, which may be infinite if no cost is below `limit`.
    #[inline(always)]
    pub(super) fn nearest<I: Isa>(&self, isa: I, costs: &Costs<I>, limit: f32) -> (usize, f32) {
        let least_rest = isa.least(costs[2]) + isa.least(costs[3]);
        let (first, least_first) = first_least(isa, costs[0], isa.load_f(&LANE_NUMBERS));
        let (second, least_second) = first_least(isa, costs[1], isa.load_f(&LANE_NUMBERS));
        let firsts = isa.array(costs[0]);
        let seconds = isa.array(costs[1]);

        if least_first + least_second + least_rest >= limit {
            return (0, f32::INFINITY);
        }
        // begins with the cheapest prefix, which often has a good entry
        let mut best = (isa.splat_f(f32::INFINITY), isa.splat_f(0.0));
        self.scan(isa, costs, 16 * first + second, least_first + least_second, &mut best);
        let mut least = isa.least(best.0).min(limit);
        for (i, cost) in firsts.into_iter().enumerate() {
            let base = cost + least_rest;
            if base + least_second >= least {
                continue;
            }
            let bounds = isa.add_f(costs[1], isa.splat_f(base));
            let mut below = isa.bits_gt(isa.splat_f(least), bounds);
            if below == 0 {
                continue;
            }
            while below != 0 {
                let j = below.trailing_zeros() as usize & 15;
                below &= below - 1;
                self.scan(isa, costs, 16 * i + j, cost + seconds[j], &mut best);
            }
            least = isa.least(best.0).min(limit);
        }
        first_least(isa, best.0, best.1)
    }

    /// Compares the entries of a prefix whose digits cost `cost`.
    #[inline(always)]
    fn scan<I: Isa>(
        &self,
        isa: I,
        costs: &Costs<I>,
        prefix: usize,
        cost: f32,
        (least, at): &mut (I::F, I::F),
    ) {
        let cost = isa.splat_f(cost);
        let chunks = usize::from(self.starts[prefix])..usize::from(self.starts[prefix + 1]);
        for chunk in &self.chunks[chunks] {
            let third = isa.lut16_f(costs[2], isa.load_i(&chunk.digits[0]));
            let fourth = isa.lut16_f(costs[3], isa.load_i(&chunk.digits[1]));
            let total = isa.add_f(cost, isa.add_f(third, fourth));
            *at = isa.if_gt(*least, total, isa.load_f(&chunk.entries), *at);
            *least = isa.min_f(total, *least);
        }
    }
}
