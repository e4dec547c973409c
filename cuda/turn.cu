// Turns rows of floats by a Hadamard matrix (hadamard.cuh), in place.
//
//   turn_rows(x, n, n_first, first_run, rest_run, back)   grid rows, block 128
//       x         rows of n floats (at most 1024)
//       n_first, first_run, rest_run    the parts and runs of a row
//       back      if not 0, rows that are turned are turned back
#include "hadamard.cuh"

IKQ_KERNEL(128, turn_rows, (float *x, int n, int n_first, int first_run, int rest_run, int back)) {
    IKQ_SHARED(float, row, 1024);
    x += int64_t(blockIdx.x) * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = x[i];
    turn_row(row, n, Runs{n_first, first_run, rest_run}, back != 0);
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = row[i];
}
