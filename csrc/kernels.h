// The CPU kernels: plain C++17 loops, compiled once for each instruction set (isa.cpp) and chosen at run time (binding.cpp).
//
// Precision: everything is computed in R, which is float for float, bfloat16 and half logits and double for double; sums over
// classes run in lanes of R and are carried on in double, sums over rows run in double. A row's lse is the pair (top, log_sum)
// with log_sum = log1p(Σ_{j≠top} e^{x_j - top}), so that a confident row keeps its relative accuracy; the gradient of the true
// class is formed as expm1(log p_y).
//
// Order: every sum has a fixed order, whatever the threads. No allocation, no threads and no exceptions here. Everything is
// static: an object compiled for one instruction set must not offer its code to another.

#pragma once
#include "numbers.h"
#include "problem.h"

namespace {

constexpr int CLASSES = 32;  // classes of a tile that are worked on at a time

template <class R> constexpr R INF = std::numeric_limits<R>::infinity();

static inline int64_t index_at(const void* indices, int64_t type, int64_t row) {
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

// What the kernels know of one row's target beside the elements of t: its class, c[y], and whether it counts.
template <class R> struct Label {
    int64_t y;
    R weight;
    bool valid;
};

template <class R> static inline Label<R> label_of(const Softmax& p, int64_t row) {
    if (p.index_type < 0) return {-1, R(1), true};
    int64_t y = index_at(p.target, p.index_type, row);
    if (y == p.ignore_index) return {-1, R(0), false};
    if (y < 0 || y >= p.classes) {
        if (p.out_of_range) p.out_of_range->store(true, std::memory_order_relaxed);
        return {-1, R(0), false};
    }
    return {y, p.weight ? static_cast<const R*>(p.weight)[y] : R(1), true};
}

// Σ_k c_k t_k of a row with a class index.
template <class R> static inline R index_mass(const Softmax& p, R weight) {
    return R((1 - p.smoothing) * weight + p.share * p.weight_sum);
}

template <class R> static inline R index_loss(const Softmax& p, const Label<R>& label, R cost, R spread, R log_sum) {
    if (!label.valid) return R(0);
    R loss = p.weight ? times(label.weight, cost) : cost;
    if (p.smoothing == 0) return loss;
    return R(1 - p.smoothing) * loss + (spread + R(p.share * p.weight_sum) * log_sum);
}

template <class R> static inline R grad_of(const Softmax& p, int64_t row) {
    return static_cast<const R*>(p.grad)[p.grad_rows ? row : 0];
}

// Do something for each of n elements, in runs of LANES, which compilers see through where they miss a plain loop.
template <class F> static inline void each(int64_t n, F&& f) {
    const int64_t whole = n / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES)
        for (int l = 0; l < LANES; l++) f(k + l);
    for (int64_t k = whole; k < n; k++) f(k);
}

// --- one long row ---------------------------------------------------------------------------------------------------------

template <class R, class S> static inline const R* load(const S* __restrict from, int64_t n, R* __restrict scratch) {
    if constexpr (sizeof(S) == sizeof(R)) {
        return from;
    } else {
        each(n, [=](int64_t k) { scratch[k] = widen(from[k]); });
        return scratch;
    }
}

// Where to compute what is to be stored: in its place, if it is of type R, or in a buffer first.
template <class R, class S> static inline R* in_place(S* to, R* scratch) {
    if constexpr (sizeof(S) == sizeof(R)) return to;
    else return scratch;
}

template <class R, class S> static inline void store(const R* __restrict from, S* __restrict to, int64_t n) {
    if constexpr (sizeof(S) != sizeof(R)) each(n, [=](int64_t k) { narrow(from[k], to[k]); });
}

// c ∘ t for the classes [k, k + n) of a row, or null where it is nothing but the one label.
template <class R, class T>
static inline const R* row_weights(const Softmax& p, const T* __restrict target, int64_t k, int64_t n, R* __restrict scratch) {
    const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
    const R keep = R(1 - p.smoothing), share = R(p.share);
    if (target) {
        const int64_t step = p.target_at.classes;
        if (step == 1) each(n, [=](int64_t i) { scratch[i] = keep * widen(target[k + i]) + share; });
        else for (int64_t i = 0; i < n; i++) scratch[i] = keep * widen(target[(k + i) * step]) + share;
        if (c) each(n, [=](int64_t i) { scratch[i] *= c[i]; });
        return scratch;
    }
    if (p.smoothing == 0) return nullptr;
    if (c) each(n, [=](int64_t i) { scratch[i] = share * c[i]; });
    else each(n, [=](int64_t i) { scratch[i] = share; });
    return scratch;
}

template <class R> static inline R largest(const R* x, int64_t n) {
    R lane[LANES];
    for (int l = 0; l < LANES; l++) lane[l] = -INF<R>;
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = pick(x[k + l] > lane[l], x[k + l], lane[l]);
    for (; k < n; k++) lane[0] = x[k] > lane[0] ? x[k] : lane[0];
    for (int l = 1; l < LANES; l++) lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    return lane[0];
}

// Where x first equals the value that it is known to contain.
template <class R> static inline int64_t first_of(const R* x, int64_t n, R value) {
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) {
        int found = 0;
        for (int l = 0; l < LANES; l++) found |= x[k + l] == value;
        if (found) break;
    }
    while (!(x[k] == value)) k++;
    return k;
}

