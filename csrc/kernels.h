// The CPU kernels: plain C++17 loops, compiled once for each instruction set (isa.cpp) and chosen at run time (binding.cpp).
//
// Precision: everything is computed in R, which is float for float, bfloat16 and half logits and double for double; sums over
// classes run in LANES of R and are carried on in double, sums over rows run in double. A row's lse is the pair (top, log_sum)
// with log_sum = log1p(Σ_{j≠top} e^{x_j - top}), so that a confident row keeps its relative accuracy; the gradient of the true
// class is formed as expm1(log p_y).
//
// Order: every sum has a fixed order, whatever the threads. No allocation, no threads and no exceptions here. Everything is
// static: an object compiled for one instruction set must not offer its code to another.
//
// Form: what a compiler is to turn into vectors is a loop over LANES numbers, and data come in runs of LANES: the last of a row
// is filled up. A gradient is formed in the nearest cache and stored from there, so that it may lie where the logits lie.

#pragma once
#include "family.h"
#include "numbers.h"
#include "problem.h"

namespace {

constexpr int CLASSES = 32;  // classes of a tile that are worked on at a time

template <class R> constexpr R INF = std::numeric_limits<R>::infinity();
template <class R> constexpr R LOG_HALF = R(-0.69314718055994530942);

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

// --- runs -----------------------------------------------------------------------------------------------------------------

// Fold LANES numbers into one, half by half; as vectors, for compilers take the halves apart one by one.
template <bool MAX, int N, class R> INLINE R fold_halves(const R* lane) {
    if constexpr (N == 1) {
        return lane[0];
    } else {
        typedef R Vector __attribute__((vector_size(N / 2 * sizeof(R))));
        Vector low, high;
        R half[N / 2];
        std::memcpy(&low, lane, sizeof low), std::memcpy(&high, lane + N / 2, sizeof high);
        if constexpr (MAX) low = low > high ? low : high;
        else low += high;
        std::memcpy(half, &low, sizeof low);
        return fold_halves<MAX, N / 2>(half);
    }
}
template <class R> INLINE double fold(const R* lane) { return double(fold_halves<false, LANES>(lane)); }
template <class R> INLINE R fold_max(const R* lane) { return fold_halves<true, LANES>(lane); }

// n ≥ LANES numbers as runs of R: whole ones, in place where they are R already, and a last one that ends with the numbers and
// begins with `seen` of them that the whole ones hold as well.
template <class R> struct Block {
    const R* x;
    int64_t n, whole, seen;
    alignas(64) R last[LANES];  // across two lines of the cache it would be slow to come back

    template <class S, class F> INLINE_MEMBER void load(const S* from, int64_t count, R* scratch, F&& look) {
        n = count, whole = n / LANES * LANES, seen = whole + LANES - n;
        if constexpr (sizeof(S) == sizeof(R)) x = from;
        else x = scratch;
        for (int64_t k = 0; k < whole; k += LANES) {
            if constexpr (sizeof(S) != sizeof(R)) widen_run(from + k, scratch + k);
            look(x + k);
        }
        if (whole < n) widen_run(from + n - LANES, last), look(last);
    }
    template <class S> void load(const S* from, int64_t count, R* scratch) {
        load(from, count, scratch, [](const R*) {});
    }

    // What was seen already counts as this.
    void fill(R value) {
        if (whole < n)
            for (int l = 0; l < LANES; l++) last[l] = pick(l < seen, value, last[l]);
    }

    // Do something with each run and where it begins among the runs.
    template <class F> INLINE_MEMBER void each(F&& f) const {
        for (int64_t k = 0; k < whole; k += LANES) f(x + k, k);
        if (whole < n) f(last, whole);
    }

    const R* run(int64_t k) const { return k < whole ? x + k : last; }
};

// Write n ≥ LANES numbers as a Block has them, in runs of which the last may overlap, to where they belong.
template <class R, class S> INLINE void store(const R* from, S* to, int64_t n) {
    const int64_t whole = n / LANES * LANES;
    if constexpr (sizeof(S) == sizeof(R)) {
        std::memcpy(to, from, size_t(whole) * sizeof(S));
    } else {
        for (int64_t k = 0; k < whole; k += LANES) narrow_run(from + k, to + k);
    }
    if (whole < n) narrow_run(from + whole, to + n - LANES);
}

// Bring what is read next, or written soon, into the second cache: the first has too few places for misses under way.
INLINE void fetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}
INLINE void fetch_to_write(const void* to, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(to) + at, 1, 2);
}

// --- one long row ---------------------------------------------------------------------------------------------------------

// What the kernels know of one row's target beside the elements of t: its class, c[y], and whether it counts.
template <class R> struct Label {
    int64_t y;
    R weight;
    bool valid;
};

template <class R> INLINE Label<R> label_of(const Softmax& p, int64_t row) {
    if (p.index_type < 0) return {-1, R(1), true};
    int64_t y = index_at(p.target, p.index_type, row);
    if (y == p.ignore_index) return {-1, R(0), false};
    if (y < 0 || y >= p.classes) {
        if (p.out_of_range) p.out_of_range->store(true, std::memory_order_relaxed);
        return {-1, R(0), false};
    }
    return {y, p.weight ? static_cast<const R*>(p.weight)[y] : R(1), true};
}

// Where a row begins in a tensor of the logits' shape.
template <class V> INLINE V* at_row(const Softmax& p, const void* tensor, const Strides& at, int64_t row) {
    if (!tensor) return nullptr;
    return static_cast<V*>(const_cast<void*>(tensor)) + row / p.inner * at.outer + row % p.inner * at.inner;
}

// How many of a row's classes to take from k on: BLOCK, but never so many that fewer than LANES are left over.
INLINE int64_t block_size(int64_t classes, int64_t k) {
    const int64_t left = classes - k;
    return left <= BLOCK ? left : left < BLOCK + LANES ? BLOCK - LANES : BLOCK;
}

// c ∘ t, smoothed, of a probability target's classes [k, k + n).
template <class R, class T>
INLINE void load_weights(const Softmax& p, const T* target, int64_t k, int64_t n, R* scratch, Block<R>& w) {
    const int64_t step = p.target_at.classes;
    if (step == 1) {
        w.load(target + k, n, scratch);
    } else {
        for (int64_t i = 0; i < n; i++) scratch[i] = widen(target[(k + i) * step]);
        w.load(scratch, n, scratch);
    }
    if (p.smoothing == 0 && !p.weight) return;
    const R keep = R(1 - p.smoothing), share = R(p.share);
    Block<R> c;
    c.load(p.weight ? static_cast<const R*>(p.weight) + k : w.x, n, scratch);
    const bool weighted = p.weight;
    for (int64_t i = 0; i < padded(n); i += LANES) {
        const R *from = w.run(i), *factor = c.run(i);
        R* to = i < w.whole ? scratch + i : w.last;
        R run[LANES];
        for (int l = 0; l < LANES; l++) run[l] = keep * from[l] + share;
        for (int l = 0; weighted && l < LANES; l++) run[l] *= factor[l];
        for (int l = 0; l < LANES; l++) to[l] = run[l];
    }
    w.x = scratch;
}

