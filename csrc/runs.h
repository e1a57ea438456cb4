// Where rows and their labels are found, and runs of LANES numbers: read, folded, written, and fetched ahead of their
// time.
//
// Takes pointers and counts. Gives runs of R, of which the last may overlap with the one before. Refuses fewer than
// LANES numbers: nothing is read or written beside those that are there.

#pragma once
#include <algorithm>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "numbers.h"
#include "problem.h"

namespace {

INLINE int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

INLINE int64_t index_at(const void* indices, int64_t type, int64_t row) {
    switch (type) {
        case I8: return static_cast<const int8_t*>(indices)[row];
        case I16: return static_cast<const int16_t*>(indices)[row];
        case I32: return static_cast<const int32_t*>(indices)[row];
        case U8: return static_cast<const uint8_t*>(indices)[row];
        case U16: return static_cast<const uint16_t*>(indices)[row];
        case U32: return static_cast<const uint32_t*>(indices)[row];
        default: return static_cast<const int64_t*>(indices)[row];
    }
}

// Where a row begins in a tensor of the logits' shape.
INLINE int64_t row_offset(const Softmax& p, const Strides& at, int64_t row) {
    return row / p.inner * at.outer + row % p.inner * at.inner;
}
template <class V> INLINE V* at_row(const Softmax& p, const void* tensor, const Strides& at, int64_t row) {
    return tensor ? static_cast<V*>(const_cast<void*>(tensor)) + row_offset(p, at, row) : nullptr;
}

// A row's probabilities, or their slopes, where they lie: R where the target is wide, S as its logits otherwise. It is
// asked for many of them at a time, so that the kernels need not be compiled for both.
template <class R, class S> struct Shares {
    char* at = nullptr;
    bool wide = false;

    Shares() = default;
    Shares(const Softmax& p, const void* tensor, const Strides& strides, int64_t row) : wide(p.wide_target) {
        if (tensor) at = static_cast<char*>(const_cast<void*>(tensor)) + row_offset(p, strides, row) * size();
    }
    explicit operator bool() const { return at; }
    int64_t size() const { return wide ? sizeof(R) : sizeof(S); }
    Shares from(int64_t k) const {
        Shares to = *this;
        to.at += k * size();
        return to;
    }
    // Do something with the pointer to what they are.
    template <class F> INLINE_MEMBER void typed(F&& f) const {
        if constexpr (!std::is_same_v<R, S>) {
            if (wide) return f(reinterpret_cast<R*>(at));
        }
        f(reinterpret_cast<S*>(at));
    }
};

// Fold N numbers into one, half by half; as vectors of no more than a register, for compilers take others apart, and
// a choice between them number by number.
template <bool MAX, int N, class R> INLINE R fold_halves(const R* lane) {
    if constexpr (N == 1) {
        return lane[0];
    } else {
        constexpr int SIZE = N / 2 * sizeof(R) < REGISTER ? N / 2 : REGISTER / sizeof(R);
        typedef R Vector __attribute__((vector_size(SIZE * sizeof(R))));
        R half[N / 2];
        for (int l = 0; l < N / 2; l += SIZE) {
            Vector low, high;
            std::memcpy(&low, lane + l, sizeof low), std::memcpy(&high, lane + N / 2 + l, sizeof high);
            if constexpr (MAX) low = low > high ? low : high;
            else low += high;
            std::memcpy(half + l, &low, sizeof low);
        }
        return fold_halves<MAX, N / 2>(half);
    }
}
template <class R> INLINE double fold(const R* lane) { return double(fold_halves<false, LANES>(lane)); }
template <class R> INLINE R fold_max(const R* lane) { return fold_halves<true, LANES>(lane); }

// n ≥ LANES numbers as runs of R: whole ones, in place where they are R already, and a last one that ends with the
// numbers and begins with `seen` of them that the whole ones hold as well.
template <class R> struct Block {
    const R* x;
    int64_t n, whole, seen;
    alignas(64) R last[LANES];  // across two lines of the cache it would be slow to come back

    template <class S> INLINE_MEMBER void load(const S* from, int64_t count, R* scratch) {
        n = count, whole = n / LANES * LANES, seen = whole + LANES - n;
        if constexpr (sizeof(S) == sizeof(R)) x = from;
        else x = scratch;
        for (int64_t k = 0; sizeof(S) != sizeof(R) && k < whole; k += LANES) widen_run(from + k, scratch + k);
        if (whole < n) widen_run(from + n - LANES, last);
    }

    // Put this value in the place of what was seen already.
    void fill(R value) {
        if (whole < n)
            for (int l = 0; l < LANES; l++) last[l] = pick(l < seen, value, last[l]);
    }

    // Lay the last run behind the others, where these lie in the scratch, so that all numbers lie in one piece.
    INLINE_MEMBER void join(R* scratch) const {
        if (whole < n && x == scratch) std::memcpy(scratch + n - LANES, last, sizeof last);
    }

    // Do something with each run and where it begins among the runs.
    template <class F> INLINE_MEMBER void each(F&& f) const {
        for (int64_t k = 0; k < whole; k += LANES) f(x + k, k);
        if (whole < n) f(last, whole);
    }

    const R* run(int64_t k) const { return k < whole ? x + k : last; }
    R at(int64_t i) const { return i < whole ? x[i] : last[i - whole + seen]; }
};

// Put a number in the place of the i-th of n that lie in runs as a Block has them; nothing where there is no i-th.
template <class R> INLINE void put(R* runs, int64_t n, int64_t i, R value) {
    const int64_t whole = n / LANES * LANES, repeated = i - (n - LANES);
    if (i < 0 || i >= n) return;
    if (i < whole) runs[i] = value;
    if (whole < n && repeated >= 0) runs[whole + repeated] = value;
}

// Write n ≥ LANES numbers as a Block has them, in runs of which the last may overlap, to where they belong.
template <class R, class S> INLINE void store(const R* from, S* to, int64_t n) {
    const int64_t whole = n / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES) narrow_run(from + k, to + k);
    if (whole < n) narrow_run(from + whole, to + n - LANES);
}