template <class R> static inline double fold(const R* lane) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += double(lane[l]);
    return sum;
}

template <class R> static inline double sum_exp(const R* x, int64_t n, R top) {
    R lane[LANES] = {}, rest[LANES];
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += exp_(x[k + l] - top);
    if (k < n) {
        for (int l = 0; l < LANES; l++) rest[l] = -INF<R>;
        for (int l = 0; k + l < n; l++) rest[l] = x[k + l];
        for (int l = 0; l < LANES; l++) lane[l] += exp_(rest[l] - top);
    }
    return fold(lane);
}

// Σ w (top - x) and Σ w, with 0 · inf = 0.
template <class R> static inline void add_cost(const R* w, const R* x, int64_t n, R top, double& cost, double& mass) {
    R costs[LANES] = {}, masses[LANES] = {};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int l = 0; l < LANES; l++) {
            R product = w[k + l] * (top - x[k + l]);
            costs[l] += pick(w[k + l] == R(0) && x[k + l] == x[k + l], R(0), product);
            masses[l] += w[k + l];
        }
    for (int l = 0; k < n; k++, l++) {
        R product = w[k] * (top - x[k]);
        costs[l] += pick(w[k] == R(0) && x[k] == x[k], R(0), product);
        masses[l] += w[k];
    }
    cost += fold(costs);
    mass += fold(masses);
}

// out = scale · p, minus g · w where there are weights; and where p may be near one, 1 - p is formed by expm1.
template <class R>
static inline void slopes_of(
    const R* __restrict x, const R* __restrict w, R* __restrict out, int64_t n, R top, R log_sum, R g, R mass, bool near_one
) {
    const R scale = mass == R(0) ? R(0) : g * mass;
    each(n, [=](int64_t k) { out[k] = scale * exp_((x[k] - top) - log_sum); });
    if (!w) return;
    if (!near_one) return each(n, [=](int64_t k) { out[k] -= g * w[k]; });
    each(n, [=](int64_t k) {
        const R log_p = (x[k] - top) - log_sum, near = scale * expm1_(log_p) + g * (mass - w[k]);
        out[k] = pick(log_p > R(-0.6931472), near, out[k] - g * w[k]);
    });
}