// Replace a block of a row's logits from class k on by what they become.
template <class R> INLINE void transform_block(const Softmax& p, Block<R>& block, int64_t k, int64_t y, R* scratch) {
    const Transform<R> transform(p);
    Block<R> bias;
    if (p.bias) bias.load(static_cast<const R*>(p.bias) + k, block.n, scratch);
    for (int64_t i = 0; i < block.whole; i += LANES) transform.template run<true>(block.x + i, p.bias ? bias.x + i : nullptr, scratch + i);
    if (block.whole < block.n) transform.template run<true>(block.last, p.bias ? bias.last : nullptr, block.last);
    block.x = scratch;
    const R margin = R(p.margin * p.per_temperature);
    const int64_t at = y - k, repeated = at - (block.n - LANES);
    if (y < 0 || at < 0 || at >= block.n || margin == R(0)) return;
    if (at < block.whole) scratch[at] -= margin;
    if (block.whole < block.n && repeated >= 0) block.last[repeated] -= margin;
}

// Load a block, what it repeats as -inf, and find its largest element on the way.
template <class R, class S>
INLINE R load_largest(const Softmax& p, const S* from, int64_t k, int64_t n, int64_t y, R* scratch, Block<R>& block) {
    alignas(64) R lane[LANES];
    for (int l = 0; l < LANES; l++) lane[l] = -INF<R>;
    const auto raise = [&](const R* x) __attribute__((always_inline)) {
        for (int l = 0; l < LANES; l++) lane[l] = pick(x[l] > lane[l], x[l], lane[l]);
    };
    if (p.transformed()) {
        block.load(from + k, n, scratch);
        transform_block(p, block, k, y, scratch);
        block.fill(-INF<R>);
        block.each([&](const R* x, int64_t) __attribute__((always_inline)) { raise(x); });
    } else {
        block.load(from + k, n, scratch, raise);
        block.fill(-INF<R>);
    }
    return fold_max(lane);
}

// Σ e^{x - top}, fetching meanwhile as much as the block is behind `next`. What equals top is left out and counted instead,
// where the block may have such: its ones would drown the rest of a confident row.
template <bool WITH_TOP, class R, class S>
INLINE double sum_exp(const Block<R>& block, R top, const S* next, double& ties) {
    alignas(64) R lane[LANES] = {}, equal[LANES] = {};
    block.each([&](const R* x, int64_t k) __attribute__((always_inline)) {
        fetch(next + k, LANES * sizeof(S));
        for (int l = 0; l < LANES; l++) {
            const R below = x[l] - top, e = exp_(below);
            if constexpr (WITH_TOP) {
                lane[l] += pick(below == R(0), R(0), e);
                equal[l] += pick(below == R(0), R(1), R(0));
            } else {
                lane[l] += e;
            }
        }
    });
    if constexpr (WITH_TOP) ties += fold(equal);
    return fold(lane);
}

// Σ e^{x - top} (top - x), of which the entropy is made.
template <class R> INLINE double sum_moment(const Block<R>& block, R top) {
    alignas(64) R lane[LANES] = {};
    block.each([&](const R* x, int64_t) __attribute__((always_inline)) {
        for (int l = 0; l < LANES; l++) {
            const R below = top - x[l];
            lane[l] += pick(below == INF<R>, R(0), exp_(-below) * below);
        }
    });
    return fold(lane);
}

// Where the runs of a block first hold a value that they hold, as an index into the block.
template <class R> INLINE int64_t first_of(const Block<R>& block, R value) {
    for (int64_t i = 0; i < block.whole; i++)
        if (block.x[i] == value) return i;
    for (int64_t l = block.seen; l < LANES; l++)
        if (block.last[l] == value) return block.n - LANES + l;
    return block.n;
}

// Σ w (top - x) and Σ w over n elements, with 0 · inf = 0; without weights w is 1.
template <class R> INLINE void add_cost(const R* w, const R* x, int64_t n, R top, double& cost, double& mass) {
    alignas(64) R costs[LANES] = {}, masses[LANES] = {};
    const int64_t whole = n / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES) {
        if (w)
            for (int l = 0; l < LANES; l++) costs[l] += times(w[k + l], top - x[k + l]), masses[l] += w[k + l];
        else
            for (int l = 0; l < LANES; l++) costs[l] += top - x[k + l];
    }
    for (int64_t k = whole; k < n; k++) {
        costs[k - whole] += w ? times(w[k], top - x[k]) : top - x[k];
        if (w) masses[k - whole] += w[k];
    }
    cost += fold(costs);
    mass += w ? fold(masses) : double(n);
}

// x' of a row's class y.
template <class R, class S> INLINE R target_logit(const Softmax& p, const S* x, int64_t y) {
    if (!p.transformed()) return widen(x[y]);
    const R bias = p.bias ? static_cast<const R*>(p.bias)[y] : R(0);
    return Transform<R>(p).of(widen(x[y]), bias) - R(p.margin * p.per_temperature);
}

template <class R> INLINE void store_statistics(const Softmax& p, int64_t row, R entropy, R target_log_prob, bool correct) {
    if (!p.entropy) return;
    static_cast<R*>(p.entropy)[row] = entropy;
    static_cast<R*>(p.target_log_prob)[row] = target_log_prob;
    p.correct[row] = correct;
}

