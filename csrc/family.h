// What the members of the family change: the logits x → x' = (cap tanh(x / cap) + bias - margin at the target) / T, and
// the penalty f(p) with s(p) = -f'(p) p.
//
// Takes numbers of R, alone or in runs. Gives x' and what takes slopes of x' to those of x, and f and s as functions of
// u = log p, so that neither p nor 1 - p loses its digits. Refuses u > 0.

#pragma once
#include "numbers.h"
#include "problem.h"

namespace {

// 1 - e^u for u ≤ 0.
template <class R> INLINE R complement(R u) { return -expm1_(u); }

// tanh(z), and its slope 1 - tanh(z)², from t = e^{-2|z|}.
template <class R> struct Tanh {
    R value, slope;

    INLINE_MEMBER explicit Tanh(R z) {
        const R doubled = R(-2) * pick(z < R(0), -z, z), t = exp_(doubled), inverse = inverse_unit(t);
        const R size = complement(doubled) * inverse;
        value = pick(z < R(0), -size, size), slope = R(4) * t * inverse * inverse;
    }
};

// x → x' for a run of classes (bias of each) or of rows (bias of one class); a masked class, whose bias is the largest
// number there is, is out, whatever x is. A bias of -inf is not out: what is wanted of such a class costs inf.
template <class R> struct Transform {
    static constexpr R GONE = -std::numeric_limits<R>::infinity();
    R cap, per_cap, per_temperature;
    R out;  // the bias that marks a class as masked; nan, which nothing equals, where none is

    explicit Transform(const Softmax& p)
        : cap(R(p.cap)), per_cap(p.cap > 0 ? R(1 / p.cap) : R(0)), per_temperature(R(p.per_temperature)),
          out(p.masked ? std::numeric_limits<R>::max() : std::numeric_limits<R>::quiet_NaN()) {}

    R of(R x, R bias) const {
        const R capped = cap > R(0) ? cap * Tanh<R>(x * per_cap).value : x;
        return bias == out ? GONE : (capped + bias) * per_temperature;
    }
    // `bends` gets the slopes of a soft cap, or is null.
    template <bool MANY> INLINE_MEMBER void run(const R* x, const R* bias, R* to, R* bends) const {
        if (cap > R(0)) bias ? run<MANY, true, true>(x, bias, to, bends) : run<MANY, true, false>(x, bias, to, bends);
        else bias ? run<MANY, false, true>(x, bias, to, bends) : run<MANY, false, false>(x, bias, to, bends);
    }
    void bend(const R* x, R* bends) const {
        for (int l = 0; l < LANES; l++) bends[l] = Tanh<R>(x[l] * per_cap).slope;
    }
    // ∂L/∂x' → ∂L/∂x, which is 0 for a class that is out. `bends` are the slopes of a soft cap, or null.
    template <bool MANY> INLINE_MEMBER void chain(const R* bends, const R* bias, R* slope) const {
        for (int l = 0; l < LANES; l++) slope[l] *= per_temperature;
        for (int l = 0; bends && l < LANES; l++) slope[l] = times(slope[l], bends[l]);
        for (int l = 0; bias && l < LANES; l++) slope[l] = pick((MANY ? bias[l] : *bias) == out, R(0), slope[l]);
    }
    R back(R slope, const R* bend, const R* bias) const {
        slope = times(slope * per_temperature, bend ? *bend : R(1));
        return bias && *bias == out ? R(0) : slope;
    }

  private:
    template <bool MANY, bool CAPPED, bool BIASED>
    INLINE_MEMBER void run(const R* x, const R* bias, R* to, R* bends) const {
        R slope[LANES];
        for (int l = 0; l < LANES; l++) {
            R moved = x[l];
            if constexpr (CAPPED) {
                const Tanh<R> of(moved * per_cap);
                moved = cap * of.value, slope[l] = of.slope;
            }
            if constexpr (BIASED) {
                const R b = MANY ? bias[l] : *bias;
                moved = pick(b == out, GONE, moved + b);
            }
            to[l] = moved * per_temperature;
        }
        for (int l = 0; CAPPED && bends && l < LANES; l++) bends[l] = slope[l];
    }
};

// A whole γ up to here is that many products, and takes no logarithm.
constexpr int MOST_PRODUCTS = 4;

// f and s of N values of u = log p ≤ 0, of p (`prob`) and of 1 - p (`rest`), by a penalty other than -log p.
template <int N, class R>
static void penalise_by(
    const Softmax& p, const R* __restrict u, const R* __restrict prob, const R* __restrict rest, R* __restrict f,
    R* __restrict s
) {
    const R a = R(p.penalty_a), b = R(p.penalty_b);
    switch (Penalty(p.penalty)) {  // without a default, so that the compiler names a penalty that has no case
        case NO_PENALTY: break;
        case FOCAL: {  // (1-p)^γ (-log p), and (1-p)^γ (1 + γ p (-log p)/(1-p)); in steps, which become vectors
            R power[N];
            if (a == R(0)) {
                for (int l = 0; l < N; l++) f[l] = -u[l], s[l] = R(1);
                break;
            }
            if (a >= R(1) && a <= R(MOST_PRODUCTS) && a == R(int(a))) {
                // (1-p)^(γ-1) times (1-p) (-log p), and times 1 - p + γ p (-log p).
                for (int l = 0; l < N; l++) power[l] = R(1);
                for (int k = 1; k < int(a); k++)
                    for (int l = 0; l < N; l++) power[l] *= rest[l];
                for (int l = 0; l < N; l++) s[l] = power[l] * (rest[l] + a * times(prob[l], -u[l]));
                for (int l = 0; l < N; l++) f[l] = times(power[l] * rest[l], -u[l]);
                break;
            }
            for (int l = 0; l < N; l++) power[l] = prob[l] / pick(rest[l] > R(0), rest[l], R(1));
            for (int l = 0; l < N; l++) power[l] = exp_(-a * log1p_(power[l]));
            // Nothing is left of a p of 1, and nan stays nan.
            for (int l = 0; l < N; l++) power[l] = pick(rest[l] <= R(0), R(0), power[l]);
            for (int l = 0; l < N; l++) f[l] = times(power[l], -u[l]);
            for (int l = 0; l < N; l++) s[l] = pick(rest[l] > R(0), -u[l] / pick(rest[l] > R(0), rest[l], R(1)), R(1));
            for (int l = 0; l < N; l++) s[l] = power[l] * (R(1) + a * times(prob[l], s[l]));
            break;
        }
        case POLY1:
            for (int l = 0; l < N; l++) f[l] = a * rest[l] - u[l], s[l] = R(1) + a * prob[l];
            break;
        case GCE:  // and MAE, where a = 1
            for (int l = 0; l < N; l++) f[l] = complement(a * u[l]) / a, s[l] = exp_(a * u[l]);
            break;
        case SCE:  // a = α, b = -β A
            for (int l = 0; l < N; l++) f[l] = b * rest[l] - times(a, u[l]), s[l] = a + b * prob[l];
            break;
        case TAYLOR: {
            R power[N], slope[N];
            for (int l = 0; l < N; l++) power[l] = R(1), slope[l] = f[l] = R(0);
            for (int k = 1; k <= int(a); k++)
                for (int l = 0; l < N; l++) slope[l] += power[l], power[l] *= rest[l], f[l] += power[l] * (R(1) / R(k));
            for (int l = 0; l < N; l++) s[l] = prob[l] * slope[l];
            break;
        }
    }
}

// f and s of N values of u = log p ≤ 0.
template <int N, class R> INLINE void penalise(const Softmax& p, const R* u, R* f, R* s) {
    if (p.penalty == NO_PENALTY) {
        for (int l = 0; l < N; l++) f[l] = -u[l], s[l] = R(1);
        return;
    }
    R prob[N] = {}, rest[N] = {};
    if (p.penalty != GCE)  // which is made of powers of p
        for (int l = 0; l < N; l++) prob[l] = exp_(u[l]), rest[l] = complement(u[l]);
    penalise_by<N>(p, u, prob, rest, f, s);
}

// What makes p of e = e^{x - level}, which was kept of LANES classes or rows: p = of_e e, and 1 - p. The latter would
// have lost its digits where a class has more than half of p. The e of such a class equals `likely`, which is 1 or, for
// none, nan, and its f and s are known.
template <class R> struct OfPowers {
    alignas(64) R of_e[LANES], likely[LANES], likely_f[LANES], likely_s[LANES];

    INLINE_MEMBER void penalise(const Softmax& p, const R* log_p, const R* e, R* f, R* s) const {
        R prob[LANES], rest[LANES];
        for (int l = 0; l < LANES; l++) prob[l] = of_e[l] * e[l], rest[l] = R(1) - prob[l];
        penalise_by<LANES>(p, log_p, prob, rest, f, s);
        for (int l = 0; l < LANES; l++) f[l] = pick(e[l] == likely[l], likely_f[l], f[l]);
        for (int l = 0; l < LANES; l++) s[l] = pick(e[l] == likely[l], likely_s[l], s[l]);
    }
};

}  // namespace
