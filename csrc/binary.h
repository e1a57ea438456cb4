// Binary cross entropy: blocks of elements, with their weights where there are any.
//
// Takes a Binary problem and blocks [begin, end) of BINARY_BLOCK elements. Gives the loss of each element or a sum for
// each block, or the slopes of logits and target where there is a gradient of the loss. Refuses nothing.

#pragma once
#include "runs.h"

namespace {

template <class R> INLINE R magnitude(R x) { return std::fabs(x); }

// A block of up to BINARY_BLOCK elements, filled up to whole runs: logits, targets, and weights where there are any.
template <class R, class S, class T, bool WEIGHTED> struct Elements {
    int64_t n, first;
    alignas(64) R buffers[4][BINARY_BLOCK];
    const R *x, *t, *w, *pi;
    const S* next_x;
    const T* next_t;

    Elements(const Binary& p, int64_t block) {
        const int64_t per_outer = p.blocks_per_outer();
        const int64_t i = block % per_outer * BINARY_BLOCK;
        n = p.inner - i < BINARY_BLOCK ? p.inner - i : BINARY_BLOCK, first = block / per_outer * p.inner + i;
        x = runs(static_cast<const S*>(p.logits) + first, buffers[0]);
        t = runs(static_cast<const T*>(p.target) + first, buffers[1]);
        next_x = static_cast<const S*>(p.logits) + first + n, next_t = static_cast<const T*>(p.target) + first + n;
        if constexpr (WEIGHTED)
            w = weights(p.weight, p.weight_at, p.row, buffers[2]),
            pi = weights(p.pos_weight, p.pos_weight_at, p.row, buffers[3]);
    }

    template <class V> const R* runs(const V* from, R* scratch) const {
        const int64_t whole = n / LANES * LANES;
        if constexpr (sizeof(V) == sizeof(R)) {
            if (whole == n) return from;
        }
        for (int64_t k = 0; k < whole; k += LANES) widen_run(from + k, scratch + k);
        for (int64_t k = whole; k < padded(n); k++) scratch[k] = k < n ? widen(from[k]) : R(0);
        return scratch;
    }
    // The weights of a block, whose first element is the i-th of the row o. What is the same for each row is laid out
    // for one, and then copied: 10 numbers, 20, 40.
    const R* weights(const void* from, const int64_t (&at)[2], int64_t row, R* scratch) const {
        if (!from) {
            for (int64_t k = 0; k < padded(n); k++) scratch[k] = k < n ? R(1) : R(0);
            return scratch;
        }
        const R* start = static_cast<const R*>(from);
        int64_t o = first / row, i = first % row;
        if (at[1] == 1 && i + n <= row) return runs(start + o * at[0] + i, scratch);
        const int64_t laid_out = at[0] == 0 ? std::min(row, n) : n;
        for (int64_t k = 0, size; k < laid_out; k += size, i = 0, o++) {
            size = std::min(row - i, laid_out - k);
            const R* part = start + o * at[0] + i * at[1];
            for (int64_t j = 0; j < size; j++) scratch[k + j] = part[j * at[1]];
        }
        for (int64_t k = laid_out; k < n; k += k)
            std::memcpy(scratch + k, scratch, size_t(std::min(k, n - k)) * sizeof(R));
        for (int64_t k = n; k < padded(n); k++) scratch[k] = R(0);
        return scratch;
    }

    void fetch_next(int64_t k) const { fetch(next_x + k, LANES * sizeof(S)), fetch(next_t + k, LANES * sizeof(T)); }

    // e^{-|x|} of a run.
    void powers(int64_t k, R* to) const {
        R below[LANES];
        for (int l = 0; l < LANES; l++) below[l] = -magnitude(x[k + l]);
        exp_run(below, to);
    }
    // What "yes" weighs in a run, π t, and what "no" weighs, 1 - t.
    void weights_of(int64_t k, R* yes, R* no) const {
        for (int l = 0; l < LANES; l++) {
            if constexpr (WEIGHTED) yes[l] = weigh(pi[k + l], t[k + l]);
            else yes[l] = t[k + l];
            no[l] = R(1) - t[k + l];
        }
    }
    // The gradient g of an element's loss, times its weight.
    R weighed(R g, [[maybe_unused]] int64_t k) const {
        if constexpr (WEIGHTED) return weigh(g, w[k]);
        else return g;
    }
    template <class V> void store_to(const R* from, V* to) const {
        const int64_t whole = n / LANES * LANES;
        if (whole) store(from, to + first, whole);
        for (int64_t k = whole; k < n; k++) narrow(from[k], to[first + k]);
    }
};

// -log σ(x) = max(-x, 0) + log(1 + e^{-|x|}), and the same for -x, weighed by `yes` and `no`, which are 1 together
// without weights; small is e^{-|x|}.
template <bool WEIGHTED, class R> INLINE R binary_loss(R x, R small, R yes, R no) {
    const R likely = pick(x > R(0), no, yes), tail = log1p_unit(small);
    const R rest = WEIGHTED ? times(yes + no, tail) : tail;
    return pick(likely == R(0), rest, multiply_add(likely, magnitude(x), rest));
}
// Its slope times g. With weights both may weigh nothing, and then there is no slope, whatever x and g are.
template <bool WEIGHTED, class R> INLINE R binary_slope(R g, R x, R small, R yes, R no) {
    const R slope = times(g, pick(x < R(0), no * small - yes, no - yes * small) * inverse_unit(small));
    if constexpr (WEIGHTED) return pick((yes == R(0)) & (no == R(0)), R(0), slope);
    else return slope;
}

// Takes logits, targets and weights of a block, and with GRADIENT the gradient of the sum. Gives its losses, or their
// sum, and with GRADIENT the slopes of the logits.
template <bool GRADIENT, class R, class S, class T, bool WEIGHTED>
static void block_forward(const Binary& p, int64_t block) {
    const Elements<R, S, T, WEIGHTED> e(p, block);
    alignas(64) R lane[LANES] = {}, scratch[BINARY_BLOCK];
    S* out = GRADIENT ? static_cast<S*>(p.grad_logits) + e.first : nullptr;
    const bool past = p.stream && before_line(out) == 0;
    const R g = GRADIENT ? static_cast<const R*>(p.grad)[0] : R(0);
    for (int64_t k = 0; k < e.n; k += LANES) {
        R loss[LANES], small[LANES], yes[LANES], no[LANES], slope[LANES];
        e.fetch_next(k);
        if (GRADIENT && !past) fetch_to_write(out + BINARY_BLOCK + k, LANES * sizeof(S));
        e.powers(k, small);
        e.weights_of(k, yes, no);
        for (int l = 0; l < LANES; l++) {
            R one = binary_loss<WEIGHTED>(e.x[k + l], small[l], yes[l], no[l]);
            if constexpr (WEIGHTED) one = times(e.w[k + l], one);
            loss[l] = one;
            if constexpr (GRADIENT)
                slope[l] = binary_slope<WEIGHTED>(e.weighed(g, k + l), e.x[k + l], small[l], yes[l], no[l]);
        }
        if (k + LANES > e.n) {
            for (int64_t l = e.n - k; l < LANES; l++) loss[l] = 0;
            for (int64_t l = 0; GRADIENT && l < e.n - k; l++) narrow(slope[l], out[k + l]);
        } else if constexpr (GRADIENT) {
            past ? stream_run(slope, out + k) : narrow_run(slope, out + k);
        }
        in_registers(lane, [&](int l) __attribute__((always_inline)) {
            return numbers_at(lane + l) + numbers_at(loss + l);
        });
        if (p.loss)
            for (int l = 0; l < LANES; l++) scratch[k + l] = loss[l];
    }
    if (p.loss && p.narrow_loss) e.store_to(scratch, static_cast<S*>(p.loss));
    else if (p.loss) e.store_to(scratch, static_cast<R*>(p.loss));
    if (p.partial) p.partial[block] = fold(lane);
}

// Takes the same and the gradient of the loss. Gives the slopes of the targets, and last those of the logits, which may
// lie where the logits lie.
template <class R, class S, class T, bool WEIGHTED> static void block_backward(const Binary& p, int64_t block) {
    const Elements<R, S, T, WEIGHTED> e(p, block);
    alignas(64) R rows[BINARY_BLOCK], slope[BINARY_BLOCK];
    const auto read = [&](const auto* g, int64_t step) __attribute__((always_inline)) {
        for (int64_t k = 0; k < e.n; k++) rows[k] = e.weighed(R(widen(g[k * step])), k);
    };
    for (int64_t k = e.n; k < padded(e.n); k++) rows[k] = R(0);
    if (!p.grad_rows) read(static_cast<const R*>(p.grad), 0);
    else if (p.narrow_grad) read(static_cast<const S*>(p.grad) + e.first, 1);
    else read(static_cast<const R*>(p.grad) + e.first, 1);
    for (int64_t k = 0; p.grad_target && k < e.n; k += LANES) {
        R run[LANES];
        for (int l = 0; l < LANES; l++) {
            const R x = e.x[k + l], size = magnitude(x), tail = log1p_unit(exp_(-size));
            R gain = pick(x < R(0), size, R(0)) + tail;
            if constexpr (WEIGHTED) gain = times(e.pi[k + l], gain);
            run[l] = times(rows[k + l], gain - (pick(x > R(0), size, R(0)) + tail));
        }
        for (int l = 0; l < LANES; l++) slope[k + l] = run[l];
    }
    if (p.grad_target) e.store_to(slope, static_cast<T*>(p.grad_target));
    // The slopes of the logits come last, for they may lie in the place of the logits.
    for (int64_t k = 0; p.grad_logits && k < e.n; k += LANES) {
        R run[LANES], small[LANES], yes[LANES], no[LANES];
        e.fetch_next(k), fetch_to_write(static_cast<S*>(p.grad_logits) + e.first + k, LANES * sizeof(S));
        e.powers(k, small), e.weights_of(k, yes, no);
        for (int l = 0; l < LANES; l++)
            run[l] = binary_slope<WEIGHTED>(rows[k + l], e.x[k + l], small[l], yes[l], no[l]);
        for (int l = 0; l < LANES; l++) slope[k + l] = run[l];
    }
    if (p.grad_logits) e.store_to(slope, static_cast<S*>(p.grad_logits));
}

// A block by what is wanted and the types at hand: losses, slopes, or a sum with its slopes.
template <class R, class S, class T, bool WEIGHTED> static void binary_by(const Binary& p, int64_t block) {
    if (!p.grad) block_forward<false, R, S, T, WEIGHTED>(p, block);
    else if (p.partial) block_forward<true, R, S, T, WEIGHTED>(p, block);
    else block_backward<R, S, T, WEIGHTED>(p, block);
}
template <class R, class S> static void binary_block(const Binary& p, int64_t block) {
    const bool weighted = p.weight || p.pos_weight;
    if (p.wide_target) weighted ? binary_by<R, S, R, true>(p, block) : binary_by<R, S, R, false>(p, block);
    else weighted ? binary_by<R, S, S, true>(p, block) : binary_by<R, S, S, false>(p, block);
}

}  // namespace
