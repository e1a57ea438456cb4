// Softmax cross entropy for Python.
//
// Takes logits (N, C, d1, ...), class indices or probabilities, and what else makes a member of the family. Gives
// losses and gradients in tensors that Python made. Refuses, by exceptions, what does not fit together (bind_checks.h)
// and indices out of range, and strides that need a copy: forward then returns None, backward false.

#pragma once
#include <nanobind/stl/optional.h>

#include <cstdlib>
#include <iterator>
#include <memory>
#include <new>

#include "bind_checks.h"
#include "laid_down.h"
#include "launch.h"
#include "layout.h"
#include "row.h"

namespace {

enum Reduction { NONE, SUM, MEAN };

// The numbers that kernels are given just as the settings have them (None is 0), with their defaults.
struct Number {
    const char* name;
    double Softmax::* to;
    double usual;
};
constexpr Number NUMBERS[] = {
    {"softcap", &Softmax::cap, 0},
    {"margin", &Softmax::margin, 0},
    {"z_loss", &Softmax::z_loss, 0},
};
// Those that are read by name elsewhere in this file, or are arguments of their own.
constexpr const char* OTHER_NUMBERS[] = {"ignore_index", "label_smoothing", "temperature", "penalty", "all_classes"};

// What makes a member of the family other than cross entropy itself: a Member of impl/native.py, read by its names.
struct Member {
    double temperature = 1;
    double numbers[std::size(NUMBERS)];
    int64_t penalty = NO_PENALTY;
    double penalty_a = 0, penalty_b = 0;
    bool masked = false;
    std::optional<View> bias, spread;
    double spread_classes = 0, spread_sum = 0;
    int64_t all_classes = 0;  // where these are a shard of them

    Member() {
        for (size_t i = 0; i < std::size(NUMBERS); i++) numbers[i] = NUMBERS[i].usual;
    }
    explicit Member(nb::handle member) {
        const nb::object settings = member.attr("settings");
        temperature = number(settings, "temperature");
        for (size_t i = 0; i < std::size(NUMBERS); i++) numbers[i] = number(settings, NUMBERS[i].name);
        penalty = nb::cast<int64_t>(member.attr("penalty"));
        penalty_a = number(member, "penalty_a"), penalty_b = number(member, "penalty_b");
        masked = nb::cast<bool>(member.attr("masked"));
        bias = maybe(member.attr("bias"), "bias"), spread = maybe(member.attr("spread"), "spread");
        spread_classes = number(member, "spread_classes"), spread_sum = number(member, "spread_sum");
        all_classes = nb::cast<int64_t>(settings.attr("all_classes"));
    }

    void check(const View& logits, bool soft) const {
        check_number(temperature > 0 && std::isfinite(temperature), "temperature", temperature, "must be positive");
        for (size_t i = 0; i < std::size(NUMBERS); i++) check_finite(NUMBERS[i].name, numbers[i]);
        Softmax given{};
        write_numbers(given);
        check_at_least_zero("softcap", given.cap), check_at_least_zero("z_loss", given.z_loss);
        if (all_classes != 0 && all_classes < logits.shape[1])
            refuse("all_classes", "must be 0, or at least the classes of a shard");
        if (soft && given.margin != 0) refuse("margin", "must be 0 with probabilities");
        check_penalty();
        if (bias) check_class_numbers(*bias, logits);
        if (masked && !bias)
            refuse("masked", "needs a bias, which is the largest number for the classes that are masked");
        if (!spread) return;
        check_class_numbers(*spread, logits);
        check_at_least_zero("spread_classes", spread_classes);
    }

    void write_numbers(Softmax& p) const {
        p.usual_numbers = true;
        for (size_t i = 0; i < std::size(NUMBERS); i++) {
            p.*NUMBERS[i].to = numbers[i];
            p.usual_numbers &= numbers[i] == NUMBERS[i].usual;
        }
    }

