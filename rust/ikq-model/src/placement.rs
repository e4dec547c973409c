//! What runs where: every stage of every layer on a device, decided before anything is loaded.
//!
//! Rules name tensors, as users of GGUF engines write them; a stage is placed whole, by the rules of its matrices.

use regex::Regex;

use crate::device::Stage;
use crate::device_name::DeviceName;
use crate::error::Error;
use crate::network::{Attention, Ffn, LayerEmbedding, Network, Weight};

/// Names of tensors, and the device that they go to.
pub type Override = (Regex, DeviceName);

/// A number of layers that no model has: all of them, and the output.
pub const ALL_LAYERS: usize = i32::MAX as usize;

/// What the user's options say about where tensors go.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The last so many layers go to the devices beside the CPU; more than there are: the output too (`-ngl`).
    pub n_gpu_layers: usize,
    /// The last so many devices get none of them, but only what `overrides` say.
    pub n_of_rules: usize,
    /// In which proportions these layers are divided over the other devices beside the CPU, in order (`-ts`); empty: all
    /// go to the first of them.
    pub tensor_split: Vec<f64>,
    /// Tensors whose name the expression is found in go to that device; the first that fits holds (`-ot`).
    pub overrides: Vec<Override>,
    /// Experts of all layers stay on the CPU (`--cpu-moe`).
    pub cpu_moe: bool,
    /// Experts of the first so many layers that have experts stay there (`--n-cpu-moe`).
    pub n_cpu_moe: usize,
    /// The cache stays on the CPU, which computes attention over it (`--no-kv-offload`). Layers with latent attention
    /// and recurrent ones stay there as a whole.
    pub no_kv_offload: bool,
}

impl Rules {
    /// Adds the rules of a text `REGEX=DEVICE[,REGEX=DEVICE ...]`.
    ///
    /// # Errors
    /// [`Error::Option`] for a rule without an expression or a device, and for those that cannot be read.
    pub fn add_overrides(&mut self, text: &str) -> Result<(), Error> {
        for rule in text.split(',') {
            let wrong = |why: String| {
                let rule = if rule == text { String::new() } else { format!("rule {rule:?}: ") };
                Error::Option {
                    option: "override_tensor",
                    value: text.to_string(),
                    why: format!("{rule}{why}"),
                }
            };
            let expected = "expected REGEX=DEVICE (-ot), such as exps=CPU, or several joined by commas";
            let Some((pattern, device)) = rule.split_once('=') else {
                return Err(wrong(format!("there is no `=`; {expected}")));
            };
            if pattern.trim().is_empty() || device.trim().is_empty() {
                let missing = if pattern.trim().is_empty() { "expression" } else { "device" };
                return Err(wrong(format!("the {missing} is missing; {expected}")));
            }
            // the last line of the message is the reason
            let reason = |e: regex::Error| {
                let message = e.to_string();
                let last = message.lines().last().unwrap_or_default().trim();
                last.strip_prefix("error: ").unwrap_or(last).to_string()
            };
            let pattern = Regex::new(pattern).map_err(|e| wrong(reason(e)))?;
            self.overrides.push((pattern, DeviceName::parse(device).map_err(wrong)?));
        }
        Ok(())
    }
}

/// Which of the devices beside the CPU gets which of the layers that go to them.
#[derive(Clone, Debug)]
struct Split {
    /// Sums of the shares up to each device; empty: there is no device beside the CPU.
    ends: Vec<f64>,
    /// What the user said of the shares, for reasons.
    text: String,
}

impl Split {
    /// # Errors
    /// [`Error::Option`] for shares that are not one per device beside the CPU, or are no proportions.
    fn new(shares: &[f64], others: &[String]) -> Result<Split, Error> {
        let list = shares.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let wrong = |why: String| Error::Option { option: "tensor_split", value: list.clone(), why };
        if shares.is_empty() {
            let ends = others.iter().map(|_| 1.0).collect();
            return Ok(Split { ends, text: String::new() });
        }
        if others.is_empty() {
            return Err(wrong("there is no GPU over which layers could be divided".into()));
        }
        if shares.len() != others.len() {
            let (n, names) = (others.len(), others.join(", "));
            let devices = if n == 1 { "1 device".to_string() } else { format!("{n} devices") };
            return Err(wrong(format!("one number per device is needed, for {devices}: {names}")));
        }
        if let Some(share) = shares.iter().find(|s| !s.is_finite() || **s < 0.0) {
            return Err(wrong(format!("{share} is no share; a share is a number of 0 or more, as in 3,1")));
        }
        // a power of two changes no proportion; without, sums of large shares could be infinite
        let scale = if shares.iter().sum::<f64>().is_finite() { 1.0 } else { (-64f64).exp2() };
        let ends: Vec<f64> = shares
            .iter()
            .scan(0.0, |sum, share| {
                *sum += share * scale;
                Some(*sum)
            })
            .collect();
        match ends.last().is_some_and(|sum| *sum > 0.0) {
            true => Ok(Split { ends, text: format!(", tensor_split={list}") }),
            false => Err(wrong("no device has a share; a share above 0 is needed, as in 3,1".into())),
        }
    }

