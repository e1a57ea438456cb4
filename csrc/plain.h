// Cross entropy of class indices and nothing else, in tiles: what most calls ask for.
//
// Takes a Softmax problem that is `plain`, and a range of tiles. Gives what tile_forward, tile_both and tile_backward
// give, in fewer passes over a tile: its logits are read once, and slopes go from registers to where they belong. What
// is summed and how a slope is formed stands in row.h.
//
// Refuses nothing that is `plain`: the gradient may lie otherwise than the logits.

#pragma once
#include <utility>

#include "tiles.h"

namespace {

// Panels that are worked on together have at most AT_ONCE classes in all: four panels where there are few, so that the
// chains of operations of one hide those of another, and one where there are many, for the nearest cache.
constexpr int64_t PANELS = ROWS / LANES;

// What is wanted of a tile: losses, losses and slopes, or slopes where top and log_sum are known.
enum Wanted { LOSSES, BOTH, SLOPES };

// How many numbers of each row are at its top, which a sum leaves out.
template <class R> struct AtTop {
#ifdef __AVX512F__  // adds under a mask
    Numbers<R> count{};
    INLINE_MEMBER Numbers<R> add_others(Numbers<R> down, Numbers<R> power, Numbers<R> to) {
        const Numbers<R> zero{};
        count = down == zero ? count + R(1) : count;
        return down == zero ? to : to + power;
    }
    INLINE_MEMBER Numbers<R> counted() const { return count; }
#else
    Numbers<Class<R>> count{};
    INLINE_MEMBER Numbers<R> add_others(Numbers<R> down, Numbers<R> power, Numbers<R> to) {
        const Numbers<Class<R>> here = down == Numbers<R>{};
        count -= here;
        return to + Numbers<R>(Numbers<Class<R>>(power) & ~here);
    }
    INLINE_MEMBER Numbers<R> counted() const { return __builtin_convertvector(count, Numbers<R>); }
#endif
};

// LANES rows: what is known of them between the passes.
template <class R> struct PlainPanel {
    static constexpr int64_t SIZE = Register<R>::SIZE;
    Labels<R> label;
    alignas(64) R top[LANES], x_y[LANES], rest[LANES];       // rest: Σ e^{x - top} without one class at the top
    alignas(64) R log_sum[LANES], of_e[LANES], at_y[LANES];  // of_e: a slope divided by its e^{x - top}

    INLINE_MEMBER void find_top(const R* x, int64_t n) {
        Numbers<R> high[LANES / SIZE];
        for (auto& each : high) each = Numbers<R>{} - INF<R>;
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < LANES / SIZE; i++) {
                const Numbers<R> at = numbers_at(x + j * LANES + i * SIZE);
                high[i] = at > high[i] ? at : high[i];
            }
        std::memcpy(top, high, sizeof high);
    }

    // KEEP puts each e^{x - top} in the place of x. `meanwhile` is called once a class.
    template <bool KEEP, class F> INLINE_MEMBER void add_exps(R* x, int64_t n, F&& meanwhile) {
        R ties[LANES], level[LANES];
        for (int l = 0; l < LANES; l++) level[l] = pick(top[l] > -INF<R>, top[l], R(0));
        for (int64_t i = 0; i < LANES; i += SIZE) {
            const Numbers<R> from = numbers_at(level + i);
            Numbers<R> others{};
            AtTop<R> at_top;
            for (int64_t j = 0; j < n;) {
                Numbers<R> part{};  // a sum of few numbers, added to a sum of few parts
                for (const int64_t end = std::min<int64_t>(n, j + CLASSES); j < end; j++) {
                    if (i == 0) meanwhile(j);
                    R below[SIZE], e[SIZE];
                    const Numbers<R> down = numbers_at(x + j * LANES + i) - from;
                    std::memcpy(below, &down, sizeof down);
                    exp_run<SIZE>(below, e);
                    part = at_top.add_others(down, numbers_at(e), part);
                    if (KEEP) std::memcpy(x + j * LANES + i, e, sizeof e);
                }
                others += part;
            }
            const Numbers<R> counted = at_top.counted();
            std::memcpy(rest + i, &others, sizeof others), std::memcpy(ties + i, &counted, sizeof counted);
        }
        for (int l = 0; l < LANES; l++) rest[l] += pick(ties[l] > R(1), ties[l] - R(1), R(0));
    }

    // Put each e^{x - top} in the place of x, where the top is known.
    template <class F> INLINE_MEMBER void take_exps(R* x, int64_t n, F&& meanwhile) const {
        R level[LANES], below[LANES];
        for (int l = 0; l < LANES; l++) level[l] = pick(top[l] > -INF<R>, top[l], R(0));
        for (int64_t j = 0; j < n; j++) {
            meanwhile(j);
            for (int l = 0; l < LANES; l++) below[l] = x[j * LANES + l] - level[l];
            exp_run(below, x + j * LANES);
        }
    }

