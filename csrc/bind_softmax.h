// Softmax cross entropy for Python.
//
// Takes logits (N, C, d1, ...), class indices or probabilities, and what else makes a member of the family. Gives
// losses and gradients in tensors that Python made. Refuses indices out of range, by an exception, and strides that
// need a copy: forward then returns None, backward false.

#pragma once
#include <nanobind/stl/optional.h>

#include "launch.h"
#include "layout.h"

namespace {

enum Reduction { NONE, SUM, MEAN };

// What every softmax loss is given.
struct Inputs {
    View logits, target;
    std::optional<View> weight, bias, spread;
    int64_t ignore_index;
    double smoothing;
    bool soft;
    std::vector<Layout> layouts;  // of the logits, of probabilities, of other tensors

    Inputs(nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index_, double smoothing_)
        : logits(logits_), target(target_), weight(maybe(weight_)), ignore_index(ignore_index_), smoothing(smoothing_),
          soft(index_type_of(target) < 0) {}

    // Lay them out together with others of the logits' shape, where those are; false where that takes a copy.
    bool lay_out(const std::optional<View>& first = {}, const std::optional<View>& second = {}) {
        std::vector<const View*> tensors{&logits};
        if (soft) tensors.push_back(&target);
        if (first) tensors.push_back(&*first);
        if (second) tensors.push_back(&*second);
        return ::lay_out(tensors, layouts);
    }

