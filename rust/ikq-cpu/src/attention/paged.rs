//! Attention over pages, on all threads.

use ikq_kernels::attention::{At, Attention, NO_PAGE, Pages, Partial, Place, Plan, Sequence, Work};
use ikq_model::batch::Batch;
use ikq_model::network::{self, Network};

use crate::exec::Exec;

const _: () = assert!(ikq_kernels::attention::PAGE == ikq_model::batch::PAGE);
const _: () = assert!(NO_PAGE == ikq_model::batch::NO_PAGE);

/// The pages of a layer, and the group of layers whose tables say which pages a sequence has.
pub struct LayerPages<'a> {
    pub group: usize,
    pub keys: &'a mut Pages,
    /// `None` where the keys' rows hold the values, too.
    pub values: Option<&'a mut Pages>,
}

/// How a batch's attention is cut: where its tokens go, and the units of each kind of layer.
#[derive(Default)]
pub struct Cuts {
    /// Per group, where every column's rows are stored.
    places: Vec<Vec<Place>>,
    /// Plans of layers with these sizes: group, key/value heads, query heads of each.
    plans: Vec<((usize, usize, usize), Plan)>,
}

impl Cuts {
    /// Decides for a batch where its tokens are stored and how its attention is cut for the threads.
    pub fn new(batch: &Batch, network: &Network, n_threads: usize) -> Cuts {
        let mut cuts = Cuts::default();
        let sizes: Vec<(usize, usize)> = batch.runs.iter().map(|r| (r.columns.len(), r.first)).collect();
        for group in 0..network.groups.len() {
            let places = batch.runs.iter().flat_map(|run| {
                let table = &run.tables[group];
                run.columns
                    .clone()
                    .enumerate()
                    .map(move |(i, column)| Place { at: At::of(table, run.first + i), column: column as u32 })
            });
            cuts.places.push(places.collect());
        }
        for layer in &network.layers {
            let (Some(group), Some((n_kv, per_kv))) = (layer.group, heads(&layer.attention)) else {
                continue;
            };
            let key = (group, n_kv, per_kv);
            if cuts.plans.iter().all(|(known, _)| *known != key) {
                let plan = Plan::new(n_kv, per_kv, network.groups[group].window, &sizes, n_threads);
                cuts.plans.push((key, plan));
            }
        }
        cuts
    }
}

/// The number of key/value heads, and of query heads that share each. `None` for recurrent layers.
fn heads(attention: &network::Attention) -> Option<(usize, usize)> {
    match attention {
        network::Attention::Gqa(a) => Some((a.n_head_kv, a.n_head / a.n_head_kv)),
        network::Attention::Mla(a) => Some((1, a.n_head)),
        network::Attention::DeltaNet(_) => None,
    }
}

/// Stores the keys or values of all heads of every column in their pages.
pub fn store(exec: &Exec<'_>, group: usize, pages: &mut Pages, columns: &[f32]) {
    let mut units = pages.rows_mut(&exec.cuts.places[group]);
    exec.team.for_each(&mut units, |rows, _| rows.store(exec.kind, columns));
}

/// Attention of all columns into `out`: a column per token, the heads' results one after another.
pub fn attend(
    exec: &Exec<'_>,
    group: usize,
    attention: &Attention<'_>,
    partials: &mut Vec<Partial>,
    out: &mut [f32],
) {
    let n_kv = attention.keys.shape().n_head();
    let key = (group, n_kv, attention.n_head / n_kv);
    let plan = exec.cuts.plans.iter().find(|(known, _)| *known == key);
    let (_, plan) = plan.expect("the cuts have a plan for all layers");
    let sequences: Vec<Sequence<'_>> = exec
        .batch
        .runs
        .iter()
        .map(|run| Sequence { n: run.columns.len(), first: run.first, table: &run.tables[group] })
        .collect();
    let mut work = Work::new(plan, attention, &sequences, out, partials);
    let mut units = work.units();
    exec.team.for_each(&mut units, |unit, thread| unit.run(exec.kind, &mut exec.scratch(thread).attention));
    drop(units);
    let mut merges = work.merges();
    if !merges.is_empty() {
        exec.team.for_each(&mut merges, |m, thread| m.run(exec.kind, &mut exec.scratch(thread).attention));
    }
}