    // The losses and weights of rows, added to `sums`, and what their slopes are made of.
    template <Wanted WANTED> INLINE_MEMBER void finish(const Softmax& p, int64_t row, int64_t rows, double* sums) {
        R u[LANES], log_p[LANES], loss[LANES], weight[LANES], per_sum[LANES];
        sample_weights(p, row, rows, u);
        for (int l = 0; l < LANES; l++) {
            const R whole = R(1) + rest[l], inverse = R(1) / whole, lost = (rest[l] - (whole - R(1))) * inverse;
            const R finite = top[l] - top[l];  // 0, or nan
            log_sum[l] = log1p_(rest[l], inverse) + finite;
            per_sum[l] = (inverse - inverse * lost) + finite;
        }
        for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x_y[l], top[l], log_sum[l]);
        for (int l = 0; l < LANES; l++) loss[l] = target_cost(R(1), label.weight[l], -log_p[l]);
        for (int l = 0; l < LANES; l++) loss[l] = pick(label.valid[l] == R(0) || l >= rows, R(0), loss[l]);
        write_rows(p.top, top, row, rows), write_rows(p.log_sum, log_sum, row, rows);
        write_rows(p.loss, loss, row, rows), write_rows(p.row_weight, label.weight, row, rows);
        for (int l = 0; l < LANES; l++) loss[l] = times(u[l], loss[l]);
        for (int l = 0; l < LANES; l++) weight[l] = pick(l < rows, weigh(u[l], label.weight[l]), R(0));
        sums[0] += fold(loss), sums[1] += fold(weight);
        if (WANTED == BOTH) set_slopes(p, row, rows, u, per_sum, log_p);
    }

    // What the slopes of rows are made of, where top and log_sum are known.
    INLINE_MEMBER void read_sums(const Softmax& p, int64_t row, int64_t rows) {
        read_rows(p.top, top, row, rows), read_rows(p.log_sum, log_sum, row, rows);
    }
    INLINE_MEMBER void start_slopes(const Softmax& p, int64_t row, int64_t rows) {
        R u[LANES], log_p[LANES], per_sum[LANES];
        sample_weights(p, row, rows, u);
        for (int l = 0; l < LANES; l++) per_sum[l] = exp_(-log_sum[l]);
        for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x_y[l], top[l], log_sum[l]);
        set_slopes(p, row, rows, u, per_sum, log_p);
    }

    // Put 0 for rows without weight, whatever their logits hold.
    INLINE_MEMBER void leave_out(R* e, int64_t n) const {
        int64_t any = 0;
        for (int l = 0; l < LANES; l++) any |= of_e[l] == R(0);
        for (int64_t j = 0; any && j < n; j++)
            for (int l = 0; l < LANES; l++) e[j * LANES + l] = pick(of_e[l] == R(0), R(0), e[j * LANES + l]);
    }

    // Put the slopes of class j at `to`, past the caches or not.
    template <bool PAST, class S> INLINE_MEMBER void put_slopes(const R* e, int64_t j, S* to) const {
        const Numbers<Class<R>> here = Numbers<Class<R>>{} + Class<R>(j);
        alignas(64) R slopes[LANES];
        for (int64_t l = 0; l < LANES; l += SIZE) {
            const Numbers<R> others = numbers_at(of_e + l) * numbers_at(e + l);
            const Numbers<R> slope = numbers_at(label.own + l) == here ? numbers_at(at_y + l) : others;
            std::memcpy(slopes + l, &slope, sizeof slope);
        }
        if (PAST) stream_run(slopes, to);
        else narrow_run(slopes, to);
    }

  private:
    INLINE_MEMBER void set_slopes(
        const Softmax& p, int64_t row, int64_t rows, const R* u, const R* per_sum, const R* log_p
    ) {
        R g[LANES], scale[LANES];
        for (int l = 0; l < LANES; l++) g[l] = *static_cast<const R*>(p.grad);
        if (p.grad_rows) read_rows(p.grad, g, row, rows);
        for (int l = 0; l < LANES; l++) scale[l] = pick(label.valid[l] == R(0), R(0), weigh(g[l], u[l]));
        for (int l = 0; l < LANES; l++) scale[l] = weigh(scale[l], label.weight[l]);
        for (int l = 0; l < LANES; l++) of_e[l] = times(scale[l], per_sum[l]);
        for (int l = 0; l < LANES; l++) at_y[l] = times(scale[l], expm1_(log_p[l]));
    }
    // Whole panels are copied without a call. Rows that do not exist are 0.
    INLINE_MEMBER static void write_rows(void* to, const R* from, int64_t row, int64_t rows) {
        if (!to) return;
        if (rows == LANES) std::memcpy(static_cast<R*>(to) + row, from, LANES * sizeof(R));
        else std::memcpy(static_cast<R*>(to) + row, from, size_t(rows) * sizeof(R));
    }
    INLINE_MEMBER static void read_rows(const void* from, R* to, int64_t row, int64_t rows) {
        if (rows == LANES) return void(std::memcpy(to, static_cast<const R*>(from) + row, LANES * sizeof(R)));
        for (int l = 0; l < LANES; l++) to[l] = R(0);
        std::memcpy(to, static_cast<const R*>(from) + row, size_t(rows) * sizeof(R));
    }
};

