//! Which experts a token takes, and with which weight.

use std::cmp::Ordering;

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingFunc {
    /// Softmax over all experts.
    Softmax,
    /// A sigmoid per expert.
    Sigmoid,
    /// Softmax over the chosen ones.
    SoftmaxChosen,
}

/// The rule of a mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    pub func: RoutingFunc,
    pub n_expert: usize,
    pub n_used: usize,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalize: bool,
    /// Factor of all weights.
    pub scale: f32,
    /// Experts stand in this many groups, of which the best `n_group_used` may be chosen from.
    pub n_group: usize,
    pub n_group_used: usize,
}

/// A router gave NaN or infinity for this expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    pub expert: usize,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the router's score of expert {} is not finite", self.expert)
    }
}

impl std::error::Error for NotFinite {}

/// Weights are divided by no less than this (the engines of GGUF files do the same).
const LEAST_SUM: f32 = 6.103_515_6e-5;

/// An order of experts, best first: the higher score, and of equal scores the lower index.
fn best_first(scores: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    |a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
}

impl Routing {
    /// The experts of a token with router scores `logits`, largest score first, as (expert, weight) into `out`.
    ///
    /// `bias` is added to the scores that choose, not to weights. With `reduction` (k, t), the experts after the
    /// k of largest weight are dropped unless theirs is more than t times the largest; the others keep their
    /// weights.
    ///
    /// # Errors
    /// [`NotFinite`] when a score is NaN or infinite.
    ///
    /// # Panics
    /// When `logits` or `bias` are not one per expert.
    pub fn choose(
        &self,
        logits: &[f32],
        bias: Option<&[f32]>,
        reduction: Option<(usize, f32)>,
        out: &mut Vec<(u32, f32)>,
    ) -> Result<(), NotFinite> {
        assert_eq!(logits.len(), self.n_expert, "a score per expert");
        assert!(bias.is_none_or(|b| b.len() == self.n_expert), "a bias per expert");
        out.clear();
        if let Some(expert) = logits.iter().position(|l| !l.is_finite()) {
            return Err(NotFinite { expert });
        }
        let mut p = logits.to_vec();
        match self.func {
            RoutingFunc::Softmax => softmax(&mut p),
            RoutingFunc::Sigmoid => p.iter_mut().for_each(|x| *x = super::sigmoid(*x)),
            RoutingFunc::SoftmaxChosen => {}
        }
        let mut choice = p.clone();
        if let Some(bias) = bias {
            choice.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
        if let Some(expert) = choice.iter().position(|c| !c.is_finite()) {
            return Err(NotFinite { expert });
        }
        let mut order = self.candidates(&choice);
        let n_used = self.n_used.min(order.len());
        if n_used < order.len() && n_used > 0 {
            order.select_nth_unstable_by(n_used - 1, best_first(&choice));
        }
        order.truncate(n_used);
        order.sort_unstable_by(best_first(&choice));
        out.extend(order.into_iter().map(|e| (e, p[e as usize])));
        self.weigh(out);
        if let Some((n_least, threshold)) = reduction {
            reduce(out, n_least, threshold);
        }
        Ok(())
    }

    /// Experts of the groups that may be chosen from.
    fn candidates(&self, choice: &[f32]) -> Vec<u32> {
        if self.n_group <= 1 {
            return (0..self.n_expert as u32).collect();
        }
        let per_group = self.n_expert / self.n_group;
        // the two largest; the only one, where a group has one
        let scores: Vec<f32> = choice
            .chunks_exact(per_group)
            .map(|group| {
                let mut best = [f32::NEG_INFINITY; 2];
                for c in group {
                    if *c > best[0] {
                        best = [*c, best[0]];
                    } else if *c > best[1] {
                        best[1] = *c;
                    }
                }
                if best[1].is_finite() { best[0] + best[1] } else { best[0] }
            })
            .collect();
        let mut groups: Vec<u32> = (0..self.n_group as u32).collect();
        groups.sort_unstable_by(best_first(&scores));
        groups.truncate(self.n_group_used);
        groups.into_iter().flat_map(|g| g * per_group as u32..(g + 1) * per_group as u32).collect()
    }

    /// Turns the scores of the chosen experts into weights.
    fn weigh(&self, chosen: &mut [(u32, f32)]) {
        if self.func == RoutingFunc::SoftmaxChosen {
            let mut w: Vec<f32> = chosen.iter().map(|(_, w)| *w).collect();
            softmax(&mut w);
            chosen.iter_mut().zip(w).for_each(|((_, w), new)| *w = new);
        }
        let mut factor = self.scale;
        if self.normalize {
            let sum: f32 = chosen.iter().map(|(_, w)| w).sum();
            factor /= sum.max(LEAST_SUM);
        }
        chosen.iter_mut().for_each(|(_, w)| *w *= factor);
    }
}

/// Drops experts that are neither among the `n_least` of largest weight nor above the threshold.
fn reduce(chosen: &mut Vec<(u32, f32)>, n_least: usize, threshold: f32) {
    if chosen.len() <= n_least {
        return;
    }
    // stable: of equal weights the better chosen one comes first
    let mut by_weight: Vec<usize> = (0..chosen.len()).collect();
    by_weight.sort_by(|a, b| chosen[*b].1.total_cmp(&chosen[*a].1));
    let least = threshold * chosen[by_weight[0]].1;
    let mut keep = vec![true; chosen.len()];
    for i in &by_weight[n_least..] {
        keep[*i] = chosen[*i].1 > least;
    }
    let mut at = 0;
    chosen.retain(|_| {
        at += 1;
        keep[at - 1]
    });
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Routing = Routing {
        func: RoutingFunc::Softmax,
        n_expert: 4,
        n_used: 2,
        normalize: false,
        scale: 1.0,
        n_group: 1,
        n_group_used: 1,
    };

    fn choose(rule: &Routing, logits: &[f32], bias: Option<&[f32]>) -> Vec<(u32, f32)> {
        let mut out = vec![(99, 0.0)];
        rule.choose(logits, bias, None, &mut out).expect("finite");
        out
    }

    fn check(found: &[(u32, f32)], expected: &[(u32, f64)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((e, w), (expert, weight)) in found.iter().zip(expected) {
            // exp, a sum of a few and two divisions
            assert!(e == expert && (f64::from(*w) / weight - 1.0).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn softmax_over_all_with_and_without_normalizing() {
        let logits = [0.5, 2.0, -1.0, 1.0];
        let e = logits.map(|l: f32| f64::from(l).exp());
        let all: f64 = e.iter().sum();
        check(&choose(&RULE, &logits, None), &[(1, e[1] / all), (3, e[3] / all)]);
        let rule = Routing { normalize: true, scale: 2.5, ..RULE };
        let two = e[1] + e[3];
        check(&choose(&rule, &logits, None), &[(1, 2.5 * e[1] / two), (3, 2.5 * e[3] / two)]);
        let rule = Routing { func: RoutingFunc::SoftmaxChosen, ..RULE };
        check(&choose(&rule, &logits, None), &[(1, e[1] / two), (3, e[3] / two)]);
    }

    #[test]
    fn a_bias_chooses_but_does_not_weigh() {
        let rule = Routing { func: RoutingFunc::Sigmoid, ..RULE };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let found = choose(&rule, &[0.5, 2.0, -1.0, 1.0], Some(&[0.0, 0.0, 1.0, 0.0]));
        check(&found, &[(2, sigmoid(-1.0)), (1, sigmoid(2.0))]);
    }

    #[test]
    fn groups_are_judged_by_their_two_best() {
        // group 1 has the best expert, group 0 the best two
        let rule = Routing { func: RoutingFunc::SoftmaxChosen, n_expert: 6, n_group: 2, ..RULE };
        let found = choose(&rule, &[2.0, 2.0, 0.0, 3.0, 0.5, 0.0], None);
        check(&found, &[(0, 0.5), (1, 0.5)]);
        let rule = Routing { n_group_used: 2, ..rule };
        assert_eq!(choose(&rule, &[2.0, 2.0, 0.0, 3.0, 0.5, 0.0], None)[0].0, 3);
    }

    #[test]
    fn ties_take_the_lower_index() {
        let found = choose(&Routing { n_used: 3, ..RULE }, &[1.0, 1.0, 1.0, 1.0], None);
        check(&found, &[(0, 0.25), (1, 0.25), (2, 0.25)]);
    }

    #[test]
    fn tiny_weights_are_not_blown_up() {
        let rule = Routing { func: RoutingFunc::Sigmoid, normalize: true, ..RULE };
        let found = choose(&rule, &[-30.0, -31.0, -40.0, -40.0], None);
        check(&found, &[(0, (-30f64).exp() * 16384.0), (1, (-31f64).exp() * 16384.0)]);
    }

    #[test]
    fn reduction_keeps_the_least_number_and_those_above_the_threshold() {
        let rule = Routing { n_used: 4, ..RULE };
        let logits = [0.0, (0.5f32).ln(), (0.25f32).ln(), (0.1f32).ln()];
        let full = choose(&rule, &logits, None);
        let reduced = |n, t| {
            let mut out = Vec::new();
            rule.choose(&logits, None, Some((n, t)), &mut out).expect("finite");
            out
        };
        assert_eq!(reduced(1, 0.2), full[..3]);
        assert_eq!(reduced(1, 0.6), full[..1]);
        assert_eq!(reduced(2, 0.6), full[..2]);
        assert_eq!(reduced(4, 1.0), full);
        assert_eq!(reduced(9, 1.0), full);
    }

    #[test]
    fn scores_that_are_no_numbers_are_errors() {
        let mut out = Vec::new();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let found = RULE.choose(&[0.0, 0.0, bad, 0.0], None, None, &mut out);
            assert_eq!(found, Err(NotFinite { expert: 2 }));
        }
        let found = RULE.choose(&[0.0; 4], Some(&[0.0, f32::NAN, 0.0, 0.0]), None, &mut out);
        assert_eq!(found, Err(NotFinite { expert: 1 }));
    }
}
