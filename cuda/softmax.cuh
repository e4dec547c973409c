// Weights of scores against the largest that was seen.
#pragma once
#include "ikq_dev.cuh"

// e^(a - b), where nothing was seen yet 0
IKQ_DEV float weight_of(float a, float b) { return a > -INFINITY ? expf(a - b) : 0.0f; }
