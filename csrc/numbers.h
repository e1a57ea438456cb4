// Numbers: the dtypes of storage, and exp, log1p and expm1 as branch-free expressions that compilers turn into vectors.
//
// Takes numbers, or runs of LANES of them. Gives R, which is float, or double for double, and what is stored of it.
// Refuses arguments out of the range that a function names.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef __SSE2__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "problem.h"

// Compilers give up inlining in a large file, and a call in the midst of a loop keeps it from becoming vectors.
#define INLINE [[gnu::always_inline]] static inline
#define INLINE_MEMBER [[gnu::always_inline]] inline
// What few calls need stands outside the loops of all: compiled once, and not in each function that may come to it.
#define APART [[gnu::noinline]] static
#define APART_MEMBER [[gnu::noinline]]

namespace {

struct bf16 {
    uint16_t bits;
};
struct half {
    uint16_t bits;
};

template <class S> struct Wide {
    using type = float;
};
template <> struct Wide<double> {
    using type = double;
};

template <class To, class From> INLINE To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class V> INLINE V pick(bool c, V a, V b) { return c ? a : b; }

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(bf16 x) { return bits<float>(uint32_t(x.bits) << 16); }
INLINE float widen(half x) {
    uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    uint32_t finite = bits<uint32_t>(bits<float>(magnitude) * 0x1p112f);  // normal and subnormal alike
    return bits<float>(pick(magnitude >= 0x0f800000, magnitude | 0x7f800000, finite) | sign);
}

INLINE void narrow(float x, float& to) { to = x; }
INLINE void narrow(double x, double& to) { to = x; }
INLINE void narrow(float x, bf16& to) {  // to nearest, ties to even
    uint32_t u = bits<uint32_t>(x);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    to.bits = uint16_t(pick((u & 0x7fffffff) > 0x7f800000, 0x7fc0u, rounded));
}
INLINE void narrow(float x, half& to) {
    uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    uint32_t normal = (u + 0xc8000fff + ((u >> 13) & 1)) >> 13;
    uint32_t subnormal = bits<uint32_t>(bits<float>(u) + 0.5f) - 0x3f000000;  // the addition rounds
    uint32_t beyond = pick(u > 0x7f800000, 0x7e00u, 0x7c00u);
    uint32_t magnitude = pick(u >= 0x47800000, beyond, pick(u >= 0x38800000, normal, subnormal));
    to.bits = uint16_t(magnitude | sign);
}

// e^x for x ≤ 0: round to a power of two, minimax polynomial for the rest. Error at most 0.89 ulp with fused
// multiply-add, 1.18 without; from -88 down, where the power of two is 0, the result is 0; nan stays.
INLINE float exp_(float x) {
    constexpr float round = 12582912.0f + 127.0f;  // 1.5 · 2^23: the low bits are the integer with an exponent's bias
    float y = x < -88.0f ? -88.0f : x;
    float shifted = y * 1.44269504088896341f + round, n = shifted - round;
    float power = bits<float>(bits<uint32_t>(shifted) << 23);
    float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.3814540579915047e-3f;
    p = p * r + 8.36874544620514e-3f;
    p = p * r + 4.166838899254799e-2f;
    p = p * r + 0.1666652113199234f;
    p = p * r + 0.4999999403953552f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return power * p;
}
// For -708.39 ≤ x ≤ 0, e^x = power · (1 + rest): a power of two, and a quotient of polynomials.
struct Exponential {
    double power, rest;
};
INLINE Exponential exponential(double x) {
    double n = x * 1.4426950408889634074 + 6755399441055744.0;  // 1.5 · 2^52
    const double power = bits<double>((bits<uint64_t>(n) << 52) + 0x3ff0000000000000);
    n -= 6755399441055744.0;
    double r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6, rr = r * r;
    double p = r * ((1.26177193074810590878e-4 * rr + 3.02994407707441961300e-2) * rr + 9.99999999999999999910e-1);
    double q =
        ((3.00198505138664455042e-6 * rr + 2.52448340349684104192e-3) * rr + 2.27265548208155028766e-1) * rr + 2.0;
    return {power, 2.0 * (p / (q - p))};
}
INLINE double exp_(double x) {
    const Exponential e = exponential(x < -708.39 ? -708.39 : x);
    return (x < -708.39 ? 0.0 : e.power) * (1.0 + e.rest);
}

// log(1 + s) for s ≥ 0, with what rounding 1 + s loses put back; at most 1.26 ulp. It takes 1 / (1 + s) from who has
// it.
INLINE float log1p_(float s, float inverse) {
    float u = 1.0f + s, lost = (s - (u - 1.0f)) * inverse;
    uint32_t b = bits<uint32_t>(u) - 0x3f3504f3;  // √½ is the lower end of the mantissa
    float n = float(int32_t(b) >> 23);
    float f = bits<float>((b & 0x007fffff) + 0x3f3504f3) - 1.0f, ff = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * ff + n * -2.12194440e-4f - 0.5f * ff;
    return (f + p) + n * 0.693359375f + lost;
}
INLINE float log1p_(float s) { return log1p_(s, 1.0f / (1.0f + s)); }
// With f = m - 1 of the mantissa m, log m = 2 artanh(f / (2 + f)).
INLINE double log1p_(double s, double inverse) {
    double u = 1.0 + s, lost = pick(u == s, 0.0, (s - (u - 1.0)) * inverse);  // or infinity would lose a nan
    uint64_t b = bits<uint64_t>(u) - 0x3fe6a09e667f3bcd;                      // √½ is the lower end of the mantissa
    double n = bits<double>((b >> 52) | 0x4330000000000000) - 4503599627370496.0;  // 2^52
    double f = bits<double>((b & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd) - 1.0, half = 0.5 * f * f;
    double t = f / (2.0 + f), tt = t * t;
    double p = 0.14616449685043406;
    p = p * tt + 0.15331721600556042;
    p = p * tt + 0.18182889125261723;
    p = p * tt + 0.2222221113479508;
    p = p * tt + 0.28571428625975487;
    p = p * tt + 0.39999999999899505;
    p = p * tt + 0.666666666666667;
    return n * 6.93147180369123816490e-1 - (half - (t * (half + p * tt) + (n * 1.90821492927058770002e-10 + lost)) - f);
}
INLINE double log1p_(double s) { return log1p_(s, 1.0 / (1.0 + s)); }

// The same for 0 ≤ s ≤ 1, without a division; at most 1.47 ulp with fused multiply-add, 1.83 without.
INLINE float log1p_unit(float s) {
    float p = -0.0032440247014164925f;
    p = p * s + 0.019851459190249443f;
    p = p * s - 0.05695952847599983f;
    p = p * s + 0.10603654384613037f;
    p = p * s - 0.15305592119693756f;
    p = p * s + 0.1967593878507614f;
    p = p * s - 0.24954134225845337f;
    p = p * s + 0.3332996368408203f;
    p = p * s - 0.4999990165233612f;
    return p * (s * s) + s;
}
INLINE double log1p_unit(double s) { return log1p_(s); }

// 1 / (1 + s) for 0 ≤ s ≤ 1, which a vector's division takes longer for than all the rest: a parabola, twice improved
// by Newton's step.
INLINE float inverse_unit(float s) {
    const float u = 1.0f + s;
    float y = (32.0f / 99 * u - 144.0f / 99) * u + 210.0f / 99;
    y += y * (1.0f - u * y);
    return y + y * (1.0f - u * y);
}
INLINE double inverse_unit(double s) { return 1.0 / (1.0 + s); }

// e^z - 1 for z ≤ 0, with its relative accuracy near 0; at most 1.35 ulp.
INLINE float expm1_(float z) {
    float p = 1.0f / 362880;
    p = p * z + 1.0f / 40320;
    p = p * z + 1.0f / 5040;
    p = p * z + 1.0f / 720;
    p = p * z + 1.0f / 120;
    p = p * z + 1.0f / 24;
    p = p * z + 1.0f / 6;
    p = p * z + 0.5f;
    float near = p * (z * z) + z, far = exp_(z) - 1.0f;
    return pick(z > -0.5f, near, far);
}
INLINE double expm1_(double z) {
    double p = 2.0367831165025622e-08;
    p = p * z + 2.7077661631340097e-07;
    p = p * z + 2.7529613436538965e-06;
    p = p * z + 2.4800612832459925e-05;
    p = p * z + 0.00019841248546681163;
    p = p * z + 0.0013888888604959755;
    p = p * z + 0.008333333331155702;
    p = p * z + 0.04166666666658176;
    p = p * z + 0.16666666666666538;
    p = p * z + 0.5;
    const Exponential e = exponential(z < -708.39 ? -708.39 : z);
    double near = p * (z * z) + z, far = (e.power - 1.0) + e.power * e.rest;
    return pick(z > -0.5, near, far);
}

// a b + c. Where c is a product too, a compiler would fuse the one or the other with the sum; here it is always a b.
template <class R> INLINE R multiply_add(R a, R b, R c) {
#if defined(__FMA__) || defined(__aarch64__)
    if constexpr (sizeof(R) == 4) return __builtin_fmaf(a, b, c);
    else return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

template <class R> INLINE R times(R weight, R value) {  // 0 for a weight of 0, whatever the value
    return pick(weight == R(0), R(0), weight * value);
}
template <class R> INLINE R weigh(R weight, R by) {  // 0 where either weight is 0
    return pick((weight == R(0)) | (by == R(0)), R(0), weight * by);
}

// --- runs of N numbers, LANES as a rule ------------------------------------------------------------------------------

// What compilers see through least is written out: half precision has instructions of its own. Masks of all lanes stand
// where gcc 12 would warn of its own header without one.
#if defined(__AVX512F__)
constexpr int HALVES = 16;
INLINE void widen_halves(const half* from, float* to) {
    _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
INLINE void narrow_halves(const float* from, half* to) {
    const __m256i run = _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), run);
}
#elif defined(__F16C__)
constexpr int HALVES = 8;
INLINE void widen_halves(const half* from, float* to) {
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
INLINE void narrow_halves(const float* from, half* to) {
    const __m128i run = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), run);
}
#else
constexpr int HALVES = 0;
INLINE void widen_halves(const half*, float*) {}
INLINE void narrow_halves(const float*, half*) {}
#endif
#ifdef __AVX512BF16__
constexpr int BRAINS = 16;
INLINE void narrow_brains(const float* from, bf16* to) {  // numbers below the smallest normal one become 0
    const __m256bh run = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    std::memcpy(to, &run, sizeof run);
}
#else
constexpr int BRAINS = 0;
INLINE void narrow_brains(const float*, bf16*) {}
#endif

// Whether N numbers are a whole number of what one instruction takes.
template <int N, int TAKEN> constexpr bool fills = TAKEN > 0 && N % (TAKEN > 0 ? TAKEN : 1) == 0;

template <int N = LANES, class S, class R> INLINE void widen_run(const S* from, R* to) {
    if constexpr (std::is_same_v<S, half> && fills<N, HALVES>)
        for (int l = 0; l < N; l += HALVES) widen_halves(from + l, to + l);
    else
        for (int l = 0; l < N; l++) to[l] = widen(from[l]);
}
// As many numbers as a register of this instruction set holds.
#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
template <class T> struct Register {
    static constexpr int64_t SIZE = REGISTER / sizeof(T);
    typedef T Numbers __attribute__((vector_size(REGISTER)));
};
template <class T> using Numbers = typename Register<T>::Numbers;
template <class T> INLINE Numbers<T> numbers_at(const T* from) {
    Numbers<T> to;
    std::memcpy(&to, from, sizeof to);
    return to;
}
// Write a run, a register at a time, of what f(l) makes for the lanes from l on. Loops over lanes become vectors too
// late for a compiler to see that a run need not lie in memory between two of them.
template <int N = LANES, class R, class F> INLINE void in_registers(R* to, F&& f) {
    for (int l = 0; l < N; l += int(Register<R>::SIZE)) {
        const Numbers<R> some = f(l);
        std::memcpy(to + l, &some, sizeof some);
    }
}

// multiply_add of registers, for which compilers have no name of their own.
INLINE Numbers<float> multiply_add(float a, Numbers<float> b, Numbers<float> c) {
#if defined(__AVX512F__)
    return Numbers<float>(_mm512_fmadd_ps(_mm512_set1_ps(a), __m512(b), __m512(c)));
#elif defined(__AVX2__) && defined(__FMA__)
    return Numbers<float>(_mm256_fmadd_ps(_mm256_set1_ps(a), __m256(b), __m256(c)));
#elif defined(__aarch64__)
    return Numbers<float>(vfmaq_n_f32(float32x4_t(c), float32x4_t(b), a));
#else
    return a * b + c;
#endif
}
INLINE Numbers<double> multiply_add(double a, Numbers<double> b, Numbers<double> c) {
#if defined(__AVX512F__)
    return Numbers<double>(_mm512_fmadd_pd(_mm512_set1_pd(a), __m512d(b), __m512d(c)));
#elif defined(__AVX2__) && defined(__FMA__)
    return Numbers<double>(_mm256_fmadd_pd(_mm256_set1_pd(a), __m256d(b), __m256d(c)));
#elif defined(__aarch64__)
    return Numbers<double>(vfmaq_n_f64(float64x2_t(c), float64x2_t(b), a));
#else
    return a * b + c;
#endif
}
template <class R> INLINE Numbers<R> weigh(R weight, Numbers<R> by) {  // 0 where either is 0
    const Numbers<R> zero{};
    return weight == R(0) ? zero : by == zero ? zero : weight * by;
}

// e^x of a register, as exp_ has it, written out: of a loop over so few numbers a compiler makes single steps before it
// looks for vectors. With an instruction that scales by a power of two it takes two thirds of the time, so longer runs
// are made of it, too.
#ifdef __AVX512F__
constexpr bool OF_REGISTERS = true;
INLINE void exp_powers(const float* from, float* to) {
    const auto all = [](float x) __attribute__((always_inline)) { return _mm512_set1_ps(x); };
    const __m512 round = all(12582912.0f);                                              // 1.5 · 2^23
    const __m512 x = _mm512_maskz_max_ps(0xffff, all(-104.0f), _mm512_loadu_ps(from));  // nan stays
    const __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, all(1.44269504088896341f), round), round);
    const __m512 near = _mm512_fnmadd_ps(n, all(0.693359375f), x), r = _mm512_fnmadd_ps(n, all(-2.12194440e-4f), near);
    __m512 p = _mm512_fmadd_ps(all(1.3814540579915047e-3f), r, all(8.36874544620514e-3f));
    p = _mm512_fmadd_ps(p, r, all(4.166838899254799e-2f));
    p = _mm512_fmadd_ps(p, r, all(0.1666652113199234f));
    p = _mm512_fmadd_ps(p, r, all(0.4999999403953552f));
    p = _mm512_fmadd_ps(p, r, all(1.0f));
    p = _mm512_fmadd_ps(p, r, all(1.0f));
    _mm512_storeu_ps(to, _mm512_maskz_scalef_ps(0xffff, p, n));
}
INLINE void exp_powers(const double* from, double* to) {
    const auto all = [](double x) __attribute__((always_inline)) { return _mm512_set1_pd(x); };
    const __m512d round = all(6755399441055744.0), x = _mm512_loadu_pd(from);  // 1.5 · 2^52
    const __m512d n = _mm512_sub_pd(_mm512_fmadd_pd(x, all(1.4426950408889634074), round), round);
    const __m512d near = _mm512_fnmadd_pd(n, all(6.93145751953125e-1), x);
    const __m512d r = _mm512_fnmadd_pd(n, all(1.42860682030941723212e-6), near), rr = _mm512_mul_pd(r, r);
    __m512d p = _mm512_fmadd_pd(all(1.26177193074810590878e-4), rr, all(3.02994407707441961300e-2));
    p = _mm512_mul_pd(r, _mm512_fmadd_pd(p, rr, all(9.99999999999999999910e-1)));
    __m512d q = _mm512_fmadd_pd(all(3.00198505138664455042e-6), rr, all(2.52448340349684104192e-3));
    q = _mm512_fmadd_pd(_mm512_fmadd_pd(q, rr, all(2.27265548208155028766e-1)), rr, all(2.0));
    const __m512d rest = _mm512_div_pd(p, _mm512_sub_pd(q, p));
    const __mmask8 some = _mm512_cmp_pd_mask(x, all(-708.39), _CMP_NLT_UQ);  // nan is among them
    _mm512_storeu_pd(to, _mm512_maskz_scalef_pd(some, _mm512_fmadd_pd(rest, all(2.0), all(1.0)), n));
}
#else
constexpr bool OF_REGISTERS = false;
// x, or what it is at least; nan stays. Of a number that is known compilers make two instructions.
INLINE Numbers<float> at_least(float low, Numbers<float> x) {
#if defined(__AVX2__)
    return Numbers<float>(_mm256_max_ps(_mm256_set1_ps(low), __m256(x)));
#elif defined(__SSE2__)
    return Numbers<float>(_mm_max_ps(_mm_set1_ps(low), __m128(x)));
#else
    const Numbers<float> lowest = Numbers<float>{} + low;
    return x < lowest ? lowest : x;
#endif
}
INLINE void exp_powers(const float* from, float* to) {
    typedef int32_t Integers __attribute__((vector_size(REGISTER)));
    const Numbers<float> y = at_least(-88.0f, numbers_at(from));
    const Numbers<float> shifted = y * 1.44269504088896341f + (12582912.0f + 127.0f);
    const Numbers<float> n = shifted - (12582912.0f + 127.0f), power = Numbers<float>(Integers(shifted) << 23);
    const Numbers<float> r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    Numbers<float> p = r * 1.3814540579915047e-3f + 8.36874544620514e-3f;
    p = p * r + 4.166838899254799e-2f;
    p = p * r + 0.1666652113199234f;
    p = p * r + 0.4999999403953552f;
    p = p * r + 1.0f;
    p = power * (p * r + 1.0f);
    std::memcpy(to, &p, sizeof p);
}
INLINE void exp_powers(const double* from, double* to) {
    typedef int64_t Integers __attribute__((vector_size(REGISTER)));
    const Numbers<double> given = numbers_at(from), zero{}, lowest = zero - 708.39;
    const Numbers<double> x = given < lowest ? lowest : given;
    const Numbers<double> shifted = x * 1.4426950408889634074 + 6755399441055744.0, n = shifted - 6755399441055744.0;
    const Numbers<double> power = Numbers<double>((Integers(shifted) << 52) + 0x3ff0000000000000);
    const Numbers<double> r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6, rr = r * r;
    Numbers<double> p = rr * 1.26177193074810590878e-4 + 3.02994407707441961300e-2;
    p = r * (p * rr + 9.99999999999999999910e-1);
    Numbers<double> q = rr * 3.00198505138664455042e-6 + 2.52448340349684104192e-3;
    q = (q * rr + 2.27265548208155028766e-1) * rr + 2.0;
    p = (given < lowest ? zero : power) * (2.0 * (p / (q - p)) + 1.0);
    std::memcpy(to, &p, sizeof p);
}
#endif
template <int N = LANES, class R> INLINE void exp_run(const R* from, R* to) {
    constexpr int SIZE = int(Register<R>::SIZE);
    if constexpr (N == SIZE || (OF_REGISTERS && fills<N, SIZE>))
        for (int l = 0; l < N; l += SIZE) exp_powers(from + l, to + l);
    else
        for (int l = 0; l < N; l++) to[l] = exp_(from[l]);
}

template <int N = LANES, class R, class S> INLINE void narrow_run(const R* from, S* to) {
    if constexpr (std::is_same_v<S, half> && fills<N, HALVES>)
        for (int l = 0; l < N; l += HALVES) narrow_halves(from + l, to + l);
    else if constexpr (std::is_same_v<S, bf16> && fills<N, BRAINS>)
        for (int l = 0; l < N; l += BRAINS) narrow_brains(from + l, to + l);
    else if constexpr (std::is_same_v<S, R> && fills<N, int(Register<R>::SIZE)>)
        in_registers<N>(to, [&](int l) __attribute__((always_inline)) { return numbers_at(from + l); });
    else
        for (int l = 0; l < N; l++) narrow(from[l], to[l]);
}

}  // namespace
