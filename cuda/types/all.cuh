// Every type that a weight file may hold as blocks of its own; interleaved types come as their plain twins.
#pragma once
#include "fp4.cuh"
#include "iqk.cuh"
#include "iqks.cuh"
#include "iquants.cuh"
#include "kquants.cuh"
#include "legacy.cuh"
#include "ternary.cuh"
#include "trellis.cuh"
