// Softmax cross entropy of rows with many classes that lie side by side in memory: one row at a time, block by block.
//
// Takes a Softmax problem of rows, and the number of one. row_forward gives the row's top and log_sum,
// its loss and what it weighs, and the statistics where they are wanted; row_backward the slopes of logits and target;
// row_both the loss and the slopes of logits in one pass.
// What is summed and how a slope is formed stands in row.h.
//
// Refuses classes that lie apart, and fewer than LANES of them: those go to tiles.h.

#pragma once
#include "row.h"
#include "runs.h"

namespace {

// A row: its logits, its probability target or its label (the class, c of it, and whether the row counts), its
// gradients.
template <class R, class S> struct Row {
    int64_t row, y = NO_CLASS;
    R weight = 1;
    bool valid = true;
    const S* x;
    S* out;
    Shares<R, S> t, out_target;
    bool target_apart;

    Row(const Softmax& p, int64_t at) : row(at), target_apart(p.target_at.classes != 1) {
        x = at_row<const S>(p, p.logits, p.at, row);
        out = at_row<S>(p, p.grad_logits, p.grad_at, row);
        out_target = {p, p.grad_target, p.grad_target_at, row};
        if (p.index_type < 0) t = {p, p.target, p.target_at, row};
        else read_label(p);
    }

    // The target that is read next, to be fetched ahead of its time.
    Shares<R, S> target_from(int64_t k) const { return t && !target_apart ? t.from(k) : Shares<R, S>(); }

  private:
    void read_label(const Softmax& p) {
        int64_t wrong = 0;
        y = index_at(p.target, p.index_type, row);
        valid = counts(p, y, wrong);
        if (wrong && p.out_of_range) p.out_of_range->store(true, std::memory_order_relaxed);
        if (!valid || y == NO_CLASS) y = NO_CLASS, weight = 0;
        else if (p.weight) weight = static_cast<const R*>(p.weight)[y];
    }
};

// --- blocks of a row ------------------------------------------------------------------------------------------------

// How many of a row's classes to take from k on: BLOCK, but never so many that fewer than LANES are left over.
INLINE int64_t block_size(int64_t classes, int64_t k) {
    const int64_t left = classes - k;
    return left <= BLOCK ? left : left < BLOCK + LANES ? BLOCK - LANES : BLOCK;
}

// The probabilities t of the classes [k, k + n).
template <class R, class S>
INLINE void load_target(const Softmax& p, const Shares<R, S>& target, int64_t k, int64_t n, R* scratch, Block<R>& t) {
    const int64_t step = p.target_at.classes;
    target.typed([&](const auto* from) __attribute__((always_inline)) {
        if (step == 1) return t.load(from + k, n, scratch);
        for (int64_t i = 0; i < n; i++) scratch[i] = widen(from[(k + i) * step]);
        t.load(scratch, n, scratch);
    });
}

// The weights w of the classes [k, k + n); where the target is indices, the part of them that smoothing spreads.
template <class R, class S>
APART void load_weights(const Softmax& p, const Shares<R, S>& target, int64_t k, int64_t n, R* scratch, Block<R>& w) {
    const Smoothing<R> smoothing(p);
    if (!target) {
        const R *spread = smoothing.spread, share = smoothing.share;
        for (int64_t i = 0; i < n; i++) scratch[i] = spread ? share * spread[k + i] : share;
        return w.load(scratch, n, scratch);
    }
    load_target(p, target, k, n, scratch, w);
    if (p.smoothing == 0 && !p.weight) return;
    for (int64_t i = 0; i < padded(n); i += LANES) {
        const R* from = w.run(i);
        R *to = i < w.whole ? scratch + i : w.last, run[LANES];
        const int64_t at = k + (i < w.whole ? i : n - LANES);
        if (smoothing.weight)
            for (int l = 0; l < LANES; l++)
                run[l] = smoothing.of(from[l], smoothing.weight[at + l], smoothing.spread[at + l]);
        else if (smoothing.spread)
            for (int l = 0; l < LANES; l++) run[l] = smoothing.of(from[l], R(1), smoothing.spread[at + l]);
        else
            for (int l = 0; l < LANES; l++) run[l] = smoothing.of(from[l], R(1), R(1));
        for (int l = 0; l < LANES; l++) to[l] = run[l];
    }
    w.x = scratch;
}

// Replace a block of a row's logits from class k on by what they become; `bends` gets the slopes of a soft cap, or is
// null.
template <class R>
APART void transform_block(const Softmax& p, Block<R>& block, int64_t k, int64_t y, R* scratch, R* bends = nullptr) {
    const Transform<R> transform(p);
    Block<R> bias;
    // Without a bias, block.x stands for nothing.
    bias.load(p.bias ? static_cast<const R*>(p.bias) + k : block.x, block.n, scratch);
    for (int64_t i = 0; i < block.whole; i += LANES)
        transform.template run<true>(
            block.x + i, p.bias ? bias.x + i : nullptr, scratch + i, bends ? bends + i : nullptr
        );
    if (block.whole < block.n)
        transform.template run<true>(
            block.last, p.bias ? bias.last : nullptr, block.last, bends ? bends + block.n - LANES : nullptr
        );
    block.x = scratch;
    const R margin = margin_of<R>(p);
    const int64_t at = y - k, repeated = at - (block.n - LANES);
    if (y < 0 || at < 0 || at >= block.n || margin == R(0)) return;
    if (at < block.whole) scratch[at] -= margin;
    if (block.whole < block.n && repeated >= 0) block.last[repeated] -= margin;
}

// The index of the first number in a block that equals a value; n where there is none.
template <class R> INLINE int64_t first_of(const Block<R>& block, R value) {
    const Class<R> n = Class<R>(block.n), none = n;
    Class<R> first[LANES];
    for (int l = 0; l < LANES; l++) first[l] = none;
    if (block.whole < block.n)
        for (int l = 0; l < LANES; l++)
            first[l] = pick(l >= block.seen && block.last[l] == value, Class<R>(n - LANES + l), none);
    for (int64_t k = block.whole - LANES; k >= 0; k -= LANES)  // to the front, so that the first is the last to be put
        for (int l = 0; l < LANES; l++) first[l] = pick(block.x[k + l] == value, Class<R>(k + l), first[l]);
    Class<R> least = none;
    for (int l = 0; l < LANES; l++) least = std::min(least, first[l]);
    return least;
}

// The largest number of a block. It is the largest of ABREAST lanes, each of which has seen every ABREAST-th number.
template <class R> struct Largest {
    // A comparison takes about four cycles, and two can begin in each. LANES numbers are two registers of AVX-512 and
    // four of AVX2, so there are twice as many lanes; in float64 and with SSE2 they are twice as many registers anyway.
    static constexpr int64_t ABREAST = REGISTER >= 32 && sizeof(R) == 4 ? 2 * LANES : LANES;
    alignas(64) R lane[ABREAST];
    R value;

    INLINE_MEMBER explicit Largest(const Block<R>& block) {
        for (int l = 0; l < ABREAST; l++) lane[l] = -INF<R>;
        int64_t k = 0;
        for (; k + ABREAST <= block.whole; k += ABREAST) raise<ABREAST>(block.x + k);
        if (k < block.whole) raise<LANES>(block.x + k);
        if (block.whole < block.n) raise<LANES>(block.last);
        R half[LANES];
        for (int l = 0; l < LANES; l++)
            half[l] = pick(lane[ABREAST - LANES + l] > lane[l], lane[ABREAST - LANES + l], lane[l]);
        value = fold_max(half);
    }

    // The index of the first number that equals it; n where there is none. As a rule one lane has it, and only what
    // that lane has seen is looked through.
    INLINE_MEMBER int64_t first(const Block<R>& block) const {
        Class<R> lanes = 0, at = 0;
        for (int l = 0; l < ABREAST; l++) {
            const bool here = lane[l] == value;
            lanes += pick(here, Class<R>(1), Class<R>(0)), at += pick(here, Class<R>(l), Class<R>(0));
        }
        if (lanes != 1) return first_of(block, value);
        const int64_t rest = block.whole / ABREAST * ABREAST;
        int64_t first = block.n;
        if (block.whole < block.n && at < LANES && block.last[at] == value) first = block.n - LANES + at;
        if (rest < block.whole && at < LANES && block.x[rest + at] == value) first = rest + at;
        for (int64_t k = rest - ABREAST + at; k >= 0; k -= ABREAST) first = pick(block.x[k] == value, k, first);
        return first;
    }

  private:
    template <int64_t N> INLINE_MEMBER void raise(const R* x) {
        for (int l = 0; l < N; l++) lane[l] = pick(x[l] > lane[l], x[l], lane[l]);
    }
};

// Load a block, with what it repeats as -inf.
template <class R, class S>
INLINE void load_logits(
    const Softmax& p, const S* from, int64_t k, int64_t n, int64_t y, R* scratch, Block<R>& block, R* bends
) {
    block.load(from + k, n, scratch);
    if (p.transformed()) transform_block(p, block, k, y, scratch, bends);
    block.fill(-INF<R>);
}

// A second look at a row whose p is known, from a cache: do something with each block of x' and where it begins.
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

// --- sums over a block ----------------------------------------------------------------------------------------------

// Σ e^{x - level} of a block without the first of its classes that is the level, if it has one: its 1 would drown the
// rest of a confident row. Meanwhile as many logits as the block has are fetched from `next` on, and from one block
// further on if the row is long enough for it. KEEP has each power written to `e`.
template <bool KEEP, class R, class S>
INLINE void add_exps(
    RowSums<R, double>& sum, const Block<R>& block, int64_t first, const S* next, const Shares<R, S>& next_target,
    R* __restrict e, const S* out
) {
    const R level = sum.level();
    const S* far = block.n >= BLOCK - LANES ? next + BLOCK : nullptr;
    const int64_t apart = first < block.whole ? first / LANES * LANES : block.whole;  // the run that has the first
    alignas(64) R others[LANES] = {}, one[LANES];
    const auto powers = [&](const R* x, R* to) __attribute__((always_inline)) {
        R below[LANES];
        for (int l = 0; l < LANES; l++) below[l] = x[l] - level;
        exp_run(below, to);
    };
    for (int64_t k = 0; k < block.whole; k += LANES) {
        fetch(next + k, LANES * sizeof(S));
        if (far) fetch_near(far + k, LANES * sizeof(S));
        if (KEEP && out) fetch_to_write(out + k, LANES * sizeof(S));
        if (next_target) fetch(next_target.from(k).at, LANES * next_target.size());
        if (k == apart) continue;
        R* to = KEEP ? e + k : one;
        powers(block.x + k, to);
        for (int l = 0; l < LANES; l++) others[l] += to[l];
    }
    if (apart < block.whole) {
        powers(block.x + apart, one);
        for (int l = 0; l < LANES; l++) others[l] += pick(l == first - apart, R(0), one[l]);
        for (int l = 0; KEEP && l < LANES; l++) e[apart + l] = one[l];
    }
    if (block.whole < block.n) {
        const int64_t begin = block.n - LANES;
        powers(block.last, one);
        for (int l = 0; l < LANES; l++) others[l] += pick(l == first - begin, R(0), one[l]);
        for (int64_t l = block.seen; KEEP && l < LANES; l++) e[begin + l] = one[l];
    }
    sum.others += fold(others);
    if (first < block.n) sum.ties += 1;
}

// The moment of a block, of whose classes the powers e^{x - level} are known; what its last run repeats is -inf.
template <class R> INLINE void add_moments(RowSums<R, double>& sum, const Block<R>& block, const R* e) {
    const R level = sum.level();
    alignas(64) R moment[LANES] = {};
    block.each([&](const R* x, int64_t k) __attribute__((always_inline)) {
        const R* powers = e + std::min(k, block.n - LANES);
        for (int l = 0; l < LANES; l++) add_moment(x[l], level, powers[l], moment[l]);
    });
    sum.moment += fold(moment);
}

// add_cost of n elements; without weights w is 1.
template <class R> INLINE void add_costs_of(RowSums<R, double>& sum, R level, const R* w, const R* x, int64_t n) {
    alignas(64) R costs[LANES] = {}, masses[LANES] = {};
    const int64_t whole = n / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES) {
        if (w)
            for (int l = 0; l < LANES; l++) add_cost(w[k + l], x[k + l], level, costs[l], masses[l]);
        else
            for (int l = 0; l < LANES; l++) costs[l] += level - x[k + l];
    }
    for (int64_t k = whole; k < n; k++) {
        if (w) add_cost(w[k], x[k], level, costs[k - whole], masses[k - whole]);
        else costs[k - whole] += level - x[k];
    }
    sum.cost += fold(costs);
    sum.mass += w ? fold(masses) : double(n);
}

