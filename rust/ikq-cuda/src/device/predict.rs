//! [`predict`]: the memory of a GPU that a model would take.

use ikq_model::error::Error as ModelError;
use ikq_model::network::{Network, RopeTable};
use ikq_model::placement::Placement;

use super::cache::CacheForm;
use super::columns::ColumnData;
use super::load::Loader;
use super::make_caches;
use super::parts::Parts;
use super::scratch::Scratch;
use super::slabs;
use super::states::States;
use crate::blas_table::Table;
use crate::environment;

/// How much is computed at once.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Most tokens of a step.
    pub n_ubatch: usize,
    /// Most positions of a text.
    pub n_ctx: usize,
}

/// Bytes of a GPU's memory that a model takes.
#[derive(Clone, Debug, Default)]
pub struct Needed {
    pub weights: usize,
    /// Of a page of every group.
    pub pages: Vec<usize>,
    /// Of a recurrent state.
    pub state: usize,
    /// Of the largest step's buffers: exactly, where the first step is the largest one; at most, where steps grow.
    pub step: usize,
}

/// Computes the memory that a GPU would need, without loading anything.
///
/// # Errors
/// [`ModelError::Device`] for stages that GPUs do not compute, [`ModelError::Cache`] for heads that do not fit the
/// type of the cache.
pub fn predict(
    network: &Network,
    placement: &Placement,
    index: usize,
    form: CacheForm,
    extent: Extent,
) -> Result<Needed, ModelError> {
    environment::check()?;
    let (weights, parts) = counted(network, placement, index)?;
    let (mut pages, mut state) = (vec![0; network.groups.len()], 0);
    for (layer, cache) in network.layers.iter().zip(make_caches(network, &parts, form)?) {
        let Some(cache) = cache else { continue };
        state += cache.states.as_ref().map_or(0, States::bytes);
        if let Some(group) = layer.group {
            pages[group] += cache.page_bytes();
        }
    }
    let Extent { n_ubatch, n_ctx } = extent;
    let step = match parts.is_empty() {
        true => 0,
        false => {
            let ropes: Vec<RopeTable> = network.ropes.iter().map(RopeTable::new).collect();
            let columns = ColumnData::most_bytes((network, &parts, &ropes), n_ubatch, n_ctx)
                .map_err(super::model_error)?;
            let slabs = match parts.layouts(n_ubatch).next() {
                Some(_) => slabs::bytes(parts.layouts(usize::MAX)),
                None => 0,
            };
            let blas = Table::of_environment().map_err(super::model_error)?;
            let scratch = Scratch::bytes(network, &parts, blas.as_ref(), n_ubatch);
            scratch.saturating_add(columns).saturating_add(slabs)
        }
    };
    Ok(Needed { weights, pages, state, step })
}

/// Bytes of the weights of a device, and its parts, without addresses.
pub(super) fn counted(
    network: &Network,
    placement: &Placement,
    index: usize,
) -> Result<(usize, Parts), ModelError> {
    let mut loader = Loader::counting();
    let mut parts = Parts::none(network.layers.len());
    for stage in placement.of(index) {
        loader.stage(network, placement, index, stage, &mut parts)?;
    }
    Ok((loader.n_bytes(), parts))
}
