// Plain calls in one step, some of which are so small that most of their time is Python's.
//
// Takes arguments just as a caller gave them, looks at them once, makes the results and fills them. Gives a loss and
// what its gradient is made of. Refuses nothing: None says that Python has to look at the arguments.

#pragma once
#include "bind_binary.h"
#include "bind_softmax.h"

namespace {

// LARGE: bytes from which on memory is recycled, which Python does. FEW_NUMBERS: up to so many numbers are converted
// here, one by one; more are left to torch, whose vectors are then worth the call.
constexpr int64_t LARGE = 1 << 20, FEW_NUMBERS = 512;

// How results are made; Python hands it over at import. Never destroyed.
struct Makers {
    nb::object empty_like;  // torch's
    nb::object recycled_like, wide_like, lse_of, rows_of;
    nb::object number;           // makes a 0-d tensor of the dtype of another tensor
    nb::object numbers[DTYPES];  // one of each dtype: empty_like of it costs half of what a new tensor costs

    nb::object like(nb::handle tensor, const View& x) const {
        return (x.numel() * (x.dtype.bits / 8) < LARGE ? empty_like : recycled_like)(tensor);
    }
    nb::object number_like(nb::handle tensor, const View& x) {
        nb::object& one = numbers[dtype_of(x)];
        if (!one) one = number(tensor);
        return empty_like(one);
    }
};
Makers& makers() {
    static Makers* one = new Makers;
    return *one;
}

void know_makers(
    nb::object empty_like, nb::object recycled_like, nb::object wide_like, nb::object lse_of, nb::object rows_of,
    nb::object number
) {
    for (const nb::object* each : {&empty_like, &recycled_like, &wide_like, &lse_of, &rows_of, &number})
        if (!PyCallable_Check(each->ptr())) throw nb::type_error("what makes results must be callable");
    Makers& m = makers();
    m.empty_like = std::move(empty_like), m.recycled_like = std::move(recycled_like),
    m.wide_like = std::move(wide_like);
    m.lse_of = std::move(lse_of), m.rows_of = std::move(rows_of), m.number = std::move(number);
}

bool requires_grad(nb::handle tensor) { return nb::cast<bool>(tensor.attr("requires_grad")); }

// Whether a call needs nothing of what Python checks: plain tensors on the CPU that fit together, as softmax_sum takes
// them, and no derivative but that of the logits.
bool ordinary(nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index) try {
    if (!plain(logits_) || !plain(target_) || !(weight_.is_none() || plain(weight_))) return false;
    const View logits(logits_, "logits", View::LOOK), target(target_, "target", View::LOOK);
    if (!is_float(logits) || !logits.on_cpu() || !target.on_cpu() || logits.ndim < 2 || logits.numel() == 0)
        return false;
    const bool soft = index_type_of(target) < 0;
    if (soft ? target.dtype != logits.dtype || ignore_index >= 0 || requires_grad(target_) : !contiguous(target))
        return false;
    if (target.ndim != logits.ndim - !soft || target.shape[0] != logits.shape[0]) return false;
    for (int32_t d = 1; d < target.ndim; d++)
        if (target.shape[d] != logits.shape[soft ? d : d + 1]) return false;
    if (!weight_.is_none()) {
        const View weight(weight_, "weight", View::LOOK);
        if (!weight.on_cpu() || weight.dtype != logits.dtype || weight.dtype.bits < 32 || requires_grad(weight_))
            return false;
        if (weight.ndim != 1 || weight.shape[0] != logits.shape[1] || !contiguous(weight)) return false;
    }
    std::vector<Layout> layouts;
    return lay_out(soft ? std::vector{&logits, &target} : std::vector{&logits}, layouts);
} catch (const std::exception&) {  // a tensor that DLPack cannot describe, such as a sparse one
    return false;
}
bool ordinary(nb::handle logits_, nb::handle target_) try {
    if (!plain(logits_) || !plain(target_) || requires_grad(target_)) return false;
    const View logits(logits_, "logits", View::LOOK), target(target_, "target", View::LOOK);
    if (!is_float(logits) || !same_dtype(target, logits) || !logits.on_cpu() || !target.on_cpu() || logits.numel() == 0)
        return false;
    if (target.ndim != logits.ndim || !std::equal(logits.shape, logits.shape + logits.ndim, target.shape)) return false;
    return contiguous(logits) && contiguous(target);
} catch (const std::exception&) {
    return false;
}

// What a kernel writes as R, in the dtype of a tensor: in its memory, or beside it and rounded in the end.
class Rounded {
  public:
    explicit Rounded(const View& to) : to_(to) {
        if (to.dtype.bits < 32) wide_.reset(new float[size_t(to.numel())]);
    }
    void* pointer() { return wide_ ? wide_.get() : to_.pointer(); }
    void finish() {
        for (int64_t i = 0; wide_ && i < to_.numel(); i++) {
            if (dtype_of(to_) == BF16) narrow(wide_[size_t(i)], static_cast<bf16*>(to_.pointer())[i]);
            else narrow(wide_[size_t(i)], static_cast<half*>(to_.pointer())[i]);
        }
    }