// The same of a block, with the weights of its whole runs and of what is behind those.
template <class R>
INLINE void add_costs(RowSums<R, double>& sum, R level, const R* w, const R* w_last, const Block<R>& block) {
    add_costs_of(sum, level, w, block.x, block.whole);
    if (block.whole < block.n) add_costs_of(sum, level, w_last, block.last + block.seen, LANES - block.seen);
}
template <class R> INLINE void add_costs(RowSums<R, double>& sum, R level, const Block<R>& w, const Block<R>& block) {
    add_costs(sum, level, w.x, w.last + w.seen, block);
}

// f and s of a block's classes, run by run.
template <class R> INLINE void penalise_block(const Softmax& p, const Block<R>& block, R top, R log_sum, R* f, R* s) {
    block.each([&](const R* x, int64_t k) {
        R log_p[LANES];
        for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x[l], top, log_sum);
        penalise<LANES>(p, log_p, f + k, s + k);
    });
}

// w ∘ s in the place of w.
template <class R> INLINE void weigh_block(Block<R>& w, const R* s, R* scratch) {
    for (int64_t k = 0; k < padded(w.n); k += LANES) {
        const R* from = w.run(k);
        R* to = k < w.whole ? scratch + k : w.last;
        for (int l = 0; l < LANES; l++) to[l] = times(from[l], s[k + l]);
    }
    w.x = scratch;
}