    /// Index among all devices of the one that gets part `at` of `n` equal ones: the first up to whose end more than
    /// `at` of `n` lie.
    fn device(&self, at: usize, n: usize) -> usize {
        let sum = self.ends.last().copied().unwrap_or(0.0);
        let found = self.ends.iter().position(|end| end * n as f64 > at as f64 * sum);
        found.map_or(CPU, |i| i + 1)
    }
}

/// Index of the CPU among the devices.
pub const CPU: usize = 0;

/// A stage with its device and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub stage: Stage,
    pub device: usize,
    /// Bytes of its matrices in the file.
    pub n_bytes: usize,
    pub why: String,
}

/// Which device computes which stage, and why.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Names of the devices, the CPU first.
    pub devices: Vec<String>,
    /// All stages that have weights, in order.
    pub stages: Vec<Placed>,
}

impl Placement {
    /// Places the stages of `network`.
    ///
    /// # Errors
    /// [`Error::Option`] for a device that there is not, and for shares that do not fit the devices.
    pub fn new(network: &Network, devices: Vec<String>, rules: &Rules) -> Result<Placement, Error> {
        let find = |name: DeviceName| devices.iter().position(|d| DeviceName::parse(d) == Ok(name));
        let mut overrides = Vec::new();
        for (pattern, name) in &rules.overrides {
            let device = find(*name).ok_or_else(|| Error::Option {
                option: "override_tensor",
                value: format!("{pattern}={name}"),
                why: format!("there is no device {name}; there are {}", devices.join(", ")),
            })?;
            overrides.push((pattern, device));
        }
        let split = Split::new(&rules.tensor_split, &devices[1..devices.len() - rules.n_of_rules])?;
        let placer = Placer { overrides, rules, n_layers: network.layers.len(), split };
        let mut stages = vec![Placed {
            stage: Stage::Embed,
            device: CPU,
            n_bytes: network.token_embd.iter().map(|t| t.n_bytes()).sum::<usize>()
                + network.nextn.iter().map(|n| n.eh_proj.n_bytes()).sum::<usize>()
                + network.per_layer.iter().map(|p| p.embd.n_bytes() + p.proj.n_bytes()).sum::<usize>(),
            why: "rows are gathered where the file is mapped".into(),
        }];
        let mut n_moe = 0;
        for (l, layer) in network.layers.iter().enumerate() {
            let can_part =
                matches!(&layer.attention, Attention::Gqa(a) if a.kv.is_some() && a.v_norm.is_none());
            let is_parted = rules.no_kv_offload && can_part && layer.rare_attention().is_none();
            let stays = (rules.no_kv_offload && !is_parted).then_some(CACHE_STAYS);
            let attention = placer.place(Stage::Attention(l), &layer.attention.weights(), stays);
            let is_there = attention.device != CPU;
            stages.push(attention);
            if is_parted && is_there {
                stages.push(Placed {
                    stage: Stage::Attend(l),
                    device: CPU,
                    n_bytes: 0,
                    why: CACHE_STAYS.into(),
                });
            }
            match &layer.ffn {
                Ffn::Dense(dense) => stages.push(placer.place(Stage::Dense(l), &dense.weights(), None)),
                Ffn::Moe(moe) => {
                    let stays = (rules.cpu_moe || n_moe < rules.n_cpu_moe).then_some(EXPERTS_STAY);
                    n_moe += 1;
                    stages.push(placer.place(Stage::Route(l), &[&moe.router], None));
                    stages.push(placer.place(Stage::Experts(l), &moe.experts.weights(), stays));
                    if let Some(shared) = &moe.shared {
                        let mut placed = placer.place(Stage::Shared(l), &shared.weights(), None);
                        if moe.norms.is_some() {
                            // what it reads is made with what the router reads, and is not moved
                            let router = stages.iter().find(|p| p.stage == Stage::Route(l));
                            placed.device = router.map_or(CPU, |p| p.device);
                            placed.why = "where the router is, which norms its input".into();
                        }
                        stages.push(placed);
                    }
                }
            }
            if layer.has_end() {
                let weights = layer.embedding.iter().flat_map(LayerEmbedding::weights);
                stages.push(Placed {
                    stage: Stage::End(l),
                    device: CPU,
                    n_bytes: weights.map(Weight::n_bytes).sum(),
                    why: "where the embeddings are".into(),
                });
            }
        }
        stages.push(placer.place(Stage::Head, &network.output.iter().collect::<Vec<_>>(), None));
        let placement = Placement { devices, stages };
        for (l, layer) in network.layers.iter().enumerate() {
            let Some(other) = layer.attention.shares() else { continue };
            let [a, b] = [l, other].map(|l| &placement.devices[placement.device(Stage::Attention(l))]);
            if a != b {
                let why = format!(
                    "layer {l} reads the keys and values of layer {other}: they cannot be on {a} and {b}"
                );
                return Err(Error::Spec { why });
            }
        }
        Ok(placement)
    }

