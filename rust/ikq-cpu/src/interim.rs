//! Stands for the device form until the kernels have it.
use ikq_formats::QuantType;
use ikq_simd::IsaKind;
pub const BAND: usize = 1;
pub fn lane_bytes(ty: QuantType, n_rows: usize, k: usize) -> usize {
    let all = ikq_formats::matrix_bytes(ty, n_rows, k).expect("checked");
    if ty == QuantType::I2_S { all - 32 } else { all }
}
pub fn pack(_: IsaKind, _: QuantType, _: usize, from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}