template <class R, class S, class T> static void row_forward(const Softmax& p, int64_t row, double* sums) {
    const S* x = at_row<const S>(p, p.logits, p.at, row);
    const T* t = p.index_type < 0 ? at_row<const T>(p, p.target, p.target_at, row) : nullptr;
    const R* c = static_cast<const R*>(p.spread ? p.spread : p.weight);
    const Label<R> label = label_of<R>(p, row);
    R top = -INF<R>, log_sum = R(0), loss = R(0);
    alignas(64) R buffer[BLOCK], scratch[BLOCK];
    Block<R> block, w;
    double others = 0, ties = 0, cost = 0, mass = 0, moment = 0;
    int64_t likeliest = -1;
    for (int64_t k = 0, n; label.valid && k < p.classes; k += n) {
        n = block_size(p.classes, k);
        const R high = load_largest(p, x, k, n, label.y, buffer, block);
        const bool raised = high > top;
        if (raised) {
            if (top > -INF<R>) {
                moment = (moment + (others + ties) * (double(high) - double(top))) * double(exp_(top - high));
                others = (others + ties) * double(exp_(top - high)), ties = 0;
                cost += mass == 0 ? 0 : mass * (double(high) - double(top));
            }
            top = high;
            if (p.entropy) likeliest = k + first_of(block, high);
        }
        const R level = top > -INF<R> ? top : R(0);
        const bool may_tie = raised || high == top;
        others += may_tie ? sum_exp<true>(block, level, x + k + n, ties) : sum_exp<false>(block, level, x + k + n, ties);
        if (p.entropy) moment += sum_moment(block, level);
        if (t) {
            load_weights(p, t, k, n, scratch, w);
            if (p.target_at.classes == 1) fetch(t + k + n, n * int64_t(sizeof(T)));
            add_cost(w.x, block.x, w.whole, level, cost, mass);
            if (w.whole < n) add_cost(w.last + w.seen, block.last + w.seen, LANES - w.seen, level, cost, mass);
        } else if (p.smoothing != 0) {
            add_cost(c ? c + k : nullptr, block.x, block.whole, level, cost, mass);
            if (block.whole < n)
                add_cost(c ? c + k + block.whole : nullptr, block.last + block.seen, LANES - block.seen, level, cost, mass);
        }
    }
    if (label.valid) {
        others += ties > 1 ? ties - 1 : 0;
        log_sum = log1p_(R(others)) + (top - top);
        if (t) {
            loss = R(cost + mass * double(log_sum));
        } else {
            R f, s;
            const R log_p = (target_logit<R>(p, x, label.y) - top) - log_sum;
            penalise_one(p, log_p, f, s);
            store_statistics(p, row, log_sum + R(moment / (1 + others)), log_p, likeliest == label.y && log_p == log_p);
            loss = times(label.weight, f);
            if (p.smoothing != 0) loss = R(1 - p.smoothing) * loss + R(p.share * (cost + mass * double(log_sum)));
        }
        if (p.z_loss != 0) loss += times(label.weight, R(p.z_loss) * (top + log_sum) * (top + log_sum));
    } else {
        top = R(0);
        store_statistics(p, row, R(0), R(0), false);
    }
    static_cast<R*>(p.top)[row] = top;
    static_cast<R*>(p.log_sum)[row] = log_sum;
    if (p.loss) {
        static_cast<R*>(p.loss)[row] = loss;
        static_cast<R*>(p.row_weight)[row] = label.weight;
    }
    sums[0] += double(loss);
    sums[1] += double(label.weight);
}

// out = scale · p - less, scale = g (mass + extra), and - g w where there are weights; where p may be near one, 1 - p is formed by expm1.
template <class R> struct RowSlopes {
    R top, log_sum, g, mass, scale, less, extra;

    template <class S> void operator()(const Block<R>& block, const Block<R>* w, R* out, const S* next, const S* to) const {
        const bool near_one = w && log_sum < -LOG_HALF<R>;
        block.each([&](const R* x, int64_t k) __attribute__((always_inline)) {
            R slope[LANES];
            fetch(next + k, LANES * sizeof(S));
            fetch_to_write(to + k, LANES * sizeof(S));
            for (int l = 0; l < LANES; l++) slope[l] = scale * exp_((x[l] - top) - log_sum) - less;
            if (near_one) {
                const R* weight = w->run(k);
                for (int l = 0; l < LANES; l++) {
                    const R log_p = (x[l] - top) - log_sum, near = scale * expm1_(log_p) + g * (mass + extra - weight[l]);
                    slope[l] = pick(log_p > LOG_HALF<R>, near, slope[l] - g * weight[l]);
                }
            } else if (w) {
                const R* weight = w->run(k);
                for (int l = 0; l < LANES; l++) slope[l] -= g * weight[l];
            }
            for (int l = 0; l < LANES; l++) out[k + l] = slope[l];
        });
    }
};

// Take the slopes of a block's x' back to those of x, which is read once more for the soft cap.
template <class R, class S> INLINE void chain_block(const Softmax& p, const S* x, R* slope, int64_t n) {
    const Transform<R> transform(p);
    for (int64_t i = 0; i < padded(n); i += LANES) {
        R run[LANES];
        widen_run(x + (i + LANES <= n ? i : n - LANES), run);
        transform.chain(run, slope + i);
    }
}

// g c (-log p) for the classes [k, k + n) of a probability target.
template <class R, class T>
INLINE void store_target_slopes(const Softmax& p, const RowSlopes<R>& row, const Block<R>& block, T* out, int64_t k) {
    const R* c = static_cast<const R*>(p.weight);
    const R keep = row.g * R(1 - p.smoothing);
    for (int64_t j = 0; j < block.n; j++) {
        const R x = j < block.whole ? block.x[j] : block.last[j - block.whole + block.seen], cost = (row.top - x) + row.log_sum;
        narrow(times(keep, c ? times(c[k + j], cost) : cost), out[(k + j) * p.grad_target_at.classes]);
    }
}

template <class R, class S, class T> static void row_backward(const Softmax& p, int64_t row) {
    const int64_t classes = p.classes;
    const S* x = at_row<const S>(p, p.logits, p.at, row);
    S* out = at_row<S>(p, p.grad_logits, p.grad_at, row);
    const T* t = p.index_type < 0 ? at_row<const T>(p, p.target, p.target_at, row) : nullptr;
    T* out_target = at_row<T>(p, p.grad_target, p.grad_target_at, row);
    const Label<R> label = label_of<R>(p, row);
    if (!label.valid) return void(out && std::memset(static_cast<void*>(out), 0, size_t(classes) * sizeof(S)));

    alignas(64) R buffer[BLOCK], scratch[BLOCK], slope[BLOCK + LANES];
    Block<R> block, w;
    const R* c = static_cast<const R*>(p.spread ? p.spread : p.weight);
    const R share = R(p.share), total = R(p.weight_sum);
    RowSlopes<R> slopes{
        static_cast<const R*>(p.top)[row], static_cast<const R*>(p.log_sum)[row],
        static_cast<const R*>(p.grad)[p.grad_rows ? row : 0], R(1 - p.smoothing) * label.weight + share * total, 0, 0, 0
    };
    if (t) {
        double mass = 0, unused = 0;
        for (int64_t k = 0, n; k < classes; k += n) {
            n = block_size(classes, k);
            load_weights(p, t, k, n, scratch, w);
            add_cost(w.x, w.x, w.whole, R(0), unused, mass);
            if (w.whole < n) add_cost(w.last + w.seen, w.last, LANES - w.seen, R(0), unused, mass);
        }
        slopes.mass = R(mass);
    }
    R at_y = 0;  // read before the gradient is written, which may lie in the place of the logits
    const R extra = slopes.extra = p.z_loss == 0 ? R(0) : R(2 * p.z_loss) * (slopes.top + slopes.log_sum) * label.weight;
    if (!t) {
        const R log_p = (target_logit<R>(p, x, label.y) - slopes.top) - slopes.log_sum;
        R f, s;
        penalise_one(p, log_p, f, s);
        if (p.penalty != NO_PENALTY) slopes.mass = label.weight * s;
        at_y = (slopes.mass == R(0) ? R(0) : slopes.g * slopes.mass) * expm1_(log_p);
        if (share != R(0)) at_y += slopes.g * (share * (total - (c ? c[label.y] : R(1))));
        if (extra != R(0)) at_y += slopes.g * extra * exp_(log_p);
        if (p.bias && static_cast<const R*>(p.bias)[label.y] == -INF<R>) at_y = 0;
    }
    slopes.scale = slopes.mass + extra == R(0) ? R(0) : slopes.g * (slopes.mass + extra);
    if (!t && !c) slopes.less = slopes.g * share;
    for (int64_t k = 0, n; k < classes; k += n) {
        n = block_size(classes, k);
        block.load(x + k, n, buffer);
        if (p.transformed()) transform_block(p, block, k, label.y, buffer);
        if (out_target) store_target_slopes(p, slopes, block, out_target, k);
        if (!out) continue;
        const bool weighted = t || (c && share != R(0));
        if (t) {
            load_weights(p, t, k, n, scratch, w);
        } else if (weighted) {
            for (int64_t i = 0; i < n; i++) scratch[i] = share * c[k + i];
            w.load(scratch, n, scratch);
        }
        slopes(block, weighted ? &w : nullptr, slope, x + k + n, out + k);
        const int64_t y = label.y - k, repeated = y - (n - LANES);
        if (y >= 0 && y < block.whole) slope[y] = at_y;
        if (y < n && repeated >= 0 && block.whole < n) slope[block.whole + repeated] = at_y;
        if (p.transformed()) chain_block(p, x + k, slope, n);
        store(slope, out + k, n);
    }
}