// What row_both keeps of a row: e^{x - level} of each class and the level of each block; w s(p) of each class where all
// are penalised, and the slope of a soft cap, or null.
template <class R> struct Kept {
    R *e = nullptr, *pulls = nullptr, *bends = nullptr, *levels = nullptr;
    Kept() = default;
    explicit Kept(const Softmax& p) : e(static_cast<R*>(p.scratch)) {
        const int64_t row = p.kept_row();
        pulls = p.pulls_at() ? e + p.pulls_at() * row : nullptr;
        bends = p.bends_at() ? e + p.bends_at() * row : nullptr;
        levels = e + p.kept_numbers() * row;
    }
    R* bends_from(int64_t k) const { return bends ? bends + k : nullptr; }
};

// Σ w f(p) and, by add_pull, Σ w s(p) of a row in which every class has a weight.
template <class R> struct PenalisedSums {
    double cost = 0, mass = 0, rest = 0;

    PenalisedSums() = default;
    template <class S> PenalisedSums(const Softmax& p, const Row<R, S>& here, R top, R log_sum) {
        alignas(64) R scratch[BLOCK];
        Block<R> w;
        look_again<R>(p, here.x, here.y, [&](const Block<R>& block, int64_t k) {
            load_weights(p, here.t, k, block.n, scratch, w);
            w.fill(R(0));
            alignas(64) R costs[LANES] = {}, masses[LANES] = {}, rests[LANES] = {};
            w.each([&](const R* weight, int64_t i) {
                const R* x = block.run(i);
                R log_p[LANES], f[LANES], s[LANES];
                for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x[l], top, log_sum);
                penalise<LANES>(p, log_p, f, s);
                for (int l = 0; l < LANES; l++) {
                    costs[l] += times(weight[l], f[l]);
                    add_pull(log_p[l], times(weight[l], s[l]), masses[l], rests[l]);
                }
            });
            cost += fold(costs), mass += fold(masses), rest += fold(rests);
        });
    }

    // Out of the powers that were kept of the row. What the sums are made of is kept for the slopes.
    template <class S>
    PenalisedSums(const Softmax& p, const Row<R, S>& here, const RowSums<R, double>& sum, R log_sum, Kept<R> kept) {
        alignas(64) R scratch[BLOCK];
        Block<R> w;
        OfPowers<R> powers;
        const R at_top = -log_sum;
        R cost_at_top, pull_at_top;
        penalise<1>(p, &at_top, &cost_at_top, &pull_at_top);
        for (int l = 0; l < LANES; l++) powers.likely_f[l] = cost_at_top, powers.likely_s[l] = pull_at_top;
        look_again<R>(p, here.x, here.y, [&](const Block<R>& block, int64_t k) {
            load_weights(p, here.t, k, block.n, scratch, w);
            const R level = *kept.levels++, of_e = sum.of_e(level), likely = sum.likely(level, log_sum);
            for (int l = 0; l < LANES; l++) powers.of_e[l] = of_e, powers.likely[l] = likely;
            alignas(64) R costs[LANES] = {}, masses[LANES] = {}, rests[LANES] = {};
            w.each([&](const R* weight, int64_t i) {
                const int64_t at = k + std::min(i, block.n - LANES), again = i < block.whole ? 0 : block.seen;
                const R *x = block.run(i), *e = kept.e + at;
                R *pulls = kept.pulls + at, log_p[LANES], f[LANES], s[LANES];
                for (int l = 0; l < LANES; l++) log_p[l] = log_p_of(x[l], sum.top, log_sum);
                powers.penalise(p, log_p, e, f, s);
                for (int l = 0; l < LANES; l++) {
                    const R pull = times(weight[l], s[l]), counted = pick(l < again, R(0), pull);
                    costs[l] += pick(l < again, R(0), times(weight[l], f[l]));
                    masses[l] += counted, rests[l] += pick(e[l] == likely, R(0), counted);
                    pulls[l] = pull;
                }
            });
            cost += fold(costs), mass += fold(masses), rest += fold(rests);
        });
    }
};