    /// The device that runs a stage. Joining is done where routing is; a layer's cache is where its attention is, unless
    /// it has a place of its own.
    ///
    /// # Panics
    /// For a stage that the model has not.
    pub fn device(&self, stage: Stage) -> usize {
        let of = |stage: Stage| self.stages.iter().find(|p| p.stage == stage);
        let placed = match stage {
            Stage::Join(l) => of(Stage::Route(l)),
            Stage::Project(l) | Stage::Output(l) => of(Stage::Attention(l)),
            Stage::Attend(l) => of(stage).or_else(|| of(Stage::Attention(l))),
            _ => of(stage),
        };
        placed.map(|p| p.device).expect("a stage of the model")
    }

    /// The stages of a device.
    pub fn of(&self, device: usize) -> impl Iterator<Item = Stage> + '_ {
        self.stages.iter().filter(move |p| p.device == device).map(|p| p.stage)
    }
}

struct Placer<'a> {
    overrides: Vec<(&'a Regex, usize)>,
    rules: &'a Rules,
    n_layers: usize,
    split: Split,
}

/// Why stages stay on the CPU whatever the number of layers for GPUs is.
const EXPERTS_STAY: &str = "experts stay on the CPU, as asked for";
const CACHE_STAYS: &str = "the cache stays on the CPU, as asked for";

