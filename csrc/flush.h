// Results that are too small to be normal numbers become 0 while kernels run: a processor takes some hundred cycles for
// each of them, and half of the gradient of a confident row would be such numbers.
//
// Takes and gives nothing: the mode that the thread was in comes back when the work is done. Refuses to treat
// arguments as 0, which "denormals are zero" would do: a widened half may be a small float. So arm64, whose one mode
// does both, is left as it is; it has no such delay.

#pragma once
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace {

// Do something that throws nothing; a destructor would bring in what unwinds the stack, which kernels do without.
template <class F> [[gnu::always_inline]] inline void flushing_results(F&& work) {
#ifdef __SSE2__
    constexpr unsigned FLUSH_TO_ZERO = 1u << 15;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_TO_ZERO);
    work();
    _mm_setcsr(before);
#else
    work();
#endif
}

}  // namespace