template <class R, class S, class T> static void row_forward(const Softmax& p, int64_t row, double* sums) {
    const int64_t o = row / p.inner, i = row % p.inner;
    const S* x = static_cast<const S*>(p.logits) + o * p.at.outer + i * p.at.inner;
    const T* t = p.index_type < 0 ? static_cast<const T*>(p.target) + o * p.target_at.outer + i * p.target_at.inner : nullptr;
    const Label<R> label = label_of<R>(p, row);
    R top = -INF<R>, log_sum = R(0), loss = R(0);
    if (label.valid) {
        R buffer[BLOCK], weights[BLOCK];
        double others = 0, cost = 0, mass = 0;
        for (int64_t k = 0; k < p.classes; k += BLOCK) {
            const int64_t n = p.classes - k < BLOCK ? p.classes - k : BLOCK;
            const R* block = load<R>(x + k, n, buffer);
            const R high = largest(block, n);
            int64_t split = n;
            if (high > top) {
                if (top > -INF<R>) {
                    others = (others + 1) * double(exp_(top - high));
                    cost += mass == 0 ? 0 : mass * (double(high) - double(top));
                }
                top = high;
                split = first_of(block, n, top);
            }
            const R level = top > -INF<R> ? top : R(0);
            others += sum_exp(block, split, level);
            if (split < n) others += sum_exp(block + split + 1, n - split - 1, level);
            if (const R* w = row_weights<R>(p, t, k, n, weights)) add_cost(w, block, n, level, cost, mass);
        }
        log_sum = R(std::log1p(others)) + (top - top);
        loss = t ? R(cost + mass * double(log_sum))
                 : index_loss(p, label, (top - widen(x[label.y])) + log_sum, R(cost), log_sum);
    } else {
        top = R(0);
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

template <class R, class S, class T> static void row_backward(const Softmax& p, int64_t row) {
    const int64_t o = row / p.inner, i = row % p.inner, classes = p.classes;
    const S* x = static_cast<const S*>(p.logits) + o * p.at.outer + i * p.at.inner;
    const bool soft = p.index_type < 0;
    const T* t = soft ? static_cast<const T*>(p.target) + o * p.target_at.outer + i * p.target_at.inner : nullptr;
    const Label<R> label = label_of<R>(p, row);
    const R g = grad_of<R>(p, row), top = static_cast<const R*>(p.top)[row], log_sum = static_cast<const R*>(p.log_sum)[row];
    R buffer[BLOCK], weights[BLOCK], slope[BLOCK];
    S* out = p.grad_logits ? static_cast<S*>(p.grad_logits) + o * p.grad_at.outer + i * p.grad_at.inner : nullptr;
    R mass = index_mass(p, label.weight);
    if (!label.valid) {
        for (int64_t k = 0; out && k < classes; k++) narrow(R(0), out[k]);
        return;
    }
    if (soft) {
        double sum = 0, unused = 0;
        for (int64_t k = 0; k < classes; k += BLOCK) {
            const int64_t n = classes - k < BLOCK ? classes - k : BLOCK;
            const R* w = row_weights<R>(p, t, k, n, weights);
            add_cost(w, w, n, R(0), unused, sum);
        }
        mass = R(sum);
    }
    const bool near_one = soft && log_sum < R(0.6931472);  // then one p may be above ½, and 1 - p is formed by expm1
    const R scale = mass == R(0) ? R(0) : g * mass;
    for (int64_t k = 0; k < classes; k += BLOCK) {
        const int64_t n = classes - k < BLOCK ? classes - k : BLOCK;
        const R* block = load<R>(x + k, n, buffer);
        const R* w = out || soft ? row_weights<R>(p, t, k, n, weights) : nullptr;
        if (out) {
            R* to = in_place(out + k, slope);
            slopes_of(block, w, to, n, top, log_sum, g, mass, near_one);
            store(to, out + k, n);
        }
        if (p.grad_target) {
            const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
            T* to = static_cast<T*>(p.grad_target) + o * p.grad_target_at.outer + i * p.grad_target_at.inner;
            const R keep = g * R(1 - p.smoothing);
            for (int64_t j = 0; j < n; j++) {
                R cost = (top - block[j]) + log_sum;
                narrow(times(keep, c ? times(c[j], cost) : cost), to[(k + j) * p.grad_target_at.classes]);
            }
        }
    }
    if (!soft && out) {
        const R log_p = (widen(x[label.y]) - top) - log_sum, share = R(p.share);
        const R spread = p.smoothing == 0 ? R(0) : g * (share * (R(p.weight_sum) - label.weight));
        narrow(scale * expm1_(log_p) + spread, out[label.y]);
    }
}

// --- tiles of rows side by side -------------------------------------------------------------------------------------------

// The elements of up to ROWS rows in CLASSES classes, one class after the other, each with its rows side by side.
template <class R> struct Tile {
    R values[CLASSES * ROWS];

    // Point at the tile, which is copied only where it does not lie so in memory already.
    template <class S>
    const R* load(const S* from, const Strides& at, int64_t classes, int64_t rows, int64_t& pitch) {
        if constexpr (sizeof(S) == sizeof(R)) {
            if (at.inner == 1 && rows == ROWS) {
                pitch = at.classes;
                return reinterpret_cast<const R*>(from);
            }
        }
        pitch = ROWS;
        const int64_t step = at.inner;
        for (int64_t k = 0; k < classes; k++) {
            const S* __restrict x = from + k * at.classes;
            R* __restrict to = values + k * ROWS;
            if (rows < ROWS)
                for (int64_t l = 0; l < ROWS; l++) to[l] = l < rows ? widen(x[l * step]) : R(0);
            else if (step == 1)
                for (int l = 0; l < ROWS; l++) to[l] = widen(x[l]);
            else
                for (int l = 0; l < ROWS; l++) to[l] = widen(x[l * step]);
        }
        return values;
    }

    // Where to compute a tile that is to be stored: in its place, if it can lie so in memory, or here first.
    template <class S> R* place(S* to, const Strides& at, int64_t rows, int64_t& pitch) {
        if constexpr (sizeof(S) == sizeof(R)) {
            if (at.inner == 1 && rows == ROWS) {
                pitch = at.classes;
                return to;
            }
        }
        pitch = ROWS;
        return values;
    }

    template <class S> void store(S* to, const Strides& at, int64_t classes, int64_t rows) const {
        if constexpr (sizeof(S) == sizeof(R))
            if (at.inner == 1 && rows == ROWS) return;
        const int64_t step = at.inner, apart = at.classes;
        if (step == 1) {
            for (int64_t k = 0; k < classes; k++) {
                const R* __restrict from = values + k * ROWS;
                S* __restrict out = to + k * apart;
                each(rows, [=](int64_t l) { narrow(from[l], out[l]); });
            }
        } else {
            for (int64_t l = 0; l < rows; l++)
                for (int64_t k = 0; k < classes; k++) narrow(values[k * ROWS + l], to[l * step + k * apart]);
        }
    }
};

// c ∘ t of a tile, or null where it is nothing but the labels.
template <class R, class T>
static inline const R* tile_weights(
    const Softmax& p, const T* target, int64_t k, int64_t n, int64_t rows, Tile<R>& tile
) {
    const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
    const R keep = R(1 - p.smoothing), share = R(p.share);
    if (!target && p.smoothing == 0) return nullptr;
    int64_t pitch = ROWS;
    const R* t = target ? tile.load(target + k * p.target_at.classes, p.target_at, n, rows, pitch) : nullptr;
    for (int64_t j = 0; j < n; j++) {
        const R weight = c ? c[j] : R(1);
        R* to = tile.values + j * ROWS;
        if (t)
            for (int l = 0; l < ROWS; l++) to[l] = weight * (keep * t[j * pitch + l] + share);
        else
            for (int l = 0; l < ROWS; l++) to[l] = weight * share;
    }
    return tile.values;
}

// The labels of a tile: class (0 where there is none), c[y] and 1 or 0 for rows that count or do not.
template <class R> struct Labels {
    int64_t y[ROWS];
    R weight[ROWS], valid[ROWS];

    Labels(const Softmax& p, int64_t row, int64_t rows) {
        for (int l = 0; l < ROWS; l++) y[l] = p.ignore_index, valid[l] = weight[l] = R(p.index_type < 0);
        if (p.index_type < 0) return;
        if (p.index_type == I64) std::memcpy(y, static_cast<const int64_t*>(p.target) + row, size_t(rows) * sizeof *y);
        else for (int64_t l = 0; l < rows; l++) y[l] = index_at(p.target, p.index_type, row + l);
        const int64_t ignored = p.ignore_index, classes = p.classes;
        int64_t wrong = 0, counts[ROWS];
        for (int l = 0; l < ROWS; l++) {
            const int64_t inside = uint64_t(y[l]) < uint64_t(classes) ? -1 : 0, taken = y[l] != ignored ? -1 : 0;
            counts[l] = inside & taken;
            wrong |= taken & ~inside;
        }
        for (int l = 0; l < ROWS; l++) y[l] &= counts[l], valid[l] = weight[l] = R(-counts[l]);
        if (wrong && p.out_of_range) p.out_of_range->store(true, std::memory_order_relaxed);
        if (const R* c = static_cast<const R*>(p.weight))
            for (int l = 0; l < ROWS; l++) weight[l] = valid[l] == R(0) ? R(0) : c[y[l]];
    }
};

// What a tile's rows are read from and written to: the pointers to its first row, and how many rows it has.
template <class S, class T> struct Rows {
    int64_t row, rows;
    const S* x;
    const T* t;
    int64_t o, i;

    Rows(const Softmax& p, int64_t tile) {
        const int64_t per_outer = p.tiles_per_outer();
        o = tile / per_outer, i = tile % per_outer * ROWS;
        rows = p.inner - i < ROWS ? p.inner - i : ROWS, row = o * p.inner + i;
        x = static_cast<const S*>(p.logits) + o * p.at.outer + i * p.at.inner;
        t = p.index_type < 0 ? static_cast<const T*>(p.target) + o * p.target_at.outer + i * p.target_at.inner : nullptr;
    }
    template <class V> V* out(void* to, const Strides& at) const {
        return to ? static_cast<V*>(to) + o * at.outer + i * at.inner : nullptr;
    }
};

// The running sums of a tile's rows; see row_forward, which keeps the same for one row.
template <class R> struct Sums {
    R top[ROWS], level[ROWS], counted[ROWS], cost[ROWS], mass[ROWS];
    double others[ROWS];

    Sums() {
        for (int l = 0; l < ROWS; l++) top[l] = -INF<R>, level[l] = counted[l] = cost[l] = mass[l] = 0, others[l] = 0;
    }

    void raise(const R* block, int64_t pitch, int64_t n, bool first) {
        R high[ROWS];
        for (int l = 0; l < ROWS; l++) high[l] = top[l];
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < ROWS; l++) high[l] = pick(block[j * pitch + l] > high[l], block[j * pitch + l], high[l]);
        for (int l = 0; !first && l < ROWS; l++) {
            const bool higher = high[l] > top[l], had = top[l] > -INF<R>;
            const R shrink = exp_(top[l] - pick(high[l] > -INF<R>, high[l], R(0)));
            others[l] = higher && had ? (others[l] + 1) * double(shrink) : others[l];
            cost[l] += higher && had && mass[l] != R(0) ? mass[l] * (high[l] - top[l]) : R(0);
            counted[l] = higher ? R(0) : counted[l];
        }
        for (int l = 0; l < ROWS; l++) top[l] = high[l], level[l] = pick(high[l] > -INF<R>, high[l], R(0));
    }

    void add_exp(const R* block, int64_t pitch, int64_t n) {
        R part[ROWS] = {}, seen[ROWS], zero[ROWS];
        for (int l = 0; l < ROWS; l++) seen[l] = counted[l], zero[l] = level[l];
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < ROWS; l++) {
                const R below = block[j * pitch + l] - zero[l], e = exp_(below);
                const R first = pick(below == R(0), R(1) - seen[l], R(0));  // the top itself, once
                part[l] += e - first;
                seen[l] += first;
            }
        for (int l = 0; l < ROWS; l++) counted[l] = seen[l], others[l] += double(part[l]);
    }

    void add_cost(const R* block, int64_t pitch, const R* w, int64_t n) {
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < ROWS; l++) {
                const R weight = w[j * ROWS + l], value = block[j * pitch + l], product = weight * (level[l] - value);
                cost[l] += pick(weight == R(0) && value == value, R(0), product);
                mass[l] += weight;
            }
    }
};