  private:
    void check_penalty() const {
        const double a = penalty_a, b = penalty_b;
        check_finite("penalty_a", a), check_finite("penalty_b", b);
        switch (penalty) {
            case NO_PENALTY:
            case POLY1:
            case SCE: break;
            case FOCAL: check_at_least_zero("penalty_a", a); break;
            case GCE: check_number(a > 0 && a <= 1, "penalty_a", a, "must lie in (0, 1]"); break;
            case TAYLOR:
                check_number(a >= 1 && a < 1 << 30 && a == std::floor(a), "penalty_a", a, "must be a whole number");
                break;
            default: refuse("penalty", "must be one of PENALTIES, got " + std::to_string(penalty));
        }
    }
    // A number that an object has by this name; None is 0.
    static double number(nb::handle object, const char* name) {
        const nb::object value = object.attr(name);
        return value.is_none() ? 0.0 : nb::cast<double>(value);
    }
};

// Few rows are cut into small tiles, so that there are enough of them for several threads, and so are long ones, for
// the nearest cache.
int64_t tile_rows(const Softmax& p) {
    const bool is_long = p.at.classes == 1 && p.classes > FEW_CLASSES;
    return is_long || p.rows() < 64 * ROWS ? LANES : ROWS;
}

// Rows of not too many classes are taken together, as many as have TOGETHER numbers: 128 classes are 32 rows. Others go
// one by one. Of few rows every thread should have some. Backward keeps nothing of them that would have to stay near.
int64_t rows_together(const Softmax& p, DType dtype, bool backward) {
    if (p.classes > kernels->together[dtype]) return 1;
    const int64_t least = std::clamp<int64_t>(p.rows() / 64, 2, backward ? 16 : 4);
    return std::clamp<int64_t>(TOGETHER / p.classes, least, LANES);
}

struct OutOfRange : std::runtime_error {
    OutOfRange() : std::runtime_error("target has a class index that is out of range") {}
};

// What every softmax loss is given.
struct Inputs {
    View logits, target;
    std::optional<View> weight;
    int64_t ignore_index;
    double smoothing;
    bool soft;
    Member member;
    std::vector<Layout> layouts;  // of the logits, of probabilities, of other tensors

    Inputs(
        nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index_, double smoothing_,
        nb::handle member_ = nb::none()
    )
        : Inputs(
              View(logits_, "logits"), View(target_, "target"), maybe(weight_, "weight"), ignore_index_, smoothing_,
              member_
          ) {}
    Inputs(
        View logits_, View target_, std::optional<View> weight_, int64_t ignore_index_, double smoothing_,
        nb::handle member_ = nb::none()
    )
        : logits(std::move(logits_)), target(std::move(target_)), weight(std::move(weight_)),
          ignore_index(ignore_index_), smoothing(smoothing_), soft(index_type_of(target) < 0) {
        dtype_of(logits);
        if (logits.ndim < 2 || logits.shape[1] < 1)
            logits.refuse("must have shape (N, C, d1, ...), got " + logits.text());
        if (soft) check_like_or_wide(target, logits), check_same_shape(target, logits);
        else check_rows(target, logits), check_contiguous(target);
        if (weight) check_class_numbers(*weight, logits);
        check_share("smoothing", smoothing);
        if (!member_.is_none()) member = Member(member_), member.check(logits, soft);
    }

    Memory memory() const {
        Memory memory{&logits, &target};
        memory.reads(weight), memory.reads(member.bias), memory.reads(member.spread);
        return memory;
    }

    // Lay them out together with others of the logits' shape, if there are any; false where that takes a copy.
    bool lay_out(const std::optional<View>& first = {}, const std::optional<View>& second = {}) {
        std::vector<const View*> tensors{&logits};
        if (soft) tensors.push_back(&target);
        if (first) tensors.push_back(&*first);
        if (second) tensors.push_back(&*second);
        return ::lay_out(tensors, layouts);
    }