// --- forward --------------------------------------------------------------------------------------------------------

// The sums of a row and, where statistics are wanted, the first of its largest classes.
template <bool KEEP, class R, class S>
INLINE RowSums<R, double> sum_row(
    const Softmax& p, const Row<R, S>& here, int64_t& likeliest, [[maybe_unused]] Kept<R> kept
) {
    const R* c = Smoothing<R>(p).spread;
    alignas(64) R buffer[BLOCK], scratch[BLOCK];
    Block<R> block, w;
    RowSums<R, double> sum;
    for (int64_t k = 0, n; k < p.classes; k += n) {
        n = block_size(p.classes, k);
        load_logits(p, here.x, k, n, here.y, buffer, block, KEEP ? kept.bends_from(k) : nullptr);
        const Largest<R> largest(block);
        int64_t first = block.n;
        if (largest.value > sum.top) {
            if (k == 0) sum.top = largest.value;
            else sum.raise(largest.value);
            first = largest.first(block);
            if (p.entropy) likeliest = k + first;
        }
        const S* out = KEEP && !p.stream ? here.out + k : nullptr;
        const S* next = here.x + k + n;
        if (KEEP || !p.entropy) {
            add_exps<KEEP>(sum, block, first, next, here.target_from(k + n), KEEP ? kept.e + k : nullptr, out);
        } else {
            alignas(64) R powers[BLOCK];
            add_exps<true>(sum, block, first, next, here.target_from(k + n), powers, out);
            add_moments(sum, block, powers);
        }
        if constexpr (KEEP) *kept.levels++ = sum.level();
        if (p.penalises_all()) continue;  // what all classes cost is summed once p is known
        if (here.t) {
            load_weights(p, here.t, k, n, scratch, w);
            add_costs(sum, sum.level(), w, block);
        } else if (p.smoothing != 0) {
            add_costs(sum, sum.level(), c ? c + k : nullptr, c ? c + k + block.whole : nullptr, block);
        }
    }
    return sum;
}

