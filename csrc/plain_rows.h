// Cross entropy of class indices and nothing else, of rows of not too many classes that lie side by side.
//
// Takes a Softmax problem that is `plain`, of rows, and a range of tiles: a few rows that are near together. Gives what
// row_forward, row_both and row_backward give. A row has a sum, and then a chain of operations that each wait for the
// one before, such as two logarithms and a division. Here the chains of all rows of a tile are vectors, as those of a
// panel of plain.h are.
//
// Refuses longer rows, which lose more by waiting for each other's memory than they win: those go to rows.h.

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

template <class R, class S> class PlainRows {
  public:
    explicit PlainRows(const Softmax& of) : p(of), n(of.classes), whole(of.classes / LANES * LANES), none(of) {}

    template <Wanted WANTED> void run(int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; tile++, std::swap(here_, before_)) {
            double sums[2] = {0, 0};
            start(tile, WANTED == BOTH);
            for (int64_t l = 0; l < here_->rows; l++) take<WANTED>(l);
            for (int64_t l = here_->rows; WANTED == BOTH && l < before_->rows; l++) write_kept(*before_, l);
            if constexpr (WANTED == SLOPES) {
                here_->panel.read_sums(p, here_->row, here_->rows);
                here_->panel.start_slopes(p, here_->row, here_->rows);
            } else {
                here_->panel.template finish<WANTED>(p, here_->row, here_->rows, sums);
                if (p.partial) p.partial[2 * tile] = sums[0], p.partial[2 * tile + 1] = sums[1];
            }
            // The last rows have none behind them, with whose powers their slopes would go.
            if (WANTED == LOSSES || (WANTED == BOTH && STAGGERED && tile + 1 < end)) continue;
            for (int64_t l = 0; l < here_->rows; l++) WANTED == BOTH ? write_kept(*here_, l) : write_anew(l);
            here_->rows = 0;
        }
    }

  private:
    static constexpr int64_t SIZE = Register<R>::SIZE, PARTS = LANES / SIZE;

    // No `together` of Kernels is more than this, which lies on the stack.
    static constexpr int64_t MOST_TOGETHER = REGISTER == 64 ? 4096 : 1024;

    // Slopes go to memory while the powers of the next rows are formed, if there are registers enough for both: memory
    // has something to do all the time, and what a row waits for in its sums is hidden.
    static constexpr bool STAGGERED = REGISTER == 64;

    // The rows of a tile, and what is known of them between the passes.
    struct Few {
        int64_t row = 0, rows = 0;
        PlainPanel<R> panel;
        R* powers;
    };
    const Softmax& p;
    const int64_t n, whole;  // classes, and those of them that fill runs
    const Transform<R> none;
    Few few_[2], *here_ = few_, *before_ = few_ + 1;

    void start(int64_t tile, bool keeps) {
        const Span span(p, tile);
        here_->row = span.row, here_->rows = span.rows;
        if (keeps)
            here_->powers =
                static_cast<R*>(p.scratch) + (STAGGERED ? here_ - few_ : 0) * p.rows_per_tile * p.kept_row();
        PlainPanel<R>& panel = here_->panel;
        panel.label.read(p, span.row, span.rows);
        for (int l = 0; l < LANES; l++) panel.top[l] = panel.rest[l] = panel.x_y[l] = R(0);
    }

    const S* logits(int64_t l) const { return at_row<const S>(p, p.logits, p.at, here_->row + l); }
    S* slopes(const Few& of, int64_t l) const { return at_row<S>(p, p.grad_logits, p.grad_at, of.row + l); }
    R* powers(const Few& of, int64_t l) const { return of.powers + l * p.kept_row(); }
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
                const Numbers<R> some = numbers_at(from + i * SIZE), gone = Numbers<R>{} - INF<R>;
                const Numbers<R> kept = numbers_at(NUMBERED<R>.lane + i * SIZE) < again ? gone : some;
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

    // A row's top, and Σ e^{x - top} without one class at the top. KEEP keeps each e^{x - top}. `meanwhile` is called
    // with where each whole run begins.
    template <bool KEEP, class F> INLINE_MEMBER void sum(int64_t l, F&& meanwhile) {
        const S* x = logits(l);
        const Numbers<R> zero{}, one = zero + R(1);
        Numbers<R> high[PARTS], part[PARTS] = {}, others[PARTS] = {}, ties{};
        for (int i = 0; i < PARTS; i++) high[i] = zero - INF<R>;
        each(x, [&](int64_t, const R* at) __attribute__((always_inline)) {
            for (int i = 0; i < PARTS; i++) {
                const Numbers<R> some = numbers_at(at + i * SIZE);
                high[i] = some > high[i] ? some : high[i];
            }
        });
        const R top = fold_max(reinterpret_cast<const R*>(high)), level = level_of(top);
        const S *next = x + p.at.inner, *out = KEEP && !streams() ? slopes(*here_, l) : nullptr;
        R* e = KEEP ? powers(*here_, l) : nullptr;
        each(x, [&](int64_t k, const R* at) __attribute__((always_inline)) {
            fetch(next + k, LANES * sizeof(S));
            if (out) fetch_to_write(out + k, LANES * sizeof(S));
            if (k % LANES == 0) meanwhile(k);
            for (int i = 0; k % BLOCK == 0 && i < PARTS; i++) others[i] += part[i], part[i] = zero;
            for (int i = 0; i < PARTS; i++) {
                const Numbers<R> below = numbers_at(at + i * SIZE) - level, of = power(below);
                part[i] = below == zero ? part[i] : part[i] + of;
                ties = below == zero ? ties + one : ties;
                if (KEEP) std::memcpy(e + k + i * SIZE, &of, sizeof of);
            }
        });
        for (int i = 0; i < PARTS; i++) others[i] += part[i];  // sums of few numbers, added to a sum of few parts
        double at_top = 0;
        for (int i = 0; i < SIZE; i++) at_top += double(ties[i]);
        const double rest = fold(reinterpret_cast<const R*>(others));
        here_->panel.top[l] = top, here_->panel.rest[l] = R(rest + (at_top > 1 ? at_top - 1 : 0));
    }

    // Of short rows, too much lies in lines that two of them share.
    bool streams() const { return p.stream && n * int64_t(sizeof(S)) > SHORT_BYTES; }

    // The sum of a row and, where they wait for it, the slopes of one before it.
    template <Wanted WANTED> INLINE_MEMBER void take(int64_t l) {
        PlainPanel<R>& panel = here_->panel;
        const bool counts = panel.label.valid[l] != R(0);
        if (counts) panel.x_y[l] = widen(logits(l)[panel.label.y[l]]);
        if (WANTED == SLOPES) return;
        if constexpr (WANTED == BOTH && STAGGERED) {
            if (l < before_->rows && counts) return streams() ? sum_and_write<true>(l) : sum_and_write<false>(l);
            if (l < before_->rows) write_kept(*before_, l);
        }
        if (counts) sum<WANTED == BOTH>(l, [](int64_t) {});
    }
    template <bool PAST> INLINE_MEMBER void sum_and_write(int64_t l) {
        const KeptSlopes<R> of_kept = kept_slopes(*before_, l, powers(*before_, l));
        S* out = slopes(*before_, l);
        if (PAST && before_line(out + n)) fetch_to_write(out + n, 1);  // a line shared with the next is not streamed
        const int64_t first = of_kept.template first_run<PAST>(out), end = of_kept.end_of_runs(first);
        sum<true>(l, [&](int64_t k) __attribute__((always_inline)) {
            if (first + k < end) of_kept.template put_run<PAST, false, false>(first + k, out);
        });
        of_kept.template put_ends<PAST, false, false>(first, end, out);
    }

    KeptSlopes<R> kept_slopes(const Few& of, int64_t l, R* e) const {
        const R of_e = settled(of.panel.of_e[l], e, n);
        return {none, n, of.panel.label.own[l], of_e, R(0), R(0), of.panel.at_y[l], e, nullptr, nullptr, nullptr};
    }

    // The slopes of a row out of its powers, which were kept or are formed again.
    INLINE_MEMBER void write_kept(const Few& of, int64_t l) const {
        const S* ahead = STAGGERED ? nullptr : logits(l) + here_->rows * p.at.inner;
        const KeptSlopes<R> of_kept = kept_slopes(of, l, powers(of, l));
        if (streams()) of_kept.template store<true, false, false>(slopes(of, l), ahead);
        else of_kept.template store<false, false, false>(slopes(of, l), ahead);
    }
    INLINE_MEMBER void write_anew(int64_t l) const {
        alignas(64) R e[MOST_TOGETHER];
        const S *x = logits(l), *next = x + p.at.inner;
        S* out = slopes(*here_, l);
        const R level = level_of(here_->panel.top[l]);
        each(x, [&](int64_t k, const R* at) __attribute__((always_inline)) {
            fetch(next + k, LANES * sizeof(S)), fetch_to_write(out + k, LANES * sizeof(S));
            for (int i = 0; i < PARTS; i++) {
                const Numbers<R> of = power(numbers_at(at + i * SIZE) - level);
                std::memcpy(e + k + i * SIZE, &of, sizeof of);
            }
        });
        kept_slopes(*here_, l, e).template store<false, false, false>(out, static_cast<const S*>(nullptr));
    }
};

// Takes a plain problem of rows and a range of tiles. Gives what is wanted of them.
template <Wanted WANTED, class R, class S> APART void plain_rows(const Softmax& p, int64_t begin, int64_t end) {
    PlainRows<R, S>(p).template run<WANTED>(begin, end);
}

}  // namespace