// --- tiles of rows side by side -------------------------------------------------------------------------------------------

// One step of a transposition: two halves interleaved, so that the uppermost bit of an element's place becomes the lowest.
// Five of them take LANES rows of any number of classes to classes of LANES rows; five times the inverse takes them back.
template <class R> static void interleave(const R* __restrict from, R* __restrict to, int64_t half) {
    for (int64_t i = 0; i < half; i++) to[2 * i] = from[i], to[2 * i + 1] = from[half + i];
}
template <class R> static void separate(const R* __restrict from, R* __restrict to, int64_t half) {
    for (int64_t i = 0; i < half; i++) to[i] = from[2 * i], to[half + i] = from[2 * i + 1];
}

// Where the next tile lies, run by run, so that it can be fetched while this one is worked on.
struct Ahead {
    const char* first;
    int64_t step;

    template <class S> Ahead(const S* tile, const Strides& strides, int64_t classes, int64_t q) : first(nullptr), step(0) {
        const int64_t size = sizeof(S);
        if (!tile) return;
        if (strides.classes == 1) {
            first = reinterpret_cast<const char*>(tile + ROWS * strides.inner + q * LANES * classes), step = LANES * size;
        } else {
            first = reinterpret_cast<const char*>(tile + ROWS * strides.inner + q * LANES), step = strides.classes * size;
        }
    }
    const char* operator[](int64_t j) const { return first + j * step; }
};

// Up to ROWS rows in up to CLASSES classes. The LANES rows from 32 q on have class j at values + q · panel + j · pitch.
template <class R> struct Tile {
    alignas(64) R values[CLASSES * ROWS], spare[CLASSES * LANES];
    int64_t pitch, panel;

    R* at(int64_t q) { return values + q * panel; }
    const R* at(int64_t q) const { return values + q * panel; }

    void lay_out(const Strides& strides, int64_t classes) {
        const bool rows_apart = strides.classes == 1;
        pitch = rows_apart ? LANES : ROWS, panel = rows_apart ? LANES * classes : LANES;
    }

    template <class S> void load(const S* from, const Strides& strides, int64_t classes, int64_t rows) {
        lay_out(strides, classes);
        if (strides.classes == 1) {
            for (int64_t l = 0; l < rows; l += LANES)
                load_panel(from + l * strides.inner, strides.inner, classes, rows - l < LANES ? rows - l : LANES, at(l / LANES));
            return;
        }
        for (int64_t k = 0; k < classes; k++) {
            const S* x = from + k * strides.classes;
            R* to = values + k * ROWS;
            if (rows == ROWS && strides.inner == 1) {
                for (int l = 0; l < ROWS; l += LANES) widen_run(x + l, to + l);
            } else {
                for (int64_t l = 0; l < ROWS; l++) to[l] = l < rows ? widen(x[l * strides.inner]) : R(0);
            }
        }
    }

    template <class S> void store(S* to, const Strides& strides, int64_t classes, int64_t rows) {
        if (strides.classes == 1) {
            for (int64_t l = 0; l < rows; l += LANES)
                store_panel(at(l / LANES), to + l * strides.inner, strides.inner, classes, rows - l < LANES ? rows - l : LANES);
            return;
        }
        for (int64_t k = 0; k < classes; k++) {
            const R* from = values + k * ROWS;
            S* out = to + k * strides.classes;
            if (strides.inner == 1 && rows == ROWS) ::store(from, out, ROWS);
            else for (int64_t l = 0; l < rows; l++) narrow(from[l], out[l * strides.inner]);
        }
    }

  private:
    template <class S> void load_panel(const S* from, int64_t apart, int64_t classes, int64_t rows, R* to) {
        const int64_t n = LANES * classes, half = n / 2;
        const R* first = spare;
        if (rows < LANES || apart != classes) {
            for (int64_t i = rows * classes; i < n; i++) spare[i] = 0;
            for (int64_t l = 0; l < rows; l++)
                for (int64_t k = 0; k < classes; k++) spare[l * classes + k] = widen(from[l * apart + k]);
        } else if constexpr (sizeof(S) == sizeof(R)) {
            first = from;
        } else {
            for (int64_t i = 0; i < n; i += LANES) widen_run(from + i, spare + i);
        }
        interleave(first, to, half);
        interleave(to, spare, half), interleave(spare, to, half);
        interleave(to, spare, half), interleave(spare, to, half);
    }

    template <class S> void store_panel(R* from, S* to, int64_t apart, int64_t classes, int64_t rows) {
        const int64_t half = LANES * classes / 2;
        separate(from, spare, half), separate(spare, from, half);
        separate(from, spare, half), separate(spare, from, half);
        separate(from, spare, half);
        if (rows == LANES && apart == classes) return ::store(spare, to, LANES * classes);
        for (int64_t l = 0; l < rows; l++)
            for (int64_t k = 0; k < classes; k++) narrow(spare[l * classes + k], to[l * apart + k]);
    }
};

// What a tile's rows are read from and written to: its first row, how many there are, and the pointers to them.
template <class S, class T> struct Rows {
    int64_t row, rows;
    const S* x;
    const T* t;
    S* out;
    T* out_target;

    Rows(const Softmax& p, int64_t tile) {
        const int64_t per_outer = p.tiles_per_outer(), i = tile % per_outer * ROWS;
        rows = p.inner - i < ROWS ? p.inner - i : ROWS, row = tile / per_outer * p.inner + i;
        x = at_row<const S>(p, p.logits, p.at, row);
        t = p.index_type < 0 ? at_row<const T>(p, p.target, p.target_at, row) : nullptr;
        out = at_row<S>(p, p.grad_logits, p.grad_at, row);
        out_target = at_row<T>(p, p.grad_target, p.grad_target_at, row);
    }

    int64_t panels() const { return padded(rows) / LANES; }
    int64_t first_of(int64_t q) const { return row + q * LANES; }
    int64_t rows_of(int64_t q) const { return rows - q * LANES < LANES ? rows - q * LANES : LANES; }
};