template <class R, class S, class T> static void tile_forward(const Softmax& p, int64_t tile, double* sums) {
    const Rows<S, T> here(p, tile);
    const Labels<R> label(p, here.row, here.rows);
    Tile<R> logits, weights;
    Sums<R> sum;
    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        int64_t pitch;
        const R* block = logits.load(here.x + k * p.at.classes, p.at, n, here.rows, pitch);
        sum.raise(block, pitch, n, k == 0);
        sum.add_exp(block, pitch, n);
        if (const R* w = tile_weights<R>(p, here.t, k, n, here.rows, weights)) sum.add_cost(block, pitch, w, n);
    }
    R log_sum[ROWS], at_y[ROWS], loss[ROWS];
    for (int l = 0; l < ROWS; l++) at_y[l] = 0;
    for (int64_t l = 0; !here.t && l < here.rows; l++) at_y[l] = widen(here.x[l * p.at.inner + label.y[l] * p.at.classes]);
    for (int l = 0; l < ROWS; l++) log_sum[l] = log1p_(R(sum.others[l])) + (sum.top[l] - sum.top[l]);
    const R keep = R(1 - p.smoothing), spread = R(p.share * p.weight_sum);
    if (here.t)
        for (int l = 0; l < ROWS; l++) loss[l] = sum.cost[l] + sum.mass[l] * log_sum[l];
    else
        for (int l = 0; l < ROWS; l++) {
            const R cost = (sum.top[l] - at_y[l]) + log_sum[l], own = keep * times(label.weight[l], cost);
            loss[l] = own + (spread == R(0) ? R(0) : sum.cost[l] + spread * log_sum[l]);
        }
    for (int l = 0; l < ROWS; l++) loss[l] = pick(label.valid[l] == R(0), R(0), loss[l]);
    for (int64_t l = 0; l < here.rows; l++) {
        static_cast<R*>(p.top)[here.row + l] = sum.top[l];
        static_cast<R*>(p.log_sum)[here.row + l] = log_sum[l];
        sums[0] += double(loss[l]);
        sums[1] += double(label.weight[l]);
    }
    for (int64_t l = 0; p.loss && l < here.rows; l++) {
        static_cast<R*>(p.loss)[here.row + l] = loss[l];
        static_cast<R*>(p.row_weight)[here.row + l] = label.weight[l];
    }
}

