// Cross entropy of class indices and nothing else, in tiles: what most calls ask for.
//
// Takes a Softmax problem that is `plain`, and the number of a tile. Gives what tile_forward, tile_both and
// tile_backward give, in fewer passes over the tile: its logits are read once, and slopes go from registers to where
// they belong. What is summed and how a slope is formed stands in row.h.
//
// Refuses nothing that is `plain`: the gradient may lie otherwise than the logits.

#pragma once
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

    // KEEP puts each e^{x - top} in the place of x.
    template <bool KEEP> INLINE_MEMBER void add_exps(R* x, int64_t n) {
        R ties[LANES], level[LANES];
        for (int l = 0; l < LANES; l++) level[l] = pick(top[l] > -INF<R>, top[l], R(0));
        for (int64_t i = 0; i < LANES; i += SIZE) {
            const Numbers<R> from = numbers_at(level + i);
            Numbers<R> others{};
            AtTop<R> at_top;
            for (int64_t j = 0; j < n;) {
                Numbers<R> part{};  // a sum of few numbers, added to a sum of few parts
                for (const int64_t end = std::min<int64_t>(n, j + CLASSES); j < end; j++) {
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
    INLINE_MEMBER void take_exps(R* x, int64_t n) const {
        R level[LANES], below[LANES];
        for (int l = 0; l < LANES; l++) level[l] = pick(top[l] > -INF<R>, top[l], R(0));
        for (int64_t j = 0; j < n; j++) {
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

    // Put the slopes of class j at to + j · step, a line of the cache at a time, past the caches or not.
    template <bool PAST> INLINE_MEMBER void put_slopes(const R* e, int64_t n, R* to, int64_t step) const {
        constexpr int64_t ROWS_OF_LINE = LINE / sizeof(R);
        for (int64_t i = 0; i < LANES; i += ROWS_OF_LINE)
            for (int64_t j = 0; j < n; j++) {
                const Numbers<Class<R>> here = Numbers<Class<R>>{} + Class<R>(j);
                alignas(LINE) R line[ROWS_OF_LINE];
                for (int64_t l = 0; l < ROWS_OF_LINE; l += SIZE) {
                    const Numbers<R> own = numbers_at(at_y + i + l), factor = numbers_at(of_e + i + l);
                    const Numbers<R> others = factor * numbers_at(e + j * LANES + i + l);
                    const Numbers<R> slope = numbers_at(label.own + i + l) == here ? own : others;
                    std::memcpy(line + l, &slope, sizeof slope);
                }
                if (PAST) stream_line(line, to + j * step + i);
                else std::memcpy(to + j * step + i, line, LINE);
            }
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

// A tile of a plain problem.
template <class R, class S> struct PlainTile : Rows<R, S> {
    const Softmax& p;
    const int64_t n;
    const bool apart, to_apart;

    PlainTile(const Softmax& of, int64_t tile)
        : Rows<R, S>(of, tile), p(of), n(of.classes), apart(of.at.classes != 1), to_apart(of.grad_at.classes != 1) {}

    template <Wanted WANTED> void run(double* sums) {
        if (!apart) this->offsets(p.at, offset_);
        if (!to_apart) this->offsets(p.grad_at, to_offset_);
        const int64_t group = n * PANELS <= AT_ONCE ? PANELS : 1;
        PlainPanel<R> panels[PANELS];
        for (int64_t q = 0; q < this->panels(); q += group) {
            const int64_t size = std::min(group, this->panels() - q);
            for (int64_t i = 0; i < size; i++) read<WANTED>(panels[i], q + i, logits_of(i));
            for (int64_t i = 0; i < size; i++) {
                const int64_t first = this->first_of(q + i), count = this->rows_of(q + i);
                if constexpr (WANTED == SLOPES) panels[i].start_slopes(p, first, count);
                else panels[i].template finish<WANTED>(p, first, count, sums);
            }
            for (int64_t i = 0; WANTED != LOSSES && i < size; i++) write(panels[i], q + i, logits_of(i));
        }
    }

  private:
    Tile<R, AT_ONCE, LANES> e_;  // the logits of a group, and then their e^{x - top}
    int64_t offset_[ROWS], to_offset_[ROWS];

    R* logits_of(int64_t i) { return e_.values + i * n * LANES; }
    bool in_one_piece(const Strides& at) const { return !this->crosses && at.inner == n; }

    template <Wanted WANTED> INLINE_MEMBER void read(PlainPanel<R>& panel, int64_t q, R* logits) {
        panel.label.read(p, this->first_of(q), this->rows_of(q));
        if (apart) {
            const Apart<LANES> lying(p.at, this->panel(q));
            const S* from = this->x + this->offset(p.at, q * LANES);
            S copy[LANES] = {};  // zeros for rows that do not exist
            for (int64_t j = 0; j < n; j++, from += p.at.classes) {
                if (lying.dense()) fetch(from + p.rows_per_tile, LANES * sizeof(S));
                widen_run(lying.gather(from, copy), logits + j * LANES);
            }
        } else {
            const bool piece = in_one_piece(p.at);
            if (piece) fetch(this->x + (offset_[q * LANES] + LANES * n), LANES * n * sizeof(S));
            if (WANTED != LOSSES && !p.stream && !to_apart && in_one_piece(p.grad_at))
                fetch_to_write(this->out + to_offset_[q * LANES], LANES * n * int64_t(sizeof(S)));
            e_.load_panel(this->x, offset_ + q * LANES, piece, n, this->rows_of(q), logits);
        }
        for (int l = 0; l < LANES; l++) panel.x_y[l] = logits[panel.label.y[l] * LANES + l];
        if constexpr (WANTED == SLOPES) {
            panel.read_sums(p, this->first_of(q), this->rows_of(q));
            panel.take_exps(logits, n);
        } else {
            panel.find_top(logits, n);
            panel.template add_exps<WANTED == BOTH>(logits, n);
        }
    }

    INLINE_MEMBER void write(PlainPanel<R>& panel, int64_t q, R* e) {
        panel.leave_out(e, n);
        if (to_apart) return write_apart(panel, q, e);
        panel.template put_slopes<false>(e, n, e, LANES);
        e_.store_panel(e, this->out, to_offset_ + q * LANES, in_one_piece(p.grad_at), n, this->rows_of(q), p.stream);
    }

    INLINE_MEMBER void write_apart(PlainPanel<R>& panel, int64_t q, R* e) {
        const Apart<LANES> lying(p.grad_at, this->panel(q));
        S* to = this->out + this->offset(p.grad_at, q * LANES);
        const int64_t step = p.grad_at.classes;
        if constexpr (sizeof(S) == sizeof(R)) {
            // Lines that are not whole would take longer past the caches.
            const bool whole = (reinterpret_cast<uintptr_t>(to) | step * sizeof(S)) % LINE == 0;
            if (lying.dense() && p.stream && whole) return panel.template put_slopes<true>(e, n, to, step);
            if (lying.dense()) return panel.template put_slopes<false>(e, n, to, step);
        }
        panel.template put_slopes<false>(e, n, e, LANES);
        for (int64_t j = 0; j < n; j++) {
            if (lying.dense()) {
                narrow_run(e + j * LANES, to + j * step);
            } else {
                S copy[LANES];
                narrow_run(e + j * LANES, copy);
                lying.scatter(copy, to + j * step);
            }
        }
    }
};

// Takes a plain problem and the number of a tile. Gives what is wanted of it.
template <Wanted WANTED, class R, class S> APART void plain_tile(const Softmax& p, int64_t tile, double* sums) {
    PlainTile<R, S>(p, tile).template run<WANTED>(sums);
}

}  // namespace