// The labels of LANES rows: class (0 where there is none), c[y] and 1 or 0 for rows that count or do not.
template <class R> struct Labels {
    int64_t y[LANES];
    R weight[LANES], valid[LANES];

    void read(const Softmax& p, int64_t row, int64_t rows) {
        for (int l = 0; l < LANES; l++) y[l] = p.ignore_index, valid[l] = weight[l] = R(p.index_type < 0);
        if (p.index_type < 0) return;
        if (p.index_type == I64) std::memcpy(y, static_cast<const int64_t*>(p.target) + row, size_t(rows) * sizeof *y);
        else for (int64_t l = 0; l < rows; l++) y[l] = index_at(p.target, p.index_type, row + l);
        const int64_t ignored = p.ignore_index, classes = p.classes;
        int64_t wrong = 0, counts[LANES];
        for (int l = 0; l < LANES; l++) {
            const int64_t inside = uint64_t(y[l]) < uint64_t(classes) ? -1 : 0, taken = y[l] != ignored ? -1 : 0;
            counts[l] = inside & taken;
            wrong |= taken & ~inside;
        }
        for (int l = 0; l < LANES; l++) y[l] &= counts[l], valid[l] = weight[l] = R(-counts[l]);
        if (wrong && p.out_of_range) p.out_of_range->store(true, std::memory_order_relaxed);
        if (const R* c = static_cast<const R*>(p.weight))
            for (int l = 0; l < LANES; l++) weight[l] = valid[l] == R(0) ? R(0) : c[y[l]];
    }
};

// c ∘ t of a tile; where the target is indices, the part of it that smoothing spreads; none without smoothing.
template <class R, class S, class T>
INLINE bool tile_weights(const Softmax& p, const Rows<S, T>& here, int64_t k, int64_t n, Tile<R>& tile) {
    if (!here.t && p.smoothing == 0) return false;
    const void* by = here.t || !p.spread ? p.weight : p.spread;
    const R* c = by ? static_cast<const R*>(by) + k : nullptr;
    const R keep = R(1 - p.smoothing), share = R(p.share);
    if (here.t) tile.load(here.t + k * p.target_at.classes, p.target_at, n, here.rows);
    else tile.lay_out(p.target_at, n);
    for (int64_t j = 0; j < n; j++) {
        const R weight = c ? c[j] : R(1);
        for (int64_t q = 0; q < ROWS / LANES; q++) {
            R* to = tile.at(q) + j * tile.pitch;
            if (here.t)
                for (int l = 0; l < LANES; l++) to[l] = weight * (keep * to[l] + share);
            else
                for (int l = 0; l < LANES; l++) to[l] = weight * share;
        }
    }
    return true;
}

// Replace LANES rows' logits in the classes [k, k + n) by what they become.
template <class R>
static void transform_panel(const Softmax& p, R* x, int64_t pitch, const Labels<R>& label, int64_t k, int64_t n) {
    const Transform<R> transform(p);
    const R* bias = p.bias ? static_cast<const R*>(p.bias) + k : nullptr;
    const R margin = R(p.margin * p.per_temperature);
    for (int64_t j = 0; j < n; j++) transform.template run<false>(x + j * pitch, bias ? bias + j : nullptr, x + j * pitch);
    for (int64_t l = 0; margin != R(0) && l < LANES; l++)
        if (label.valid[l] != R(0) && uint64_t(label.y[l] - k) < uint64_t(n)) x[(label.y[l] - k) * pitch + l] -= margin;
}

// The running sums of LANES rows; see row_forward, which keeps the same for one row. `ties` counts the elements equal to top.
template <class R> struct Sums {
    alignas(64) R top[LANES], level[LANES], ties[LANES], cost[LANES], mass[LANES], at_y[LANES];
    double others[LANES];
    R moment[LANES], likeliest[LANES];  // for the statistics; see sum_moment, and -1 for a class not yet known

    Sums() {
        for (int l = 0; l < LANES; l++) moment[l] = R(0), likeliest[l] = R(-1);
        for (int l = 0; l < LANES; l++) top[l] = -INF<R>, level[l] = ties[l] = cost[l] = mass[l] = at_y[l] = 0, others[l] = 0;
    }

    void pick_labels(const R* x, int64_t pitch, const Labels<R>& label, int64_t k, int64_t n) {
        for (int64_t l = 0; l < LANES; l++)
            if (uint64_t(label.y[l] - k) < uint64_t(n)) at_y[l] = x[(label.y[l] - k) * pitch + l];
    }

    void raise(const R* x, int64_t pitch, int64_t n, bool first) {
        R high[LANES];
        for (int l = 0; l < LANES; l++) high[l] = top[l];
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) high[l] = pick(x[j * pitch + l] > high[l], x[j * pitch + l], high[l]);
        for (int l = 0; !first && l < LANES; l++) {
            const bool higher = high[l] > top[l], had = top[l] > -INF<R>;
            const R shrink = exp_(top[l] - pick(high[l] > -INF<R>, high[l], R(0)));
            moment[l] = higher && had ? (moment[l] + R(others[l] + double(ties[l])) * (high[l] - top[l])) * shrink : moment[l];
            likeliest[l] = higher ? R(-1) : likeliest[l];
            others[l] = higher && had ? (others[l] + double(ties[l])) * double(shrink) : others[l];
            cost[l] += higher && had && mass[l] != R(0) ? mass[l] * (high[l] - top[l]) : R(0);
            ties[l] = higher ? R(0) : ties[l];
        }
        for (int l = 0; l < LANES; l++) top[l] = high[l], level[l] = pick(high[l] > -INF<R>, high[l], R(0));
    }

    template <class S> void add_exp(const R* x, int64_t pitch, int64_t n, const Ahead& next) {
        R part[LANES] = {}, equal[LANES] = {}, zero[LANES];
        for (int l = 0; l < LANES; l++) zero[l] = level[l];
        for (int64_t j = 0; j < n; j++) {
            fetch(next[j], LANES * sizeof(S));
            for (int l = 0; l < LANES; l++) {
                const R below = x[j * pitch + l] - zero[l], e = exp_(below);
                part[l] += pick(below == R(0), R(0), e);
                equal[l] += pick(below == R(0), R(1), R(0));
            }
        }
        for (int l = 0; l < LANES; l++) ties[l] += equal[l], others[l] += double(part[l]);
    }

    void add_moment(const R* x, int64_t pitch, int64_t k, int64_t n) {
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) {
                const R below = level[l] - x[j * pitch + l];
                moment[l] += pick(below == INF<R>, R(0), exp_(-below) * below);
                likeliest[l] = pick(below == R(0) && likeliest[l] < R(0), R(k + j), likeliest[l]);
            }
    }

    void add_cost(const R* x, int64_t pitch, const R* w, int64_t w_pitch, int64_t n) {
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) {
                const R weight = w[j * w_pitch + l];
                cost[l] += times(weight, level[l] - x[j * pitch + l]);
                mass[l] += weight;
            }
    }

    void log_sum(R* to) const {
        for (int l = 0; l < LANES; l++) {
            const R again = pick(ties[l] > R(1), ties[l] - R(1), R(0));
            to[l] = log1p_(R(others[l] + double(again))) + (top[l] - top[l]);
        }
    }
};

