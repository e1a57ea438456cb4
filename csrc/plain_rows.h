// Cross entropy of class indices and nothing else, of rows of up to BLOCK classes that lie side by side.
//
// Takes a Softmax problem that is `plain`, of rows, and the number of a tile: a few rows that are near in the first
// cache together. Gives what row_forward, row_both and row_backward give. A row has a sum, and then a chain of
// operations that each wait for the one before, such as two logarithms and a division. Here the chains of all rows of a
// tile are vectors, as those of a panel of plain.h are.
//
// Refuses longer rows, whose maximum is not known before all of a block is read: those go to rows.h.

#pragma once
#include "plain.h"
#include "rows.h"

namespace {

template <class R, class S> struct PlainRows : Span {
    const Softmax& p;
    const int64_t n, whole;  // classes, and those of them that fill runs
    PlainPanel<R> panel;

    PlainRows(const Softmax& of, int64_t tile)
        : Span(of, tile), p(of), n(of.classes), whole(of.classes / LANES * LANES) {}

    template <Wanted WANTED> void run(double* sums) {
        panel.label.read(p, row, rows);
        for (int l = 0; l < LANES; l++) panel.top[l] = panel.rest[l] = panel.x_y[l] = R(0);
        for (int64_t l = 0; l < rows; l++) {
            if (panel.label.valid[l] == R(0)) continue;
            const S* x = logits(l);
            panel.x_y[l] = widen(x[panel.label.y[l]]);
            if constexpr (WANTED != SLOPES) sum<WANTED == BOTH>(x, l);
        }
        if constexpr (WANTED == SLOPES) {
            panel.read_sums(p, row, rows);
            panel.start_slopes(p, row, rows);
        } else {
            panel.template finish<WANTED>(p, row, rows, sums);
        }
        for (int64_t l = 0; WANTED != LOSSES && l < rows; l++) write<WANTED == BOTH>(l);
    }

  private:
    const S* logits(int64_t l) const { return at_row<const S>(p, p.logits, p.at, row + l); }
    S* slopes(int64_t l) const { return at_row<S>(p, p.grad_logits, p.grad_at, row + l); }
    R* powers(int64_t l) const { return static_cast<R*>(p.scratch) + l * p.kept_row(); }
    static R level_of(R top) { return pick(top > -INF<R>, top, R(0)); }

    // Do something with each run of LANES logits: where it begins, and how many of it were there before.
    template <class F> INLINE_MEMBER void each(const S* x, F&& f) const {
        const auto run = [&](int64_t k, int64_t again) __attribute__((always_inline)) {
            if constexpr (sizeof(S) == sizeof(R)) return f(k, x + k, again);
            R wide[LANES];
            widen_run(x + k, wide), f(k, wide, again);
        };
        for (int64_t k = 0; k < whole; k += LANES) run(k, 0);
        if (whole < n) run(n - LANES, whole + LANES - n);
    }

    // A row's top, and Σ e^{x - top} without one class at the top. KEEP keeps each e^{x - top}.
    template <bool KEEP> INLINE_MEMBER void sum(const S* x, int64_t l) {
        alignas(64) R high[LANES], others[LANES] = {}, ties[LANES] = {};
        for (int i = 0; i < LANES; i++) high[i] = -INF<R>;
        each(x, [&](int64_t, const R* at, int64_t) __attribute__((always_inline)) {
            for (int i = 0; i < LANES; i++) high[i] = pick(at[i] > high[i], at[i], high[i]);
        });
        const R top = fold_max(high), level = level_of(top);
        const S *next = x + p.at.inner, *out = KEEP ? slopes(l) : nullptr;
        // A line that the row shares with the next is not streamed.
        if (KEEP && p.stream && before_line(out + n)) fetch_to_write(out + n, 1);
        R* __restrict e = KEEP ? powers(l) : nullptr;
        each(x, [&](int64_t k, const R* at, int64_t again) __attribute__((always_inline)) {
            R below[LANES], power[LANES];
            fetch(next + k, LANES * sizeof(S));
            if (KEEP && !p.stream) fetch_to_write(out + k, LANES * sizeof(S));
            for (int i = 0; i < LANES; i++) below[i] = at[i] - level;
            exp_run(below, power);
            for (int i = 0; i < LANES; i++) others[i] += pick(below[i] == R(0) || i < again, R(0), power[i]);
            for (int i = 0; i < LANES; i++) ties[i] += pick(below[i] == R(0) && i >= again, R(1), R(0));
            for (int i = 0; KEEP && i < LANES; i++) e[k + i] = power[i];
        });
        const double at_top = fold(ties);
        panel.top[l] = top, panel.rest[l] = R(fold(others) + (at_top > 1 ? at_top - 1 : 0));
    }

    // The slopes of a row.
    template <bool KEPT> INLINE_MEMBER void write(int64_t l) const {
        alignas(64) R own[BLOCK];
        R* e = KEPT ? powers(l) : own;
        const R level = level_of(panel.top[l]);
        const S* next = logits(l) + p.at.inner;
        S* out = slopes(l);
        if (!KEPT)
            each(logits(l), [&](int64_t k, const R* at, int64_t) __attribute__((always_inline)) {
                R below[LANES];
                fetch(next + k, LANES * sizeof(S)), fetch_to_write(out + k, LANES * sizeof(S));
                for (int i = 0; i < LANES; i++) below[i] = at[i] - level;
                exp_run(below, e + k);
            });
        const Transform<R> none(p);
        const int64_t y = panel.label.own[l];
        const R of_e = settled(panel.of_e[l], e, n);
        const KeptSlopes<R> of_kept{none, n, y, of_e, R(0), R(0), panel.at_y[l], e, nullptr, nullptr, nullptr};
        const S* ahead = KEPT ? logits(l) + rows * p.at.inner : nullptr;
        if (p.stream) of_kept.template store<true, false, false>(out, ahead);
        else of_kept.template store<false, false, false>(out, ahead);
    }
};

// Takes a plain problem of rows and the number of a tile. Gives what is wanted of it.
template <Wanted WANTED, class R, class S> APART void plain_rows(const Softmax& p, int64_t tile, double* sums) {
    PlainRows<R, S>(p, tile).template run<WANTED>(sums);
}

}  // namespace