// The rows of the panels that are worked on together: where the first of them lies.
template <class S> struct Group : Span {
    const S* x;
    S* out;

    Group(const Softmax& p, int64_t first, int64_t count)
        : Span(first, count, p.inner), x(at_row<const S>(p, p.logits, p.at, row)),
          out(at_row<S>(p, p.grad_logits, p.grad_at, row)) {}

    // Whether whole panels lie in one piece, row by row or in each class.
    bool in_one_piece(const Strides& at, int64_t classes) const {
        return !crosses && at.inner == (at.classes == 1 ? classes : 1) && rows % LANES == 0;
    }
};

// A range of tiles of a plain problem, group by group.
//
// Memory has nothing to do while powers are formed, so the next group is brought near then. Where its classes are
// apart, it is copied, class by class. Fetching would not do: if classes lie a power of two apart, as those of pictures
// often do, the lines of one pixel share a set of the nearest caches, which has room for eight.
template <class R, class S> class PlainTiles {
  public:
    explicit PlainTiles(const Softmax& of)
        : p(of), n(of.classes), most(n * PANELS <= AT_ONCE && of.rows_per_tile == ROWS ? PANELS : 1),
          apart(of.at.classes != 1), to_apart(of.grad_at.classes != 1) {}

    template <Wanted WANTED> void run(int64_t begin, int64_t end) {
        const int64_t last = std::min(p.rows(), end * p.rows_per_tile);
        Group<S> here = group_at(begin * p.rows_per_tile);
        for (int64_t tile = begin; tile < end; tile++) {
            double sums[2] = {0, 0};
            for (const int64_t behind = std::min(last, (tile + 1) * p.rows_per_tile); here.row < behind;) {
                const int64_t after = here.row + here.rows;
                const Group<S> next = group_at(after);
                take<WANTED>(here, next, after < last, sums);
                here = next;
            }
            if (WANTED != SLOPES && p.partial) p.partial[2 * tile] = sums[0], p.partial[2 * tile + 1] = sums[1];
        }
    }

  private:
    static constexpr int64_t AHEAD = 3;  // classes

    const Softmax& p;
    const int64_t n, most;  // classes, and panels of a group at most
    const bool apart, to_apart;
    Tile<R, AT_ONCE, LANES> tile_;  // the logits of a group, and then their e^{x - top}; and those of the next
    bool in_spare_ = false;         // which of them lie in tile_.spare
    bool laid_ = false;             // whether the next are there
    PlainPanel<R> panels_[PANELS];
    int64_t offset_[ROWS], to_offset_[ROWS];

    Group<S> group_at(int64_t row) const {
        const int64_t behind = std::min(p.rows(), (row / p.rows_per_tile + 1) * p.rows_per_tile);
        return {p, row, std::min(behind - row, most * LANES)};
    }

    // Inside of the loop over groups a compiler makes the loops within it slower.
    template <Wanted WANTED>
    APART_MEMBER void take(const Group<S>& here, const Group<S>& next, bool more, double* sums) {
        const bool whole = next.rows == most * LANES && next.in_one_piece(p.at, n);
        const bool laid = std::exchange(laid_, more && apart && to_apart && whole);
        R *const logits = in_spare_ ? tile_.spare : tile_.values, *const free = in_spare_ ? tile_.values : tile_.spare;
        if (!apart) here.offsets(p.at, offset_);
        if (!to_apart) here.offsets(p.grad_at, to_offset_);
        for (int64_t q = 0; q < here.panels(); q++) {
            if (!laid) load(here, q, logits + q * n * LANES);
            R* x = logits + q * n * LANES;
            const S* far = apart ? nullptr : here.x + offset_[q * LANES] + most * LANES * n;
            const auto lay_next = [&](int64_t j) __attribute__((always_inline)) { lay(next, q * n + j, free); };
            const auto fetch_far = [&](int64_t j)
                                       __attribute__((always_inline)) { fetch(far + j * LANES, LANES * sizeof(S)); };
            if (laid_) read<WANTED>(here, q, x, lay_next);
            else if (apart) read<WANTED>(here, q, x, [](int64_t) {});
            else read<WANTED>(here, q, x, fetch_far);
        }
        for (int64_t q = 0; q < here.panels(); q++) {
            const int64_t first = here.row + q * LANES, count = here.rows_of(q);
            if constexpr (WANTED == SLOPES) panels_[q].start_slopes(p, first, count);
            else panels_[q].template finish<WANTED>(p, first, count, sums);
        }
        if (WANTED != LOSSES) write(here, logits);
        if (laid_) in_spare_ = !in_spare_;
    }

    // The i-th run of the next group.
    INLINE_MEMBER void lay(const Group<S>& next, int64_t i, R* to) const {
        const int64_t j = most == 1 ? i : i / PANELS, q = most == 1 ? 0 : i % PANELS, step = p.at.classes;
        fetch(next.x + (j + AHEAD) * step + q * LANES, LANES * sizeof(S));
        widen_run(next.x + j * step + q * LANES, to + (q * n + j) * LANES);
    }

    INLINE_MEMBER void load(const Group<S>& here, int64_t q, R* to) {
        const int64_t count = here.rows_of(q);
        if (!apart) return tile_.load_panel(here.x, offset_ + q * LANES, here.in_one_piece(p.at, n), n, count, to);
        const Apart<LANES> lying(p.at, here.panel(q));
        const S* from = here.x + here.offset(p.at, q * LANES);
        S copy[LANES] = {};  // zeros for rows that do not exist
        for (int64_t j = 0; j < n; j++, from += p.at.classes) widen_run(lying.gather(from, copy), to + j * LANES);
    }

    template <Wanted WANTED, class F>
    INLINE_MEMBER void read(const Group<S>& here, int64_t q, R* logits, F&& meanwhile) {
        PlainPanel<R>& of = panels_[q];
        const int64_t first = here.row + q * LANES, count = here.rows_of(q);
        of.label.read(p, first, count);
        for (int l = 0; l < LANES; l++) of.x_y[l] = logits[of.label.y[l] * LANES + l];
        if constexpr (WANTED == SLOPES) {
            of.read_sums(p, first, count);
            of.take_exps(logits, n, meanwhile);
        } else {
            of.find_top(logits, n);
            of.template add_exps<WANTED == BOTH>(logits, n, meanwhile);
        }
    }

    INLINE_MEMBER void write(const Group<S>& here, R* powers) {
        const bool piece = here.in_one_piece(p.grad_at, n);
        for (int64_t q = 0; q < here.panels(); q++) panels_[q].leave_out(powers + q * n * LANES, n);
        if (to_apart && piece) {
            // Lines that are not whole would take longer past the caches.
            const bool whole = (reinterpret_cast<uintptr_t>(here.out) | p.grad_at.classes * sizeof(S)) % LINE == 0;
            return p.stream && whole ? write_classes<true>(here, powers) : write_classes<false>(here, powers);
        }
        const int64_t classes = n;
        for (int64_t q = 0; q < here.panels(); q++) {
            R* e = powers + q * n * LANES;
            for (int64_t j = 0; j < classes; j++)
                panels_[q].template put_slopes<false>(e + j * LANES, j, e + j * LANES);
            if (to_apart) write_apart(here, q, e);
            else
                tile_.store_panel(
                    tile_.values + q * n * LANES, here.out, to_offset_ + q * LANES, piece, n, here.rows_of(q), p.stream
                );
        }
    }
    // Class by class as well: lines of many classes in turn would come out of the caches one by one.
    template <bool PAST> INLINE_MEMBER void write_classes(const Group<S>& here, const R* e) {
        const int64_t classes = n, panels = here.panels(), step = p.grad_at.classes;
        for (int64_t j = 0; j < classes; j++)
            for (int64_t q = 0; q < panels; q++)
                panels_[q].template put_slopes<PAST>(e + (q * classes + j) * LANES, j, here.out + j * step + q * LANES);
    }
    INLINE_MEMBER void write_apart(const Group<S>& here, int64_t q, const R* e) {
        const Apart<LANES> lying(p.grad_at, here.panel(q));
        S *to = here.out + here.offset(p.grad_at, q * LANES), copy[LANES];
        for (int64_t j = 0; j < n; j++) {
            narrow_run(e + j * LANES, copy);
            lying.scatter(copy, to + j * p.grad_at.classes);
        }
    }
};

// Takes a plain problem and a range of tiles. Gives what is wanted of them.
template <Wanted WANTED, class R, class S> APART void plain_tiles(const Softmax& p, int64_t begin, int64_t end) {
    PlainTiles<R, S>(p).template run<WANTED>(begin, end);
}

}  // namespace
