// Cross entropy of class indices and nothing else, of rows of up to BLOCK classes that lie side by side.
//
// Takes a Softmax problem that is `plain`, of rows, and the number of a tile: a few rows that are near in the first
// cache together. Gives what row_forward, row_both and row_backward give. A row has a sum, and then a chain of
// operations that each wait for the one before, such as two logarithms and a division. Here the chains of all rows of a
// tile are vectors, as those of a panel of plain.h are.
//
// Refuses longer rows, which lose more by waiting for each other's memory than they win: those go to rows.h. Writes
// nothing past the caches, which pays for whole lines of longer rows alone.

#pragma once
#include "plain.h"
#include "rows.h"

namespace {

// 0, 1, 2 and so on.
template <class C> struct Numbered {
    alignas(64) C lane[LANES];
    constexpr Numbered() : lane() {
        for (int l = 0; l < LANES; l++) lane[l] = C(l);
    }
};
template <class R> constexpr Numbered<Class<R>> NUMBERED{};

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
    static constexpr int64_t SIZE = Register<R>::SIZE, PARTS = LANES / SIZE;

    const S* logits(int64_t l) const { return at_row<const S>(p, p.logits, p.at, row + l); }
    S* slopes(int64_t l) const { return at_row<S>(p, p.grad_logits, p.grad_at, row + l); }
    R* powers(int64_t l) const { return static_cast<R*>(p.scratch) + l * p.kept_row(); }
    static R level_of(R top) { return pick(top > -INF<R>, top, R(0)); }

    // Do something with each run of LANES logits, and where it begins. The last run comes first, with -inf for what it
    // has of the one before, which takes the place of what is written for these: N = 70 has [38, 70), of which 38 to 63
    // are -inf, then [0, 32) and [32, 64).
    template <class F> INLINE_MEMBER void each(const S* x, F&& f) const {
        if (whole < n) {
            alignas(64) R last[LANES];
            if constexpr (sizeof(S) != sizeof(R)) widen_run(x + n - LANES, last);
            const R* from = sizeof(S) == sizeof(R) ? reinterpret_cast<const R*>(x) + n - LANES : last;
            const Numbers<Class<R>> again = Numbers<Class<R>>{} + Class<R>(whole + LANES - n);
            for (int i = 0; i < PARTS; i++) {
                const Numbers<R> here = numbers_at(from + i * SIZE), gone = Numbers<R>{} - INF<R>;
                const Numbers<R> kept = numbers_at(NUMBERED<R>.lane + i * SIZE) < again ? gone : here;
                std::memcpy(last + i * SIZE, &kept, sizeof kept);
            }
            f(n - LANES, last);
        }
        for (int64_t k = 0; k < whole; k += LANES) {
            if constexpr (sizeof(S) == sizeof(R)) {
                f(k, x + k);
            } else {
                R wide[LANES];
                widen_run(x + k, wide), f(k, wide);
            }
        }
    }
    // e^{x - level} of a register.
    INLINE_MEMBER static Numbers<R> power(Numbers<R> below) {
        R from[SIZE], to[SIZE];
        std::memcpy(from, &below, sizeof below);
        exp_run<SIZE>(from, to);
        return numbers_at(to);
    }

    // A row's top, and Σ e^{x - top} without one class at the top. KEEP keeps each e^{x - top}.
    template <bool KEEP> INLINE_MEMBER void sum(const S* x, int64_t l) {
        const Numbers<R> zero{}, one = zero + R(1);
        Numbers<R> high[PARTS], others[PARTS] = {}, ties{};
        for (int i = 0; i < PARTS; i++) high[i] = zero - INF<R>;
        each(x, [&](int64_t, const R* at) __attribute__((always_inline)) {
            for (int i = 0; i < PARTS; i++) {
                const Numbers<R> here = numbers_at(at + i * SIZE);
                high[i] = here > high[i] ? here : high[i];
            }
        });
        const R top = fold_max(reinterpret_cast<const R*>(high)), level = level_of(top);
        const S *next = x + p.at.inner, *out = KEEP ? slopes(l) : nullptr;
        R* e = KEEP ? powers(l) : nullptr;
        each(x, [&](int64_t k, const R* at) __attribute__((always_inline)) {
            fetch(next + k, LANES * sizeof(S));
            if (KEEP) fetch_to_write(out + k, LANES * sizeof(S));
            for (int i = 0; i < PARTS; i++) {
                const Numbers<R> below = numbers_at(at + i * SIZE) - level, of = power(below);
                others[i] = below == zero ? others[i] : others[i] + of;
                ties = below == zero ? ties + one : ties;
                if (KEEP) std::memcpy(e + k + i * SIZE, &of, sizeof of);
            }
        });
        double at_top = 0;
        for (int i = 0; i < SIZE; i++) at_top += double(ties[i]);
        const double rest = fold(reinterpret_cast<const R*>(others));
        panel.top[l] = top, panel.rest[l] = R(rest + (at_top > 1 ? at_top - 1 : 0));
    }

    // The slopes of a row.
    template <bool KEPT> INLINE_MEMBER void write(int64_t l) const {
        alignas(64) R own[SHORT_BYTES / sizeof(half)];
        R* e = KEPT ? powers(l) : own;
        const R level = level_of(panel.top[l]);
        const S* next = logits(l) + p.at.inner;
        S* out = slopes(l);
        if (!KEPT)
            each(logits(l), [&](int64_t k, const R* at) __attribute__((always_inline)) {
                fetch(next + k, LANES * sizeof(S)), fetch_to_write(out + k, LANES * sizeof(S));
                for (int i = 0; i < PARTS; i++) {
                    const Numbers<R> of = power(numbers_at(at + i * SIZE) - level);
                    std::memcpy(e + k + i * SIZE, &of, sizeof of);
                }
            });
        const Transform<R> none(p);
        const int64_t y = panel.label.own[l];
        const R of_e = settled(panel.of_e[l], e, n);
        const KeptSlopes<R> of_kept{none, n, y, of_e, R(0), R(0), panel.at_y[l], e, nullptr, nullptr, nullptr};
        const S* ahead = KEPT ? logits(l) + rows * p.at.inner : nullptr;
        of_kept.template store<false, false, false>(out, ahead);
    }
};

// Takes a plain problem of rows and the number of a tile. Gives what is wanted of it.
template <Wanted WANTED, class R, class S> APART void plain_rows(const Softmax& p, int64_t tile, double* sums) {
    PlainRows<R, S>(p, tile).template run<WANTED>(sums);
}

}  // namespace