impl Placer<'_> {
    /// Places a stage; with `stays`, the reason for it, on the CPU unless a rule names its tensors.
    fn place(&self, stage: Stage, weights: &[&Weight], stays: Option<&str>) -> Placed {
        let names: Vec<String> = weights.iter().flat_map(|w| w.owner().names).collect();
        let rule = |name: &String| self.overrides.iter().find(|(r, _)| r.is_match(name)).map(|(_, d)| *d);
        let wanted: Vec<Option<usize>> = names.iter().map(rule).collect();
        let (device, why) = match wanted.iter().flatten().next() {
            Some(first) if wanted.iter().all(|w| w == &Some(*first)) => {
                (*first, "override_tensor".to_string())
            }
            Some(_) => {
                // memory that a user keeps free is rather kept free
                let default = self.default(stage, stays).0;
                let devices: Vec<usize> = wanted.iter().map(|w| w.unwrap_or(default)).collect();
                let why = "override_tensor names some of its tensors; they are computed together".to_string();
                match devices.iter().all(|d| *d == devices[0]) {
                    true => (devices[0], "override_tensor".to_string()),
                    false => (devices.into_iter().min().unwrap_or(CPU), why),
                }
            }
            None => self.default(stage, stays),
        };
        Placed { stage, device, n_bytes: weights.iter().map(|w| w.n_bytes()).sum(), why }
    }

    fn default(&self, stage: Stage, stays: Option<&str>) -> (usize, String) {
        if let Some(why) = stays {
            return (CPU, why.into());
        }
        // the output comes behind the last layer
        let (n, at) = (self.rules.n_gpu_layers, stage.layer().unwrap_or(self.n_layers));
        let n_there = n.min(self.n_layers + 1);
        let first = self.n_layers.saturating_sub(n);
        // the output goes there only if all layers do
        let there = at >= first && at - first < n_there;
        match self.split.device(at.saturating_sub(first), n_there) {
            device if there && device != CPU => {
                let n = if n >= ALL_LAYERS { "all".to_string() } else { n.to_string() };
                (device, format!("n_gpu_layers={n}{}", self.split.text))
            }
            _ => (CPU, "the CPU, as nothing else is said".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_in_order() {
        let mut rules = Rules::default();
        rules.add_overrides(r"blk\.[13]\.=CPU1,exps=CPU").expect("two rules");
        rules.add_overrides("output=CPU1").expect("one more");
        let names: Vec<String> = rules.overrides.iter().map(|(_, d)| d.to_string()).collect();
        assert_eq!(names, ["CPU1", "CPU", "CPU1"]);
        assert!(rules.overrides[0].0.is_match("blk.3.attn_q.weight"));
        assert!(!rules.overrides[0].0.is_match("blk.13.attn_q.weight"));
    }

    #[test]
    fn rules_that_cannot_be_read_are_named() {
        for (text, named) in [
            ("exps", "there is no `=`; expected REGEX=DEVICE (-ot), such as exps=CPU"),
            ("ok=CPU,(=CPU1", "rule \"(=CPU1\": unclosed group"),
            ("", "override_tensor=: there is no `=`"),
            ("exps=", "override_tensor=exps=: the device is missing; expected REGEX=DEVICE"),
            ("exps= ,attn=CPU", "override_tensor=exps= ,attn=CPU: rule \"exps= \": the device is missing"),
            ("exps=CPU,", "override_tensor=exps=CPU,: rule \"\": there is no `=`"),
            ("=CPU", "the expression is missing"),
            ("exps=GPU", "there is no device GPU; there are CPU"),
        ] {
            let error = Rules::default().add_overrides(text).expect_err("no rule").to_string();
            assert!(error.contains("override_tensor") && error.contains(named), "{error}");
        }
    }

    fn devices(shares: &[f64], n: usize) -> Vec<usize> {
        let names: Vec<String> = (0..shares.len()).map(|i| format!("CUDA{i}")).collect();
        let split = Split::new(shares, &names).expect("shares");
        (0..n).map(|at| split.device(at, n)).collect()
    }

    #[test]
    fn layers_are_divided_in_proportion() {
        assert_eq!(devices(&[1.0, 1.0], 4), [1, 1, 2, 2]);
        // as elsewhere, a layer that begins before the end of a share belongs to it
        assert_eq!(devices(&[1.0, 1.0], 5), [1, 1, 1, 2, 2]);
        assert_eq!(devices(&[3.0, 1.0], 8), [1, 1, 1, 1, 1, 1, 2, 2]);
        assert_eq!(devices(&[0.0, 2.5], 3), [2, 2, 2]);
        assert_eq!(devices(&[2.0, 0.0, 1.0], 3), [1, 1, 3]);
        // whatever their sum is
        assert_eq!(devices(&[1e308, 1e308], 4), [1, 1, 2, 2]);
        assert_eq!(devices(&[f64::MAX, 0.0, f64::MAX], 4), [1, 1, 3, 3]);
        // numbers of layers are shares that give just these numbers
        for counts in [[3.0, 2.0, 6.0], [1.0, 9.0, 1.0], [7.0, 0.0, 4.0]] {
            let found = devices(&counts, 11);
            for (i, n) in counts.iter().enumerate() {
                assert_eq!(found.iter().filter(|d| **d == i + 1).count() as f64, *n, "{counts:?}");
            }
        }
    }

    #[test]
    fn shares_that_are_none_are_refused() {
        let two = ["CUDA0".to_string(), "CUDA1".to_string()];
        for (shares, words) in [
            (vec![1.0], "one number per device is needed, for 2 devices: CUDA0, CUDA1"),
            (vec![1.0, 2.0, 3.0], "for 2 devices"),
            (vec![1.0, -2.0], "-2 is no share"),
            (vec![f64::NAN, 1.0], "NaN is no share"),
            (vec![0.0, 0.0], "no device has a share"),
        ] {
            let error = Split::new(&shares, &two).expect_err("no shares").to_string();
            assert!(error.contains("tensor_split") && error.contains(words), "{error}");
        }
        let error = Split::new(&[1.0], &[]).expect_err("nowhere to go").to_string();
        assert!(error.contains("there is no GPU"), "{error}");
    }
}
