// The kernels for one instruction set, named by the macro ISA; compiled once for each with that set's flags.
//
// Takes nothing but its flags. Gives one table of kernels by dtype, its only symbol. With ONLY_BF16 it has those of
// bfloat16, for a set that changes nothing else: the others are null, and dispatch.h takes them from the set before.
// Refuses to be compiled without ISA.

#include "kernels.h"
#include "product.h"

// few_classes, few_plain and together of Kernels, measured on a processor with all of these sets.
#if defined(__AVX512F__)
#define FEW {96, 63, 128, 128}, {104, 44, 112, 112}, {4096, 2048, 4096, 4096}
#elif defined(__AVX2__)
#define FEW {63, 48, 80, 80}, {47, 32, 55, 55}, {512, 256, 1024, 1024}
#else
#define FEW {64, 64, 64, 64}, {64, 64, 64, 64}, {512, 256, 1024, 1024}
#endif

#define PASTE(a, b) a##b
#define TABLE(isa) PASTE(kernels_, isa)
#define STRING(x) #x
#define NAME(isa) STRING(isa)

#ifdef ONLY_BF16
#define BY_DTYPE(kernel) {nullptr, nullptr, kernel<bf16>, nullptr}
#else
#define BY_DTYPE(kernel) {kernel<float>, kernel<double>, kernel<bf16>, kernel<half>}
#endif

extern const Kernels TABLE(ISA);
const Kernels TABLE(ISA) = {
    NAME(ISA),
    FEW,
    BY_DTYPE(softmax_forward),
    BY_DTYPE(softmax_backward),
    BY_DTYPE(softmax_both),
    BY_DTYPE(binary),
    BY_DTYPE(scale),
    ACCUMULATE,
    count,
};
