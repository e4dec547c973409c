//! How many positions sequences may have: what is asked for, or what the memory holds in which the caches are.

use ikq_pool::available_memory;

use crate::cache::most_states;
use crate::device::Device;
use crate::error::Error;
use crate::model::{Options, Sizes};
use crate::network::Network;

/// What caches take of a memory: of RAM, or of that of a device.
#[derive(Clone, Debug)]
struct Share {
    /// Whose memory it is.
    device: String,
    is_ram: bool,
    free: usize,
    sizes: Sizes,
}

/// Most bytes of a sequence of `n` positions, snapshots of its states included; `None` when they are too many to count.
pub fn sequence_bytes(network: &Network, sizes: &Sizes, n: usize, swa_full: bool) -> Option<usize> {
    let states = if network.has_recurrent_layers() { most_states(n) } else { 0 };
    network.groups.iter().zip(&sizes.pages).try_fold(
        sizes.state.checked_mul(states)?,
        |sum, (group, size)| {
            // a window lies across one page more than it fills, and a step writes before pages are given back
            let seen = match group.window {
                Some(window) if !swa_full => n.min(window.saturating_add(2 * crate::batch::PAGE)),
                _ => n,
            };
            sum.checked_add(seen.div_ceil(crate::batch::PAGE).checked_mul(*size)?)
        },
    )
}

/// What pages and states take of each memory: those of all devices in RAM are one.
fn shares(network: &Network, devices: &[Box<dyn Device>]) -> Result<Vec<Share>, Error> {
    let mut shares: Vec<Share> = Vec::new();
    for device in devices {
        let pages: Vec<usize> = (0..network.groups.len()).map(|g| device.page_bytes(g)).collect();
        let sizes = Sizes { pages, state: device.state_bytes() };
        let own = device.free_memory()?;
        match shares.iter_mut().find(|share| share.is_ram && own.is_none()) {
            Some(ram) => ram.sizes.add(&sizes),
            None => shares.push(Share {
                device: device.name().to_string(),
                is_ram: own.is_none(),
                free: own.or_else(|| available_memory().map(|b| b as usize)).unwrap_or(usize::MAX),
                sizes,
            }),
        }
    }
    Ok(shares)
}

/// What can be done where a cache of `n_ctx` positions does not fit.
fn too_much(share: &Share, needed: Option<usize>, n_ctx: usize, has_gpus: bool) -> Error {
    let needed = needed.map_or("too many".to_string(), |n| n.to_string());
    let (place, layers) = match (share.is_ram, has_gpus) {
        (true, false) => ("RAM", ""),
        (true, true) => ("RAM", ", or more layers on GPUs (n_gpu_layers, -ngl)"),
        (false, _) => {
            (share.device.as_str(), ", or fewer layers there (n_gpu_layers, -ngl; tensor_split, -ts)")
        }
    };
    Error::Option {
        option: "n_ctx",
        value: n_ctx.to_string(),
        why: format!(
            "the cache would take {needed} bytes of {place}, where {} are free; choose a smaller context (-c), cache_type_k and cache_type_v (-ctk, -ctv) of fewer bits{layers}",
            share.free
        ),
    }
}

/// The context that is asked for, or the trained one as far as a sequence takes a quarter of each memory where it has a part.
///
/// # Errors
/// [`Error::Option`] where the model or a memory does not hold what is asked for.
pub fn context(network: &Network, devices: &[Box<dyn Device>], options: &Options) -> Result<usize, Error> {
    let shares = shares(network, devices)?;
    let most = network.spec.n_ctx_most.unwrap_or(usize::MAX);
    let needed = |share: &Share, n_ctx: usize| sequence_bytes(network, &share.sizes, n_ctx, options.swa_full);
    if let Some(n_ctx) = options.n_ctx {
        let wrong = |why: String| Error::Option { option: "n_ctx", value: n_ctx.to_string(), why };
        if n_ctx > most {
            return Err(wrong(format!(
                "with more than {most} positions, attention of `{}` leaves some out (an index or chunks choose them), which is not computed yet",
                network.spec.architecture
            )));
        }
        for share in &shares {
            let needed = needed(share, n_ctx);
            if needed.is_none_or(|n| n > share.free) {
                return Err(too_much(share, needed, n_ctx, shares.iter().any(|s| !s.is_ram)));
            }
        }
        if n_ctx > u32::MAX as usize {
            return Err(wrong(format!("a sequence has at most {} positions", u32::MAX)));
        }
        return Ok(n_ctx);
    }
    let mut n_ctx = network.spec.n_ctx_train.min(most).clamp(1, u32::MAX as usize);
    let is_large = |n_ctx| shares.iter().any(|s| needed(s, n_ctx).is_none_or(|n| n > s.free / 4));
    while n_ctx > 512 && is_large(n_ctx) {
        n_ctx /= 2;
    }
    Ok(n_ctx)
}