    Softmax describe(nb::handle member) {
        Softmax p{};
        const Layout& layout = layouts.at(0);
        p.outer = layout.outer, p.inner = layout.inner, p.classes = layout.classes;
        p.logits = logits.pointer(), p.at = layout.at;
        p.target = target.pointer(), p.index_type = index_type_of(target);
        if (soft) p.target_at = layouts.at(1).at, p.wide_target = target.dtype.bits != logits.dtype.bits;
        p.weight_sum = double(p.classes);
        if (weight) p.weight = weight->pointer(), p.weight_sum = sum(*weight);
        p.ignore_index = ignore_index, p.smoothing = smoothing, p.share = smoothing / double(p.classes);
        p.per_temperature = 1;
        p.rows_per_tile = p.at.classes == 1 && p.classes > FEW_CLASSES ? 1 : ROWS;
        if (!member.is_none()) set(p, member);
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

    // Read what makes a member of the family other than cross entropy itself: a Member of impl/native.py, by its names.
    void set(Softmax& p, nb::handle member) {
        const nb::object settings = member.attr("settings");
        p.per_temperature = 1 / number(settings, "temperature"), p.cap = number(settings, "softcap");
        p.margin = number(settings, "margin"), p.z_loss = number(settings, "z_loss");
        p.penalty = nb::cast<int64_t>(member.attr("penalty"));
        p.penalty_a = number(member, "penalty_a"), p.penalty_b = number(member, "penalty_b");
        p.masked = nb::cast<bool>(member.attr("masked"));
        bias = maybe(member.attr("bias")), spread = maybe(member.attr("spread"));
        if (bias) p.bias = bias->pointer();
        if (!spread) return;
        p.spread = spread->pointer();
        p.share = p.smoothing / number(member, "spread_classes"), p.weight_sum = number(member, "spread_sum");
    }

    // A number that an object has by this name; None is 0.
    static double number(nb::handle object, const char* name) {
        const nb::object value = object.attr(name);
        return value.is_none() ? 0.0 : nb::cast<double>(value);
    }
};

// lse has the rows' tops, then their log_sums.
void set_lse(Softmax& p, void* lse, int64_t size) {
    p.top = lse, p.log_sum = static_cast<char*>(lse) + p.outer * p.inner * size;
}

// Run the forward kernels: write the loss and return what the rows weigh.
double forward(Softmax& p, DType dtype, int64_t elements, int64_t reduction, const View& loss) {
    std::atomic<bool> out_of_range{false};
    std::vector<double> partial(size_t(2 * p.tiles()));
    p.partial = partial.data(), p.out_of_range = &out_of_range;
    auto* run = kernels->softmax_forward[dtype];
    share(p.tiles(), elements, [&](int64_t begin, int64_t end) { run(p, begin, end); });
    if (out_of_range) throw std::runtime_error("a class index is out of range");
    double sums[2] = {0, 0};
    for (size_t i = 0; i < partial.size(); i++) sums[i % 2] += partial[i];
    if (reduction != NONE)
        put_number(loss, reduction == SUM ? sums[0] : sums[1] == 0 ? std::nan("") : sums[0] / sums[1]);
    return sums[1];
}

// Return Σ of the rows' weights. `loss` is one number, or one R a row with `row_weight`; the statistics are R, one a
// row, and a byte for `correct`.
std::optional<double> softmax_forward(
    nb::handle logits, nb::handle target, nb::handle weight, int64_t ignore_index, double smoothing, int64_t reduction,
    nb::handle loss_, nb::handle row_weight_, nb::handle lse_, nb::handle member, nb::handle statistics
) {
    Inputs inputs(logits, target, weight, ignore_index, smoothing);
    const View loss(loss_), lse(lse_);
    const std::optional<View> row_weight = maybe(row_weight_);
    if (!inputs.lay_out()) return std::nullopt;
    Softmax p = inputs.describe(member);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    if (row_weight) p.loss = loss.pointer(), p.row_weight = row_weight->pointer();
    if (!statistics.is_none()) {
        p.entropy = View(statistics.attr("entropy")).pointer();
        p.target_log_prob = View(statistics.attr("target_log_prob")).pointer();
        p.correct = static_cast<uint8_t*>(View(statistics.attr("correct")).pointer());
    }
    return forward(p, dtype_of(inputs.logits), inputs.logits.numel(), reduction, loss);
}

// The gradient of a mean is that of the sum over `divisor`.
bool softmax_backward(
    nb::handle grad_, double divisor, nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle lse_,
    int64_t ignore_index, double smoothing, nb::handle grad_logits_, nb::handle grad_target_, nb::handle member
) {
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing);
    const View grad(grad_), lse(lse_), &logits = inputs.logits;
    const std::optional<View> grad_logits = maybe(grad_logits_), grad_target = maybe(grad_target_);
    if (!inputs.lay_out(grad_logits, grad_target)) return false;
    Softmax p = inputs.describe(member);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    const Gradient g(grad, divisor, logits.dtype.bits == 64);
    p.grad = g.pointer, p.grad_rows = g.rows;
    size_t next = inputs.soft ? 2 : 1;
    if (grad_logits) {
        p.grad_logits = grad_logits->pointer(), p.grad_at = inputs.layouts[next++].at;
        if (p.grad_at.classes != 1) p.rows_per_tile = ROWS;
    }
    if (grad_target) p.grad_target = grad_target->pointer(), p.grad_target_at = inputs.layouts[next].at;
    auto* run = kernels->softmax_backward[dtype_of(logits)];
    share(p.tiles(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    return true;
}

// --- calls so small that Python is what takes time ------------------------------------------------------------------

constexpr int64_t SMALL_ELEMENTS = 1 << 14;  // up to this many elements the gradient is formed with the loss

PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

void know_types(nb::handle tensor, nb::handle parameter) {
    tensor_type = reinterpret_cast<PyTypeObject*>(tensor.ptr());
    parameter_type = reinterpret_cast<PyTypeObject*>(parameter.ptr());
}
bool plain(nb::handle tensor) {
    return Py_TYPE(tensor.ptr()) == tensor_type || Py_TYPE(tensor.ptr()) == parameter_type;
}
bool requires_grad(nb::handle tensor) { return nb::cast<bool>(tensor.attr("requires_grad")); }

enum Kind { EXTRAORDINARY, ORDINARY, SMALL };

// Whether a call needs nothing of what Python checks: plain tensors on the CPU that fit together, as the kernels take
// them.
int64_t kind_of(nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index) try {
    if (!plain(logits_) || !plain(target_) || !(weight_.is_none() || plain(weight_))) return EXTRAORDINARY;
    const View logits(logits_, View::ANY), target(target_, View::ANY);
    const auto [code, bits, lanes] = logits.dtype;
    if (code == dlpack::FLOAT ? bits < 16 : code != dlpack::BFLOAT) return EXTRAORDINARY;
    if (!logits.on_cpu() || !target.on_cpu() || logits.ndim < 2 || logits.numel() == 0) return EXTRAORDINARY;
    const bool soft = index_type_of(target) < 0;
    if (soft ? target.dtype != logits.dtype || ignore_index >= 0 : !contiguous(target)) return EXTRAORDINARY;
    if (target.ndim != logits.ndim - !soft || target.shape[0] != logits.shape[0]) return EXTRAORDINARY;
    for (int32_t d = 1; d < target.ndim; d++)
        if (target.shape[d] != logits.shape[soft ? d : d + 1]) return EXTRAORDINARY;
    if (!weight_.is_none()) {
        const View weight(weight_, View::ANY);
        if (!weight.on_cpu() || weight.dtype != logits.dtype || weight.dtype.bits < 32) return EXTRAORDINARY;
        if (weight.ndim != 1 || weight.shape[0] != logits.shape[1] || !contiguous(weight)) return EXTRAORDINARY;
        if (requires_grad(weight_)) return EXTRAORDINARY;
    }
    std::vector<Layout> layouts;
    const std::vector<const View*> tensors = soft ? std::vector{&logits, &target} : std::vector{&logits};
    if (!lay_out(tensors, layouts)) return EXTRAORDINARY;
    if (logits.numel() > SMALL_ELEMENTS || bits < 32 || (soft && requires_grad(target_))) return ORDINARY;
    return contiguous(logits) ? SMALL : ORDINARY;
} catch (const std::exception&) {  // a tensor that DLPack cannot describe, such as a sparse one
    return EXTRAORDINARY;
}

// A small loss and, where it is wanted, its gradient at once.
void softmax_small(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing, bool mean,
    nb::handle loss_, nb::handle grad_logits_
) {
    Inputs inputs(logits_, target_, weight_, ignore_index, smoothing);
    const View loss(loss_), &logits = inputs.logits;
    const std::optional<View> grad_logits = maybe(grad_logits_);
    inputs.lay_out();
    Softmax p = inputs.describe(nb::none());
    const int64_t size = logits.dtype.bits / 8;
    std::vector<double> lse(size_t(2 * p.outer * p.inner));
    set_lse(p, lse.data(), size);
    const double total = forward(p, dtype_of(logits), 0, mean ? MEAN : SUM, loss);
    if (!grad_logits) return;
    const Gradient g(mean ? over(1, total) : 1.0, size == 8);
    p.grad = g.pointer, p.grad_logits = grad_logits->pointer(), p.grad_at = p.at;
    kernels->softmax_backward[dtype_of(logits)](p, 0, p.tiles());
}

// Multiply a small contiguous gradient by a number.
void scale(nb::handle grad_, nb::handle factor_) {
    const View grad(grad_);
    const double factor = number(View(factor_));
    if (factor == 1) return;
    const int64_t n = grad.numel();
    const auto multiply = [n](auto* g, auto by) {
        for (int64_t i = 0; i < n; i++) g[i] = times(g[i], by);
    };
    if (grad.dtype.bits == 64) multiply(static_cast<double*>(grad.pointer()), factor);
    else multiply(static_cast<float*>(grad.pointer()), float(factor));
}

// --- the module -----------------------------------------------------------------------------------------------------

// The enumerations, by the names that Python has for them.
void bind_names(nb::module_& m) {
    nb::dict penalties, reductions;
    penalties[""] = int(NO_PENALTY), penalties["Focal"] = int(FOCAL), penalties["Poly1"] = int(POLY1);
    penalties["GCE"] = int(GCE), penalties["SCE"] = int(SCE), penalties["Taylor"] = int(TAYLOR);
    reductions["none"] = int(NONE), reductions["sum"] = int(SUM), reductions["mean"] = int(MEAN);
    m.attr("PENALTIES") = penalties;
    m.attr("REDUCTIONS") = reductions;
    m.attr("ORDINARY") = int(ORDINARY);
    m.attr("SMALL") = int(SMALL);
}

void bind_softmax(nb::module_& m) {
    using nb::literals::operator""_a;
    bind_names(m);
    m.def(
        "softmax_forward", &softmax_forward, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
        "reduction"_a, "loss"_a, "row_weight"_a.none(), "lse"_a, "member"_a.none() = nb::none(),
        "statistics"_a = nb::none()
    );
    m.def(
        "softmax_backward", &softmax_backward, "grad"_a, "divisor"_a, "logits"_a, "target"_a, "weight"_a.none(),
        "lse"_a, "ignore_index"_a, "smoothing"_a, "grad_logits"_a.none(), "grad_target"_a.none(),
        "member"_a.none() = nb::none()
    );
    m.def("kind_of", &kind_of, "logits"_a.none(), "target"_a.none(), "weight"_a.none(), "ignore_index"_a);
    m.def(
        "softmax_small", &softmax_small, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
        "mean"_a, "loss"_a, "grad_logits"_a.none()
    );
    m.def("scale", &scale, "grad"_a, "factor"_a);
    m.def("know_types", &know_types, "tensor"_a, "parameter"_a);
}

}  // namespace