    // STATISTICS: or masses, which are set afterwards, and with which a call is not plain.
    enum Pass { FORWARD, STATISTICS, BACKWARD };
    // Rows of few classes are taken as tiles.
    Softmax describe(Pass pass = FORWARD) const {
        Softmax p{};
        const Layout& layout = layouts.at(0);
        p.outer = layout.outer, p.inner = layout.inner, p.classes = layout.classes;
        p.logits = logits.pointer(), p.at = layout.at;
        p.target = target.pointer(), p.index_type = index_type_of(target);
        if (soft) p.target_at = layouts.at(1).at, p.wide_target = target.dtype.bits != logits.dtype.bits;
        p.weight_sum = double(p.classes);
        if (weight) p.weight = weight->pointer(), p.weight_sum = smoothing == 0 ? 0 : sum(*weight);
        p.shard = member.all_classes != 0;
        p.ignore_index = ignore_index, p.smoothing = smoothing;
        p.share = smoothing / double(p.shard ? member.all_classes : p.classes);
        set_member(p);
        const DType dtype = dtype_of(logits);
        int64_t few = kernels->few_classes[dtype];
        // Backward has no sums to make, which tiles make cheaply, and rows in which all classes weigh have more to do.
        if (pass == BACKWARD || soft || p.penalises_all()) few = FEW_CLASSES;
        if (pass != STATISTICS && p.plain()) few = kernels->few_plain[dtype];
        if (p.rows() <= FEW_ROWS) few = LANES - 1;
        // Rows that share memory are tiles, with a gradient and without: the gradient lies otherwise than these.
        const bool shared = (p.outer > 1 && p.at.outer < p.classes) || (p.inner > 1 && p.at.inner < p.classes);
        p.by_row = p.at.classes == 1 && p.classes > few && !shared;
        p.rows_per_tile = p.by_row ? rows_together(p, dtype, pass == BACKWARD) : tile_rows(p);
        return p;
    }

  private:
    static double sum(const View& numbers) {
        double total = 0;
        for (int64_t k = 0; k < numbers.shape[0]; k++)
            total += numbers.dtype.bits == 64 ? static_cast<const double*>(numbers.pointer())[k]
                                              : static_cast<const float*>(numbers.pointer())[k];
        return total;
    }

    void set_member(Softmax& p) const {
        p.per_temperature = 1 / member.temperature, member.write_numbers(p);
        p.penalty = member.penalty, p.penalty_a = member.penalty_a, p.penalty_b = member.penalty_b;
        p.masked = member.masked;
        if (member.bias) p.bias = member.bias->pointer();
        if (!member.spread) return;
        p.spread = member.spread->pointer();
        p.share = p.smoothing / member.spread_classes, p.weight_sum = member.spread_sum;
    }
};

// lse has the rows' tops, then their log_sums.
void set_lse(Softmax& p, void* lse, int64_t size) {
    p.top = lse, p.log_sum = static_cast<char*>(lse) + p.outer * p.inner * size;
}

// Run kernels that read labels, and throw if one of these was out of range, which is known only afterwards.
template <class F> void read_labels(Softmax& p, F&& work) {
    std::atomic<bool> out_of_range{false};
    p.out_of_range = &out_of_range;
    work();
    p.out_of_range = nullptr;
    if (out_of_range) throw OutOfRange();
}

// Run the kernels for losses, or where something is kept of the rows those that form gradients as well. A penalty on
// all classes is made of what is kept, so that a sum has the same bits without its gradient.
void run_losses(Softmax& p, DType dtype, bool reduced) {
    const bool keeps = p.grad_logits || (reduced && p.penalises_all());
    auto* run = (keeps ? kernels->softmax_both : kernels->softmax_forward)[dtype];
    const size_t scratch_bytes = keeps ? size_t(p.scratch_size()) * (dtype == F64 ? 8 : 4) : 0;
    read_labels(p, [&] {
        share(p.tiles(), p.work(), [&](int64_t begin, int64_t end) {
            Softmax mine = p;
            mine.scratch = scratch<OF_POWERS>(scratch_bytes);
            run(mine, begin, end);
        });
    });
}

// Run the forward kernels: write the loss and return what the rows weigh.
double forward(Softmax& p, DType dtype, int64_t reduction, const View& loss) {
    const LaidDown laid_down(p, dtype);
    std::vector<double> partial(size_t(2 * p.tiles() + 2));
    p.partial = partial.data();
    run_losses(p, dtype, reduction != NONE);
    const double sums[2] = {total(&partial[0], p.tiles(), 2), total(&partial[1], p.tiles(), 2)};
    if (reduction != NONE)
        put_number(loss, reduction == SUM ? sums[0] : sums[1] == 0 ? std::nan("") : sums[0] / sums[1]);
    return sums[1];
}

// Where a gradient for the logits is written.
void set_gradient(Softmax& p, const View& grad_logits, const Layout& layout) {
    p.grad_logits = grad_logits.pointer(), p.grad_at = layout.at;
    if (p.grad_at.classes != 1) p.by_row = false, p.rows_per_tile = tile_rows(p);
}

// Run the backward kernels.
void backward(Softmax& p, DType dtype) {
    const LaidDown laid_down(p, dtype);
    auto* run = kernels->softmax_backward[dtype];
    read_labels(p, [&] { share(p.tiles(), p.work(), [&](int64_t begin, int64_t end) { run(p, begin, end); }); });
    laid_down.finish(p);
}

// Where the statistics of rows are written: R, one a row, a byte for `correct` and 8 for `predicted`.
struct Statistics {
    View entropy, target_log_prob, correct, predicted;