// What a tile's gradients have in common: p's (top, log_sum), the gradient g of the loss and the mass of c ∘ t.
template <class R> struct Slopes {
    R top[ROWS], log_sum[ROWS], g[ROWS], mass[ROWS], scale[ROWS], valid[ROWS];

    Slopes(const Softmax& p, const Labels<R>& label, int64_t row, int64_t rows) {
        for (int l = 0; l < ROWS; l++) top[l] = log_sum[l] = g[l] = 0, valid[l] = label.valid[l];
        for (int64_t l = 0; l < rows; l++) {
            top[l] = static_cast<const R*>(p.top)[row + l];
            log_sum[l] = static_cast<const R*>(p.log_sum)[row + l];
            g[l] = static_cast<const R*>(p.grad)[p.grad_rows ? row + l : 0];
        }
        const R keep = R(1 - p.smoothing), spread = R(p.share * p.weight_sum);
        for (int l = 0; l < ROWS; l++) mass[l] = valid[l] * (keep * label.weight[l] + spread), g[l] = pick(valid[l] == R(0), R(0), g[l]);
        set_scale();
    }
    void set_scale() {
        for (int l = 0; l < ROWS; l++) scale[l] = pick(mass[l] == R(0), R(0), g[l] * mass[l]);
    }

    // out = scale · p, minus g · w where there are weights; 0 in rows that do not count, whatever they hold.
    void of_logits(const R* block, int64_t pitch, const R* w, bool soft, R* out, int64_t to_pitch, int64_t n) const {
        for (int64_t j = 0; j < n; j++) {
            const R* __restrict x = block + j * pitch;
            R* __restrict to = out + j * to_pitch;
            for (int l = 0; l < ROWS; l++) {
                const R slope = scale[l] * exp_((x[l] - top[l]) - log_sum[l]);
                to[l] = pick(valid[l] == R(0), R(0), slope);
            }
            if (!w) continue;
            const R* __restrict weight = w + j * ROWS;
            if (!soft) {
                for (int l = 0; l < ROWS; l++) to[l] -= g[l] * weight[l];
            } else {
                for (int l = 0; l < ROWS; l++) {
                    const R log_p = (x[l] - top[l]) - log_sum[l], near = scale[l] * expm1_(log_p) + g[l] * (mass[l] - weight[l]);
                    to[l] = pick(log_p > R(-0.6931472), near, to[l] - g[l] * weight[l]);
                }
            }
        }
    }

    void of_target(const R* block, int64_t pitch, const R* c, R keep, R* out, int64_t to_pitch, int64_t n) const {
        for (int64_t j = 0; j < n; j++) {
            const R* __restrict x = block + j * pitch;
            R* __restrict to = out + j * to_pitch;
            const R weight = c ? c[j] : R(1);
            for (int l = 0; l < ROWS; l++) to[l] = times(keep * g[l], times(weight, (top[l] - x[l]) + log_sum[l]));
        }
    }
};