// Finish LANES rows: their loss from the sums, and what backward needs of them.
template <class R, class S, class T>
static void finish(
    const Softmax& p, const Rows<S, T>& here, int64_t q, const Labels<R>& label, const Sums<R>& sum, double* sums
) {
    const int64_t row = here.first_of(q), rows = here.rows_of(q);
    R log_sum[LANES], loss[LANES];
    sum.log_sum(log_sum);
    const R keep = R(1 - p.smoothing), spread = R(p.share * p.weight_sum);
    if (here.t) {
        for (int l = 0; l < LANES; l++) loss[l] = sum.cost[l] + sum.mass[l] * log_sum[l];
    } else {
        R log_p[LANES], f[LANES], s[LANES];
        for (int l = 0; l < LANES; l++) log_p[l] = (sum.at_y[l] - sum.top[l]) - log_sum[l];
        penalise(p, log_p, f, s);
        for (int64_t l = 0; p.entropy && l < rows; l++) {
            const bool valid = label.valid[l] != R(0), hit = sum.likeliest[l] == R(label.y[l]) && log_p[l] == log_p[l];
            const R rest = R(sum.others[l]) + sum.ties[l];
            store_statistics(p, row + l, valid ? log_sum[l] + sum.moment[l] / rest : R(0), valid ? log_p[l] : R(0), valid && hit);
        }
        for (int l = 0; l < LANES; l++) {
            const R own = keep * times(label.weight[l], f[l]);
            loss[l] = own + (spread == R(0) ? R(0) : sum.cost[l] + spread * log_sum[l]);
        }
    }
    for (int l = 0; p.z_loss != 0 && l < LANES; l++) {
        const R lse = sum.top[l] + log_sum[l];
        loss[l] += times(label.weight[l], R(p.z_loss) * lse * lse);
    }
    for (int l = 0; l < LANES; l++) loss[l] = pick(label.valid[l] == R(0) || l >= rows, R(0), loss[l]);
    sums[0] += fold(loss);
    for (int64_t l = 0; l < rows; l++) sums[1] += here.t ? 1.0 : 0.0;
    if (!here.t) sums[1] += fold(label.weight);
    std::memcpy(static_cast<R*>(p.top) + row, sum.top, size_t(rows) * sizeof(R));
    std::memcpy(static_cast<R*>(p.log_sum) + row, log_sum, size_t(rows) * sizeof(R));
    if (!p.loss) return;
    std::memcpy(static_cast<R*>(p.loss) + row, loss, size_t(rows) * sizeof(R));
    std::memcpy(static_cast<R*>(p.row_weight) + row, label.weight, size_t(rows) * sizeof(R));
}

template <class R, class S, class T> static void tile_forward(const Softmax& p, int64_t tile, double* sums) {
    const Rows<S, T> here(p, tile);
    Tile<R> logits, weights;
    Labels<R> label[ROWS / LANES];
    Sums<R> sum[ROWS / LANES];
    for (int64_t q = 0; q < here.panels(); q++) label[q].read(p, here.first_of(q), here.rows_of(q));
    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        logits.load(here.x + k * p.at.classes, p.at, n, here.rows);
        if (p.transformed())
            for (int64_t q = 0; q < here.panels(); q++) transform_panel(p, logits.at(q), logits.pitch, label[q], k, n);
        const bool weighted = tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++) {
            if (!here.t) sum[q].pick_labels(logits.at(q), logits.pitch, label[q], k, n);
            sum[q].raise(logits.at(q), logits.pitch, n, k == 0);
            sum[q].template add_exp<S>(logits.at(q), logits.pitch, n, Ahead(here.x + k * p.at.classes, p.at, n, q));
            if (p.entropy) sum[q].add_moment(logits.at(q), logits.pitch, k, n);
            if (weighted) sum[q].add_cost(logits.at(q), logits.pitch, weights.at(q), weights.pitch, n);
        }
    }
    for (int64_t q = 0; q < here.panels(); q++) finish(p, here, q, label[q], sum[q], sums);
}