// The statistics of a probability target: Σ t log p before smoothing, and whether its largest class is the likeliest.
template <class R, class S>
static void soft_statistics(const Softmax& p, const Row<R, S>& here, R top, R log_sum, R entropy, int64_t likeliest) {
    alignas(64) R scratch[BLOCK];
    Block<R> w;
    R most = R(0);
    int64_t wanted = NO_TARGET;
    RowSums<R, double> sum;
    look_again<R>(p, here.x, NO_CLASS, [&](const Block<R>& block, int64_t k) {
        load_target(p, here.t, k, block.n, scratch, w);
        add_costs(sum, top, w, block);
        alignas(64) R lane[LANES];
        for (int l = 0; l < LANES; l++) lane[l] = most;
        w.each([&](const R* weight, int64_t) {
            for (int l = 0; l < LANES; l++) lane[l] = pick(weight[l] > lane[l], weight[l], lane[l]);
        });
        const R high = fold_max(lane);
        if (high > most) most = high, wanted = k + first_of(w, high);
    });
    store_statistics(p, here.row, entropy, -sum.total(log_sum), likeliest, wanted);
}

// The loss of a row out of its sums, which is added to `sums` with the weight of the row; and its statistics where they
// are wanted. Compiled once, so that a loss has the same bits with its gradient and without: inside of a larger
// function a compiler may fuse other products with sums.
template <class R, class S>
APART R
finish(const Softmax& p, const Row<R, S>& here, RowSums<R, double>& sum, R log_sum, int64_t likeliest, double* sums) {
    if (!here.t && !p.penalises_all()) sum.cost *= p.share, sum.mass *= p.share;
    R loss = sum.total(log_sum);
    likeliest = found(likeliest, log_sum);
    if (here.t) {
        if (p.entropy) soft_statistics(p, here, sum.top, log_sum, sum.entropy(log_sum), likeliest);
    } else if (here.y == NO_CLASS) {
        store_statistics(p, here.row, sum.entropy(log_sum), R(0), likeliest, NO_TARGET);
    } else {
        R f, s;
        const R log_p = log_p_of(target_logit(p, widen(here.x[here.y]), here.y), sum.top, log_sum);
        penalise<1>(p, &log_p, &f, &s);
        loss += target_cost(R(1 - p.smoothing), here.weight, f);
        store_statistics(p, here.row, sum.entropy(log_sum), log_p, likeliest, here.y);
    }
    loss = row_loss(p, loss, here.weight, sum.top + log_sum);
    const R u = sample_weight<R>(p, here.row);
    sums[0] += double(times(u, loss));
    sums[1] += double(weigh(u, here.weight));
    return loss;
}

// Takes the row's logits and target. Gives top and log_sum, the loss, weight and mass of the row where each row has its
// own, and adds loss and weight to `sums`. A row that does not count has a loss, a weight and statistics of 0,
// and no class is predicted for it.
template <class R, class S> static void row_forward(const Softmax& p, int64_t row, double* sums) {
    const Row<R, S> here(p, row);
    R top = 0, log_sum = 0, loss = 0, mass = 0;
    if (here.valid) {
        int64_t likeliest = NO_CLASS;
        RowSums<R, double> sum = sum_row<false>(p, here, likeliest, Kept<R>());
        top = sum.top, log_sum = sum.log_sum();
        if (p.penalises_all()) sum.cost = PenalisedSums<R>(p, here, top, log_sum).cost, sum.mass = 0;
        loss = finish(p, here, sum, log_sum, likeliest, sums);
        mass = R(sum.mass) + (here.t ? R(0) : R(1 - p.smoothing) * here.weight);
    } else {
        store_statistics(p, row, R(0), R(0), NO_CLASS, NO_TARGET);
    }
    if (p.mass) static_cast<R*>(p.mass)[row] = mass;
    static_cast<R*>(p.top)[row] = top;
    static_cast<R*>(p.log_sum)[row] = log_sum;
    if (p.loss) static_cast<R*>(p.loss)[row] = loss;
    if (p.row_weight) static_cast<R*>(p.row_weight)[row] = here.weight;
}

// --- backward -------------------------------------------------------------------------------------------------------

// The masses of a row's class index without a penalty on all classes, its log p, what is spread over it, and s(p).
template <class R, class S>
INLINE Masses<R> own_masses(
    const Softmax& p, const Row<R, S>& here, const RowSlopes<R>& slopes, R& log_p, R& even, R& s
) {
    const Smoothing<R> smoothing(p);
    R f;
    log_p = s = even = R(0);
    if (here.y == NO_CLASS) return index_masses(smoothing, R(0), R(0), R(p.weight_sum), R(0));
    log_p = slopes.log_p(target_logit(p, widen(here.x[here.y]), here.y));
    penalise<1>(p, &log_p, &f, &s);
    even = smoothing.spread ? smoothing.spread[here.y] : R(1);
    return index_masses(smoothing, here.weight, even, R(p.weight_sum), s);
}

// The masses of a row, and the log p of its class index; `sums` are those of its classes where each has a weight of its
// own, without a penalty their mass alone.
template <class R, class S>
INLINE Masses<R> masses_of(
    const Softmax& p, const Row<R, S>& here, const RowSlopes<R>& slopes, const PenalisedSums<R>& sums, R& log_p
) {
    const Smoothing<R> smoothing(p);
    Masses<R> masses{R(0), R(sums.mass), R(0), NAN_<R>};
    R s = 0, even = 0;
    if (!here.t) masses = own_masses(p, here, slopes, log_p, even, s);
    if (p.penalises_all()) {
        masses.spread = R(sums.mass), masses.rest = R(sums.rest);
        if (!here.t) masses.others = log_p > LOG_HALF<R> ? masses.rest : masses.spread - smoothing.share * even * s;
    }
    return p.elsewhere ? with_elsewhere(masses, static_cast<const R*>(p.elsewhere)[here.row]) : masses;
}

