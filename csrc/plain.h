// Cross entropy of class indices and nothing else, in tiles: what most calls ask for.
//
// Takes a Softmax problem that `is_plain`, and the number of a tile. Gives what tile_forward and tile_both give, in
// fewer passes over the tile: its logits are read once, and slopes go from registers to where they belong. What is
// summed and how a slope is formed stands in row.h.
//
// Refuses tiles of classes that lie apart, of which a panel is not whole: `fits` tells, and those are left to tiles.h.

#pragma once
#include "tiles.h"

namespace {

// Numbers of as many rows as a register of this instruction set holds.
#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
template <class T> struct Register {
    static constexpr int64_t SIZE = REGISTER / sizeof(T);
    typedef T Numbers __attribute__((vector_size(REGISTER)));
};
template <class T> using Numbers = typename Register<T>::Numbers;
template <class T> INLINE Numbers<T> numbers_at(const T* from) {
    Numbers<T> to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

// Panels that are worked on together have at most AT_ONCE classes in all: four panels where there are few, so that the
// chains of operations of one hide those of another, and one where there are many, for the nearest cache.
constexpr int64_t AT_ONCE = 256, PANELS = ROWS / LANES;

INLINE bool is_plain(const Softmax& p) {
    return p.index_type >= 0 && p.classes <= AT_ONCE && p.smoothing == 0 && p.penalty == NO_PENALTY &&
           !p.transformed() && p.z_loss == 0 && !p.shard && !p.mass && !p.elsewhere && !p.entropy && !p.grad_rows;
}

// LANES rows: what is known of them between the passes.
template <class R> struct PlainPanel {
    static constexpr int64_t SIZE = Register<R>::SIZE;
    Labels<R> label;
    alignas(64) R top[LANES], x_y[LANES], rest[LANES];       // rest: Σ e^{x - top} without one class at the top
    alignas(64) R log_sum[LANES], of_e[LANES], at_y[LANES];  // of_e: a slope divided by its e^{x - top}

    INLINE_MEMBER void find_top(const R* x, int64_t n) {
        for (int64_t i = 0; i < LANES; i += SIZE) {
            Numbers<R> high = Numbers<R>{} - INF<R>;
            for (int64_t j = 0; j < n; j++) {
                const Numbers<R> at = numbers_at(x + j * LANES + i);
                high = at > high ? at : high;
            }
            std::memcpy(top + i, &high, sizeof high);
        }
    }

    // KEEP puts each e^{x - top} in the place of x.
    template <bool KEEP> INLINE_MEMBER void add_exps(R* x, int64_t n) {
        R ties[LANES], level[LANES];
        for (int l = 0; l < LANES; l++) level[l] = pick(top[l] > -INF<R>, top[l], R(0));
        for (int64_t i = 0; i < LANES; i += SIZE) {
            const Numbers<R> from = numbers_at(level + i), zero{}, one = zero + R(1);
            Numbers<R> others{}, count{};
            for (int64_t j = 0; j < n;) {
                Numbers<R> part{};  // a sum of few numbers, added to a sum of few parts
                for (const int64_t end = std::min<int64_t>(n, j + CLASSES); j < end; j++) {
                    R below[SIZE], e[SIZE];
                    const Numbers<R> down = numbers_at(x + j * LANES + i) - from;
                    std::memcpy(below, &down, sizeof down);
                    exp_run<SIZE>(below, e);
                    const Numbers<R> power = numbers_at(e);
                    part = down == zero ? part : part + power;
                    count = down == zero ? count + one : count;
                    if (KEEP) std::memcpy(x + j * LANES + i, e, sizeof e);
                }
                others += part;
            }
            std::memcpy(rest + i, &others, sizeof others), std::memcpy(ties + i, &count, sizeof count);
        }
        for (int l = 0; l < LANES; l++) rest[l] += pick(ties[l] > R(1), ties[l] - R(1), R(0));
    }

    // The losses and weights of rows, added to `sums`, and what their slopes are made of.
    template <bool BOTH> INLINE_MEMBER void finish(const Softmax& p, int64_t row, int64_t rows, double* sums) {
        R u[LANES], log_p[LANES], loss[LANES], weight[LANES], scale[LANES], per_sum[LANES];
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
        if (!BOTH) return;
        const R g = *static_cast<const R*>(p.grad);
        for (int l = 0; l < LANES; l++) scale[l] = pick(label.valid[l] == R(0), R(0), weigh(g, u[l]));
        for (int l = 0; l < LANES; l++) scale[l] = weigh(scale[l], label.weight[l]);
        for (int l = 0; l < LANES; l++) of_e[l] = times(scale[l], per_sum[l]);
        for (int l = 0; l < LANES; l++) at_y[l] = times(scale[l], expm1_(log_p[l]));
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
    INLINE_MEMBER static void write_rows(void* to, const R* from, int64_t row, int64_t rows) {
        if (!to) return;
        if (rows == LANES) std::memcpy(static_cast<R*>(to) + row, from, LANES * sizeof(R));  // without a call
        else std::memcpy(static_cast<R*>(to) + row, from, size_t(rows) * sizeof(R));
    }
};

// A tile of a plain problem.
template <class R, class S> struct PlainTile : Rows<R, S> {
    const Softmax& p;
    const int64_t n;
    const bool apart;

    PlainTile(const Softmax& of, int64_t tile)
        : Rows<R, S>(of, tile), p(of), n(of.classes), apart(of.at.classes != 1) {}

    // Whether the panels of classes that lie apart are whole.
    template <bool BOTH> bool fits() const {
        if (!apart) return !BOTH || p.grad_at.classes == 1;
        if (this->crosses || this->rows % LANES || p.at.inner != 1) return false;
        return !BOTH || (p.grad_at.classes != 1 && p.grad_at.inner == 1);
    }

    template <bool BOTH> void run(double* sums) {
        if (!apart) this->offsets(p.at, offset_), this->offsets(p.grad_at, to_offset_);
        const int64_t group = n * PANELS <= AT_ONCE ? PANELS : 1;
        PlainPanel<R> panels[PANELS];
        for (int64_t q = 0; q < this->panels(); q += group) {
            const int64_t size = std::min(group, this->panels() - q);
            for (int64_t i = 0; i < size; i++) read<BOTH>(panels[i], q + i, logits_of(i));
            for (int64_t i = 0; i < size; i++)
                panels[i].template finish<BOTH>(p, this->first_of(q + i), this->rows_of(q + i), sums);
            for (int64_t i = 0; BOTH && i < size; i++) write(panels[i], q + i, logits_of(i));
        }
    }

  private:
    Tile<R, AT_ONCE, LANES> e_;  // the logits of a group, and then their e^{x - top}
    int64_t offset_[ROWS], to_offset_[ROWS];

    R* logits_of(int64_t i) { return e_.values + i * n * LANES; }
    bool in_one_piece(const Strides& at) const { return !this->crosses && at.inner == n; }

    template <bool BOTH> INLINE_MEMBER void read(PlainPanel<R>& panel, int64_t q, R* logits) {
        panel.label.read(p, this->first_of(q), this->rows_of(q));
        if (apart) {
            const S* from = this->x + q * LANES;
            for (int64_t j = 0; j < n; j++, from += p.at.classes) {
                fetch(from + p.rows_per_tile, LANES * sizeof(S));
                widen_run(from, logits + j * LANES);
            }
        } else {
            const bool piece = in_one_piece(p.at);
            if (piece) fetch(this->x + (offset_[q * LANES] + LANES * n), LANES * n * sizeof(S));
            e_.load_panel(this->x, offset_ + q * LANES, piece, n, this->rows_of(q), logits);
        }
        for (int l = 0; l < LANES; l++) panel.x_y[l] = 0;
        panel.label.pick_own(logits, LANES, 0, n, panel.x_y);
        panel.find_top(logits, n);
        panel.template add_exps<BOTH>(logits, n);
    }

    INLINE_MEMBER void write(PlainPanel<R>& panel, int64_t q, R* e) {
        S* to = this->out + q * LANES;
        const int64_t step = p.grad_at.classes;
        panel.leave_out(e, n);
        if constexpr (sizeof(S) == sizeof(R)) {
            // Lines that are not whole would take longer past the caches.
            const bool whole = (reinterpret_cast<uintptr_t>(to) | step * sizeof(S)) % LINE == 0;
            if (apart && p.stream && whole) return panel.template put_slopes<true>(e, n, to, step);
            if (apart) return panel.template put_slopes<false>(e, n, to, step);
        }
        panel.template put_slopes<false>(e, n, e, LANES);
        if (apart)
            for (int64_t j = 0; j < n; j++) narrow_run(e + j * LANES, to + j * step);
        else
            e_.store_panel(
                e, this->out, to_offset_ + q * LANES, in_one_piece(p.grad_at), n, this->rows_of(q), p.stream
            );
    }
};

// Takes a plain problem and the number of a tile. Gives whether that was one for here, and then what tile_both gives,
// or without BOTH what tile_forward gives.
template <bool BOTH, class R, class S> APART bool plain_tile(const Softmax& p, int64_t tile, double* sums) {
    PlainTile<R, S> here(p, tile);
    if (!here.template fits<BOTH>()) return false;
    here.template run<BOTH>(sums);
    return true;
}

}  // namespace