// What the gradients of LANES rows have in common: p's (top, log_sum), the gradient g of the loss and the mass of c ∘ t.
template <class R> struct Slopes {
    Labels<R> label;
    alignas(64) R top[LANES], log_sum[LANES], g[LANES], mass[LANES], scale[LANES], spread[LANES], extra[LANES];

    template <class S, class T> void set(const Softmax& p, const Rows<S, T>& here, int64_t q) {
        const int64_t row = here.first_of(q), rows = here.rows_of(q);
        label.read(p, row, rows);
        for (int l = 0; l < LANES; l++) top[l] = log_sum[l] = 0, g[l] = static_cast<const R*>(p.grad)[0];
        std::memcpy(top, static_cast<const R*>(p.top) + row, size_t(rows) * sizeof(R));
        std::memcpy(log_sum, static_cast<const R*>(p.log_sum) + row, size_t(rows) * sizeof(R));
        if (p.grad_rows) std::memcpy(g, static_cast<const R*>(p.grad) + row, size_t(rows) * sizeof(R));
        const R keep = R(1 - p.smoothing), share = R(p.share), total = R(p.weight_sum);
        for (int l = 0; l < LANES; l++) {
            const R valid = label.valid[l];
            g[l] = pick(valid == R(0), R(0), g[l]), mass[l] = valid * (keep * label.weight[l] + share * total);
            extra[l] = p.z_loss == 0 ? R(0) : valid * label.weight[l] * R(2 * p.z_loss) * (top[l] + log_sum[l]);
        }
        if (p.penalty != NO_PENALTY) set_penalised_mass(p, here, q);
        const R* by = static_cast<const R*>(p.spread);
        for (int l = 0; l < LANES; l++) {
            const R own = by && label.valid[l] != R(0) && !here.t ? by[label.y[l]] : p.weight ? label.weight[l] : R(1);
            spread[l] = share == R(0) ? R(0) : g[l] * share * (total - own);
        }
        set_scale();
    }
    // mass = c_y s(p_y), from the true class's logit as it lies in memory.
    template <class S, class T> void set_penalised_mass(const Softmax& p, const Rows<S, T>& here, int64_t q) {
        const Transform<R> transform(p);
        const R* bias = static_cast<const R*>(p.bias);
        R log_p[LANES] = {}, f[LANES], s[LANES];
        for (int64_t l = 0; l < here.rows_of(q); l++) {
            const R x = widen(here.x[(q * LANES + l) * p.at.inner + label.y[l] * p.at.classes]);
            const R moved = transform.of(x, bias ? bias[label.y[l]] : R(0)) - R(p.margin * p.per_temperature);
            log_p[l] = (moved - top[l]) - log_sum[l];
        }
        penalise(p, log_p, f, s);
        for (int l = 0; l < LANES; l++) mass[l] = pick(label.valid[l] == R(0), R(0), label.weight[l] * s[l]);
    }
    void set_scale() {
        for (int l = 0; l < LANES; l++) scale[l] = pick(mass[l] + extra[l] == R(0), R(0), g[l] * (mass[l] + extra[l]));
    }

    // out = scale · p, minus g · w where there are weights; 0 in rows that do not count, whatever they hold.
    template <class S>
    void of_logits(const R* x, int64_t pitch, R* out, int64_t to_pitch, int64_t n, const Ahead& next, const Ahead& next_out) const {
        for (int64_t j = 0; j < n; j++) {
            R slope[LANES];
            fetch(next[j], LANES * sizeof(S)), fetch_to_write(next_out[j], LANES * sizeof(S));
            for (int l = 0; l < LANES; l++) slope[l] = scale[l] * exp_((x[j * pitch + l] - top[l]) - log_sum[l]);
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = pick(label.valid[l] == R(0), R(0), slope[l]);
        }
    }
    void minus_weights(const R* x, int64_t pitch, const R* w, int64_t w_pitch, bool soft, R* out, int64_t to_pitch, int64_t n) const {
        for (int64_t j = 0; j < n; j++) {
            R slope[LANES];
            const R* weight = w + j * w_pitch;
            for (int l = 0; l < LANES; l++) slope[l] = out[j * to_pitch + l] - g[l] * weight[l];
            for (int l = 0; soft && l < LANES; l++) {
                const R log_p = (x[j * pitch + l] - top[l]) - log_sum[l];
                const R near = scale[l] * expm1_(log_p) + g[l] * (mass[l] + extra[l] - weight[l]);
                slope[l] = pick(log_p > LOG_HALF<R>, near, slope[l]);
            }
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = slope[l];
        }
    }
    // The true classes' entries, of p - 1 = expm1(log p).
    void true_classes(const Softmax& p, const R* x, int64_t pitch, R* out, int64_t to_pitch, int64_t k, int64_t n) const {
        R at_y[LANES] = {};
        for (int64_t l = 0; l < LANES; l++)
            if (uint64_t(label.y[l] - k) < uint64_t(n)) at_y[l] = x[(label.y[l] - k) * pitch + l];
        for (int l = 0; l < LANES; l++) {
            const R log_p = (at_y[l] - top[l]) - log_sum[l], by = pick(mass[l] == R(0), R(0), g[l] * mass[l]);
            at_y[l] = by * expm1_(log_p) + spread[l] + (p.z_loss == 0 ? R(0) : g[l] * extra[l] * exp_(log_p));
        }
        const R* bias = static_cast<const R*>(p.bias);
        for (int64_t l = 0; l < LANES; l++) {
            if (label.valid[l] == R(0) || uint64_t(label.y[l] - k) >= uint64_t(n)) continue;
            out[(label.y[l] - k) * to_pitch + l] = bias && bias[label.y[l]] == -INF<R> ? R(0) : at_y[l];
        }
    }

    void of_target(const R* x, int64_t pitch, const R* c, R keep, R* out, int64_t to_pitch, int64_t n) const {
        for (int64_t j = 0; j < n; j++) {
            R slope[LANES];
            const R weight = c ? c[j] : R(1);
            for (int l = 0; l < LANES; l++) slope[l] = times(keep * g[l], times(weight, (top[l] - x[j * pitch + l]) + log_sum[l]));
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = slope[l];
        }
    }
};

// The mass of c ∘ t of a tile's rows, for a probability target.
template <class R, class S, class T>
static void set_masses(const Softmax& p, const Rows<S, T>& here, Tile<R>& weights, Slopes<R>* slopes) {
    for (int64_t q = 0; q < here.panels(); q++)
        for (int l = 0; l < LANES; l++) slopes[q].mass[l] = 0;
    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++)
            for (int64_t j = 0; j < n; j++)
                for (int l = 0; l < LANES; l++) slopes[q].mass[l] += weights.at(q)[j * weights.pitch + l];
    }
    for (int64_t q = 0; q < here.panels(); q++) slopes[q].set_scale();
}

template <class R, class S, class T> static void tile_backward(const Softmax& p, int64_t tile) {
    const Rows<S, T> here(p, tile);
    Tile<R> logits, weights, result, raw;
    Slopes<R> slopes[ROWS / LANES];
    for (int64_t q = 0; q < here.panels(); q++) slopes[q].set(p, here, q);
    if (here.t) set_masses(p, here, weights, slopes);
    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        logits.load(here.x + k * p.at.classes, p.at, n, here.rows);
        if (p.transformed()) {
            if (p.cap > 0) raw.load(here.x + k * p.at.classes, p.at, n, here.rows);
            for (int64_t q = 0; q < here.panels(); q++) transform_panel(p, logits.at(q), logits.pitch, slopes[q].label, k, n);
        }
        if (here.out_target) {
            const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
            result.lay_out(p.grad_target_at, n);
            for (int64_t q = 0; q < here.panels(); q++)
                slopes[q].of_target(logits.at(q), logits.pitch, c, R(1 - p.smoothing), result.at(q), result.pitch, n);
            result.store(here.out_target + k * p.grad_target_at.classes, p.grad_target_at, n, here.rows);
        }
        if (!here.out) continue;
        const bool weighted = tile_weights(p, here, k, n, weights);
        result.lay_out(p.grad_at, n);
        for (int64_t q = 0; q < here.panels(); q++) {
            const Ahead next(here.x + k * p.at.classes, p.at, n, q), next_out(here.out + k * p.grad_at.classes, p.grad_at, n, q);
            slopes[q].template of_logits<S>(logits.at(q), logits.pitch, result.at(q), result.pitch, n, next, next_out);
            if (weighted)
                slopes[q].minus_weights(
                    logits.at(q), logits.pitch, weights.at(q), weights.pitch, here.t, result.at(q), result.pitch, n
                );
            if (!here.t) slopes[q].true_classes(p, logits.at(q), logits.pitch, result.at(q), result.pitch, k, n);
            if (p.transformed())
                for (int64_t j = 0; j < n; j++)
                    Transform<R>(p).chain(p.cap > 0 ? raw.at(q) + j * raw.pitch : nullptr, result.at(q) + j * result.pitch);
        }
        result.store(here.out + k * p.grad_at.classes, p.grad_at, n, here.rows);
    }
}

template <class S> static void softmax_forward(const Softmax& p, int64_t begin, int64_t end) {
    using R = typename Wide<S>::type;
    for (int64_t tile = begin; tile < end; tile++) {
        double sums[2] = {0, 0};
        if (p.rows_per_tile == 1)
            p.wide_target ? row_forward<R, S, R>(p, tile, sums) : row_forward<R, S, S>(p, tile, sums);
        else
            p.wide_target ? tile_forward<R, S, R>(p, tile, sums) : tile_forward<R, S, S>(p, tile, sums);
        if (p.partial) p.partial[2 * tile] = sums[0], p.partial[2 * tile + 1] = sums[1];
    }
}