// Write lines of 64 bytes past the caches: memory that is not read soon need not be fetched to be written.
constexpr int64_t LINE = 64;
INLINE void stream_line(const void* from, void* to) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__SSE2__)
    for (int k = 0; k < 4; k++)
        _mm_stream_si128(static_cast<__m128i*>(to) + k, _mm_loadu_si128(static_cast<const __m128i*>(from) + k));
#else
    std::memcpy(to, from, LINE);
#endif
}
// A run to where a line begins, as it is or narrowed.
template <class R, class S> INLINE void stream_run(const R* from, S* to) {
    S run[LANES];
    narrow_run(from, run);
    for (int64_t l = 0; l < LANES; l += LINE / int64_t(sizeof(S))) stream_line(run + l, to + l);
}
// How many bytes lie before the first whole line.
INLINE int64_t before_line(const void* to) { return -reinterpret_cast<intptr_t>(to) & (LINE - 1); }

// Write n numbers, as they are, past the caches.
template <class R> INLINE void stream(const R* from, R* to, int64_t n) {
    const int64_t before = std::min(n, before_line(to) / int64_t(sizeof(R))), line = LINE / int64_t(sizeof(R));
    std::memcpy(to, from, size_t(before) * sizeof(R));
    int64_t at = before;
    for (; at + line <= n; at += line) stream_line(from + at, to + at);
    std::memcpy(to + at, from + at, size_t(n - at) * sizeof(R));
}

// Write n ≥ LANES numbers as a Block has them, past the caches or not; what is narrowed never lies there.
template <class R, class S> INLINE void write(const R* from, S* to, int64_t n, bool past) {
    if constexpr (sizeof(S) == sizeof(R)) {
        const int64_t whole = n / LANES * LANES, behind = n - whole;
        if (past) {
            stream(from, to, whole);  // nothing of which is written again: it would have to be fetched for that
            return void(std::memcpy(to + whole, from + padded(n) - behind, size_t(behind) * sizeof(R)));
        }
    }
    store(from, to, n);
}

// Wait until what was streamed can be seen by other threads.
INLINE void finish_streams() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

// Bring what is read next, or written soon, into the caches.
INLINE void fetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 3);
}
// As far as the second cache, of which the first may have too little: it has room for few lines that are on their way.
INLINE void fetch_near(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}
INLINE void fetch_to_write(const void* to, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(to) + at, 1, 3);
}

}  // namespace