    Statistics(nb::handle statistics, const View& logits)
        : entropy(statistics.attr("entropy"), "entropy", View::WRITE),
          target_log_prob(statistics.attr("target_log_prob"), "target_log_prob", View::WRITE),
          correct(statistics.attr("correct"), "correct", View::WRITE),
          predicted(statistics.attr("predicted"), "predicted", View::WRITE) {
        check_row_numbers(entropy, logits), check_row_numbers(target_log_prob, logits);
        check_rows(correct, logits), check_contiguous(correct);
        if (!has_dtype(correct, dlpack::UINT, 8)) correct.refuse("must be uint8");
        check_rows(predicted, logits), check_contiguous(predicted);
        if (!has_dtype(predicted, dlpack::INT, 64)) predicted.refuse("must be int64");
    }
};

// Return Σ of the rows' weights. `loss` is one number, or where nothing is reduced one R a row; so is `row_weight`
// where it is wanted.
std::optional<double> softmax_forward(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing,
    int64_t reduction, nb::handle loss_, nb::handle row_weight_, nb::handle lse_, nb::handle member,
    nb::handle statistics_, nb::handle mass_
) {
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing, member);
    const View &logits = inputs.logits, loss(loss_, "loss", View::WRITE), lse(lse_, "lse", View::WRITE);
    const std::optional<View> row_weight = maybe(row_weight_, "row_weight", View::WRITE),
                              mass = maybe(mass_, "mass", View::WRITE);
    if (reduction < NONE || reduction > MEAN) refuse("reduction", "must be one of REDUCTIONS");
    const bool each = reduction == NONE;
    if (row_weight && !each) refuse("row_weight", "must be None where losses are reduced");
    if (mass && !each) refuse("mass", "must be None where losses are reduced");
    if (!statistics_.is_none() && !each) refuse("statistics", "must be None where losses are reduced");
    check_lse(lse, logits), check_wide(loss, logits);
    Memory memory = inputs.memory();
    memory.writes(loss), memory.writes(lse);
    each ? check_row_numbers(loss, logits) : check_one(loss);
    if (row_weight) check_row_numbers(*row_weight, logits), memory.writes(*row_weight);
    if (mass) check_row_numbers(*mass, logits), memory.writes(*mass);
    std::optional<Statistics> statistics;
    if (!statistics_.is_none()) {
        statistics.emplace(statistics_, logits);
        memory.writes(statistics->entropy), memory.writes(statistics->target_log_prob);
        memory.writes(statistics->correct), memory.writes(statistics->predicted);
    }
    if (!inputs.lay_out()) return std::nullopt;
    Softmax p = inputs.describe(mass || statistics ? Inputs::STATISTICS : Inputs::FORWARD);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    if (each) p.loss = loss.pointer();
    if (row_weight) p.row_weight = row_weight->pointer();
    if (mass) p.mass = mass->pointer();
    if (statistics) {
        p.entropy = statistics->entropy.pointer(), p.target_log_prob = statistics->target_log_prob.pointer();
        p.correct = static_cast<uint8_t*>(statistics->correct.pointer());
        p.predicted = static_cast<int64_t*>(statistics->predicted.pointer());
    }
    return forward(p, dtype_of(logits), reduction, loss);
}

