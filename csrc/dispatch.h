// Which instruction sets this build has, and which of them this processor runs.

#pragma once
#include <cstring>
#include <vector>

#include "problem.h"

#if defined(__x86_64__) || defined(_M_X64)
#define CROSSENT_X86 1
extern const Kernels kernels_sse2, kernels_avx2, kernels_avx512;
#else
extern const Kernels kernels_baseline;
#endif

// Best last.
inline std::vector<const Kernels*> available_kernels() {
#ifdef CROSSENT_X86
    __builtin_cpu_init();
    std::vector<const Kernels*> found{&kernels_sse2};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kernels_avx2);
    if (found.size() == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        found.push_back(&kernels_avx512);
    return found;
#else
    return {&kernels_baseline};
#endif
}
