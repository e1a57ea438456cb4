// The kernels for one instruction set, named by the macro ISA; compiled once for each with that set's flags.
//
// Takes nothing but its flags. Gives one table of kernels by dtype, its only symbol. Refuses to be compiled without
// ISA.

#include "kernels.h"
#include "product.h"

#if defined(__AVX512F__)
#define FEW 192, 128, 192, 192
#elif defined(__AVX2__)
#define FEW 112, 64, 112, 112
#else
#define FEW FEW_CLASSES, FEW_CLASSES, FEW_CLASSES, FEW_CLASSES
#endif

#define PASTE(a, b) a##b
#define TABLE(isa) PASTE(kernels_, isa)
#define STRING(x) #x
#define NAME(isa) STRING(isa)

extern const Kernels TABLE(ISA);
const Kernels TABLE(ISA) = {
    NAME(ISA),
    {FEW},
    {softmax_forward<float>, softmax_forward<double>, softmax_forward<bf16>, softmax_forward<half>},
    {softmax_backward<float>, softmax_backward<double>, softmax_backward<bf16>, softmax_backward<half>},
    {softmax_both<float>, softmax_both<double>, softmax_both<bf16>, softmax_both<half>},
    {binary<float>, binary<double>, binary<bf16>, binary<half>},
    {scale<float>, scale<double>, scale<bf16>, scale<half>},
    ACCUMULATE,
};
