//! The extension module `ikq._ikq`, which the Python package calls. This crate only converts arguments, results and
//! errors; the other crates do the work. `python/ikq` checks dtypes and shapes where an error message needs
//! explanation.

mod arrays;
mod collect;
mod cuda;
mod cuda_blas;
mod engine;
mod enter;
mod errors;
mod fields;
mod gguf;
mod metadata;
mod pipeline;
mod remote;
mod results;
mod room;
mod simd;
mod threads;
mod types;
mod vocabulary;

use pyo3::prelude::*;

/// Compiled core of ikq. Private: use the names of `ikq`.
#[pymodule]
mod _ikq {
    #[pymodule_export]
    use crate::arrays::{dequantize, quantize, repack, type_range};
    #[pymodule_export]
    use crate::collect::{
        CovarianceFile, StatisticsCollector, StatisticsFile, merge_covariances, model_origin,
        write_statistics,
    };
    #[pymodule_export]
    use crate::cuda::{
        cuda_architecture, cuda_compile, cuda_counts, cuda_dequantize, cuda_files, cuda_plan, cuda_product,
        cuda_status, cuda_warm,
    };
    #[pymodule_export]
    use crate::cuda_blas::{cuda_blas_offers, cuda_blas_product, cuda_blas_seconds, cuda_blas_version};
    #[pymodule_export]
    use crate::engine::{
        Engine, Sequence, kernel_name, kernel_self_test, named_devices, product, product_speeds,
    };
    #[pymodule_export]
    use crate::fields::{layout_fields, pack, unpack};
    #[pymodule_export]
    use crate::gguf::{Model, write_gguf};
    #[pymodule_export]
    use crate::metadata::Metadata;
    #[pymodule_export]
    use crate::pipeline::{
        Coverage, Imatrix, QuantizePlan, QuantizeRun, TensorPlan, changed_tensors, ftype_of_type, ftypes,
        plan_quantize, roles,
    };
    #[pymodule_export]
    use crate::remote::{PlanWorker, partial_files};
    #[pymodule_export]
    use crate::room::limit_caches;
    #[pymodule_export]
    use crate::simd::{available_isas, selected_isa};
    #[pymodule_export]
    use crate::types::{TypeFacts, parse_type, row_bytes, tensor_bytes, type_facts};
    #[pymodule_export]
    use crate::vocabulary::distinct_and_hold;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("MOST_BEST", ikq_model::MOST_BEST)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