// Those sums of a row whose p is known.
template <class R, class S>
INLINE PenalisedSums<R> sums_of(const Softmax& p, const Row<R, S>& here, const RowSlopes<R>& slopes) {
    if (p.penalises_all()) return {p, here, slopes.top, slopes.log_sum};
    PenalisedSums<R> sums;
    alignas(64) R scratch[BLOCK];
    Block<R> w;
    RowSums<R, double> sum;
    for (int64_t k = 0, n; here.t && k < p.classes; k += n) {
        n = block_size(p.classes, k);
        load_weights(p, here.t, k, n, scratch, w);
        add_costs(sum, R(0), w, w);
    }
    sums.mass = sum.mass;
    return sums;
}

// The slopes of a block of x', with its weights w or, where each class has the same, with `less` = g w; from where to
// fetch the next logits and target, and where the slopes will go.
template <class R, class S>
INLINE void store_slopes(
    const RowSlopes<R>& slopes, const Block<R>& block, const Block<R>* w, R less, R* __restrict out, const S* next,
    const Shares<R, S>& next_target, const S* to
) {
    const bool near_one = w && slopes.log_sum < -LOG_HALF<R>;
    block.each([&](const R* x, int64_t k) __attribute__((always_inline)) {
        R slope[LANES];
        fetch(next + k, LANES * sizeof(S));
        fetch_to_write(to + k, LANES * sizeof(S));
        if (next_target) fetch(next_target.from(k).at, LANES * next_target.size());
        for (int l = 0; l < LANES; l++) slope[l] = slopes.of_p(x[l]) - less;
        const R* weight = w ? w->run(k) : nullptr;
        if (near_one)
            for (int l = 0; l < LANES; l++) out[k + l] = slopes.minus_weight_near_one(slope[l], x[l], weight[l]);
        else if (w)
            for (int l = 0; l < LANES; l++) out[k + l] = slopes.minus_weight(slope[l], weight[l]);
        else
            for (int l = 0; l < LANES; l++) out[k + l] = slope[l];
    });
}

// Take the slopes of a block's x' back to those of x. Those of a soft cap were kept, or x is read once more.
template <class R, class S>
APART void chain_block(const Softmax& p, const S* x, const R* bends, R* slope, int64_t k, int64_t n) {
    const Transform<R> transform(p);
    for (int64_t i = 0; i < padded(n); i += LANES) {
        const int64_t at = i + LANES <= n ? i : n - LANES;
        R run[LANES];
        if (p.cap > 0 && !bends) widen_run(x + at, run), transform.bend(run, run);
        const R* of_cap = p.cap > 0 ? bends ? bends + at : run : nullptr;
        transform.template chain<true>(of_cap, p.bias ? static_cast<const R*>(p.bias) + k + at : nullptr, slope + i);
    }
}

// The slopes of a block's probabilities; f is -log p where none is given.
template <class R, class S>
APART void store_target_slopes(
    const Softmax& p, const RowSlopes<R>& slopes, const Block<R>& block, const R* f, const Shares<R, S>& out, int64_t k
) {
    const R *c = static_cast<const R*>(p.weight), keep = R(1 - p.smoothing);
    out.typed([&](auto* to) {
        for (int64_t j = 0; j < block.n; j++) {
            const int64_t again = j < block.whole ? 0 : block.seen;
            const R x = j < block.whole ? block.x[j] : block.last[j - block.whole + again];
            const R cost = f ? f[j + again] : -slopes.log_p(x);
            narrow(slopes.of_target(keep, c ? c[k + j] : R(1), cost), to[(k + j) * p.grad_target_at.classes]);
        }
    });
}

// Takes the row's logits and target, its top and log_sum, and the gradient of its loss. Gives the slopes of the logits
// and of the probabilities, each where it is wanted; those of a row that does not count are 0.
template <class R, class S> static void row_backward(const Softmax& p, int64_t row) {
    const Row<R, S> here(p, row);
    if (!here.valid) {
        if (here.out) std::memset(static_cast<void*>(here.out), 0, size_t(p.classes) * sizeof(S));
        return;
    }
    RowSlopes<R> slopes{};
    slopes.top = static_cast<const R*>(p.top)[row], slopes.log_sum = static_cast<const R*>(p.log_sum)[row];
    const R grad = static_cast<const R*>(p.grad)[p.grad_rows ? row : 0];
    slopes.start(p, weigh(grad, sample_weight<R>(p, row)), here.weight);
    R log_p = 0;
    slopes.set(masses_of(p, here, slopes, sums_of(p, here, slopes), log_p));
    const R at_y = slopes.of_index(log_p);  // now, for the gradient may lie in the place of the logits

    // Where all classes are penalised, f lies where the weights will lie and s where the slopes will: a thread's stack
    // may be small, and each of them is read before it is written over.
    alignas(64) R buffer[BLOCK], scratch[BLOCK + LANES], slope[BLOCK + LANES];
    Block<R> block, w;
    const Smoothing<R> smoothing(p);
    const bool all = p.penalises_all(), weighted = here.t || all || (smoothing.spread && smoothing.share != R(0));
    const R less = weighted || smoothing.share == R(0) ? R(0) : slopes.g * smoothing.share;  // g may be infinite
    for (int64_t k = 0, n; k < p.classes; k += n) {
        n = block_size(p.classes, k);
        block.load(here.x + k, n, buffer);
        if (p.transformed()) transform_block(p, block, k, here.y, buffer);
        if (all) penalise_block(p, block, slopes.top, slopes.log_sum, scratch, slope);
        if (here.out_target) store_target_slopes(p, slopes, block, all ? scratch : nullptr, here.out_target, k);
        if (!here.out) continue;
        if (weighted) load_weights(p, here.t, k, n, scratch, w);
        if (all) weigh_block(w, slope, scratch);
        store_slopes(
            slopes, block, weighted ? &w : nullptr, less, slope, here.x + k + n, here.target_from(k + n), here.out + k
        );
        put(slope, n, here.y - k, at_y);
        if (p.transformed()) chain_block<R, S>(p, here.x + k, nullptr, slope, k, n);
        store(slope, here.out + k, n);
    }
}