template <class R, class S, class T> static void tile_backward(const Softmax& p, int64_t tile) {
    const Rows<S, T> here(p, tile);
    const Labels<R> label(p, here.row, here.rows);
    S* out = here.template out<S>(p.grad_logits, p.grad_at);
    T* out_target = here.template out<T>(p.grad_target, p.grad_target_at);
    Tile<R> logits, weights, result;
    Slopes<R> slopes(p, label, here.row, here.rows);
    if (here.t) {
        for (int l = 0; l < ROWS; l++) slopes.mass[l] = 0;
        for (int64_t k = 0; k < p.classes; k += CLASSES) {
            const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
            const R* w = tile_weights<R>(p, here.t, k, n, here.rows, weights);
            for (int64_t j = 0; j < n; j++)
                for (int l = 0; l < ROWS; l++) slopes.mass[l] += w[j * ROWS + l];
        }
        slopes.set_scale();
    }
    R log_p[ROWS], at_y[ROWS];  // read before the gradient is written, which may lie in the place of the logits
    for (int l = 0; l < ROWS; l++) log_p[l] = 0;
    for (int64_t l = 0; !here.t && l < here.rows; l++)
        log_p[l] = (widen(here.x[l * p.at.inner + label.y[l] * p.at.classes]) - slopes.top[l]) - slopes.log_sum[l];

    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        int64_t pitch, to_pitch;
        const R* block = logits.load(here.x + k * p.at.classes, p.at, n, here.rows, pitch);
        if (out_target) {
            const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
            T* to = out_target + k * p.grad_target_at.classes;
            R* at = result.place(to, p.grad_target_at, here.rows, to_pitch);
            slopes.of_target(block, pitch, c, R(1 - p.smoothing), at, to_pitch, n);
            result.store(to, p.grad_target_at, n, here.rows);
        }
        if (out) {
            S* to = out + k * p.grad_at.classes;
            const R* w = tile_weights<R>(p, here.t, k, n, here.rows, weights);
            R* at = result.place(to, p.grad_at, here.rows, to_pitch);
            slopes.of_logits(block, pitch, w, here.t, at, to_pitch, n);
            result.store(to, p.grad_at, n, here.rows);
        }
    }
    if (here.t || !out) return;
    const R share = R(p.share), total = R(p.weight_sum);
    for (int l = 0; l < ROWS; l++) at_y[l] = slopes.scale[l] * expm1_(log_p[l]);
    if (share != R(0))
        for (int l = 0; l < ROWS; l++) at_y[l] += slopes.g[l] * share * (total - label.weight[l]);
    for (int64_t l = 0; l < here.rows; l++)
        if (label.valid[l] != R(0)) narrow(at_y[l], out[l * p.grad_at.inner + label.y[l] * p.grad_at.classes]);
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

