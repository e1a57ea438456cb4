// Numbers: the dtypes of storage, and exp, log1p and expm1 as branch-free expressions that a compiler turns into vectors.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

struct bf16 { uint16_t bits; };
struct half { uint16_t bits; };

template <class S> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };

template <class To, class From> static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class V> static inline V pick(bool c, V a, V b) { return c ? a : b; }

static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(bf16 x) { return bits<float>(uint32_t(x.bits) << 16); }
static inline float widen(half x) {
    uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    uint32_t finite = bits<uint32_t>(bits<float>(magnitude) * 0x1p112f);  // normal and subnormal alike
    return bits<float>(pick(magnitude >= 0x0f800000, magnitude | 0x7f800000, finite) | sign);
}

static inline void narrow(float x, float& to) { to = x; }
static inline void narrow(double x, double& to) { to = x; }
static inline void narrow(float x, bf16& to) {  // to nearest, ties to even
    uint32_t u = bits<uint32_t>(x);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    to.bits = uint16_t(pick((u & 0x7fffffff) > 0x7f800000, 0x7fc0u, rounded));
}
static inline void narrow(float x, half& to) {
    uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    uint32_t normal = (u + 0xc8000fff + ((u >> 13) & 1)) >> 13;
    uint32_t subnormal = bits<uint32_t>(bits<float>(u) + 0.5f) - 0x3f000000;  // the addition rounds
    uint32_t beyond = pick(u > 0x7f800000, 0x7e00u, 0x7c00u);
    uint32_t magnitude = pick(u >= 0x47800000, beyond, pick(u >= 0x38800000, normal, subnormal));
    to.bits = uint16_t(magnitude | sign);
}

// e^x for x ≤ 0: round to a power of two, polynomial (Cephes' coefficients) for the rest. Error at most 1.02 ulp; below the
// smallest normal number the result is 0; nan stays.
static inline float exp_(float x) {
    float y = x < -87.33654f ? -87.33654f : x;
    float n = y * 1.44269504088896341f + 12582912.0f;  // 1.5 · 2^23: the integer stands in the low bits
    float power = bits<float>((bits<uint32_t>(n) << 23) + 0x3f800000);
    n -= 12582912.0f;
    float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (x < -87.33654f ? 0.0f : power) * p;
}
static inline double exp_(double x) {
    double y = x < -708.39 ? -708.39 : x;
    double n = y * 1.4426950408889634074 + 6755399441055744.0;  // 1.5 · 2^52
    double power = bits<double>((bits<uint64_t>(n) << 52) + 0x3ff0000000000000);
    n -= 6755399441055744.0;
    double r = (y - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6, rr = r * r;
    double p = r * ((1.26177193074810590878e-4 * rr + 3.02994407707441961300e-2) * rr + 9.99999999999999999910e-1);
    double q = ((3.00198505138664455042e-6 * rr + 2.52448340349684104192e-3) * rr + 2.27265548208155028766e-1) * rr + 2.0;
    return (x < -708.39 ? 0.0 : power) * (1.0 + 2.0 * (p / (q - p)));
}

// log(1 + s) for s ≥ 0, with what rounding 1 + s loses put back; at most 1.3 ulp.
static inline float log1p_(float s) {
    float u = 1.0f + s, lost = (s - (u - 1.0f)) / u;
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
static inline double log1p_(double s) { return std::log1p(s); }

// e^z - 1 for z ≤ 0, with its relative accuracy near 0; at most 1.25 ulp.
static inline float expm1_(float z) {
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
static inline double expm1_(double z) { return std::expm1(z); }

template <class R> static inline R times(R weight, R value) {  // 0 · inf = 0
    return pick(weight == R(0) && value == value, R(0), weight * value);
}

}  // namespace
