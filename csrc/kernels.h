// The CPU kernels: plain C++17 loops, compiled once for each instruction set (isa.cpp), chosen at run time (launch.h).
//
// Precision: everything is computed in R, which is float for float, bfloat16 and half logits and double for double;
// sums over classes run in LANES of R and are carried on in double, sums over rows run in double. A row's lse is the
// pair (top, log_sum) with log_sum = log1p(Σ_{j≠top} e^{x_j - top}), so that a confident row keeps its relative
// accuracy; the gradient of the true class is formed as expm1(log p_y).
//
// Denormals: results below the smallest normal number may become 0 (flush.h); arguments keep what they hold.
//
// Order: every sum has a fixed order, whatever the threads. No allocation, no threads and no exceptions here.
// Everything is static: an object compiled for one instruction set must not offer its code to another.
//
// Form: what a compiler is to turn into vectors is a loop over LANES numbers, and data come in runs of LANES: the last
// of a row is filled up, or overlaps with the one before. A gradient is formed in the nearest cache and stored from
// there, so that it may lie where the logits lie.
//
// Takes the structures of problem.h and a range of tiles or blocks. Gives what they point to. Refuses nothing: what it
// does not take was refused before, in Python or by the binding (bind_checks.h).

#pragma once
#include "binary.h"
#include "flush.h"
#include "plain_rows.h"

namespace {

// Do something with each row of a tile.
template <class F> INLINE void each_row(const Softmax& p, int64_t tile, F&& f) {
    const Span rows(p, tile);
    for (int64_t row = rows.row; row < rows.row + rows.rows; row++) f(row);
}

// Whether all of a range was a plain problem's.
template <Wanted WANTED, class S> INLINE bool plain_range(const Softmax& p, int64_t begin, int64_t end) {
    using R = typename Wide<S>::type;
    if (!p.plain()) return false;
    p.by_row ? plain_rows<WANTED, R, S>(p, begin, end) : plain_tiles<WANTED, R, S>(p, begin, end);
    return true;
}

template <class S> INLINE void forward_tile(const Softmax& p, int64_t tile) {
    using R = typename Wide<S>::type;
    double sums[2] = {0, 0};
    if (p.by_row) each_row(p, tile, [&](int64_t row) { row_forward<R, S>(p, row, sums); });
    else tile_forward<R, S>(p, tile, sums);
    if (p.partial) p.partial[2 * tile] = sums[0], p.partial[2 * tile + 1] = sums[1];
}

template <class S> INLINE void backward_tile(const Softmax& p, int64_t tile) {
    using R = typename Wide<S>::type;
    if (p.by_row) each_row(p, tile, [&](int64_t row) { row_backward<R, S>(p, row); });
    else tile_backward<R, S>(p, tile);
}

template <class S> INLINE void both_of_tile(const Softmax& p, int64_t tile) {
    using R = typename Wide<S>::type;
    if (!p.by_row && !p.keeps_tiles()) {
        forward_tile<S>(p, tile);
        if (p.grad_logits) backward_tile<S>(p, tile);
        return;
    }
    double* sums = p.partial + 2 * tile;
    sums[0] = sums[1] = 0;
    if (p.by_row) each_row(p, tile, [&](int64_t row) { row_both<R, S>(p, row, sums); });
    else tile_both<R, S>(p, tile, sums);
}

template <class S> static void softmax_forward(const Softmax& p, int64_t begin, int64_t end) {
    flushing_results([&] {
        if (plain_range<LOSSES, S>(p, begin, end)) return;
        for (int64_t tile = begin; tile < end; tile++) forward_tile<S>(p, tile);
    });
}

template <class S> static void softmax_backward(const Softmax& p, int64_t begin, int64_t end) {
    flushing_results([&] {
        if (plain_range<SLOPES, S>(p, begin, end)) return;
        for (int64_t tile = begin; tile < end; tile++) backward_tile<S>(p, tile);
    });
}

// The loss and its gradient while the rows of a tile are near: memory is read once and written once.
template <class S> static void softmax_both(const Softmax& p, int64_t begin, int64_t end) {
    flushing_results([&] {
        if (plain_range<BOTH, S>(p, begin, end)) return;
        for (int64_t tile = begin; tile < end; tile++) both_of_tile<S>(p, tile);
    });
    if (p.stream) finish_streams();
}

template <class S> static void binary(const Binary& p, int64_t begin, int64_t end) {
    flushing_results([&] {
        for (int64_t block = begin; block < end; block++) binary_block<typename Wide<S>::type, S>(p, block);
    });
    if (p.stream) finish_streams();
}

// How many labels are not `ignored`; `wrong` gets bits where one of those is no class.
static int64_t count(const int64_t* labels, int64_t rows, int64_t ignored, int64_t classes, int64_t& wrong) {
    int64_t counted = 0, beyond = 0;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t taken = labels[i] != ignored;
        counted += taken, beyond |= taken & int64_t(uint64_t(labels[i]) >= uint64_t(classes));
    }
    wrong |= beyond;
    return counted;
}

template <class S> static void scale(const Scaled& p, int64_t begin, int64_t end) {
    using R = typename Wide<S>::type;
    const R factor = R(p.factor);
    S* numbers = static_cast<S*>(p.numbers);
    const int64_t first = begin * BLOCK, last = end * BLOCK < p.size ? end * BLOCK : p.size;
    const int64_t whole = first + (last - first) / LANES * LANES;
    flushing_results([&] {
        for (int64_t k = first; k < whole; k += LANES) {
            R run[LANES];
            widen_run(numbers + k, run);
            for (int l = 0; l < LANES; l++) run[l] = times(run[l], factor);
            narrow_run(run, numbers + k);
        }
        for (int64_t k = whole; k < last; k++) narrow(times(R(widen(numbers[k])), factor), numbers[k]);
    });
}

}  // namespace