  private:
    const View& to_;
    std::unique_ptr<float[]> wide_;
};

// What arrives from losses, as R: one number, spread over all of them as the gradient of a sum is, or one for each.
class Incoming {
  public:
    bool each = true;

    Incoming(const View& grad, const View& logits) {
        if (!is_float(grad)) return;
        const bool is_wide = grad.dtype.bits == wide_bits(logits);
        if (std::all_of(grad.strides, grad.strides + grad.ndim, [](int64_t stride) { return stride == 0; })) {
            each = false, one_.emplace(number(grad), dtype_of(logits) == F64), pointer_ = one_->pointer;
        } else if (contiguous(grad) && is_wide) {
            pointer_ = grad.pointer();
        } else if (contiguous(grad) && same_dtype(grad, logits) && grad.numel() <= FEW_NUMBERS) {
            wide_.reset(new float[size_t(grad.numel())]);
            for (int64_t i = 0; i < grad.numel(); i++)
                wide_[size_t(i)] = dtype_of(grad) == BF16 ? widen(static_cast<const bf16*>(grad.pointer())[i])
                                                          : widen(static_cast<const half*>(grad.pointer())[i]);
            pointer_ = wide_.get();
        }
    }
    const void* pointer() const { return pointer_; }  // null where torch has to convert it

  private:
    const void* pointer_ = nullptr;
    std::optional<Gradient> one_;
    std::unique_ptr<float[]> wide_;
};

// --- softmax --------------------------------------------------------------------------------------------------------

// (loss, Σ of the rows' weights, gradient): a sum or mean and `factor` times its gradient, or None for the gradient.
nb::object quick_sum(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing, bool mean,
    std::optional<double> factor
) {
    if (!ordinary(logits_, target_, weight_, ignore_index)) return nb::none();
    const View logits(logits_, "logits", View::LOOK);
    nb::object loss = makers().number_like(logits_, logits);
    nb::object gradient = factor ? makers().like(logits_, logits) : nb::none();
    const std::optional<double> total = softmax_sum(
        logits_, target_, weight_, ignore_index, smoothing, mean, loss, gradient, factor.value_or(1), nb::none(),
        nb::none()
    );
    return total ? nb::object(nb::make_tuple(loss, *total, gradient)) : nb::none();
}

// (losses, lse) of rows. A few losses come in the dtype of the logits, more as R.
nb::object quick_rows(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing
) {
    if (!ordinary(logits_, target_, weight_, ignore_index)) return nb::none();
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing);
    const View& logits = inputs.logits;
    if (!inputs.lay_out()) return nb::none();
    Softmax p = inputs.describe(kernels->few_classes[dtype_of(logits)]);
    const bool few = p.rows() <= FEW_NUMBERS;
    nb::object losses = makers().rows_of(logits_, target_, few), lse = makers().lse_of(logits_);
    const View to(losses, "loss", View::WRITE), sums(lse, "lse", View::WRITE);
    check_like_or_wide(to, logits), check_rows(to, logits), check_contiguous(to), check_lse(sums, logits);
    set_lse(p, sums.pointer(), sums.dtype.bits / 8);
    Rounded rounded(to);
    p.loss = rounded.pointer();
    forward(p, dtype_of(logits), logits.numel(), NONE, to);
    rounded.finish();
    return nb::make_tuple(losses, lse);
}

