// Softmax cross entropy of rows with few classes, or with classes apart in memory: ROWS rows at a time, LANES of them
// side by side.

#pragma once
#include "family.h"
#include "runs.h"

namespace {

// One step of a transposition: two halves interleaved, so that the uppermost bit of an element's place becomes the
// lowest. Five of them take LANES rows of any number of classes to classes of LANES rows; five times the inverse takes
// them back.
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

    template <class S>
    Ahead(const S* tile, const Strides& strides, int64_t classes, int64_t q) : first(nullptr), step(0) {
        const int64_t size = sizeof(S);
        if (!tile) return;
        if (strides.classes == 1) {
            first = reinterpret_cast<const char*>(tile + ROWS * strides.inner + q * LANES * classes),
            step = LANES * size;
        } else {
            first = reinterpret_cast<const char*>(tile + ROWS * strides.inner + q * LANES),
            step = strides.classes * size;
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
                load_panel(
                    from + l * strides.inner, strides.inner, classes, rows - l < LANES ? rows - l : LANES, at(l / LANES)
                );
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
                store_panel(
                    at(l / LANES), to + l * strides.inner, strides.inner, classes, rows - l < LANES ? rows - l : LANES
                );
            return;
        }
        for (int64_t k = 0; k < classes; k++) {
            const R* from = values + k * ROWS;
            S* out = to + k * strides.classes;
            if (strides.inner == 1 && rows == ROWS) ::store(from, out, ROWS);
            else
                for (int64_t l = 0; l < rows; l++) narrow(from[l], out[l * strides.inner]);
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
        else
            for (int64_t l = 0; l < rows; l++) y[l] = index_at(p.target, p.index_type, row + l);
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
    const R* weight = static_cast<const R*>(p.weight);
    const R* spread = static_cast<const R*>(p.spread ? p.spread : p.weight);
    const R keep = R(1 - p.smoothing), share = R(p.share);
    if (here.t) tile.load(here.t + k * p.target_at.classes, p.target_at, n, here.rows);
    else tile.lay_out(p.target_at, n);
    for (int64_t j = 0; j < n; j++) {
        const R own = weight ? keep * weight[k + j] : keep, even = spread ? share * spread[k + j] : share;
        for (int64_t q = 0; q < ROWS / LANES; q++) {
            R* to = tile.at(q) + j * tile.pitch;
            if (here.t)
                for (int l = 0; l < LANES; l++) to[l] = own * to[l] + even;
            else
                for (int l = 0; l < LANES; l++) to[l] = even;
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
    for (int64_t j = 0; j < n; j++)
        transform.template run<false>(x + j * pitch, bias ? bias + j : nullptr, x + j * pitch);
    for (int64_t l = 0; margin != R(0) && l < LANES; l++)
        if (label.valid[l] != R(0) && uint64_t(label.y[l] - k) < uint64_t(n)) x[(label.y[l] - k) * pitch + l] -= margin;
}

// The running sums of LANES rows; see row_forward, which keeps the same for one row. `ties` counts the elements equal
// to top.
template <class R> struct Sums {
    alignas(64) R top[LANES], level[LANES], ties[LANES], cost[LANES], mass[LANES], at_y[LANES];
    double others[LANES];
    R moment[LANES], likeliest[LANES];  // for the statistics; see sum_moment, and -1 for a class not yet known

    Sums() {
        for (int l = 0; l < LANES; l++) moment[l] = R(0), likeliest[l] = R(-1);
        for (int l = 0; l < LANES; l++)
            top[l] = -INF<R>, level[l] = ties[l] = cost[l] = mass[l] = at_y[l] = 0, others[l] = 0;
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
            moment[l] =
                higher && had ? (moment[l] + R(others[l] + double(ties[l])) * (high[l] - top[l])) * shrink : moment[l];
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
        R costs[LANES] = {}, masses[LANES] = {};  // of these classes: sums of few numbers, added to the sums of many
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) {
                const R weight = w[j * w_pitch + l];
                costs[l] += times(weight, level[l] - x[j * pitch + l]);
                masses[l] += weight;
            }
        for (int l = 0; l < LANES; l++) cost[l] += costs[l], mass[l] += masses[l];
    }

    void log_sum(R* to) const {
        for (int l = 0; l < LANES; l++) {
            const R again = pick(ties[l] > R(1), ties[l] - R(1), R(0));
            to[l] = log1p_(R(others[l] + double(again))) + (top[l] - top[l]);
        }
    }
};

// A second look at a tile whose p is known: do something with x' (where it is wanted) and w of LANES rows and one class
// at a time. `labels` gives a panel's.
template <class R, class S, class T, class L, class F>
INLINE void look_again(const Softmax& p, const Rows<S, T>& here, bool wanted, L&& labels, F&& f) {
    Tile<R> logits, weights;
    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        logits.lay_out(p.at, n);
        if (wanted) logits.load(here.x + k * p.at.classes, p.at, n, here.rows);
        tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++) {
            if (wanted && p.transformed()) transform_panel(p, logits.at(q), logits.pitch, labels(q), k, n);
            for (int64_t j = 0; j < n; j++)
                f(q, k + j, logits.at(q) + j * logits.pitch, weights.at(q) + j * weights.pitch);
        }
    }
}

// Put Σ w f(p) in the place of Σ w (-log p), where every class has a weight.
template <class R, class S, class T>
static void penalise_costs(const Softmax& p, const Rows<S, T>& here, const Labels<R>* label, Sums<R>* sum) {
    R log_sum[ROWS / LANES][LANES];
    for (int64_t q = 0; q < here.panels(); q++) {
        sum[q].log_sum(log_sum[q]);
        for (int l = 0; l < LANES; l++) sum[q].cost[l] = sum[q].mass[l] = 0;
    }
    look_again<R>(
        p, here, true, [&](int64_t q) -> const Labels<R>& { return label[q]; },
        [&](int64_t q, int64_t, const R* x, const R* w) {
            R log_p[LANES], f[LANES], s[LANES];
            for (int l = 0; l < LANES; l++) log_p[l] = (x[l] - sum[q].top[l]) - log_sum[q][l];
            penalise<LANES>(p, log_p, f, s);
            for (int l = 0; l < LANES; l++) sum[q].cost[l] += times(w[l], f[l]);
        }
    );
}

// The statistics of probability targets: Σ t log p before smoothing, and whether the largest class is the likeliest.
template <class R, class S, class T>
static void soft_statistics(const Softmax& p, const Rows<S, T>& here, const Labels<R>* label, const Sums<R>* sum) {
    Softmax bare = p;
    bare.smoothing = bare.share = 0, bare.weight = bare.spread = nullptr;
    R log_sum[ROWS / LANES][LANES], log_p[ROWS / LANES][LANES] = {}, most[ROWS / LANES][LANES] = {},
                                                 wanted[ROWS / LANES][LANES];
    for (int64_t q = 0; q < here.panels(); q++) {
        sum[q].log_sum(log_sum[q]);
        for (int l = 0; l < LANES; l++) wanted[q][l] = R(-2);
    }
    look_again<R>(
        bare, here, true, [&](int64_t q) -> const Labels<R>& { return label[q]; },
        [&](int64_t q, int64_t k, const R* x, const R* t) {
            for (int l = 0; l < LANES; l++) {
                log_p[q][l] += times(t[l], (x[l] - sum[q].top[l]) - log_sum[q][l]);
                wanted[q][l] = pick(t[l] > most[q][l], R(k), wanted[q][l]);
                most[q][l] = pick(t[l] > most[q][l], t[l], most[q][l]);
            }
        }
    );
    for (int64_t q = 0; q < here.panels(); q++)
        for (int64_t l = 0; l < here.rows_of(q); l++) {
            const R rest = R(sum[q].others[l]) + sum[q].ties[l], entropy = log_sum[q][l] + sum[q].moment[l] / rest;
            const bool hit = wanted[q][l] == sum[q].likeliest[l] && log_sum[q][l] == log_sum[q][l];
            store_statistics(p, here.first_of(q) + l, entropy, log_p[q][l], hit);
        }
}

// Finish LANES rows: their loss from the sums, and what backward needs of them.
template <class R, class S, class T>
static void finish(
    const Softmax& p, const Rows<S, T>& here, int64_t q, const Labels<R>& label, const Sums<R>& sum, double* sums
) {
    const int64_t row = here.first_of(q), rows = here.rows_of(q);
    R log_sum[LANES], loss[LANES];
    sum.log_sum(log_sum);
    const R keep = R(1 - p.smoothing), spread = p.penalises_all() ? R(0) : R(p.share * p.weight_sum);
    if (here.t) {
        for (int l = 0; l < LANES; l++) loss[l] = sum.cost[l] + sum.mass[l] * log_sum[l];
    } else {
        R log_p[LANES], f[LANES], s[LANES];
        for (int l = 0; l < LANES; l++) log_p[l] = (sum.at_y[l] - sum.top[l]) - log_sum[l];
        penalise<LANES>(p, log_p, f, s);
        for (int64_t l = 0; p.entropy && l < rows; l++) {
            const bool valid = label.valid[l] != R(0), hit = sum.likeliest[l] == R(label.y[l]) && log_p[l] == log_p[l];
            const R rest = R(sum.others[l]) + sum.ties[l];
            store_statistics(
                p, row + l, valid ? log_sum[l] + sum.moment[l] / rest : R(0), valid ? log_p[l] : R(0), valid && hit
            );
        }
        for (int l = 0; l < LANES; l++) {
            const R own = times(keep * label.weight[l], f[l]);
            loss[l] = own + (p.smoothing == 0 ? R(0) : sum.cost[l] + times(spread, log_sum[l]));
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
    if (p.penalises_all()) penalise_costs(p, here, label, sum);
    if (here.t && p.entropy) soft_statistics(p, here, label, sum);
    for (int64_t q = 0; q < here.panels(); q++) finish(p, here, q, label[q], sum[q], sums);
}

// What the gradients of LANES rows have in common: p's (top, log_sum), the gradient g of the loss and the mass of c ∘
// t.
template <class R> struct Slopes {
    Labels<R> label;
    alignas(64) R top[LANES], log_sum[LANES], g[LANES], mass[LANES], scale[LANES], spread[LANES], extra[LANES];
    alignas(64) R rest[LANES];  // as in RowSlopes

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
            rest[l] = std::numeric_limits<R>::quiet_NaN();
            extra[l] = p.z_loss == 0 ? R(0) : valid * label.weight[l] * R(2 * p.z_loss) * (top[l] + log_sum[l]);
        }
        if (p.penalty != NO_PENALTY && !here.t) set_penalised_mass(p, here, q);
        const R* by = static_cast<const R*>(p.spread);
        for (int l = 0; l < LANES; l++) {
            const R own = by && label.valid[l] != R(0) && !here.t ? by[label.y[l]] : p.weight ? label.weight[l] : R(1);
            spread[l] = share == R(0) ? R(0) : g[l] * share * (total - own);
        }
        set_scale();
    }
    // mass = (1 - ε) c_y s(p_y), from the true class's logit as it lies in memory.
    template <class S, class T> void set_penalised_mass(const Softmax& p, const Rows<S, T>& here, int64_t q) {
        const Transform<R> transform(p);
        const R* bias = static_cast<const R*>(p.bias);
        R log_p[LANES] = {}, f[LANES], s[LANES];
        for (int64_t l = 0; l < here.rows_of(q); l++) {
            const R x = widen(here.x[(q * LANES + l) * p.at.inner + label.y[l] * p.at.classes]);
            const R moved = transform.of(x, bias ? bias[label.y[l]] : R(0)) - R(p.margin * p.per_temperature);
            log_p[l] = (moved - top[l]) - log_sum[l];
        }
        penalise<LANES>(p, log_p, f, s);
        for (int l = 0; l < LANES; l++)
            mass[l] = pick(label.valid[l] == R(0), R(0), R(1 - p.smoothing) * label.weight[l] * s[l]);
    }
    void set_scale() {
        for (int l = 0; l < LANES; l++) scale[l] = pick(mass[l] + extra[l] == R(0), R(0), g[l] * (mass[l] + extra[l]));
    }

    // out = scale · p, minus g · w where there are weights; 0 in rows that do not count, whatever they hold.
    template <class S>
    void of_logits(
        const R* x, int64_t pitch, R* out, int64_t to_pitch, int64_t n, const Ahead& next, const Ahead& next_out
    ) const {
        for (int64_t j = 0; j < n; j++) {
            R slope[LANES];
            fetch(next[j], LANES * sizeof(S)), fetch_to_write(next_out[j], LANES * sizeof(S));
            for (int l = 0; l < LANES; l++) slope[l] = scale[l] * exp_((x[j * pitch + l] - top[l]) - log_sum[l]);
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = pick(label.valid[l] == R(0), R(0), slope[l]);
        }
    }
    void minus_weights(
        const R* x, int64_t pitch, const R* w, int64_t w_pitch, bool near_one, R* out, int64_t to_pitch, int64_t n
    ) const {
        for (int64_t j = 0; j < n; j++) {
            R slope[LANES];
            const R* weight = w + j * w_pitch;
            for (int l = 0; l < LANES; l++) slope[l] = out[j * to_pitch + l] - g[l] * weight[l];
            for (int l = 0; near_one && l < LANES; l++) {
                const R log_p = (x[j * pitch + l] - top[l]) - log_sum[l],
                        others = pick(rest[l] == rest[l], rest[l], mass[l] - weight[l]);
                const R near = scale[l] * expm1_(log_p) + g[l] * (others + extra[l]);
                slope[l] = pick(log_p > LOG_HALF<R>, near, slope[l]);
            }
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = slope[l];
        }
    }
    // The true classes' entries, of p - 1 = expm1(log p).
    void true_classes(const R* x, int64_t pitch, R* out, int64_t to_pitch, int64_t k, int64_t n) const {
        R at_y[LANES] = {};
        for (int64_t l = 0; l < LANES; l++)
            if (uint64_t(label.y[l] - k) < uint64_t(n)) at_y[l] = x[(label.y[l] - k) * pitch + l];
        for (int l = 0; l < LANES; l++) {
            const R log_p = (at_y[l] - top[l]) - log_sum[l], by = pick(mass[l] == R(0), R(0), g[l] * mass[l]);
            at_y[l] = by * expm1_(log_p) + spread[l] + pick(extra[l] == R(0), R(0), g[l] * extra[l] * exp_(log_p));
        }
        for (int64_t l = 0; l < LANES; l++)
            if (label.valid[l] != R(0) && uint64_t(label.y[l] - k) < uint64_t(n))
                out[(label.y[l] - k) * to_pitch + l] = at_y[l];
    }

    // f and s of LANES rows and one class.
    void penalties(const Softmax& p, const R* x, R* f, R* s) const {
        R log_p[LANES];
        for (int l = 0; l < LANES; l++) log_p[l] = (x[l] - top[l]) - log_sum[l];
        penalise<LANES>(p, log_p, f, s);
    }
    // w ∘ s(p) in the place of w.
    void weigh(const Softmax& p, const Tile<R>& logits, Tile<R>& weights, int64_t q, int64_t n) const {
        R f[LANES], s[LANES];
        for (int64_t j = 0; j < n; j++) {
            R* w = weights.at(q) + j * weights.pitch;
            penalties(p, logits.at(q) + j * logits.pitch, f, s);
            for (int l = 0; l < LANES; l++) w[l] *= s[l];
        }
    }
    void of_target(const Softmax& p, const R* x, int64_t pitch, const R* c, R* out, int64_t to_pitch, int64_t n) const {
        const R keep = R(1 - p.smoothing);
        for (int64_t j = 0; j < n; j++) {
            R cost[LANES], unused[LANES];
            const R weight = c ? c[j] : R(1);
            if (p.penalty != NO_PENALTY) penalties(p, x + j * pitch, cost, unused);
            else
                for (int l = 0; l < LANES; l++) cost[l] = (top[l] - x[j * pitch + l]) + log_sum[l];
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = times(keep * g[l], times(weight, cost[l]));
        }
    }
};

// The mass of a tile's rows where it is a sum over classes: of c ∘ t, or of c ∘ t ∘ s(p) where there is a penalty. What
// smoothing spreads over other classes than a row's own is kept beside it.
template <class R, class S, class T>
static void set_masses(const Softmax& p, const Rows<S, T>& here, Slopes<R>* slopes) {
    for (int64_t q = 0; q < here.panels(); q++)
        for (int l = 0; l < LANES; l++) {
            R& own = slopes[q].mass[l];
            slopes[q].spread[l] = 0, own = here.t ? R(0) : own;
            if (p.penalty != NO_PENALTY) slopes[q].rest[l] = own;
        }
    const auto label = [&](int64_t q) -> const Labels<R>& { return slopes[q].label; };
    look_again<R>(p, here, p.penalty != NO_PENALTY, label, [&](int64_t q, int64_t k, const R* x, const R* w) {
        Slopes<R>& to = slopes[q];
        R log_p[LANES], f[LANES], s[LANES];
        for (int l = 0; l < LANES; l++) s[l] = 1, log_p[l] = (x[l] - to.top[l]) - to.log_sum[l];
        if (p.penalty != NO_PENALTY) penalise<LANES>(p, log_p, f, s);
        for (int l = 0; l < LANES; l++) s[l] = pick(to.label.valid[l] == R(0), R(0), w[l] * s[l]);
        for (int l = 0; l < LANES; l++) to.mass[l] += s[l], to.rest[l] += pick(log_p[l] > LOG_HALF<R>, R(0), s[l]);
        for (int l = 0; !here.t && l < LANES; l++) to.spread[l] += to.label.y[l] == k ? R(0) : to.g[l] * s[l];
    });
    for (int64_t q = 0; q < here.panels(); q++) slopes[q].set_scale();
}

template <class R, class S, class T> static void tile_backward(const Softmax& p, int64_t tile) {
    const Rows<S, T> here(p, tile);
    Tile<R> logits, weights, result, raw;
    Slopes<R> slopes[ROWS / LANES];
    for (int64_t q = 0; q < here.panels(); q++) slopes[q].set(p, here, q);
    const bool all = p.penalises_all();
    if (here.t || all) set_masses(p, here, slopes);
    for (int64_t k = 0; k < p.classes; k += CLASSES) {
        const int64_t n = p.classes - k < CLASSES ? p.classes - k : CLASSES;
        logits.load(here.x + k * p.at.classes, p.at, n, here.rows);
        if (p.transformed()) {
            if (p.cap > 0) raw.load(here.x + k * p.at.classes, p.at, n, here.rows);
            for (int64_t q = 0; q < here.panels(); q++)
                transform_panel(p, logits.at(q), logits.pitch, slopes[q].label, k, n);
        }
        if (here.out_target) {
            const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
            result.lay_out(p.grad_target_at, n);
            for (int64_t q = 0; q < here.panels(); q++)
                slopes[q].of_target(p, logits.at(q), logits.pitch, c, result.at(q), result.pitch, n);
            result.store(here.out_target + k * p.grad_target_at.classes, p.grad_target_at, n, here.rows);
        }
        if (!here.out) continue;
        const bool weighted = tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; all && q < here.panels(); q++) slopes[q].weigh(p, logits, weights, q, n);
        result.lay_out(p.grad_at, n);
        for (int64_t q = 0; q < here.panels(); q++) {
            const Ahead next(here.x + k * p.at.classes, p.at, n, q),
                next_out(here.out + k * p.grad_at.classes, p.grad_at, n, q);
            slopes[q].template of_logits<S>(logits.at(q), logits.pitch, result.at(q), result.pitch, n, next, next_out);
            if (weighted)
                slopes[q].minus_weights(
                    logits.at(q), logits.pitch, weights.at(q), weights.pitch, here.t || all, result.at(q), result.pitch,
                    n
                );
            if (!here.t) slopes[q].true_classes(logits.at(q), logits.pitch, result.at(q), result.pitch, k, n);
            if (p.transformed())
                for (int64_t j = 0; j < n; j++)
                    Transform<R>(p).template chain<false>(
                        p.cap > 0 ? raw.at(q) + j * raw.pitch : nullptr,
                        p.bias ? static_cast<const R*>(p.bias) + k + j : nullptr, result.at(q) + j * result.pitch
                    );
        }
        result.store(here.out + k * p.grad_at.classes, p.grad_at, n, here.rows);
    }
}

}  // namespace
