// Softmax cross entropy of rows with few classes, or with classes apart in memory: up to ROWS rows at a time, LANES of
// them side by side.
//
// Takes a Softmax problem and the number of a tile, which is rows_per_tile rows or what is left of them; where few rows
// lie side by side, those of several outer indices share a tile. tile_forward gives each row's top and
// log_sum, its loss and what it weighs, and the statistics where they are wanted; tile_backward the slopes of logits
// and target; tile_both the loss and the slopes of logits in one pass. What is summed and how a slope is formed stands
// in row.h.
//
// Refuses nothing: any strides and any number of classes will do, from one on.

#pragma once
#include "row.h"
#include "runs.h"

namespace {

// SIDE × SIDE numbers that are transposed in registers: `at[i]` holds those of row i, and then those of column i.
template <class R> struct Square {
    static constexpr int64_t SIDE = 32 / sizeof(R), WIDTH = SIDE;
    typedef R Vector __attribute__((vector_size(32)));
    Vector at[SIDE];

    template <class F> INLINE_MEMBER void load(F&& row) {
        for (int64_t i = 0; i < SIDE; i++) std::memcpy(&at[i], row(i), sizeof at[i]);
    }
    template <class F> INLINE_MEMBER void store(F&& row) const {
        for (int64_t i = 0; i < SIDE; i++) std::memcpy(row(i), &at[i], sizeof at[i]);
    }
    INLINE_MEMBER void transpose() {
        Vector pairs[SIDE];
        if constexpr (SIDE == 8) {
            Vector fours[SIDE];
            for (int i = 0; i < SIDE; i += 2) {  // (a0 b0 a1 b1 …) and (a2 b2 a3 b3 …) of rows a and b
                pairs[i] = __builtin_shufflevector(at[i], at[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
                pairs[i + 1] = __builtin_shufflevector(at[i], at[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
            }
            for (int i = 0; i < SIDE; i += 4)  // (a0 b0 c0 d0 a4 b4 c4 d4) and so on
                for (int j = 0; j < 2; j++) {
                    const Vector ab = pairs[i + j], cd = pairs[i + 2 + j];
                    fours[i + 2 * j] = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13);
                    fours[i + 2 * j + 1] = __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
                }
            for (int i = 0; i < 4; i++) {
                at[i] = __builtin_shufflevector(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
                at[i + 4] = __builtin_shufflevector(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
            }
        } else {
            for (int i = 0; i < SIDE; i += 2) {
                pairs[i] = __builtin_shufflevector(at[i], at[i + 1], 0, 4, 2, 6);
                pairs[i + 1] = __builtin_shufflevector(at[i], at[i + 1], 1, 5, 3, 7);
            }
            for (int i = 0; i < 2; i++) {
                at[i] = __builtin_shufflevector(pairs[i], pairs[i + 2], 0, 1, 4, 5);
                at[i + 2] = __builtin_shufflevector(pairs[i], pairs[i + 2], 2, 3, 6, 7);
            }
        }
    }
};

// SIDE rows of half as many numbers: `at[i]` holds those of rows i and i + SIDE / 2, and then those of column i.
template <class R> struct HalfSquare {
    static constexpr int64_t SIDE = Square<R>::SIDE, WIDTH = SIDE / 2;
    typedef R Half __attribute__((vector_size(16)));
    using Vector = typename Square<R>::Vector;
    Vector at[WIDTH];

    template <class F> INLINE_MEMBER void load(F&& row) {
        for (int64_t i = 0; i < WIDTH; i++) {
            Half low, high;
            std::memcpy(&low, row(i), sizeof low), std::memcpy(&high, row(i + WIDTH), sizeof high);
            if constexpr (WIDTH == 4) at[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
            else at[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3);
        }
    }
    template <class F> INLINE_MEMBER void store(F&& row) const {
        for (int64_t i = 0; i < SIDE; i++)  // in the order of rows, each of which may write beyond its end
            std::memcpy(row(i), reinterpret_cast<const Half*>(&at[i % WIDTH]) + i / WIDTH, sizeof(Half));
    }
    INLINE_MEMBER void transpose() {
        if constexpr (WIDTH == 4) {
            const Vector a = __builtin_shufflevector(at[0], at[1], 0, 8, 1, 9, 4, 12, 5, 13);
            const Vector b = __builtin_shufflevector(at[0], at[1], 2, 10, 3, 11, 6, 14, 7, 15);
            const Vector c = __builtin_shufflevector(at[2], at[3], 0, 8, 1, 9, 4, 12, 5, 13);
            const Vector d = __builtin_shufflevector(at[2], at[3], 2, 10, 3, 11, 6, 14, 7, 15);
            at[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
            at[1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
            at[2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
            at[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
        } else {
            const Vector low = __builtin_shufflevector(at[0], at[1], 0, 4, 2, 6);
            at[1] = __builtin_shufflevector(at[0], at[1], 1, 5, 3, 7);
            at[0] = low;
        }
    }
};

// Rows of fewer classes than half of a square has are taken otherwise.
template <class R> constexpr int64_t LEAST_CLASSES = HalfSquare<R>::WIDTH;

// Cut classes into squares, and into half of one where no more are left; the last overlaps with the one before. N = 10
// is the square of the classes [0, 8) and half of that of [6, 10).
template <class R, class F> INLINE void each_square(int64_t classes, F&& f) {
    constexpr int64_t SIDE = Square<R>::SIDE, LEAST = LEAST_CLASSES<R>;
    Square<R> square;
    HalfSquare<R> half;
    int64_t next = 0;
    if (classes >= SIDE)
        for (; classes - next > LEAST; next += SIDE) f(square, std::min(next, classes - SIDE));
    for (; next < classes; next += LEAST) f(half, std::max<int64_t>(0, std::min(next, classes - LEAST)));
}

// Take rows to classes of LANES rows, or back. `row(l)` is where a row lies.
template <class R, class F> INLINE void to_classes(F&& row, int64_t classes, R* to) {
    for (int64_t l = 0; l < LANES; l += Square<R>::SIDE)
        each_square<R>(classes, [&](auto& square, int64_t k) __attribute__((always_inline)) {
            square.load([&](int64_t i) __attribute__((always_inline)) { return row(l + i) + k; });
            square.transpose();
            for (int64_t j = 0; j < square.WIDTH; j++)
                std::memcpy(to + (k + j) * LANES + l, &square.at[j], sizeof square.at[j]);
        });
}
template <class R, class F> INLINE void to_rows(const R* from, int64_t classes, F&& row) {
    for (int64_t l = 0; l < LANES; l += Square<R>::SIDE)
        each_square<R>(classes, [&](auto& square, int64_t k) __attribute__((always_inline)) {
            for (int64_t j = 0; j < square.WIDTH; j++)
                std::memcpy(&square.at[j], from + (k + j) * LANES + l, sizeof square.at[j]);
            square.transpose();
            square.store([&](int64_t i) __attribute__((always_inline)) { return row(l + i) + k; });
        });
}

// A row of any number of classes: PART at a time, of which the last may overlap with those before. A vector's worth
// where the row has as many, since half precision has instructions for no less.
template <int64_t PART, class S, class R> INLINE void widen_parts(const S* from, R* to, int64_t n) {
    for (int64_t next = 0; next < n; next += PART) {
        const int64_t k = std::min(next, n - PART);
        widen_run<PART>(from + k, to + k);
    }
}
template <int64_t PART, class R, class S> INLINE void narrow_parts(const R* from, S* to, int64_t n) {
    for (int64_t next = 0; next < n; next += PART) {
        const int64_t k = std::min(next, n - PART);
        narrow_run<PART>(from + k, to + k);
    }
}
template <class S, class R> INLINE void widen_row(const S* from, R* to, int64_t n) {
    if (n >= 16) return widen_parts<16>(from, to, n);
    if (n >= 8) return widen_parts<8>(from, to, n);
    for (int64_t k = 0; k < n; k++) to[k] = widen(from[k]);
}
template <class R, class S> INLINE void narrow_row(const R* from, S* to, int64_t n) {
    if (n >= 16) return narrow_parts<16>(from, to, n);
    if (n >= 8) return narrow_parts<8>(from, to, n);
    for (int64_t k = 0; k < n; k++) narrow(from[k], to[k]);
}

// What is to be fetched of the next tile while this one is worked on, class by class: as much as a class of a panel
// holds, or one row or two where these are only some of the classes of rows.
struct Ahead {
    const char* first = nullptr;
    int64_t step, bytes, classes;

    template <class S>
    Ahead(const S* tile, const Strides& strides, const Softmax& p, int64_t n, int64_t q) : classes(n) {
        const int64_t size = sizeof(S), row = p.rows_per_tile + q * LANES;
        step = strides.classes * size, bytes = LANES * size;
        if (strides.classes == 1 && n == p.classes) step = bytes, classes = LANES;
        else if (strides.classes == 1) step = strides.inner * size, bytes = n * size;
        else classes = LANES;
        if (tile) first = reinterpret_cast<const char*>(tile + row * strides.inner);
    }
    void fetch(int64_t j) const {
        ::fetch(first + j * step, bytes);
        if (j + classes < LANES) ::fetch(first + (j + classes) * step, bytes);
    }
    void fetch_to_write(int64_t j) const {
        ::fetch_to_write(first + j * step, bytes);
        if (j + classes < LANES) ::fetch_to_write(first + (j + classes) * step, bytes);
    }
};

// The rows of a tile: the first of them, how many there are, and where each of them lies.
struct Span {
    int64_t row, rows, inner;
    bool crosses;  // from one outer index into the next

    Span(const Softmax& p, int64_t tile) : row(tile * p.rows_per_tile), inner(p.inner) {
        rows = p.rows() - row < p.rows_per_tile ? p.rows() - row : p.rows_per_tile;
        crosses = row / inner != (row + rows - 1) / inner;
    }

    Span(int64_t first, int64_t count, int64_t of_inner)
        : row(first), rows(count), inner(of_inner), crosses(row / inner != (row + rows - 1) / inner) {}

    Span panel(int64_t q) const { return {row + q * LANES, rows_of(q), inner}; }
    int64_t panels() const { return padded(rows) / LANES; }
    int64_t rows_of(int64_t q) const { return rows - q * LANES < LANES ? rows - q * LANES : LANES; }

    // How far each row lies behind the first one.
    void offsets(const Strides& at, int64_t* to) const {
        const int64_t first = row % inner, step = at.inner, count = rows;
        if (!crosses) {
            for (int64_t l = 0, place = 0; l < count; l++, place += step) to[l] = place;
            return;
        }
        for (int64_t l = 0, i = first, outer = 0; l < count; l++) {
            to[l] = outer + (i - first) * step;
            if (++i == inner) i = 0, outer += at.outer;
        }
    }
    int64_t offset(const Strides& at, int64_t l) const {
        const int64_t first = row % inner, i = first + l;
        return crosses ? i / inner * at.outer + (i % inner - first) * at.inner : l * at.inner;
    }

    // How many rows lie side by side from the l-th on.
    int64_t run(int64_t l) const {
        const int64_t left = inner - (row + l) % inner;
        return left < rows - l ? left : rows - l;
    }
};

// Rows with classes apart: where each of them lies, and how their numbers of one class are brought together.
template <int64_t MOST = ROWS> class Apart {
  public:
    Apart(const Strides& at, const Span& span)
        : rows_(span.rows), in_runs_(at.inner == 1 && (span.inner >= RUN || !span.crosses)) {
        span.offsets(at, offset_);
        for (int64_t l = 0; in_runs_ && l < rows_; l += run_[l]) run_[l] = span.run(l);
    }

    // The numbers themselves where they lie side by side and fill the last panel, else a copy of them.
    template <class S> INLINE_MEMBER const S* gather(const S* from, S* spare) const {
        if (in_runs_ && run_[0] == rows_ && rows_ % LANES == 0) return from;
        if (in_runs_)
            for (int64_t l = 0; l < rows_; l += run_[l])
                std::memcpy(spare + l, from + offset_[l], size_t(run_[l]) * sizeof(S));
        else
            for (int64_t l = 0; l < rows_; l++) spare[l] = from[offset_[l]];
        return spare;
    }
    template <class S> INLINE_MEMBER void scatter(const S* from, S* to) const {
        if (in_runs_)
            for (int64_t l = 0; l < rows_; l += run_[l])
                std::memcpy(to + offset_[l], from + l, size_t(run_[l]) * sizeof(S));
        else
            for (int64_t l = 0; l < rows_; l++) to[offset_[l]] = from[l];
    }
    // Whether all of them lie side by side and fill their panels.
    bool dense() const { return in_runs_ && run_[0] == rows_ && rows_ % LANES == 0; }

  private:
    static constexpr int64_t RUN = 16;  // rows from which on a copy of a run costs less than one of each number
    int64_t rows_;
    bool in_runs_;
    int64_t offset_[MOST], run_[MOST];
};

// Up to MOST rows in up to N classes. The LANES rows from 32 q on have class j at values + q · panel + j · pitch.
template <class R, int64_t N = CLASSES, int64_t MOST = ROWS> struct Tile {
    alignas(64) R values[N * MOST], spare[N * LANES];
    int64_t pitch = 0, panel = 0;  // of a tile that holds nothing, too, whose panels are asked for

    R* at(int64_t q) { return values + q * panel; }
    const R* at(int64_t q) const { return values + q * panel; }

    void lay_out(const Strides& strides, int64_t classes, const Span& span) {
        const bool rows_apart = strides.classes == 1;
        pitch = rows_apart ? LANES : padded(span.rows), panel = rows_apart ? LANES * classes : LANES;
    }

    template <class S> void load(const S* from, const Strides& strides, int64_t classes, const Span& span) {
        lay_out(strides, classes, span);
        if (strides.classes == 1) return load_rows(from, strides, classes, span);
        const Apart<> rows(strides, span);
        S copy[ROWS] = {};  // zeros for rows that do not exist
        for (int64_t k = 0; k < classes; k++) {
            const S* x = rows.gather(from + k * strides.classes, copy);
            for (int64_t l = 0; l < pitch; l += LANES) widen_run(x + l, values + k * pitch + l);
        }
    }

    // `past` the caches, where what lies together is worth it.
    template <class S> void store(S* to, const Strides& strides, int64_t classes, const Span& span, bool past = false) {
        if (strides.classes == 1) return store_rows(to, strides, classes, span, past);
        const Apart<> rows(strides, span);
        S copy[ROWS];
        for (int64_t k = 0; k < classes; k++) {
            const R* from = values + k * pitch;
            S* out = to + k * strides.classes;
            if (rows.dense()) {
                write(from, out, pitch, past);
                continue;
            }
            for (int64_t l = 0; l < pitch; l += LANES) narrow_run(from + l, copy + l);
            rows.scatter(copy, out);
        }
    }

    template <class S> void load_rows(const S* from, const Strides& strides, int64_t classes, const Span& span) {
        const bool in_one_piece = !span.crosses && strides.inner == classes;
        int64_t offset[ROWS];
        span.offsets(strides, offset);
        for (int64_t q = 0; q < span.panels(); q++)
            load_panel(from, offset + q * LANES, in_one_piece, classes, span.rows_of(q), at(q));
    }
    template <class S> void store_rows(S* to, const Strides& strides, int64_t classes, const Span& span, bool past) {
        const bool in_one_piece = !span.crosses && strides.inner == classes;
        int64_t offset[ROWS];
        span.offsets(strides, offset);
        for (int64_t q = 0; q < span.panels(); q++)
            store_panel(at(q), to, offset + q * LANES, in_one_piece, classes, span.rows_of(q), past);
    }

    template <class S>
    void load_panel(const S* from, const int64_t* offset, bool in_one_piece, int64_t classes, int64_t rows, R* to) {
        const R* dense = spare;
        if constexpr (sizeof(S) == sizeof(R)) {
            if (rows == LANES && classes >= LEAST_CLASSES<R>)
                return to_classes([&](int64_t l) { return from + offset[l]; }, classes, to);
        }
        if (rows == LANES && in_one_piece) {
            dense = widen_dense(from + offset[0], LANES * classes);
        } else {
            for (int64_t i = rows * classes; i < LANES * classes; i++) spare[i] = 0;
            for (int64_t l = 0; l < rows; l++) widen_row(from + offset[l], spare + l * classes, classes);
        }
        if (classes >= LEAST_CLASSES<R>) to_classes([&](int64_t l) { return dense + l * classes; }, classes, to);
        else if (classes == 3) three_to_classes(dense, to);
        else if (classes == 2)
            for (int64_t l = 0; l < LANES; l++) to[l] = dense[2 * l], to[LANES + l] = dense[2 * l + 1];
        else std::copy_n(dense, LANES, to);
    }

    // Three classes are taken as four, of which the last belongs to the next row; after the last row there is nothing.
    // A tile has room for a fourth, and panels are loaded in their order.
    static void three_to_classes(const R* dense, R* to) {
        const R *of_last = dense + 3 * (LANES - 1), last[4] = {of_last[0], of_last[1], of_last[2]};
        to_classes([&](int64_t l) { return l < LANES - 1 ? dense + 3 * l : last; }, 3, to);
    }
    static void three_to_rows(const R* from, R* dense) {
        R last[4];
        to_rows(from, 3, [&](int64_t l) { return l < LANES - 1 ? dense + 3 * l : last; });
        std::copy_n(last, 3, dense + 3 * (LANES - 1));
    }

    // A whole number of runs, where they lie if they are R already.
    template <class S> const R* widen_dense(const S* from, int64_t n) {
        if constexpr (sizeof(S) == sizeof(R)) return from;
        for (int64_t i = 0; i < n; i += LANES) widen_run(from + i, spare + i);
        return spare;
    }

    template <class S>
    void store_panel(
        R* from, S* to, const int64_t* offset, bool in_one_piece, int64_t classes, int64_t rows, bool past
    ) {
        if constexpr (sizeof(S) == sizeof(R)) {
            if (rows == LANES && !past && classes >= LEAST_CLASSES<R>)
                return to_rows(from, classes, [&](int64_t l) { return to + offset[l]; });
        }
        if (classes >= LEAST_CLASSES<R>) to_rows(from, classes, [&](int64_t l) { return spare + l * classes; });
        else if (classes == 3) three_to_rows(from, spare);
        else if (classes == 2)
            for (int64_t l = 0; l < LANES; l++) spare[2 * l] = from[l], spare[2 * l + 1] = from[LANES + l];
        else std::copy_n(from, LANES, spare);
        if (rows == LANES && in_one_piece) return write(spare, to + offset[0], LANES * classes, past);
        for (int64_t l = 0; l < rows; l++) narrow_row(spare + l * classes, to + offset[l], classes);
    }
};

// What a tile's rows are read from and written to: the pointers to the first of them.
template <class R, class S> struct Rows : Span {
    const S* x;
    S* out;
    Shares<R, S> t, out_target;

    Rows(const Softmax& p, int64_t tile) : Span(p, tile) {
        x = at_row<const S>(p, p.logits, p.at, row);
        if (p.index_type < 0) t = {p, p.target, p.target_at, row};
        out = at_row<S>(p, p.grad_logits, p.grad_at, row);
        out_target = {p, p.grad_target, p.grad_target_at, row};
    }

    int64_t first_of(int64_t q) const { return row + q * LANES; }
};

// The labels of LANES rows: class (0 where there is none), c[y] and 1 or 0 for rows that count or do not.
template <class R> struct Labels {
    int64_t y[LANES];
    R weight[LANES], valid[LANES];
    Class<R> own[LANES];  // y where there are few classes, and NO_CLASS for a row that does not count

    void read(const Softmax& p, int64_t row, int64_t rows) {
        for (int l = 0; l < LANES; l++) y[l] = p.ignore_index, valid[l] = weight[l] = R(p.index_type < 0);
        for (int l = 0; l < LANES; l++) own[l] = NO_CLASS;
        if (p.index_type < 0) return;
        const auto* wide = static_cast<const int64_t*>(p.target);
        if (p.index_type == I64 && rows == LANES) std::memcpy(y, wide + row, sizeof y);  // without a call
        else if (p.index_type == I64) std::memcpy(y, wide + row, size_t(rows) * sizeof *y);
        else
            for (int64_t l = 0; l < rows; l++) y[l] = index_at(p.target, p.index_type, row + l);
        int64_t wrong = 0;
        Class<R> counted[LANES];  // all bits or none, as wide as R: vectors have few ways from int64_t to float
        for (int l = 0; l < LANES; l++) {
            const int64_t each = counts(p, y[l], wrong);
            y[l] &= each, counted[l] = Class<R>(each);
        }
        for (int l = 0; l < LANES; l++) own[l] = Class<R>(y[l]) | ~counted[l];
        for (int l = 0; l < LANES; l++) valid[l] = weight[l] = pick(counted[l] != 0, R(1), R(0));
        for (int l = 0; p.shard && l < LANES; l++) weight[l] = here(l) ? R(1) : R(0);
        if (wrong && p.out_of_range) p.out_of_range->store(true, std::memory_order_relaxed);
        if (const R* c = static_cast<const R*>(p.weight))
            for (int l = 0; l < LANES; l++) weight[l] = here(l) ? c[y[l]] : R(0);
    }

    // Whether a row counts and has its class here.
    bool here(int64_t l) const { return valid[l] != R(0) && y[l] != NO_CLASS; }

    // Whether a row counts and has its class among the n from k on.
    bool within(int64_t l, int64_t k, int64_t n) const { return valid[l] != R(0) && uint64_t(y[l] - k) < uint64_t(n); }

    // With so few classes it costs less to look at each of a row than to go where its own is.
    static constexpr int64_t LOOKED_AT = 8;

    // Pick the number of each row's class, where that is among the n from k on.
    void pick_own(const R* x, int64_t pitch, int64_t k, int64_t n, R* to) const {
        if (n <= LOOKED_AT)
            for (int64_t j = 0; j < n; j++)
                for (int l = 0; l < LANES; l++) to[l] = pick(own[l] == Class<R>(k + j), x[j * pitch + l], to[l]);
        else
            for (int64_t l = 0; l < LANES; l++)
                if (uint64_t(y[l] - k) < uint64_t(n)) to[l] = x[(y[l] - k) * pitch + l];
    }

    // Put a number of each row in the place of its class, where that is among the n from k on.
    void put(const R* number, R* to, int64_t pitch, int64_t k, int64_t n) const {
        if (n <= LOOKED_AT)
            for (int64_t j = 0; j < n; j++)
                for (int l = 0; l < LANES; l++)
                    to[j * pitch + l] = pick(own[l] == Class<R>(k + j), number[l], to[j * pitch + l]);
        for (int64_t l = 0; n > LOOKED_AT && l < LANES; l++)
            if (within(l, k, n)) to[(y[l] - k) * pitch + l] = number[l];
    }
};

// --- panels: LANES rows of a tile -----------------------------------------------------------------------------------

// What the rows of a panel weigh in a sum.
template <class R> INLINE void sample_weights(const Softmax& p, int64_t row, int64_t rows, R* u) {
    for (int l = 0; l < LANES; l++) u[l] = R(1);
    if (p.sample_weight) std::memcpy(u, static_cast<const R*>(p.sample_weight) + row, size_t(rows) * sizeof(R));
}
// Multiply a number of each row by that.
template <class R> INLINE void weigh_samples(const Softmax& p, int64_t row, int64_t rows, R* numbers) {
    R u[LANES];
    sample_weights(p, row, rows, u);
    for (int l = 0; l < LANES; l++) numbers[l] = weigh(numbers[l], u[l]);
}

// The weights w of a tile; where the target is indices, the part of them that smoothing spreads; none without
// smoothing.
template <class R, class S>
APART bool tile_weights(const Softmax& p, const Rows<R, S>& here, int64_t k, int64_t n, Tile<R>& tile) {
    if (!here.t && p.smoothing == 0) return false;
    const Smoothing<R> smoothing(p);
    const auto load = [&](const auto* t) { tile.load(t + k * p.target_at.classes, p.target_at, n, here); };
    if (here.t) here.t.typed(load);
    else tile.lay_out(p.target_at, n, here);
    for (int64_t j = 0; j < n; j++) {
        const R c = smoothing.weight ? smoothing.weight[k + j] : R(1);
        const R even = smoothing.spread ? smoothing.spread[k + j] : R(1);
        for (int64_t q = 0; q < here.panels(); q++) {
            R* to = tile.at(q) + j * tile.pitch;
            if (here.t)
                for (int l = 0; l < LANES; l++) to[l] = smoothing.of(to[l], c, even);
            else
                for (int l = 0; l < LANES; l++) to[l] = smoothing.share * even;
        }
    }
    return true;
}

// Replace a panel's logits in the classes [k, k + n) by what they become; `bends` gets the slopes of a soft cap, or is
// null.
template <class R>
static void transform_panel(
    const Softmax& p, R* x, int64_t pitch, const Labels<R>& label, int64_t k, int64_t n, R* bends = nullptr
) {
    const Transform<R> transform(p);
    const R *bias = p.bias ? static_cast<const R*>(p.bias) + k : nullptr, margin = margin_of<R>(p);
    for (int64_t j = 0; j < n; j++)
        transform.template run<false>(
            x + j * pitch, bias ? bias + j : nullptr, x + j * pitch, bends ? bends + j * pitch : nullptr
        );
    for (int64_t l = 0; margin != R(0) && l < LANES; l++)
        if (label.within(l, k, n)) x[(label.y[l] - k) * pitch + l] -= margin;
}

// Take a panel's slopes of x' back to those of x; `bends` are the slopes of a soft cap, or null.
template <class R>
static void chain_panel(
    const Softmax& p, const R* bends, int64_t pitch, R* slope, int64_t to_pitch, int64_t k, int64_t n
) {
    const Transform<R> transform(p);
    const R* bias = p.bias ? static_cast<const R*>(p.bias) + k : nullptr;
    for (int64_t j = 0; j < n; j++)
        transform.template chain<false>(
            bends ? bends + j * pitch : nullptr, bias ? bias + j : nullptr, slope + j * to_pitch
        );
}

// The same for the panels of a tile; and where the slopes of a soft cap were not kept, for which x is read once more.
template <class R>
INLINE void chain_panels(
    const Softmax& p, const Span& here, const Tile<R>* bends, Tile<R>& slopes, int64_t k, int64_t n
) {
    for (int64_t q = 0; q < here.panels(); q++)
        chain_panel(p, bends ? bends->at(q) : nullptr, bends ? bends->pitch : 0, slopes.at(q), slopes.pitch, k, n);
}
template <class R, class S>
APART void chain_tile(const Softmax& p, const Rows<R, S>& here, const S* x, Tile<R>& slopes, int64_t k, int64_t n) {
    Tile<R> bends;
    const Transform<R> transform(p);
    if (p.cap > 0) bends.load(x, p.at, n, here);
    for (int64_t q = 0; p.cap > 0 && q < here.panels(); q++)
        for (int64_t j = 0; j < n; j++) transform.bend(bends.at(q) + j * bends.pitch, bends.at(q) + j * bends.pitch);
    chain_panels(p, here, p.cap > 0 ? &bends : nullptr, slopes, k, n);
}

// f and s of a panel and one class, from its x'.
template <class R> INLINE void penalise_run(const Softmax& p, const R* x, const R* top, const R* log_sum, R* f, R* s) {
    R log_p[LANES];
    for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x[l], top[l], log_sum[l]);
    penalise<LANES>(p, log_p, f, s);
}

// A second look at a tile whose p is known: do something with x' (where it is wanted) and w of a panel and one class at
// a time. `labels` gives a panel's.
template <class R, class S, class L, class F>
INLINE void look_again(const Softmax& p, const Rows<R, S>& here, bool wanted, L&& labels, F&& f) {
    Tile<R> logits, weights;
    for (int64_t k = 0, most = p.chunk(); k < p.classes; k += most) {
        const int64_t n = std::min(p.classes - k, most);
        logits.lay_out(p.at, n, here);
        if (wanted) logits.load(here.x + k * p.at.classes, p.at, n, here);
        tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++) {
            if (wanted && p.transformed()) transform_panel(p, logits.at(q), logits.pitch, labels(q), k, n);
            for (int64_t j = 0; j < n; j++)
                f(q, k + j, logits.at(q) + j * logits.pitch, weights.at(q) + j * weights.pitch);
        }
    }
}

// --- forward --------------------------------------------------------------------------------------------------------

// The sums of a panel's rows, their classes' x', and the first of their largest classes.
template <class R> struct Sums {
    alignas(64) R top[LANES], level[LANES], ties[LANES], cost[LANES], mass[LANES], moment[LANES], at_y[LANES];
    double others[LANES];
    Class<R> likeliest[LANES];

    Sums() {
        for (R* each : {level, ties, cost, mass, moment, at_y})
            for (int l = 0; l < LANES; l++) each[l] = 0;
        for (int l = 0; l < LANES; l++) top[l] = -INF<R>, others[l] = 0, likeliest[l] = NO_CLASS;
    }

    INLINE_MEMBER RowSums<R, R> row(int64_t l) const {
        return {top[l], others[l], ties[l], cost[l], mass[l], moment[l]};
    }
    INLINE_MEMBER void set(int64_t l, const RowSums<R, R>& to) {
        top[l] = to.top, others[l] = to.others, ties[l] = to.ties;
        cost[l] = to.cost, mass[l] = to.mass, moment[l] = to.moment;
    }

    void raise(const R* x, int64_t pitch, int64_t n, bool first) {
        R high[LANES];
        for (int l = 0; l < LANES; l++) high[l] = top[l];
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) high[l] = pick(x[j * pitch + l] > high[l], x[j * pitch + l], high[l]);
        for (int l = 0; !first && l < LANES; l++) {
            RowSums<R, R> sum = row(l);
            likeliest[l] = pick(high[l] > sum.top, Class<R>(NO_CLASS), likeliest[l]);
            sum.raise(high[l]);
            set(l, sum);
        }
        for (int l = 0; l < LANES; l++) top[l] = high[l];
        for (int l = 0; l < LANES; l++) level[l] = row(l).level();
    }

    // KEEP puts each e^{x - level} in the place of x.
    template <bool KEEP, class S, class X> void add_exps(X* x, int64_t pitch, int64_t n, const Ahead& next) {
        R part[LANES] = {}, all[LANES] = {}, from[LANES];
        for (int l = 0; l < LANES; l++) from[l] = level[l];
        for (int64_t j = 0; j < n; j++) {
            X* here = x + j * pitch;
            next.fetch(j);
            R below[LANES], e[LANES];
            for (int l = 0; l < LANES; l++) below[l] = here[l] - from[l];
            exp_run(below, e);
            for (int l = 0; l < LANES; l++) add_exp(below[l], e[l], part[l], all[l]);
            for (int l = 0; KEEP && l < LANES; l++) here[l] = e[l];
        }
        for (int l = 0; l < LANES; l++) ties[l] += std::rint(all[l] - part[l]), others[l] += double(part[l]);
    }

    APART_MEMBER void add_moments(const R* x, int64_t pitch, int64_t k, int64_t n) {
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) {
                const R logit = x[j * pitch + l];
                add_moment(logit, level[l], exp_(logit - level[l]), moment[l]);
                likeliest[l] = pick(logit == level[l] && likeliest[l] < 0, Class<R>(k + j), likeliest[l]);
            }
    }

    APART_MEMBER void add_costs(const R* x, int64_t pitch, const R* w, int64_t w_pitch, int64_t n) {
        R costs[LANES] = {}, masses[LANES] = {};  // of these classes: sums of few numbers, added to the sums of many
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++)
                add_cost(w[j * w_pitch + l], x[j * pitch + l], level[l], costs[l], masses[l]);
        for (int l = 0; l < LANES; l++) cost[l] += costs[l], mass[l] += masses[l];
    }

    // What makes p of powers of this level, and the power of the class that has more than half of it: see RowSums.
    void of_powers(const R* log_sum, const R* of_level, R* of_e, R* likely) const {
        for (int l = 0; l < LANES; l++) of_e[l] = row(l).of_e(of_level[l]);
        for (int l = 0; l < LANES; l++) likely[l] = row(l).likely(of_level[l], log_sum[l]);
    }

    void log_sums(R* to) const {
        for (int l = 0; l < LANES; l++) to[l] = row(l).log_sum();
    }
};

// Put Σ w f(p) in the place of Σ w (-log p), where every class has a weight.
template <class R, class S>
APART void penalise_costs(const Softmax& p, const Rows<R, S>& here, const Labels<R>* label, Sums<R>* sum) {
    R log_sum[ROWS / LANES][LANES];
    for (int64_t q = 0; q < here.panels(); q++) {
        sum[q].log_sums(log_sum[q]);
        for (int l = 0; l < LANES; l++) sum[q].cost[l] = sum[q].mass[l] = 0;
    }
    const auto labels = [&](int64_t q) -> const Labels<R>& { return label[q]; };
    look_again<R>(p, here, true, labels, [&](int64_t q, int64_t, const R* x, const R* w) {
        R f[LANES], s[LANES];
        penalise_run(p, x, sum[q].top, log_sum[q], f, s);
        for (int l = 0; l < LANES; l++) sum[q].cost[l] += times(w[l], f[l]);
    });
}

// The statistics of probability targets: Σ t log p before smoothing, and whether the largest class is the likeliest.
template <class R, class S>
APART void soft_statistics(const Softmax& p, const Rows<R, S>& here, const Labels<R>* label, const Sums<R>* sum) {
    Softmax bare = p;
    bare.smoothing = bare.share = 0, bare.weight = bare.spread = nullptr;
    struct {
        R log_sum[LANES], log_p[LANES] = {}, most[LANES] = {};
        Class<R> wanted[LANES];
    } panel[ROWS / LANES];
    for (int64_t q = 0; q < here.panels(); q++) {
        sum[q].log_sums(panel[q].log_sum);
        for (int l = 0; l < LANES; l++) panel[q].wanted[l] = NO_TARGET;
    }
    const auto labels = [&](int64_t q) -> const Labels<R>& { return label[q]; };
    look_again<R>(bare, here, true, labels, [&](int64_t q, int64_t k, const R* x, const R* t) {
        auto& of = panel[q];
        for (int l = 0; l < LANES; l++) {
            of.log_p[l] += times(t[l], log_p_of(x[l], sum[q].top[l], of.log_sum[l]));
            of.wanted[l] = pick(t[l] > of.most[l], Class<R>(k), of.wanted[l]);
            of.most[l] = pick(t[l] > of.most[l], t[l], of.most[l]);
        }
    });
    for (int64_t q = 0; q < here.panels(); q++)
        for (int64_t l = 0; l < here.rows_of(q); l++) {
            const R log_sum = panel[q].log_sum[l];
            const R entropy = sum[q].row(l).entropy(log_sum);
            const int64_t likeliest = found(sum[q].likeliest[l], log_sum);
            store_statistics(p, here.first_of(q) + l, entropy, panel[q].log_p[l], likeliest, panel[q].wanted[l]);
        }
}

// Add to a panel's losses what the class indices cost, and store the statistics where they are wanted.
template <class R>
INLINE void add_targets(
    const Softmax& p, int64_t row, int64_t rows, const Labels<R>& label, const Sums<R>& sum, const R* log_sum, R* loss
) {
    R log_p[LANES], f[LANES], s[LANES];
    for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(sum.at_y[l], sum.top[l], log_sum[l]);
    penalise<LANES>(p, log_p, f, s);
    if (p.entropy) {
        R entropy[LANES];
        for (int l = 0; l < LANES; l++) entropy[l] = sum.row(l).entropy(log_sum[l]);
        for (int64_t l = 0; l < rows; l++) {
            const bool counts = label.valid[l] != R(0), here = label.here(l);
            const int64_t likeliest = counts ? found(sum.likeliest[l], log_sum[l]) : NO_CLASS;
            const int64_t wanted = here ? label.y[l] : NO_TARGET;
            store_statistics(p, row + l, counts ? entropy[l] : R(0), here ? log_p[l] : R(0), likeliest, wanted);
        }
    }
    const R keep = R(1 - p.smoothing);
    for (int l = 0; l < LANES; l++) loss[l] += target_cost(keep, label.weight[l], f[l]);
}

// Finish a panel: the losses of its rows from their sums, and what backward needs of them.
template <class R, class S>
static void finish(
    const Softmax& p, const Rows<R, S>& here, int64_t q, const Labels<R>& label, Sums<R>& sum, double* sums
) {
    const int64_t row = here.first_of(q), rows = here.rows_of(q);
    R log_sum[LANES], loss[LANES];
    sum.log_sums(log_sum);
    const R spread = p.penalises_all() ? R(0) : R(p.share * p.weight_sum);
    for (int l = 0; !here.t && l < LANES; l++) sum.mass[l] = spread;
    for (int l = 0; l < LANES; l++) loss[l] = sum.row(l).total(log_sum[l]);
    if (!here.t) add_targets(p, row, rows, label, sum, log_sum, loss);
    for (int l = 0; l < LANES; l++) loss[l] = row_loss(p, loss[l], label.weight[l], sum.top[l] + log_sum[l]);
    for (int l = 0; l < LANES; l++) loss[l] = pick(label.valid[l] == R(0) || l >= rows, R(0), loss[l]);
    R u[LANES], weighed[LANES], weight[LANES];
    sample_weights(p, row, rows, u);
    for (int l = 0; l < LANES; l++) weighed[l] = times(u[l], loss[l]);
    for (int l = 0; l < LANES; l++) weight[l] = pick(l < rows, weigh(u[l], label.weight[l]), R(0));
    sums[0] += fold(weighed), sums[1] += fold(weight);
    const R keep = here.t ? R(0) : R(1 - p.smoothing);
    for (int64_t l = 0; p.mass && l < rows; l++) {
        const R mass = sum.mass[l] + keep * label.weight[l];
        static_cast<R*>(p.mass)[row + l] = label.valid[l] == R(0) ? R(0) : mass;
    }
    std::memcpy(static_cast<R*>(p.top) + row, sum.top, size_t(rows) * sizeof(R));
    std::memcpy(static_cast<R*>(p.log_sum) + row, log_sum, size_t(rows) * sizeof(R));
    if (p.loss) std::memcpy(static_cast<R*>(p.loss) + row, loss, size_t(rows) * sizeof(R));
    if (p.row_weight) std::memcpy(static_cast<R*>(p.row_weight) + row, label.weight, size_t(rows) * sizeof(R));
}

// Takes the logits and targets of a tile's rows. Gives their top and log_sum, their loss, weight and mass where each
// row has its own, and adds losses and weights to `sums`. A row that does not count has a loss, a weight and statistics
// of 0, and no class is predicted for it.
template <class R, class S> APART void tile_forward(const Softmax& p, int64_t tile, double* sums) {
    const Rows<R, S> here(p, tile);
    Tile<R> logits, weights;
    Labels<R> label[ROWS / LANES];
    Sums<R> sum[ROWS / LANES];
    for (int64_t q = 0; q < here.panels(); q++) label[q].read(p, here.first_of(q), here.rows_of(q));
    for (int64_t k = 0, most = p.chunk(); k < p.classes; k += most) {
        const int64_t n = std::min(p.classes - k, most);
        logits.load(here.x + k * p.at.classes, p.at, n, here);
        if (p.transformed())
            for (int64_t q = 0; q < here.panels(); q++) transform_panel(p, logits.at(q), logits.pitch, label[q], k, n);
        const bool weighted = tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++) {
            if (!here.t) label[q].pick_own(logits.at(q), logits.pitch, k, n, sum[q].at_y);
            sum[q].raise(logits.at(q), logits.pitch, n, k == 0);
            const Ahead next(here.x + k * p.at.classes, p.at, p, n, q);
            sum[q].template add_exps<false, S>(logits.at(q), logits.pitch, n, next);
            if (p.entropy) sum[q].add_moments(logits.at(q), logits.pitch, k, n);
            if (weighted) sum[q].add_costs(logits.at(q), logits.pitch, weights.at(q), weights.pitch, n);
        }
    }
    if (p.penalises_all()) penalise_costs(p, here, label, sum);
    if (here.t && p.entropy) soft_statistics(p, here, label, sum);
    for (int64_t q = 0; q < here.panels(); q++) finish(p, here, q, label[q], sum[q], sums);
}

// --- backward -------------------------------------------------------------------------------------------------------

// What the slopes of a panel's rows have in common.
template <class R> struct Slopes {
    Labels<R> label;
    alignas(64) R top[LANES], log_sum[LANES], g[LANES], extra[LANES];
    alignas(64) R mass[LANES], others[LANES], rest[LANES], scale[LANES];
    alignas(64) R elsewhere[LANES];

    INLINE_MEMBER RowSlopes<R> row(int64_t l) const {
        return {top[l], log_sum[l], g[l], extra[l], mass[l], others[l], rest[l], scale[l]};
    }
    INLINE_MEMBER void set(int64_t l, const Masses<R>& masses) {
        RowSlopes<R> to = row(l);
        to.set(with_elsewhere(masses, elsewhere[l]));
        mass[l] = to.mass, others[l] = to.others, rest[l] = to.rest, scale[l] = to.scale;
    }

    // Read all that is not a label or a mass of the rows.
    void read(const Softmax& p, int64_t row, int64_t rows) {
        for (int l = 0; l < LANES; l++) top[l] = log_sum[l] = elsewhere[l] = 0, g[l] = static_cast<const R*>(p.grad)[0];
        if (p.elsewhere) std::memcpy(elsewhere, static_cast<const R*>(p.elsewhere) + row, size_t(rows) * sizeof(R));
        std::memcpy(top, static_cast<const R*>(p.top) + row, size_t(rows) * sizeof(R));
        std::memcpy(log_sum, static_cast<const R*>(p.log_sum) + row, size_t(rows) * sizeof(R));
        if (p.grad_rows) std::memcpy(g, static_cast<const R*>(p.grad) + row, size_t(rows) * sizeof(R));
        weigh_samples(p, row, rows, g);
        for (int l = 0; l < LANES; l++) {
            RowSlopes<R> slopes = this->row(l);
            slopes.start(p, pick(label.valid[l] == R(0), R(0), g[l]), label.weight[l]);
            g[l] = slopes.g, extra[l] = slopes.extra;
        }
    }

    // Slopes of x' by p alone.
    template <class S>
    void of_p(const R* x, int64_t pitch, R* __restrict out, int64_t to_pitch, int64_t n, Ahead next, Ahead to) const {
        for (int64_t j = 0; j < n; j++) {
            next.fetch(j), to.fetch_to_write(j);
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = row(l).of_p(x[j * pitch + l]);
        }
    }
    // What the weights take from them.
    template <bool NEAR_ONE>
    APART_MEMBER void minus_weights(
        const R* x, int64_t pitch, const R* w, int64_t w_pitch, R* __restrict out, int64_t to_pitch, int64_t n
    ) const {
        for (int64_t j = 0; j < n; j++) {
            const R *logit = x + j * pitch, *weight = w + j * w_pitch;
            R* slope = out + j * to_pitch;
            for (int l = 0; l < LANES; l++)
                if constexpr (NEAR_ONE) slope[l] = row(l).minus_weight_near_one(slope[l], logit[l], weight[l]);
                else slope[l] = row(l).minus_weight(slope[l], weight[l]);
        }
    }
    // The slopes of the class indices, among the classes [k, k + n).
    void of_indices(const R* x, int64_t pitch, R* out, int64_t to_pitch, int64_t k, int64_t n) const {
        R at_y[LANES] = {};
        label.pick_own(x, pitch, k, n, at_y);
        for (int l = 0; l < LANES; l++) at_y[l] = row(l).of_index(row(l).log_p(at_y[l]));
        label.put(at_y, out, to_pitch, k, n);
    }

    // w ∘ s(p) in the place of w.
    APART_MEMBER void weigh(const Softmax& p, const Tile<R>& logits, Tile<R>& weights, int64_t q, int64_t n) const {
        R f[LANES], s[LANES];
        for (int64_t j = 0; j < n; j++) {
            R* w = weights.at(q) + j * weights.pitch;
            penalise_run(p, logits.at(q) + j * logits.pitch, top, log_sum, f, s);
            for (int l = 0; l < LANES; l++) w[l] = times(w[l], s[l]);
        }
    }
    APART_MEMBER void of_targets(
        const Softmax& p, const R* x, int64_t pitch, const R* c, R* out, int64_t to_pitch, int64_t n
    ) const {
        const R keep = R(1 - p.smoothing);
        for (int64_t j = 0; j < n; j++) {
            R f[LANES], s[LANES];
            const R weight = c ? c[j] : R(1);
            penalise_run(p, x + j * pitch, top, log_sum, f, s);
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = row(l).of_target(keep, weight, f[l]);
        }
    }
};

// s(p) of a panel's class indices, by the logits of the classes as they lie in memory; 0 for rows that do not count.
template <class R, class S>
INLINE void index_pulls(const Softmax& p, const Rows<R, S>& here, int64_t q, const Slopes<R>& slopes, R* s) {
    const Labels<R>& label = slopes.label;
    for (int l = 0; l < LANES; l++) s[l] = label.valid[l];
    if (p.penalty == NO_PENALTY) return;
    R log_p[LANES] = {}, f[LANES];
    for (int64_t l = 0; l < here.rows_of(q); l++) {
        if (label.y[l] == NO_CLASS) continue;
        const R x = widen(here.x[here.offset(p.at, q * LANES + l) + label.y[l] * p.at.classes]);
        log_p[l] = slopes.row(l).log_p(target_logit(p, x, label.y[l]));
    }
    penalise<LANES>(p, log_p, f, s);
    for (int l = 0; l < LANES; l++) s[l] = pick(label.valid[l] == R(0), R(0), s[l]);
}

// The masses of a panel's class indices.
template <class R, class S>
INLINE void set_index_masses(const Softmax& p, const Rows<R, S>& here, int64_t q, Slopes<R>& slopes) {
    const Smoothing<R> smoothing(p);
    const Labels<R>& label = slopes.label;
    const R total = R(p.weight_sum);
    R s[LANES], even[LANES];
    index_pulls(p, here, q, slopes, s);
    for (int l = 0; l < LANES; l++) even[l] = label.weight[l];
    if (const R* spread = static_cast<const R*>(p.spread))
        for (int l = 0; l < LANES; l++) even[l] = label.y[l] == NO_CLASS ? R(0) : spread[label.y[l]];
    for (int l = 0; l < LANES; l++) slopes.set(l, index_masses(smoothing, label.weight[l], even[l], total, s[l]));
}

// Σ w s(p) of a panel's rows, or Σ w: of all classes, of others than the row's own, and without the one that has more
// than half of p. There are as many terms as classes, which a float would round one by one.
struct Pulls {
    double all[LANES] = {}, others[LANES] = {}, rest[LANES] = {};

    // Of a class, of which `apart` says whether it is the one that `rest` leaves out.
    template <class R, class A> INLINE_MEMBER void add(const R* pull, const Class<R>* own, int64_t k, A&& apart) {
        for (int l = 0; l < LANES; l++) all[l] += double(pull[l]);
        for (int l = 0; l < LANES; l++) others[l] += double(pick(own[l] == Class<R>(k), R(0), pull[l]));
        for (int l = 0; l < LANES; l++) rest[l] += double(pick(apart(l), R(0), pull[l]));
    }
};

// The masses of a panel's rows out of those sums.
template <class R, class S>
INLINE void set_masses(const Softmax& p, const Rows<R, S>& here, int64_t q, const Pulls& pulls, Slopes<R>& slopes) {
    const Smoothing<R> smoothing(p);
    R s[LANES] = {};
    if (!here.t) index_pulls(p, here, q, slopes, s);
    for (int l = 0; l < LANES; l++) {
        Masses<R> masses = index_masses(smoothing, slopes.label.weight[l], R(0), R(0), s[l]);
        masses.spread = R(pulls.all[l]), masses.others = R(pulls.others[l]);
        if (p.penalty != NO_PENALTY) masses.rest = R(pulls.rest[l]);
        slopes.set(l, masses);
    }
}

// The masses of a tile's rows that are sums over classes: of w, or of w ∘ s(p) where there is a penalty.
template <class R, class S> APART void sum_masses(const Softmax& p, const Rows<R, S>& here, Slopes<R>* slopes) {
    const bool penalised = p.penalty != NO_PENALTY;
    Pulls pulls[ROWS / LANES];
    const auto labels = [&](int64_t q) -> const Labels<R>& { return slopes[q].label; };
    look_again<R>(p, here, penalised, labels, [&](int64_t q, int64_t k, const R* x, const R* w) {
        const Labels<R>& label = slopes[q].label;
        R log_p[LANES], f[LANES], s[LANES];
        for (int l = 0; l < LANES; l++) s[l] = 1, log_p[l] = slopes[q].row(l).log_p(x[l]);
        if (penalised) penalise<LANES>(p, log_p, f, s);
        for (int l = 0; l < LANES; l++) s[l] = pick(label.valid[l] == R(0), R(0), times(w[l], s[l]));
        pulls[q].add(s, label.own, k, [&](int l) { return log_p[l] > LOG_HALF<R>; });
    });
    for (int64_t q = 0; q < here.panels(); q++) set_masses(p, here, q, pulls[q], slopes[q]);
}

// Takes the logits and targets of a tile's rows, their top and log_sum, and the gradients of their losses. Gives the
// slopes of the logits and of the probabilities, each where it is wanted; those of a row that does not count are 0.
template <class R, class S> static void tile_backward(const Softmax& p, int64_t tile) {
    const Rows<R, S> here(p, tile);
    Tile<R> logits, weights, result;
    Slopes<R> slopes[ROWS / LANES];
    const bool all = p.penalises_all();
    for (int64_t q = 0; q < here.panels(); q++) {
        slopes[q].label.read(p, here.first_of(q), here.rows_of(q));
        slopes[q].read(p, here.first_of(q), here.rows_of(q));
        if (!here.t && !all) set_index_masses(p, here, q, slopes[q]);
    }
    if (here.t || all) sum_masses(p, here, slopes);
    for (int64_t k = 0, most = p.chunk(); k < p.classes; k += most) {
        const int64_t n = std::min(p.classes - k, most);
        const S* x = here.x + k * p.at.classes;
        logits.load(x, p.at, n, here);
        for (int64_t q = 0; p.transformed() && q < here.panels(); q++)
            transform_panel(p, logits.at(q), logits.pitch, slopes[q].label, k, n);
        if (here.out_target) {
            const R* c = p.weight ? static_cast<const R*>(p.weight) + k : nullptr;
            result.lay_out(p.grad_target_at, n, here);
            for (int64_t q = 0; q < here.panels(); q++)
                slopes[q].of_targets(p, logits.at(q), logits.pitch, c, result.at(q), result.pitch, n);
            here.out_target.typed([&](auto* to) {
                result.store(to + k * p.grad_target_at.classes, p.grad_target_at, n, here);
            });
        }
        if (!here.out) continue;
        S* out = here.out + k * p.grad_at.classes;
        const bool weighted = tile_weights(p, here, k, n, weights);
        result.lay_out(p.grad_at, n, here);
        for (int64_t q = 0; q < here.panels(); q++) {
            const R *from = logits.at(q), *w = weights.at(q);
            R* to = result.at(q);
            const int64_t pitch = result.pitch;
            if (all) slopes[q].weigh(p, logits, weights, q, n);
            slopes[q].template of_p<S>(from, logits.pitch, to, pitch, n, {x, p.at, p, n, q}, {out, p.grad_at, p, n, q});
            if (here.t || all)
                slopes[q].template minus_weights<true>(from, logits.pitch, w, weights.pitch, to, pitch, n);
            else if (weighted)
                slopes[q].template minus_weights<false>(from, logits.pitch, w, weights.pitch, to, pitch, n);
            if (!here.t) slopes[q].of_indices(from, logits.pitch, to, pitch, k, n);
        }
        if (p.transformed()) chain_tile(p, here, x, result, k, n);
        result.store(out, p.grad_at, n, here);
    }
}

// --- both at once ---------------------------------------------------------------------------------------------------

// What tile_both keeps of CLASSES classes: e^{x - level} of each, and the levels.
template <class R> struct KeptTile {
    Tile<R> e;
    alignas(64) R level[ROWS];
};
// The same of all classes from the k-th on, and the tiles of w s(p) and of the slopes of a soft cap, or null.
template <class R> struct KeptChunk {
    KeptTile<R>& powers;
    Tile<R>*pulls, *bends;

    KeptChunk(const Softmax& p, int64_t k) : powers(tile(p, 0, k)) {
        pulls = p.pulls_at() ? &tile(p, p.pulls_at(), k).e : nullptr;
        bends = p.bends_at() ? &tile(p, p.bends_at(), k).e : nullptr;
    }
    static KeptTile<R>& tile(const Softmax& p, int64_t number, int64_t k) {
        return static_cast<KeptTile<R>*>(p.scratch)[number * p.chunks() + k / p.chunk()];
    }
};
static_assert(
    sizeof(KeptTile<float>) <= KEPT_TILE * sizeof(float) && sizeof(KeptTile<double>) <= KEPT_TILE * sizeof(double)
);

// Put Σ w f(p) in the place of Σ w (-log p), where every class has a weight, and w s(p) in the place of each logit that
// was kept; sum the latter.
template <class R, class S>
APART void penalise_kept(
    const Softmax& p, const Rows<R, S>& here, Tile<R>& weights, const Slopes<R>* slopes, Sums<R>* sum, Pulls* pulls
) {
    OfPowers<R> powers[ROWS / LANES];
    R log_sum[ROWS / LANES][LANES], at_top[LANES];
    for (int64_t q = 0; q < here.panels(); q++) {
        sum[q].log_sums(log_sum[q]);
        for (int l = 0; l < LANES; l++) at_top[l] = -log_sum[q][l], sum[q].cost[l] = sum[q].mass[l] = 0;
        penalise<LANES>(p, at_top, powers[q].likely_f, powers[q].likely_s);
    }
    for (int64_t k = 0, most = p.chunk(); k < p.classes; k += most) {
        const int64_t n = std::min(p.classes - k, most);
        const KeptChunk<R> kept(p, k);
        const KeptTile<R>& from = kept.powers;
        Tile<R>& to = *kept.pulls;
        tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++) {
            const Labels<R>& label = slopes[q].label;
            sum[q].of_powers(log_sum[q], from.level + q * LANES, powers[q].of_e, powers[q].likely);
            for (int64_t j = 0; j < n; j++) {
                const R *e = from.e.at(q) + j * from.e.pitch, *w = weights.at(q) + j * weights.pitch;
                R *x = to.at(q) + j * to.pitch, log_p[LANES], f[LANES], s[LANES];
                for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x[l], sum[q].top[l], log_sum[q][l]);
                powers[q].penalise(p, log_p, e, f, s);
                for (int l = 0; l < LANES; l++) sum[q].cost[l] += times(w[l], f[l]);
                for (int l = 0; l < LANES; l++) x[l] = pick(label.valid[l] == R(0), R(0), times(w[l], s[l]));
                pulls[q].add(x, label.own, k + j, [&](int l) { return e[l] == powers[q].likely[l]; });
            }
        }
    }
}

// What makes slopes of a panel's e^{x - level}: times `of_e` it is p g (mass + extra). Where it equals `likely`, which
// is 1 or, for none, nan, the class has more than half of p.
template <class R> struct SlopesOfE {
    const Slopes<R>& slopes;
    alignas(64) R of_e[LANES], likely[LANES];
    int64_t any_likely = 0;

    SlopesOfE(const Slopes<R>& of, const Sums<R>& sum, const R* level) : slopes(of) {
        sum.of_powers(of.log_sum, level, of_e, likely);
        for (int l = 0; l < LANES; l++) of_e[l] = times(of.scale[l], of_e[l]);
        for (int l = 0; l < LANES; l++) any_likely |= likely[l] == R(1);
    }

    // Put 0 for rows without weight, whatever their logits hold.
    void leave_out(R* e, int64_t pitch, int64_t n) const {
        int64_t any = 0;
        for (int l = 0; l < LANES; l++) any |= slopes.scale[l] == R(0);
        for (int64_t j = 0; any && j < n; j++)
            for (int l = 0; l < LANES; l++) e[j * pitch + l] = pick(slopes.scale[l] == R(0), R(0), e[j * pitch + l]);
    }
    void plain(const R* e, int64_t pitch, R* __restrict out, int64_t to_pitch, int64_t n) const {
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++) out[j * to_pitch + l] = of_e[l] * e[j * pitch + l];
    }
    APART_MEMBER void minus_weights(
        const R* e, int64_t pitch, const R* w, int64_t w_pitch, R* __restrict out, int64_t to_pitch, int64_t n
    ) const {
        for (int64_t j = 0; j < n; j++)
            for (int l = 0; l < LANES; l++)
                out[j * to_pitch + l] = slopes.row(l).minus_weight(of_e[l] * e[j * pitch + l], w[j * w_pitch + l]);
    }
    // The slopes of likely classes, whose e is 1.
    APART_MEMBER void of_likely(
        const R* e, int64_t pitch, const R* w, int64_t w_pitch, R* out, int64_t to_pitch, int64_t n
    ) const {
        R slope[LANES];
        for (int64_t j = 0; any_likely && j < n; j++) {
            const R *one = e + j * pitch, *weight = w + j * w_pitch;
            R* to = out + j * to_pitch;
            int64_t hit = 0;
            for (int l = 0; l < LANES; l++) hit |= one[l] == likely[l];
            if (!hit) continue;
            for (int l = 0; l < LANES; l++) slope[l] = slopes.row(l).of_likely(-slopes.log_sum[l], weight[l]);
            for (int l = 0; l < LANES; l++) to[l] = pick(one[l] == likely[l], slope[l], to[l]);
        }
    }
};

// Takes the logits and targets of a tile's rows, and the gradient of a loss. Gives the losses and weights of the rows,
// added to `sums`, and the slopes of the logits, if they are wanted, formed of the same powers e^{x - level}, which are
// kept in the scratch.
template <class R, class S> APART void tile_both(const Softmax& p, int64_t tile, double* sums) {
    const Rows<R, S> here(p, tile);
    Tile<R> weights, result;
    Sums<R> sum[ROWS / LANES];
    Slopes<R> slopes[ROWS / LANES];
    const bool all = p.penalises_all();
    for (int64_t q = 0; q < here.panels(); q++) slopes[q].label.read(p, here.first_of(q), here.rows_of(q));
    for (int64_t k = 0, most = p.chunk(); k < p.classes; k += most) {
        const int64_t n = std::min(p.classes - k, most);
        const KeptChunk<R> kept(p, k);
        KeptTile<R>& to = kept.powers;
        to.e.load(here.x + k * p.at.classes, p.at, n, here);
        if (kept.pulls) kept.pulls->lay_out(p.at, n, here);
        if (kept.bends) kept.bends->lay_out(p.at, n, here);
        const bool weighted = !all && tile_weights(p, here, k, n, weights);
        for (int64_t q = 0; q < here.panels(); q++) {
            const Labels<R>& label = slopes[q].label;
            R* x = to.e.at(q);
            if (p.transformed())
                transform_panel(p, x, to.e.pitch, label, k, n, kept.bends ? kept.bends->at(q) : nullptr);
            if (!here.t) label.pick_own(x, to.e.pitch, k, n, sum[q].at_y);
            sum[q].raise(x, to.e.pitch, n, k == 0);
            for (int64_t j = 0; kept.pulls && j < n; j++)
                std::memcpy(kept.pulls->at(q) + j * to.e.pitch, x + j * to.e.pitch, LANES * sizeof(R));
            if (weighted) sum[q].add_costs(x, to.e.pitch, weights.at(q), weights.pitch, n);
            sum[q].template add_exps<true, S>(x, to.e.pitch, n, Ahead(here.x + k * p.at.classes, p.at, p, n, q));
            std::memcpy(to.level + q * LANES, sum[q].level, sizeof sum[q].level);
        }
    }
    R at_y[ROWS / LANES][LANES];
    Pulls pulls[ROWS / LANES];
    if (all) penalise_kept(p, here, weights, slopes, sum, pulls);
    for (int64_t q = 0; q < here.panels(); q++) {
        for (int l = 0; !all && l < LANES; l++) pulls[q].all[l] = double(sum[q].mass[l]);
        finish(p, here, q, slopes[q].label, sum[q], sums);
        if (!here.out) continue;
        slopes[q].read(p, here.first_of(q), here.rows_of(q));
        if (here.t || all) set_masses(p, here, q, pulls[q], slopes[q]);
        else set_index_masses(p, here, q, slopes[q]);
        for (int l = 0; l < LANES; l++) {
            const RowSlopes<R> row = slopes[q].row(l);
            at_y[q][l] = row.of_index(row.log_p(sum[q].at_y[l]));
        }
    }
    if (!here.out) return;
    for (int64_t k = 0, most = p.chunk(); k < p.classes; k += most) {
        const int64_t n = std::min(p.classes - k, most);
        const KeptChunk<R> kept(p, k);
        KeptTile<R>& from = kept.powers;
        const bool weighted = all || tile_weights(p, here, k, n, weights);
        const Tile<R>& of_classes = all ? *kept.pulls : weights;
        result.lay_out(p.grad_at, n, here);
        for (int64_t q = 0; q < here.panels(); q++) {
            const SlopesOfE<R> of(slopes[q], sum[q], from.level + q * LANES);
            const R* w = of_classes.at(q);
            R *e = from.e.at(q), *to = result.at(q);
            of.leave_out(e, from.e.pitch, n);
            if (weighted) of.minus_weights(e, from.e.pitch, w, of_classes.pitch, to, result.pitch, n);
            else of.plain(e, from.e.pitch, to, result.pitch, n);
            if (here.t || all) of.of_likely(e, from.e.pitch, w, of_classes.pitch, to, result.pitch, n);
            if (!here.t) slopes[q].label.put(at_y[q], to, result.pitch, k, n);
        }
        if (p.transformed()) chain_panels(p, here, kept.bends, result, k, n);
        result.store(here.out + k * p.grad_at.classes, p.grad_at, n, here, p.stream);
    }
}

}  // namespace