template <class S> static void softmax_backward(const Softmax& p, int64_t begin, int64_t end) {
    using R = typename Wide<S>::type;
    for (int64_t tile = begin; tile < end; tile++)
        if (p.rows_per_tile == 1)
            p.wide_target ? row_backward<R, S, R>(p, tile) : row_backward<R, S, S>(p, tile);
        else
            p.wide_target ? tile_backward<R, S, R>(p, tile) : tile_backward<R, S, S>(p, tile);
}

// --- binary cross entropy -------------------------------------------------------------------------------------------------

// A block of up to BINARY_BLOCK elements, filled up to whole runs: logits, targets, and weights where there are any.
template <class R, class S, class T, bool WEIGHTED> struct Elements {
    int64_t o, i, n, first;
    alignas(64) R buffers[4][BINARY_BLOCK];
    const R *x, *t, *w, *pi;
    const S* next_x;
    const T* next_t;

    Elements(const Binary& p, int64_t block) {
        const int64_t per_outer = p.blocks_per_outer();
        o = block / per_outer, i = block % per_outer * BINARY_BLOCK;
        n = p.inner - i < BINARY_BLOCK ? p.inner - i : BINARY_BLOCK, first = o * p.inner + i;
        x = runs(static_cast<const S*>(p.logits) + first, buffers[0]);
        t = runs(static_cast<const T*>(p.target) + first, buffers[1]);
        next_x = static_cast<const S*>(p.logits) + first + n, next_t = static_cast<const T*>(p.target) + first + n;
        if constexpr (WEIGHTED) w = weights(p.weight, p.weight_at, buffers[2]), pi = weights(p.pos_weight, p.pos_weight_at, buffers[3]);
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
    const R* weights(const void* from, const int64_t (&at)[2], R* scratch) const {
        const R* start = static_cast<const R*>(from) + (from ? o * at[0] + i * at[1] : 0);
        if (from && at[1] == 1) return runs(start, scratch);
        for (int64_t k = 0; k < padded(n); k++) scratch[k] = !from ? R(1) : k < n ? start[k * at[1]] : R(0);
        return scratch;
    }

    void fetch_next(int64_t k) const { fetch(next_x + k, LANES * sizeof(S)), fetch(next_t + k, LANES * sizeof(T)); }

    // What "yes" weighs, π t, and what "no" weighs, 1 - t.
    R yes(int64_t k) const {
        if constexpr (WEIGHTED) return pi[k] * t[k];
        else return t[k];
    }
    R no(int64_t k) const { return R(1) - t[k]; }
    R weight([[maybe_unused]] int64_t k) const {
        if constexpr (WEIGHTED) return w[k];
        else return R(1);
    }
    template <class V> void store_to(const R* from, V* to) const {
        const int64_t whole = n / LANES * LANES;
        if (whole) store(from, to + first, whole);
        for (int64_t k = whole; k < n; k++) narrow(from[k], to[first + k]);
    }
};

template <class R> INLINE R magnitude(R x) { return pick(x < R(0), -x, x); }

// -log σ(x) = max(-x, 0) + log(1 + e^{-|x|}), and the same for -x.
template <class R, class S, class T, bool WEIGHTED> static void block_forward(const Binary& p, int64_t block) {
    const Elements<R, S, T, WEIGHTED> e(p, block);
    alignas(64) R lane[LANES] = {}, scratch[BINARY_BLOCK];
    for (int64_t k = 0; k < e.n; k += LANES) {
        R loss[LANES];
        e.fetch_next(k);
        for (int l = 0; l < LANES; l++) {
            const R x = e.x[k + l], size = magnitude(x), yes = e.yes(k + l), no = e.no(k + l);
            loss[l] = times(pick(x > R(0), no, yes), size) + (yes + no) * log1p_unit(exp_(-size));
            if constexpr (WEIGHTED) loss[l] = times(e.w[k + l], loss[l]);
        }
        if (k + LANES > e.n)
            for (int64_t l = e.n - k; l < LANES; l++) loss[l] = 0;
        for (int l = 0; l < LANES; l++) lane[l] += loss[l];
        if (p.loss)
            for (int l = 0; l < LANES; l++) scratch[k + l] = loss[l];
    }
    if (p.loss) e.store_to(scratch, static_cast<R*>(p.loss));
    if (p.partial) p.partial[block] = fold(lane);
}

template <class R, class S, class T, bool WEIGHTED> static void block_backward(const Binary& p, int64_t block) {
    const Elements<R, S, T, WEIGHTED> e(p, block);
    const R* g = static_cast<const R*>(p.grad);
    alignas(64) R rows[BINARY_BLOCK], slope[BINARY_BLOCK];
    for (int64_t k = 0; k < padded(e.n); k++) rows[k] = !p.grad_rows ? g[0] : k < e.n ? g[e.first + k] : R(0);
    for (int64_t k = 0; p.grad_target && k < e.n; k += LANES) {
        R run[LANES];
        for (int l = 0; l < LANES; l++) {
            const R x = e.x[k + l], size = magnitude(x), tail = log1p_unit(exp_(-size));
            R gain = pick(x < R(0), size, R(0)) + tail;
            if constexpr (WEIGHTED) gain = times(e.pi[k + l], gain);
            run[l] = rows[k + l] * e.weight(k + l) * (gain - (pick(x > R(0), size, R(0)) + tail));
        }
        for (int l = 0; l < LANES; l++) slope[k + l] = run[l];
    }
    if (p.grad_target) e.store_to(slope, static_cast<T*>(p.grad_target));
    // last, for it may lie in the place of the logits
    for (int64_t k = 0; p.grad_logits && k < e.n; k += LANES) {
        R run[LANES];
        e.fetch_next(k), fetch_to_write(static_cast<S*>(p.grad_logits) + e.first + k, LANES * sizeof(S));
        for (int l = 0; l < LANES; l++) {
            const R x = e.x[k + l], small = exp_(-magnitude(x)), yes = e.yes(k + l), no = e.no(k + l);
            run[l] = pick(x < R(0), no * small - yes, no - yes * small) * inverse_unit(small) * (rows[k + l] * e.weight(k + l));
        }
        for (int l = 0; l < LANES; l++) slope[k + l] = run[l];
    }
    if (p.grad_logits) e.store_to(slope, static_cast<S*>(p.grad_logits));
}

// A block by the types at hand.
template <class R, class S> static void binary_block(const Binary& p, int64_t block) {
    const bool backward = p.grad, weighted = p.weight || p.pos_weight;
    if (p.wide_target) {
        if (backward) weighted ? block_backward<R, S, R, true>(p, block) : block_backward<R, S, R, false>(p, block);
        else weighted ? block_forward<R, S, R, true>(p, block) : block_forward<R, S, R, false>(p, block);
    } else {
        if (backward) weighted ? block_backward<R, S, S, true>(p, block) : block_backward<R, S, S, false>(p, block);
        else weighted ? block_forward<R, S, S, true>(p, block) : block_forward<R, S, S, false>(p, block);
    }
}

// Forward, or backward where there is a gradient of the loss.
template <class S> static void binary(const Binary& p, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) binary_block<typename Wide<S>::type, S>(p, block);
}

}  // namespace