// --- both at once ---------------------------------------------------------------------------------------------------

// What makes slopes of n powers e, after powers that would not do were replaced: a row without weight has no slopes,
// whatever its logits hold, and one without a softmax has one nan everywhere, of which no instruction chooses the sign.
template <class R> INLINE R settled(R of_e, R* e, int64_t n) {
    const bool has_softmax = of_e == of_e;
    if (has_softmax && of_e != R(0)) return of_e;
    std::fill_n(e, n, has_softmax ? R(0) : NAN_<R>);
    return R(1);
}

// The slopes of n classes out of e^{x - level}, which was kept of them: of_e e - g w, or without weights of classes the
// same number `less` of each, taken back to slopes of x.
template <class R> struct KeptSlopes {
    const Transform<R>& transform;
    int64_t n, y;  // the row's own class, if it is among them, has the slope at_y
    R of_e, g, less, at_y;
    const R *e, *w, *bends, *bias;  // one a class; all but e may be null

    // Those of the LANES classes from k on.
    template <bool WEIGHED, bool MOVED> INLINE_MEMBER void run(int64_t k, R* to) const {
        in_registers(to, [&](int l) __attribute__((always_inline)) {
            const Numbers<R> power = numbers_at(e + k + l);
            if constexpr (WEIGHED) return multiply_add(of_e, power, -weigh(g, numbers_at(w + k + l)));
            else return of_e * power - less;
        });
        if constexpr (MOVED) transform.template chain<true>(bends ? bends + k : nullptr, bias ? bias + k : nullptr, to);
    }
    // The same, with that of the row's own class among them.
    template <bool WEIGHED, bool MOVED> INLINE_MEMBER void run_with_own(int64_t k, R* to) const {
        run<WEIGHED, MOVED>(k, to);
        if (uint64_t(y - k) < LANES) to[y - k] = back(at_y, y);
    }
    // That run to where it belongs.
    template <bool PAST, bool WEIGHED, bool MOVED, class S> INLINE_MEMBER void put_run(int64_t k, S* to) const {
        R one[LANES];
        run_with_own<WEIGHED, MOVED>(k, one);
        PAST ? stream_run(one, to + k) : narrow_run(one, to + k);
    }
    // Runs from k on. Meanwhile half as many logits are fetched from `next` on, if there is one.
    template <bool PAST, bool WEIGHED, bool MOVED, class S>
    INLINE_MEMBER void runs(int64_t k, int64_t end, S* to, const S* next) const {
        const auto others = [&](int64_t until) __attribute__((always_inline)) {
            for (; k < until; k += LANES) {
                R one[LANES];
                run<WEIGHED, MOVED>(k, one);
                PAST ? stream_run(one, to + k) : narrow_run(one, to + k);
                if (next) fetch_near(next + k / 2, LANES * sizeof(S) / 2);
            }
        };
        const int64_t own = y < k || y >= end ? end : k + (y - k) / LANES * LANES;
        others(own);
        if (own == end) return;
        put_run<PAST, WEIGHED, MOVED>(own, to);
        k += LANES, others(end);
    }
    // Where the first of the whole runs begins, which past the caches is where a line does; and where the last ends.
    template <bool PAST, class S> int64_t first_run(const S* to) const {
        return PAST ? before_line(to) / int64_t(sizeof(S)) : 0;
    }
    int64_t end_of_runs(int64_t first) const { return first + (n - first) / LANES * LANES; }
    // What lies before them and behind them. What was streamed is not written again, for which it would have to be
    // fetched.
    template <bool PAST, bool WEIGHED, bool MOVED, class S>
    INLINE_MEMBER void put_ends(int64_t first, int64_t end, S* to) const {
        constexpr int64_t OF_LINE = LINE / sizeof(S);
        R one[LANES];
        S few[LANES];
        if (first > 0) {
            run_with_own<WEIGHED, MOVED>(0, one), narrow_run(one, few);
            std::memcpy(to, few, size_t(first) * sizeof(S));
        }
        if (end == n) return;
        run_with_own<WEIGHED, MOVED>(n - LANES, one);
        if (!PAST) return narrow_run(one, to + n - LANES);
        narrow_run(one, few);
        int64_t left = n - end;
        for (; left >= OF_LINE; left -= OF_LINE) stream_line(few + LANES - left, to + n - left);
        std::memcpy(to + n - left, few + LANES - left, size_t(left) * sizeof(S));
    }
    template <bool PAST, bool WEIGHED, bool MOVED, class S> INLINE_MEMBER void store(S* to, const S* next) const {
        const int64_t first = first_run<PAST>(to), end = end_of_runs(first);
        runs<PAST, WEIGHED, MOVED>(first, end, to, next), put_ends<PAST, WEIGHED, MOVED>(first, end, to);
    }
    template <bool PAST, class S> void store(const Softmax& p, S* to, const S* next) const {
        if (!w && !p.transformed()) return store<PAST, false, false>(to, next);
        if (!p.transformed()) return store<PAST, true, false>(to, next);
        w ? store<PAST, true, true>(to, next) : store<PAST, false, true>(to, next);
    }

    // A slope of the i-th class.
    R back(R slope, int64_t i) const {
        return transform.back(slope, bends ? bends + i : nullptr, bias ? bias + i : nullptr);
    }
};