// The gradient for the logits from what quick_rows gave and the gradient of its losses.
nb::object quick_rows_gradient(
    nb::handle grad_, nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index,
    double smoothing, nb::handle lse_
) {
    if (!plain(grad_) || !ordinary(logits_, target_, weight_, ignore_index)) return nb::none();
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing);
    const View grad(grad_, "grad"), lse(lse_, "lse"), &logits = inputs.logits;
    check_rows(grad, logits), check_lse(lse, logits);
    const Incoming rows(grad, logits);
    nb::object gradient = makers().like(logits_, logits);
    const std::optional<View> to(std::in_place, gradient, "grad_logits", View::WRITE);
    if (!rows.pointer() || !inputs.lay_out(to)) return nb::none();
    Softmax p = inputs.describe(FEW_CLASSES);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    p.grad = rows.pointer(), p.grad_rows = rows.each;
    set_gradient(p, *to, inputs.layouts.back());
    backward(p, dtype_of(logits), logits.numel());
    return gradient;
}

// --- sigmoid --------------------------------------------------------------------------------------------------------

// The same for binary losses without weights.
nb::object quick_binary_sum(nb::handle logits_, nb::handle target_, bool mean, std::optional<double> factor) {
    if (!ordinary(logits_, target_)) return nb::none();
    const View logits(logits_, "logits", View::LOOK);
    const double divisor = mean ? double(logits.numel()) : 1;
    nb::object loss = makers().number_like(logits_, logits);
    nb::object gradient = factor ? makers().like(logits_, logits) : nb::none();
    const bool done = binary_sum(logits_, target_, nb::none(), nb::none(), divisor, loss, gradient, factor.value_or(1));
    return done ? nb::object(nb::make_tuple(loss, divisor, gradient)) : nb::none();
}

// The losses of elements, a few of them in the dtype of the logits, more as R.
nb::object quick_binary_elements(nb::handle logits_, nb::handle target_) {
    if (!ordinary(logits_, target_)) return nb::none();
    const BinaryInputs inputs(logits_, target_, nb::none(), nb::none());
    const View& logits = inputs.logits;
    const bool few = logits.dtype.bits >= 32 || logits.numel() <= FEW_NUMBERS;
    nb::object losses = few ? makers().like(logits_, logits) : makers().wide_like(logits_);
    const View to(losses, "loss", View::WRITE);
    check_like_or_wide(to, logits), check_same_shape(to, logits), check_contiguous(to);
    Binary p{};
    describe(inputs, p);
    Rounded rounded(to);
    p.loss = rounded.pointer();
    run_binary(p, logits);
    rounded.finish();
    return losses;
}

// The gradient for the logits from the gradient of those losses.
nb::object quick_binary_gradient(nb::handle grad_, nb::handle logits_, nb::handle target_) {
    if (!plain(grad_) || !ordinary(logits_, target_)) return nb::none();
    const BinaryInputs inputs(logits_, target_, nb::none(), nb::none());
    const View grad(grad_, "grad"), &logits = inputs.logits;
    check_same_shape(grad, logits);
    const Incoming elements(grad, logits);
    if (!elements.pointer()) return nb::none();
    nb::object gradient = makers().like(logits_, logits);
    const View to(gradient, "grad_logits", View::WRITE);
    check_gradient(to, logits);
    Binary p{};
    describe(inputs, p);
    p.grad = elements.pointer(), p.grad_rows = elements.each, p.grad_logits = to.pointer();
    run_binary(p, logits);
    return gradient;
}

void bind_quick(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def(
        "know_makers", &know_makers, "empty_like"_a, "recycled_like"_a, "wide_like"_a, "lse_of"_a, "rows_of"_a,
        "number"_a
    );
    m.def(
        "quick_sum", &quick_sum, "logits"_a.none(), "target"_a.none(), "weight"_a.none(), "ignore_index"_a,
        "smoothing"_a, "mean"_a, "factor"_a.none()
    );
    m.def(
        "quick_rows", &quick_rows, "logits"_a.none(), "target"_a.none(), "weight"_a.none(), "ignore_index"_a,
        "smoothing"_a
    );
    m.def(
        "quick_rows_gradient", &quick_rows_gradient, "grad"_a.none(), "logits"_a.none(), "target"_a.none(),
        "weight"_a.none(), "ignore_index"_a, "smoothing"_a, "lse"_a
    );
    m.def("quick_binary_sum", &quick_binary_sum, "logits"_a.none(), "target"_a.none(), "mean"_a, "factor"_a.none());
    m.def("quick_binary_elements", &quick_binary_elements, "logits"_a.none(), "target"_a.none());
    m.def("quick_binary_gradient", &quick_binary_gradient, "grad"_a.none(), "logits"_a.none(), "target"_a.none());
}

}  // namespace
