// Names of kernels that are compiled for a type: `mmv_q4_k_c1`. The type comes as -DIKQ_TYPE=q4_k.
#pragma once
#define IKQ_JOIN_2(a, b) a##_##b
#define IKQ_NAME_2(a, b) IKQ_JOIN_2(a, b)
#define IKQ_JOIN_3(a, b, c) a##_##b##_##c
#define IKQ_NAME_3(a, b, c) IKQ_JOIN_3(a, b, c)
#define IKQ_JOIN_4(a, b, c, d) a##_##b##_##c##_##d
#define IKQ_NAME_4(a, b, c, d) IKQ_JOIN_4(a, b, c, d)
