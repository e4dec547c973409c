// The weight of a score in a softmax, relative to the largest score seen so far.
#pragma once
#include "ikq_dev.cuh"

// e^(a - b), or 0 if a is -INFINITY, which means that no score was seen yet
IKQ_DEV float weight_of(float a, float b) { return a > -INFINITY ? expf(a - b) : 0.0f; }