// The slopes of a row whose powers were kept: all of them by their powers, but that of the row's own class, and then
// anew that of a class that has more than half of p.
template <class R, class S>
static void store_kept(
    const Softmax& p, const Row<R, S>& here, Kept<R> kept, const RowSums<R, double>& sum, const RowSlopes<R>& slopes,
    R at_y
) {
    const Smoothing<R> smoothing(p);
    const Transform<R> transform(p);
    const bool all = p.penalises_all(), weighted = here.t || all || (smoothing.spread && smoothing.share != R(0));
    const R less = weighted || smoothing.share == R(0) ? R(0) : slopes.g * smoothing.share;  // g may be infinite
    const R* bias = static_cast<const R*>(p.bias);
    alignas(64) R scratch[BLOCK];
    Block<R> w, powers;
    // Of a long row in full precision, memory would have nothing to read while slopes are written.
    const S* next = sizeof(S) == sizeof(R) && p.classes > 2 * BLOCK ? here.x + p.classes + 2 * BLOCK : nullptr;
    bool met = !weighted;  // the class that has more than half of p
    for (int64_t k = 0, n; k < p.classes; k += n) {
        n = block_size(p.classes, k);
        if (all) w.load(kept.pulls + k, n, scratch);
        else if (weighted) load_weights(p, here.t, k, n, scratch, w), w.join(scratch);
        const R level = *kept.levels++, likely = sum.likely(level, slopes.log_sum);
        const KeptSlopes<R> of_kept{
            transform,
            n,
            here.y - k,
            settled(times(slopes.scale, sum.of_e(level)), kept.e + k, n),
            slopes.g,
            less,
            at_y,
            kept.e + k,
            weighted ? w.x : nullptr,
            kept.bends_from(k),
            bias ? bias + k : nullptr,
        };
        S* out = here.out + k;
        const S* ahead = next ? next + k : nullptr;
        p.stream ? of_kept.template store<true>(p, out, ahead) : of_kept.template store<false>(p, out, ahead);
        if (!met && likely == R(1)) {
            powers.load(kept.e + k, n, scratch);
            const int64_t i = first_of(powers, likely);
            met = i < n;
            if (met && k + i != here.y) narrow(of_kept.back(slopes.of_likely(-slopes.log_sum, w.at(i)), i), out[i]);
        }
    }
}

// Takes the row's logits and target, and the gradient of a loss. Gives the loss and weight of the row, added to `sums`,
// and the slopes of the logits, if they are wanted. They are formed of the same powers e^{x - level}, which are kept in
// the scratch.
template <class R, class S> static void row_both(const Softmax& p, int64_t row, double* sums) {
    const Row<R, S> here(p, row);
    if (!here.valid) {
        row_forward<R, S>(p, row, sums);
        return row_backward<R, S>(p, row);
    }
    // A line that this row shares with the next is not streamed.
    if (p.stream && before_line(here.out + p.classes)) fetch_to_write(here.out + p.classes, 1);
    int64_t likeliest = NO_CLASS;
    const Kept<R> kept(p);
    RowSums<R, double> sum = sum_row<true>(p, here, likeliest, kept);
    const R log_sum = sum.log_sum();
    PenalisedSums<R> weighed;
    weighed.mass = here.t ? sum.mass : 0;
    if (p.penalises_all()) weighed = {p, here, sum, log_sum, kept}, sum.cost = weighed.cost, sum.mass = 0;
    finish(p, here, sum, log_sum, likeliest, sums);
    static_cast<R*>(p.top)[row] = sum.top, static_cast<R*>(p.log_sum)[row] = log_sum;
    if (!here.out) return;

    RowSlopes<R> slopes{};
    slopes.top = sum.top, slopes.log_sum = log_sum;
    slopes.start(p, weigh(static_cast<const R*>(p.grad)[0], sample_weight<R>(p, row)), here.weight);
    R log_p = 0;
    slopes.set(masses_of(p, here, slopes, weighed, log_p));
    store_kept(p, here, kept, sum, slopes, slopes.of_index(log_p));
}

}  // namespace
