// All types of weights that kernels can read. Row-interleaved types are not among them: they are converted to the types
// that they are based on before.
#pragma once
#include "types/floats.cuh"
#include "types/fp4.cuh"
#include "types/iqk.cuh"
#include "types/iqks.cuh"
#include "types/iquants.cuh"
#include "types/kquants.cuh"
#include "types/legacy.cuh"
#include "types/ternary.cuh"
#include "types/trellis.cuh"