// A block of weights with any stride, or ones.
template <class R>
static inline const R* block_of(const void* from, const int64_t (&at)[2], int64_t o, int64_t i, int64_t n, R* scratch) {
    const R* first = static_cast<const R*>(from);
    if (first) first += o * at[0] + i * at[1];
    if (first && at[1] == 1) return first;
    for (int64_t k = 0; k < n; k++) scratch[k] = first ? first[k * at[1]] : R(1);
    return scratch;
}

template <class R, class S, class T> static void block_forward(const Binary& p, int64_t block) {
    const int64_t per_outer = (p.inner + BLOCK - 1) / BLOCK, o = block / per_outer, i = block % per_outer * BLOCK;
    const int64_t n = p.inner - i < BLOCK ? p.inner - i : BLOCK, first = o * p.inner + i;
    R a[BLOCK], b[BLOCK], c[BLOCK], d[BLOCK], lane[LANES] = {};
    const R* x = load<R>(static_cast<const S*>(p.logits) + first, n, a);
    const R* t = load<R>(static_cast<const T*>(p.target) + first, n, b);
    const R* w = block_of<R>(p.weight, p.weight_at, o, i, n, c);
    const R* pi = block_of<R>(p.pos_weight, p.pos_weight_at, o, i, n, d);
    R* loss = p.loss ? static_cast<R*>(p.loss) + first : a;
    each(n, [=](int64_t k) {
        const R tail = log1p_(exp_(-std::fabs(x[k])));  // log(1 + e^{-|x|})
        const R no = pick(x[k] > R(0), x[k], R(0)) + tail, yes = pick(x[k] < R(0), -x[k], R(0)) + tail;
        loss[k] = times(w[k], times(pi[k] * t[k], yes) + times(R(1) - t[k], no));
    });
    if (!p.partial) return;
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += loss[k + l];
    for (int l = 0; k < n; k++, l++) lane[l] += loss[k];
    p.partial[block] = fold(lane);
}