// Check the tensors to which gradients are written against those of which they are gradients; that of the logits may be
// written over them.
void check_gradients(
    Memory& memory, const Inputs& inputs, const std::optional<View>& grad_logits, const std::optional<View>& grad_target
) {
    if (grad_logits) {
        check_same_shape(*grad_logits, inputs.logits);
        if (!same_dtype(*grad_logits, inputs.logits)) grad_logits->refuse("must have the dtype of the logits");
        memory.writes(*grad_logits, &inputs.logits);
    }
    if (!grad_target) return;
    if (!inputs.soft) grad_target->refuse("must be None for class indices");
    check_same_shape(*grad_target, inputs.target);
    if (!same_dtype(*grad_target, inputs.target)) grad_target->refuse("must have the dtype of the target");
    memory.writes(*grad_target);
}

// The gradient of a mean is that of the sum over `divisor`.
bool softmax_backward(
    nb::handle grad_, double divisor, nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle lse_,
    int64_t ignore_index, double smoothing, nb::handle grad_logits_, nb::handle grad_target_, nb::handle member,
    nb::handle elsewhere_
) {
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing, member);
    const View grad(grad_, "grad"), lse(lse_, "lse"), &logits = inputs.logits;
    const std::optional<View> elsewhere = maybe(elsewhere_, "elsewhere");
    const std::optional<View> grad_logits = maybe(grad_logits_, "grad_logits", View::WRITE),
                              grad_target = maybe(grad_target_, "grad_target", View::WRITE);
    check_incoming(grad, logits, true), check_lse(lse, logits);
    Memory memory = inputs.memory();
    memory.reads(grad), memory.reads(lse), memory.reads(elsewhere);
    if (elsewhere) check_row_numbers(*elsewhere, logits);
    check_gradients(memory, inputs, grad_logits, grad_target);
    if (!inputs.lay_out(grad_logits, grad_target)) return false;
    Softmax p = inputs.describe(Inputs::BACKWARD);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    const Gradient g(grad, divisor, logits.dtype.bits == 64);
    p.grad = g.pointer, p.grad_rows = g.rows;
    if (elsewhere) p.elsewhere = elsewhere->pointer();
    size_t next = inputs.soft ? 2 : 1;
    if (grad_logits) set_gradient(p, *grad_logits, inputs.layouts[next++]);
    if (grad_target) p.grad_target = grad_target->pointer(), p.grad_target_at = inputs.layouts[next].at;
    backward(p, dtype_of(logits));
    return true;
}

// --- a sum or a mean with its gradient ------------------------------------------------------------------------------

