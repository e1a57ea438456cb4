// Which instruction sets this build has, and which of them this processor runs.
//
// Takes nothing. Gives their kernels, the best last. Refuses to guess: each feature that a set is compiled with is
// asked for.

#pragma once
#include <vector>
#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

#include "problem.h"

#if defined(__x86_64__) || defined(_M_X64)
#define CROSSENT_X86 1
extern const Kernels kernels_sse2, kernels_avx2, kernels_avx512, kernels_avx512bf16;
#else
extern const Kernels kernels_baseline;
#endif

#ifdef CROSSENT_X86
inline bool has_f16c() {  // which not every compiler's __builtin_cpu_supports knows
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#ifdef CROSSENT_X86
template <class F> void take(F (&kernels)[DTYPES], F const (&before)[DTYPES]) {
    for (int i = 0; i < DTYPES; i++)
        if (!kernels[i]) kernels[i] = before[i];
}
// Those of one set and, where it has none, those of the set before.
inline Kernels completed(Kernels kernels, const Kernels& before) {
    take(kernels.softmax_forward, before.softmax_forward), take(kernels.softmax_backward, before.softmax_backward);
    take(kernels.softmax_both, before.softmax_both), take(kernels.binary, before.binary);
    take(kernels.scale, before.scale);
    return kernels;
}
#endif

inline std::vector<const Kernels*> available_kernels() {
#ifdef CROSSENT_X86
    __builtin_cpu_init();
    std::vector<const Kernels*> available{&kernels_sse2};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        available.push_back(&kernels_avx2);
    if (available.size() == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        available.push_back(&kernels_avx512);
    static const Kernels with_bf16 = completed(kernels_avx512bf16, kernels_avx512);
    if (available.size() == 3 && __builtin_cpu_supports("avx512bf16")) available.push_back(&with_bf16);
    return available;
#else
    return {&kernels_baseline};
#endif
}
