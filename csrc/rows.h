// Softmax cross entropy of rows with many classes that lie side by side in memory: one row at a time, block by block.

#pragma once
#include "family.h"
#include "runs.h"

namespace {

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

// How many of a row's classes to take from k on: BLOCK, but never so many that fewer than LANES are left over.
INLINE int64_t block_size(int64_t classes, int64_t k) {
    const int64_t left = classes - k;
    return left <= BLOCK ? left : left < BLOCK + LANES ? BLOCK - LANES : BLOCK;
}

// c ∘ t, smoothed, of the classes [k, k + n); where the target is indices, the part of it that smoothing spreads.
template <class R, class T>
INLINE void load_weights(const Softmax& p, const T* target, int64_t k, int64_t n, R* scratch, Block<R>& w) {
    const R *weight = static_cast<const R*>(p.weight), *spread = static_cast<const R*>(p.spread ? p.spread : p.weight);
    const R keep = R(1 - p.smoothing), share = R(p.share);
    if (!target) {
        for (int64_t i = 0; i < n; i++) scratch[i] = spread ? share * spread[k + i] : share;
        return w.load(scratch, n, scratch);
    }
    const int64_t step = p.target_at.classes;
    if (step == 1) {
        w.load(target + k, n, scratch);
    } else {
        for (int64_t i = 0; i < n; i++) scratch[i] = widen(target[(k + i) * step]);
        w.load(scratch, n, scratch);
    }
    if (p.smoothing == 0 && !weight) return;
    Block<R> c, even;
    c.load(weight ? weight + k : w.x, n, scratch),
        even.load(p.spread ? spread + k : w.x, n, scratch);  // w.x stands for nothing
    for (int64_t i = 0; i < padded(n); i += LANES) {
        const R* from = w.run(i);
        R* to = i < w.whole ? scratch + i : w.last;
        R run[LANES];
        for (int l = 0; l < LANES; l++) run[l] = keep * from[l] + (p.spread ? R(0) : share);
        if (weight) {
            const R* factor = c.run(i);
            for (int l = 0; l < LANES; l++) run[l] *= factor[l];
        }
        if (p.spread) {
            const R* add = even.run(i);
            for (int l = 0; l < LANES; l++) run[l] += share * add[l];
        }
        for (int l = 0; l < LANES; l++) to[l] = run[l];
    }
    w.x = scratch;
}

// Replace a block of a row's logits from class k on by what they become.
template <class R> INLINE void transform_block(const Softmax& p, Block<R>& block, int64_t k, int64_t y, R* scratch) {
    const Transform<R> transform(p);
    Block<R> bias;
    bias.load(p.bias ? static_cast<const R*>(p.bias) + k : block.x, block.n, scratch);  // block.x stands for nothing
    for (int64_t i = 0; i < block.whole; i += LANES)
        transform.template run<true>(block.x + i, p.bias ? bias.x + i : nullptr, scratch + i);
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

// Σ e^{x - top}, fetching meanwhile as much as the block is behind `next`. What equals top is left out and counted
// instead, where the block may have such: its ones would drown the rest of a confident row.
template <bool WITH_TOP, class R, class S, class T>
INLINE double sum_exp(const Block<R>& block, R top, const S* next, const T* next_target, double& ties) {
    alignas(64) R lane[LANES] = {}, equal[LANES] = {};
    block.each([&](const R* x, int64_t k) __attribute__((always_inline)) {
        fetch(next + k, LANES * sizeof(S));
        if (next_target) fetch(next_target + k, LANES * sizeof(T));
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

template <class R>
INLINE void store_statistics(const Softmax& p, int64_t row, R entropy, R target_log_prob, bool correct) {
    if (!p.entropy) return;
    static_cast<R*>(p.entropy)[row] = entropy;
    static_cast<R*>(p.target_log_prob)[row] = target_log_prob;
    p.correct[row] = correct;
}

// log p, f and s of a block's classes, run by run.
template <class R> struct Penalised {
    alignas(64) R log_p[BLOCK + LANES], f[BLOCK + LANES], s[BLOCK + LANES];

    void set(const Softmax& p, const Block<R>& block, R top, R log_sum) {
        block.each([&](const R* x, int64_t k) {
            for (int l = 0; l < LANES; l++) log_p[k + l] = (x[l] - top) - log_sum;
            penalise<LANES>(p, log_p + k, f + k, s + k);
        });
    }
    // w ∘ s in the place of w.
    void weigh(Block<R>& w, R* scratch) const {
        for (int64_t k = 0; k < padded(w.n); k += LANES) {
            const R* from = w.run(k);
            R* to = k < w.whole ? scratch + k : w.last;
            for (int l = 0; l < LANES; l++) to[l] = from[l] * s[k + l];
        }
        w.x = scratch;
    }
};

// A second look at a row whose p is known, from a cache: do something with each block of x' and the place where it
// begins.
template <class R, class S, class F> INLINE void look_again(const Softmax& p, const S* x, int64_t y, F&& f) {
    alignas(64) R buffer[BLOCK];
    Block<R> block;
    for (int64_t k = 0, n; k < p.classes; k += n) {
        n = block_size(p.classes, k);
        block.load(x + k, n, buffer);
        if (p.transformed()) transform_block(p, block, k, y, buffer);
        f(block, k);
    }
}

// Σ w f(p) and Σ w s(p), where every class has a weight; the latter also without the class, if there is one, that has
// more than half of p: it may be all that counts, and is not to be subtracted again.
template <class R> struct PenalisedSums {
    double cost = 0, mass = 0, rest = 0;

    template <class S, class T> PenalisedSums(const Softmax& p, const S* x, const T* t, int64_t y, R top, R log_sum) {
        alignas(64) R scratch[BLOCK];
        Penalised<R> at;
        Block<R> w;
        look_again<R>(p, x, y, [&](const Block<R>& block, int64_t k) {
            load_weights(p, t, k, block.n, scratch, w);
            w.fill(R(0));
            at.set(p, block, top, log_sum);
            alignas(64) R costs[LANES] = {}, masses[LANES] = {}, rests[LANES] = {};
            w.each([&](const R* weight, int64_t i) {
                for (int l = 0; l < LANES; l++) {
                    const R pull = weight[l] * at.s[i + l];
                    costs[l] += times(weight[l], at.f[i + l]), masses[l] += pull;
                    rests[l] += pick(at.log_p[i + l] > LOG_HALF<R>, R(0), pull);
                }
            });
            cost += fold(costs), mass += fold(masses), rest += fold(rests);
        });
    }
};

// The statistics of a probability target: Σ t log p before smoothing, and whether its largest class is the likeliest.
template <class R, class S, class T>
static void soft_statistics(
    const Softmax& p, int64_t row, const S* x, const T* t, R log_sum, R entropy, int64_t likeliest
) {
    Softmax bare = p;
    bare.smoothing = 0, bare.weight = bare.spread = nullptr;
    const R top = static_cast<const R*>(p.top)[row];
    alignas(64) R scratch[BLOCK];
    Block<R> w;
    R most = R(0);
    int64_t wanted = -1;
    double cost = 0, mass = 0;
    look_again<R>(p, x, -1, [&](const Block<R>& block, int64_t k) {
        load_weights(bare, t, k, block.n, scratch, w);
        add_cost(w.x, block.x, w.whole, top, cost, mass);
        if (w.whole < w.n) add_cost(w.last + w.seen, block.last + w.seen, LANES - w.seen, top, cost, mass);
        alignas(64) R lane[LANES];
        for (int l = 0; l < LANES; l++) lane[l] = most;
        w.each([&](const R* weight, int64_t) {
            for (int l = 0; l < LANES; l++) lane[l] = pick(weight[l] > lane[l], weight[l], lane[l]);
        });
        const R high = fold_max(lane);
        if (high > most) most = high, wanted = k + first_of(w, high);
    });
    const R log_p = -R(cost + mass * double(log_sum));
    store_statistics(p, row, entropy, log_p, wanted == likeliest && wanted >= 0 && log_sum == log_sum);
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
        const S* next = x + k + n;
        const T* next_target = t && p.target_at.classes == 1 ? t + k + n : nullptr;
        others += may_tie ? sum_exp<true>(block, level, next, next_target, ties)
                          : sum_exp<false>(block, level, next, next_target, ties);
        if (p.entropy) moment += sum_moment(block, level);
        if (t) {
            load_weights(p, t, k, n, scratch, w);
            add_cost(w.x, block.x, w.whole, level, cost, mass);
            if (w.whole < n) add_cost(w.last + w.seen, block.last + w.seen, LANES - w.seen, level, cost, mass);
        } else if (p.smoothing != 0) {
            add_cost(c ? c + k : nullptr, block.x, block.whole, level, cost, mass);
            if (block.whole < n)
                add_cost(
                    c ? c + k + block.whole : nullptr, block.last + block.seen, LANES - block.seen, level, cost, mass
                );
        }
    }
    if (label.valid) {
        others += ties > 1 ? ties - 1 : 0;
        log_sum = log1p_(R(others)) + (top - top);
        if (p.penalises_all()) {
            const PenalisedSums<R> sum(p, x, t, label.y, top, log_sum);
            cost = sum.cost, mass = 0;
        } else if (!t) {
            cost *= p.share, mass *= p.share;
        }
        if (t) {
            loss = R(cost + mass * double(log_sum));
        } else {
            R f, s;
            const R log_p = (target_logit<R>(p, x, label.y) - top) - log_sum;
            penalise_one(p, log_p, f, s);
            store_statistics(p, row, log_sum + R(moment / (1 + others)), log_p, likeliest == label.y && log_p == log_p);
            loss = times(label.weight, f);
            if (p.smoothing != 0) loss = times(R(1 - p.smoothing), loss) + R(cost + mass * double(log_sum));
        }
        if (p.z_loss != 0) loss += times(label.weight, R(p.z_loss) * (top + log_sum) * (top + log_sum));
    } else {
        top = R(0);
        store_statistics(p, row, R(0), R(0), false);
    }
    static_cast<R*>(p.top)[row] = top;
    static_cast<R*>(p.log_sum)[row] = log_sum;
    if (t && p.entropy) soft_statistics(p, row, x, t, log_sum, log_sum + R(moment / (1 + others)), likeliest);
    if (p.loss) {
        static_cast<R*>(p.loss)[row] = loss;
        static_cast<R*>(p.row_weight)[row] = label.weight;
    }
    sums[0] += double(loss);
    sums[1] += double(label.weight);
}

// out = scale · p - less, scale = g (mass + extra), and - g w where there are weights; where p may be near one, 1 - p
// is formed by expm1.
template <class R> struct RowSlopes {
    R top, log_sum, g, mass, scale, less, extra;
    R rest;  // the mass without that of a class with p > 1/2; nan where that is mass - w

    template <class S, class T>
    void operator()(
        const Block<R>& block, const Block<R>* w, R* out, const S* next, const T* next_target, const S* to
    ) const {
        const bool near_one = w && log_sum < -LOG_HALF<R>;
        block.each([&](const R* x, int64_t k) __attribute__((always_inline)) {
            R slope[LANES];
            fetch(next + k, LANES * sizeof(S));
            fetch_to_write(to + k, LANES * sizeof(S));
            if (next_target) fetch(next_target + k, LANES * sizeof(T));
            for (int l = 0; l < LANES; l++) slope[l] = scale * exp_((x[l] - top) - log_sum) - less;
            if (near_one) {
                const R* weight = w->run(k);
                for (int l = 0; l < LANES; l++) {
                    const R log_p = (x[l] - top) - log_sum, others = pick(rest == rest, rest, mass - weight[l]);
                    const R near = scale * expm1_(log_p) + g * (others + extra);
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
template <class R, class S> INLINE void chain_block(const Softmax& p, const S* x, R* slope, int64_t k, int64_t n) {
    const Transform<R> transform(p);
    for (int64_t i = 0; i < padded(n); i += LANES) {
        const int64_t at = i + LANES <= n ? i : n - LANES;
        R run[LANES];
        widen_run(x + at, run);
        transform.template chain<true>(run, p.bias ? static_cast<const R*>(p.bias) + k + at : nullptr, slope + i);
    }
}

// g c f(p) for the classes [k, k + n) of a probability target; f is -log p where none is given.
template <class R, class T>
INLINE void store_target_slopes(
    const Softmax& p, const RowSlopes<R>& row, const Block<R>& block, const R* f, T* out, int64_t k
) {
    const R* c = static_cast<const R*>(p.weight);
    const R keep = row.g * R(1 - p.smoothing);
    for (int64_t j = 0; j < block.n; j++) {
        const int64_t again = j < block.whole ? 0 : block.seen;
        const R x = j < block.whole ? block.x[j] : block.last[j - block.whole + again];
        const R cost = f ? f[j + again] : (row.top - x) + row.log_sum;
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
    Penalised<R> penalised;
    const R* c = static_cast<const R*>(p.spread ? p.spread : p.weight);
    const R share = R(p.share);
    const bool all = p.penalises_all();
    R spread = share * R(p.weight_sum);  // the mass of what smoothing spreads
    RowSlopes<R> slopes{
        static_cast<const R*>(p.top)[row],
        static_cast<const R*>(p.log_sum)[row],
        static_cast<const R*>(p.grad)[p.grad_rows ? row : 0],
        0,
        0,
        0,
        0,
        std::numeric_limits<R>::quiet_NaN()
    };
    if (all) {
        const PenalisedSums<R> sum(p, x, t, label.y, slopes.top, slopes.log_sum);
        slopes.mass = spread = R(sum.mass), slopes.rest = R(sum.rest);
    } else if (t) {
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
    const R extra = slopes.extra =
        p.z_loss == 0 ? R(0) : R(2 * p.z_loss) * (slopes.top + slopes.log_sum) * label.weight;
    if (!t) {
        const R log_p = (target_logit<R>(p, x, label.y) - slopes.top) - slopes.log_sum;
        R f, s;
        penalise_one(p, log_p, f, s);
        const R own = R(1 - p.smoothing) * label.weight * s;
        slopes.mass = own + spread;
        at_y = (slopes.mass == R(0) ? R(0) : slopes.g * slopes.mass) * expm1_(log_p);
        if (share != R(0))
            at_y +=
                slopes.g * (all && log_p > LOG_HALF<R> ? slopes.rest : spread - share * (c ? c[label.y] : R(1)) * s);
        slopes.rest += own;
        if (extra != R(0)) at_y += slopes.g * extra * exp_(log_p);
    }
    slopes.scale = slopes.mass + extra == R(0) ? R(0) : slopes.g * (slopes.mass + extra);
    const bool weighted = t || all || (c && share != R(0));
    if (!weighted && share != R(0)) slopes.less = slopes.g * share;  // g of a mean over nothing is infinite
    for (int64_t k = 0, n; k < classes; k += n) {
        n = block_size(classes, k);
        block.load(x + k, n, buffer);
        if (p.transformed()) transform_block(p, block, k, label.y, buffer);
        if (all) penalised.set(p, block, slopes.top, slopes.log_sum);
        if (out_target) store_target_slopes(p, slopes, block, all ? penalised.f : nullptr, out_target, k);
        if (!out) continue;
        if (weighted) load_weights(p, t, k, n, scratch, w);
        if (all) penalised.weigh(w, scratch);
        const T* next_target = t && p.target_at.classes == 1 ? t + k + n : nullptr;
        slopes(block, weighted ? &w : nullptr, slope, x + k + n, next_target, out + k);
        const int64_t y = label.y - k, repeated = y - (n - LANES);
        if (y >= 0 && y < block.whole) slope[y] = at_y;
        if (y < n && repeated >= 0 && block.whole < n) slope[block.whole + repeated] = at_y;
        if (p.transformed()) chain_block(p, x + k, slope, k, n);
        store(slope, out + k, n);
    }
}

}  // namespace