template <class R, class S, class T> static void block_backward(const Binary& p, int64_t block) {
    const int64_t per_outer = (p.inner + BLOCK - 1) / BLOCK, o = block / per_outer, i = block % per_outer * BLOCK;
    const int64_t n = p.inner - i < BLOCK ? p.inner - i : BLOCK, first = o * p.inner + i;
    R a[BLOCK], b[BLOCK], c[BLOCK], d[BLOCK], e[BLOCK], slope[BLOCK];
    const int64_t grad_at[2] = {p.grad_rows ? p.inner : 0, p.grad_rows ? 1 : 0};
    const R* x = load<R>(static_cast<const S*>(p.logits) + first, n, a);
    const R* t = load<R>(static_cast<const T*>(p.target) + first, n, b);
    const R* w = block_of<R>(p.weight, p.weight_at, o, i, n, c);
    const R* pi = block_of<R>(p.pos_weight, p.pos_weight_at, o, i, n, d);
    const R* g = block_of<R>(p.grad, grad_at, o, i, n, e);
    if (p.grad_logits) {
        S* out = static_cast<S*>(p.grad_logits) + first;
        R* to = in_place(out, slope);
        each(n, [=](int64_t k) {
            const R small = exp_(-std::fabs(x[k])), most = R(1) / (R(1) + small), least = small * most;
            const R yes = pick(x[k] < R(0), least, most), no = pick(x[k] < R(0), most, least);
            to[k] = g[k] * w[k] * ((R(1) - t[k]) * yes - pi[k] * t[k] * no);
        });
        store(to, out, n);
    }
    if (p.grad_target) {
        T* out = static_cast<T*>(p.grad_target) + first;
        R* to = in_place(out, slope);
        each(n, [=](int64_t k) {
            const R tail = log1p_(exp_(-std::fabs(x[k])));
            const R no = pick(x[k] > R(0), x[k], R(0)) + tail, yes = pick(x[k] < R(0), -x[k], R(0)) + tail;
            to[k] = g[k] * w[k] * (times(pi[k], yes) - no);
        });
        store(to, out, n);
    }
}

template <class S> static void binary_forward(const Binary& p, int64_t begin, int64_t end) {
    using R = typename Wide<S>::type;
    for (int64_t block = begin; block < end; block++)
        p.wide_target ? block_forward<R, S, R>(p, block) : block_forward<R, S, S>(p, block);
}

template <class S> static void binary_backward(const Binary& p, int64_t begin, int64_t end) {
    using R = typename Wide<S>::type;
    for (int64_t block = begin; block < end; block++)
        p.wide_target ? block_backward<R, S, R>(p, block) : block_backward<R, S, S>(p, block);
}

}  // namespace
