//! How large caches may become: what was counted for them before the model was loaded, and more only while the GPU's memory
//! also holds what others were promised, such as a draft model that is loaded later, and the buffers of larger steps.

use ikq_model::device::CacheRoom;
use ikq_model::error::Error as ModelError;

use super::states::States;
use super::{Cuda, LayerCache, model_error, states_of};
use crate::error::Error;

impl Cuda {
    /// Bytes that pages and states take.
    fn cache_bytes(&self) -> usize {
        self.caches.iter().flatten().map(LayerCache::bytes).sum()
    }

    /// Checks whether caches may take so many bytes more.
    fn check_room(&self, more: usize) -> Result<(), ModelError> {
        let Some(CacheRoom { counted, left }) = self.room else { return Ok(()) };
        if self.cache_bytes().saturating_add(more) <= counted {
            return Ok(());
        }
        let (free, _) = self.gpu.context().memory().map_err(model_error)?;
        match more.saturating_add(left) <= free {
            true => Ok(()),
            false => Err(ModelError::DeviceMemory {
                device: self.name.clone(),
                what: "the cache beside what others were promised".into(),
                needed: more,
                free: free.saturating_sub(left),
            }),
        }
    }

    /// Makes room for pages `0..n` of a group, and for a quarter more if there is room, so that memory is allocated seldom.
    pub(super) fn reserve_pages(&mut self, group: usize, n: usize) -> Result<(), ModelError> {
        let Some(has) = self.group(group).map(LayerCache::n_pages).min() else { return Ok(()) };
        if has >= n {
            return Ok(());
        }
        let page: usize = self.group(group).map(LayerCache::page_bytes).sum();
        let generous = n + n / 4;
        let mut wanted = match self.check_room((generous - has) * page) {
            Ok(()) => generous,
            Err(_) => {
                self.check_room((n - has) * page)?;
                n
            }
        };
        let network = self.network.clone().expect("`load` comes first");
        let gpu = &self.gpu;
        for l in &network.groups[group].layers {
            let Some(cache) = &mut self.caches[*l] else { continue };
            // while a cache grows, it is there twice
            if let Err(e) = cache.reserve(gpu, wanted) {
                if !matches!(e, Error::Memory { .. }) || wanted == n {
                    return Err(model_error(e));
                }
                wanted = n;
                cache.reserve(gpu, n).map_err(model_error)?;
            }
        }
        Ok(())
    }

    /// Makes room for states `0..n`.
    pub(super) fn reserve_all_states(&mut self, n: usize) -> Result<(), ModelError> {
        let has = states_of(&mut self.caches).map(|s| s.n()).min().unwrap_or(n);
        if has >= n {
            return Ok(());
        }
        let bytes: usize = states_of(&mut self.caches).map(|s| States::bytes(s)).sum();
        self.check_room((n - has) * bytes)?;
        let gpu = &self.gpu;
        states_of(&mut self.caches).try_for_each(|s| s.reserve(gpu, n)).map_err(model_error)
    }
}