// Σ of what the rows weigh, which target and sample weights decide; labels out of range are found.
template <class R, class I> double sum_of_weights(const Softmax& p, const I* label) {
    const R *c = static_cast<const R*>(p.weight), *u = static_cast<const R*>(p.sample_weight);
    const int64_t groups = (p.rows() + LANES - 1) / LANES;
    std::vector<double> parts(static_cast<size_t>(groups));
    std::atomic<bool> out_of_range{false};
    share(groups, p.rows(), [&](int64_t begin, int64_t end) {
        int64_t wrong = 0;
        for (int64_t group = begin; group < end; group++) {
            double sum = 0;
            for (int64_t row = group * LANES; row < std::min(p.rows(), (group + 1) * LANES); row++) {
                const int64_t y = label ? int64_t(label[row]) : 0;
                if (label && (!counts(p, y, wrong) || (c && y == NO_CLASS))) continue;
                sum += weigh(label && c ? double(c[y]) : 1.0, u ? double(u[row]) : 1.0);
            }
            parts[size_t(group)] = sum;
        }
        if (wrong) out_of_range.store(true, std::memory_order_relaxed);
    });
    if (out_of_range) throw OutOfRange();
    return total(parts.data(), groups);
}
// The same where each row that counts weighs 1.
template <class I> double count(const Softmax& p, const I* label) {
    int64_t counted = 0, wrong = 0;
    if constexpr (std::is_same_v<I, int64_t>)
        counted = kernels->count(label, p.rows(), p.ignore_index, p.classes, wrong);
    else
        for (int64_t row = 0; row < p.rows(); row++) counted -= counts(p, int64_t(label[row]), wrong);
    if (wrong) throw OutOfRange();
    return double(counted);
}
template <class I> double sum_of_weights(const Softmax& p, const I* label, bool wide) {
    if (!p.weight && !p.sample_weight && !p.shard) return label ? count(p, label) : double(p.rows());
    return wide ? sum_of_weights<double>(p, label) : sum_of_weights<float>(p, label);
}
double sum_of_weights(const Softmax& p, bool wide) {
    switch (p.index_type) {
        case -1: return sum_of_weights(p, static_cast<const int64_t*>(nullptr), wide);
        case I8: return sum_of_weights(p, static_cast<const int8_t*>(p.target), wide);
        case I16: return sum_of_weights(p, static_cast<const int16_t*>(p.target), wide);
        case I32: return sum_of_weights(p, static_cast<const int32_t*>(p.target), wide);
        case U8: return sum_of_weights(p, static_cast<const uint8_t*>(p.target), wide);
        case U16: return sum_of_weights(p, static_cast<const uint16_t*>(p.target), wide);
        case U32: return sum_of_weights(p, static_cast<const uint32_t*>(p.target), wide);
        default: return sum_of_weights(p, static_cast<const int64_t*>(p.target), wide);
    }
}

// Write the sum or mean of the losses and, while each row is near, `factor` times its gradient, as far as they are
// wanted; return Σ of the rows' weights. A gradient in the place of the logits is written only where all labels are in
// range.
std::optional<double> run_sum(
    Inputs& inputs, const std::optional<View>& loss, const std::optional<View>& grad_logits,
    const std::optional<View>& sample_weight, bool mean, double factor
) {
    const View& logits = inputs.logits;
    if (!inputs.lay_out(grad_logits)) return std::nullopt;
    Softmax p = inputs.describe();
    if (sample_weight) p.sample_weight = sample_weight->pointer();
    const bool wide = logits.dtype.bits == 64;
    const bool over_logits = grad_logits && grad_logits->pointer() == logits.pointer();
    const double weights = mean || over_logits ? sum_of_weights(p, wide) : 1, divisor = mean ? weights : 1;
    const Gradient g(over(factor, divisor), wide);
    p.grad = g.pointer;
    if (grad_logits) set_gradient(p, *grad_logits, inputs.layouts.back());
    p.stream = grad_logits && is_streamed(*grad_logits, logits);
    const LaidDown laid_down(p, dtype_of(logits));
    const std::unique_ptr<double[]> lse(p.plain() ? nullptr : new double[size_t(2 * p.rows())]),
        partial(new double[size_t(2 * p.tiles() + 2)]);
    if (lse) set_lse(p, lse.get(), wide ? 8 : 4);
    p.partial = partial.get();
    run_losses(p, dtype_of(logits), true);
    laid_down.finish(p);
    const double sums[2] = {total(&partial[0], p.tiles(), 2), total(&partial[1], p.tiles(), 2)};
    if (loss) put_number(*loss, mean && divisor == 0 ? std::nan("") : sums[0] / divisor);
    return sums[1];
}

