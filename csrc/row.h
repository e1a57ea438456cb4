// The mathematics of a row of softmax cross entropy. It stands here once: rows.h calls it for one row, tiles.h in loops
// over LANES rows. They differ in how they walk through memory.
//
// Takes and gives numbers of type R: those of one class, or of one row. The names are those of the formulas:
//
//     L = Σ_k w_k (-log p_k)        ∂L/∂x = mass · p - w        w = c ∘ ((1 - ε) t + ε / C)        mass = Σ_k w_k
//
// and with a penalty f in the place of -log p, w ∘ s(p) in the place of w.
//
// Refuses branches: what depends on a number is a pick, so that a loop over LANES of these calls becomes vectors.

#pragma once
#include "family.h"

namespace {

template <class R> constexpr R INF = std::numeric_limits<R>::infinity();
template <class R> constexpr R NAN_ = std::numeric_limits<R>::quiet_NaN();
template <class R> constexpr R LOG_HALF = R(-0.69314718055994530942);

// --- classes --------------------------------------------------------------------------------------------------------

// NO_CLASS: no class is the likeliest, or the row's own class is not here. NO_TARGET: the target wants no class.
constexpr int64_t NO_CLASS = -1, NO_TARGET = -2;

// The number of a class, as wide as R so that LANES of them are as many vectors; R itself is not exact beyond 2^24.
template <class R> using Class = std::conditional_t<sizeof(R) == 8, int64_t, int32_t>;

// What Python is told for a row that is ignored or has no softmax.
constexpr int64_t NOT_PREDICTED = -100;

// All bits where a row with the class index y counts, none where it does not. `wrong` gets bits where y is neither the
// index of ignored rows nor a class, nor, of a shard, that of a class elsewhere.
INLINE int64_t counts(const Softmax& p, int64_t y, int64_t& wrong) {
    const int64_t here = uint64_t(y) < uint64_t(p.classes) ? -1 : 0, taken = y != p.ignore_index ? -1 : 0;
    const int64_t inside = here | (p.shard && y == NO_CLASS ? -1 : 0);
    wrong |= taken & ~inside;
    return inside & taken;
}

// What w is made of: c and what smoothing spreads over (null where that is 1 for each class), 1 - ε and ε / C.
template <class R> struct Smoothing {
    const R *weight, *spread;
    R keep, share;

    explicit Smoothing(const Softmax& p)
        : weight(static_cast<const R*>(p.weight)), spread(static_cast<const R*>(p.spread ? p.spread : p.weight)),
          keep(R(1 - p.smoothing)), share(R(p.share)) {}

    // w of a class with the target t, out of its `weight` and `spread`.
    INLINE_MEMBER R of(R t, R c, R even) const { return weigh(times(keep, c), t) + times(share, even); }
};

// What the margin takes from x' of a row's class.
template <class R> INLINE R margin_of(const Softmax& p) { return R(p.margin * p.per_temperature); }

// x' of a row's class y, out of x.
template <class R> INLINE R target_logit(const Softmax& p, R x, int64_t y) {
    if (!p.transformed()) return x;
    return Transform<R>(p).of(x, p.bias ? static_cast<const R*>(p.bias)[y] : R(0)) - margin_of<R>(p);
}

// --- sums over the classes of a row ---------------------------------------------------------------------------------

// Σ e, where e = e^{x - level} and below = x - level: of all classes, and without those that equal the level, whose
// ones would drown the rest of a confident row. The sums differ by the number of those, with an error of less than 1/2.
template <class R> INLINE void add_exp(R below, R e, R& others, R& all) {
    others += pick(below == R(0), R(0), e);
    all += e;
}

// Σ e (level - x), where e = e^{x - level}, of which the entropy is made.
template <class R> INLINE void add_moment(R x, R level, R e, R& moment) {
    const R below = level - x;
    moment += pick(below == INF<R>, R(0), e * below);
}

// Σ w (level - x) and Σ w.
template <class R> INLINE void add_cost(R w, R x, R level, R& cost, R& mass) {
    cost += times(w, level - x);
    mass += w;
}

// Σ w s(p), and the same without the class, if there is one, that has more than half of p: it may be nearly all of the
// sum, from which it must not be subtracted afterwards.
template <class R, class A> INLINE void add_pull(R log_p, R pull, A& mass, A& rest) {
    mass += A(pull);
    rest += A(pick(log_p > LOG_HALF<R>, R(0), pull));
}

// The sums above over the classes seen so far, relative to the largest of their logits; A is the type in which they are
// carried on.
template <class R, class A> struct RowSums {
    R top = -INF<R>;
    double others = 0;
    A ties = 0, cost = 0, mass = 0, moment = 0;

    // What the sums are relative to: the top, or 0 while there is nothing but -inf.
    INLINE_MEMBER R level() const { return pick(top > -INF<R>, top, R(0)); }

    // Make the sums relative to `high`, where that is higher.
    INLINE_MEMBER void raise(R high) {
        const bool higher = high > top, moved = higher && top > -INF<R>;
        const R shrink = exp_(top - pick(high > -INF<R>, high, R(0)));
        const A up = A(high) - A(top);
        const double seen = others + double(ties);
        moment = moved ? (moment + A(seen) * up) * A(shrink) : moment;
        others = moved ? seen * double(shrink) : others;
        cost += moved && mass != A(0) ? mass * up : A(0);
        ties = higher ? A(0) : ties;
        top = pick(higher, high, top);
    }

    // Σ e^{x - top} without one class at the top; the logarithm of the sum with it, which is lse - top; and the entropy
    // of p. The latter two are nan where the top is not finite.
    INLINE_MEMBER double rest() const { return others + double(pick(ties > A(1), ties - A(1), A(0))); }
    INLINE_MEMBER R log_sum() const { return log1p_(R(rest())) + (top - top); }
    INLINE_MEMBER R entropy(R log_sum) const { return log_sum + R(moment / A(1 + rest())); }

    // What times e^{x - level} is p, nan where the top is not finite; and the e^{x - level} of the class that has more
    // than half of p: 1, or nan where there is none that was seen with this level.
    INLINE_MEMBER R of_e(R level) const {
        const R down = level - top, per_sum = R(1 / (1 + rest())) + (top - top);
        return exp_(pick(down < R(0), down, R(0))) * per_sum;
    }
    INLINE_MEMBER R likely(R level, R log_sum) const {
        const bool here = (level == top) & (log_sum < -LOG_HALF<R>);
        return pick(here, R(1), NAN_<R>);
    }

    // Σ w (-log p), or Σ w f(p) where that was summed as the cost, without a mass.
    INLINE_MEMBER R total(R log_sum) const { return R(cost + times(mass, A(log_sum))); }
};

template <class R> INLINE R log_p_of(R x, R top, R log_sum) { return (x - top) - log_sum; }

// --- the loss of a row ----------------------------------------------------------------------------------------------

// What a class index adds to the sums' total.
template <class R> INLINE R target_cost(R keep, R weight, R f) { return times(keep * weight, f); }

// What a row weighs in a sum.
template <class R> INLINE R sample_weight(const Softmax& p, int64_t row) {
    return p.sample_weight ? static_cast<const R*>(p.sample_weight)[row] : R(1);
}

// The loss of a row, out of Σ w f(p): the z-loss λ lse² comes to it.
template <class R> INLINE R row_loss(const Softmax& p, R penalised, R weight, R lse) {
    return p.z_loss == 0 ? penalised : penalised + times(weight, R(p.z_loss) * lse * lse);
}

// --- the gradient of a row ------------------------------------------------------------------------------------------

// The mass of a row in its parts.
template <class R> struct Masses {
    R own;     // of a class index: (1 - ε) c_y s(p_y)
    R spread;  // of the weights that every class has: a probability target's, or what smoothing spreads
    R others;  // of the latter on other classes than the row's own
    R rest;    // `spread` without the class that has more than half of p; nan where it is formed by subtraction
};

// Add the mass that a row has on other shards, which is mass on other classes than its own here.
template <class R> INLINE Masses<R> with_elsewhere(Masses<R> masses, R away) {
    return {masses.own, masses.spread + away, masses.others + away, masses.rest + away};
}

// The masses of a class index without a penalty on all classes. `weight` is c[y], `even` what smoothing spreads over y,
// `total` the sum of that over all classes.
template <class R> INLINE Masses<R> index_masses(const Smoothing<R>& smoothing, R weight, R even, R total, R s) {
    const R share = smoothing.share;
    return {times(smoothing.keep * weight, s), times(share, total), times(share, total - even), NAN_<R>};
}

// What the slopes of a row's classes have in common.
template <class R> struct RowSlopes {
    R top, log_sum;
    R g;             // the gradient of Σ w f(p); where that is infinite, what weighs nothing still has a slope of 0
    R extra;         // the mass that the z-loss adds: 2 λ lse
    R mass, others;  // without extra; as in Masses
    R rest;          // mass without the class that has more than half of p; nan where that is mass - w
    R scale;         // g (mass + extra)

    // Begin with the gradient of row_loss.
    INLINE_MEMBER void start(const Softmax& p, R grad, R weight) {
        g = grad;
        extra = p.z_loss == 0 ? R(0) : times(weight, R(2) * R(p.z_loss) * (top + log_sum));
    }

    INLINE_MEMBER void set(const Masses<R>& masses) {
        mass = masses.own + masses.spread, others = masses.others, rest = masses.rest + masses.own;
        scale = weigh(g, mass + extra);
    }

    INLINE_MEMBER R log_p(R x) const { return log_p_of(x, top, log_sum); }

    // g (mass + extra) p, from which g w is to be subtracted: plainly, or so that nothing cancels where p may be
    // near 1.
    INLINE_MEMBER R of_p(R x) const { return times(scale, exp_(log_p(x))); }
    INLINE_MEMBER R minus_weight(R slope, R w) const { return slope - weigh(g, w); }
    INLINE_MEMBER R minus_weight_near_one(R slope, R x, R w) const {
        const R u = log_p(x);
        return pick(u > LOG_HALF<R>, of_likely(u, w), minus_weight(slope, w));
    }
    // The slope of the one class that has more than half of p, with u = log p.
    INLINE_MEMBER R of_likely(R u, R w) const {
        const R away = pick(rest == rest, rest, mass - w);
        return scale * expm1_(u) + weigh(g, away + extra);
    }

    // ∂L/∂x' of a class index, where log p = u: it is formed of p - 1 = expm1(u).
    INLINE_MEMBER R of_index(R u) const {
        const bool weightless = (mass == R(0)) & (others == R(0)) & (extra == R(0));
        const R slope = times(mass, expm1_(u)) + others + times(extra, exp_(u));
        return pick(weightless, R(0), times(g, slope));
    }

    // ∂L/∂t of a class.
    INLINE_MEMBER R of_target(R keep, R c, R f) const { return times(weigh(keep * g, c), f); }
};

// --- the statistics of a row ----------------------------------------------------------------------------------------

// The likeliest class of a row, or none where the row has no softmax: its log_sum is nan then.
template <class R> INLINE int64_t found(int64_t likeliest, R log_sum) {
    return log_sum == log_sum ? likeliest : NO_CLASS;
}

// Write a row's statistics, where they are wanted.
template <class R>
INLINE void store_statistics(
    const Softmax& p, int64_t row, R entropy, R target_log_prob, int64_t likeliest, int64_t wanted
) {
    if (!p.entropy) return;
    static_cast<R*>(p.entropy)[row] = entropy;
    static_cast<R*>(p.target_log_prob)[row] = target_log_prob;
    p.correct[row] = likeliest == wanted;
    p.predicted[row] = likeliest == NO_CLASS ? NOT_PREDICTED : likeliest;
}

}  // namespace
