// Every type that a weight file may hold as blocks of its own; interleaved types come as their plain twins.
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