std::optional<double> softmax_sum(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing, bool mean,
    nb::handle loss_, nb::handle grad_logits_, double factor, nb::handle member, nb::handle sample_weight_
) {
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing, member);
    const std::optional<View> loss = maybe(loss_, "loss", View::WRITE),
                              grad_logits = maybe(grad_logits_, "grad_logits", View::WRITE),
                              sample_weight = maybe(sample_weight_, "sample_weight");
    Memory memory = inputs.memory();
    memory.reads(sample_weight);
    if (sample_weight) check_row_numbers(*sample_weight, inputs.logits);
    if (loss) check_total(*loss, inputs.logits), memory.writes(*loss);
    check_gradients(memory, inputs, grad_logits, {});
    return run_sum(inputs, loss, grad_logits, sample_weight, mean, factor);
}

// Multiply a dense tensor by a number, in its place.
void scale(nb::handle numbers_, double factor) {
    const View numbers(numbers_, "numbers", View::WRITE);
    check_dense(numbers);
    const Scaled p{numbers.pointer(), numbers.numel(), factor};
    auto* run = kernels->scale[dtype_of(numbers)];
    share(p.blocks(), p.size, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

// --- plain tensors, which need no checks ----------------------------------------------------------------------------

void know_types(nb::type_object tensor, nb::type_object parameter) {
    types().is_neg = tensor.attr("is_neg");
    types().tensor =
        reinterpret_cast<PyTypeObject*>(tensor.release().ptr());  // kept, as nothing else may take its place
    types().parameter = reinterpret_cast<PyTypeObject*>(parameter.release().ptr());
}
bool plain(nb::handle tensor) { return types().plain(tensor); }
// Whether a plain 0-d tensor on the CPU holds this floating-point number.
bool holds(nb::handle tensor, double value) try {
    if (!plain(tensor)) return false;
    const View number_(tensor, "number", View::READ);
    return number_.ndim == 0 && is_float(number_) && number(number_) == value;
} catch (const std::exception&) {
    return false;
}

// --- the module -----------------------------------------------------------------------------------------------------

// The enumerations, by the names that Python has for them.
void bind_names(nb::module_& m) {
    nb::dict penalties, reductions;
    penalties[""] = int(NO_PENALTY), penalties["Focal"] = int(FOCAL), penalties["Poly1"] = int(POLY1);
    penalties["GCE"] = int(GCE), penalties["SCE"] = int(SCE), penalties["Taylor"] = int(TAYLOR);
    reductions["none"] = int(NONE), reductions["sum"] = int(SUM), reductions["mean"] = int(MEAN);
    nb::list numbers;
    for (const Number& each : NUMBERS) numbers.append(each.name);
    for (const char* name : OTHER_NUMBERS) numbers.append(name);
    m.attr("NUMBERS") = nb::tuple(numbers);
    m.attr("PENALTIES") = penalties;
    m.attr("REDUCTIONS") = reductions;
}

void bind_softmax(nb::module_& m) {
    using nb::literals::operator""_a;
    bind_names(m);
    m.def(
        "softmax_forward", &softmax_forward, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
        "reduction"_a, "loss"_a, "row_weight"_a.none(), "lse"_a, "member"_a.none() = nb::none(),
        "statistics"_a = nb::none(), "mass"_a.none() = nb::none()
    );
    m.def(
        "softmax_backward", &softmax_backward, "grad"_a, "divisor"_a, "logits"_a, "target"_a, "weight"_a.none(),
        "lse"_a, "ignore_index"_a, "smoothing"_a, "grad_logits"_a.none(), "grad_target"_a.none(),
        "member"_a.none() = nb::none(), "elsewhere"_a.none() = nb::none()
    );
    m.def(
        "softmax_sum", &softmax_sum, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
        "mean"_a, "loss"_a.none(), "grad_logits"_a.none(), "factor"_a = 1.0, "member"_a.none() = nb::none(),
        "sample_weight"_a.none() = nb::none()
    );
    m.def("scale", &scale, "numbers"_a, "factor"_a);
    m.def("holds", &holds, "tensor"_a, "value"_a);
    m.def("know_types", &know_types, "tensor"_a, "parameter"_a);
}

}  // namespace
