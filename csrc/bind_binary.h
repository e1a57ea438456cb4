// Binary cross entropy for Python.
//
// Takes tensors of one shape with their dimensions in the order in which the logits lie, weights expanded to that
// shape. Gives losses and gradients in tensors that Python made; each function returns whether the strides were taken.
// Refuses what does not fit together (bind_checks.h), and weights whose strides allow no split of the dimensions into
// two that can be walked as one.

#pragma once
#include <memory>

#include "bind_checks.h"
#include "launch.h"
#include "layout.h"

namespace {

// The one stride at which the dimensions [from, to) can be walked, if there is one.
std::optional<int64_t> one_stride(const View& x, int32_t from, int32_t to) {
    int64_t stride = 0, run = 1;
    for (int32_t d = to - 1; d >= from; d--) {
        if (x.shape[d] == 1) continue;
        if (run == 1) stride = x.strides[d];
        else if (x.strides[d] != run * stride) return std::nullopt;
        run *= x.shape[d];
    }
    return stride;
}

// Weights of a binary loss, expanded to the logits' shape, as strides before and behind a dimension.
bool set_weights(const std::optional<View>& weight, int32_t split, const void*& pointer, int64_t (&at)[2]) {
    if (!weight) return true;
    const std::optional<int64_t> outer = one_stride(*weight, 0, split),
                                 inner = one_stride(*weight, split, weight->ndim);
    if (!outer || !inner) return false;
    pointer = weight->pointer(), at[0] = *outer, at[1] = *inner;
    return true;
}

// What every binary loss is given.
struct BinaryInputs {
    View logits, target;
    std::optional<View> weight, pos_weight;

    BinaryInputs(nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle pos_weight_)
        : BinaryInputs(
              View(logits_, "logits"), View(target_, "target"), maybe(weight_, "weight"),
              maybe(pos_weight_, "pos_weight")
          ) {}
    BinaryInputs(View logits_, View target_, std::optional<View> weight_ = {}, std::optional<View> pos_weight_ = {})
        : logits(std::move(logits_)), target(std::move(target_)), weight(std::move(weight_)),
          pos_weight(std::move(pos_weight_)) {
        dtype_of(logits), check_contiguous(logits);
        if (logits.numel() == 0) logits.refuse("must not be empty");
        check_like_or_wide(target, logits), check_same_shape(target, logits), check_contiguous(target);
        for (const auto* each : {&weight, &pos_weight})
            if (*each) check_wide(**each, logits), check_same_shape(**each, logits);
    }

    Memory memory() const {
        Memory memory{&logits, &target};
        memory.reads(weight), memory.reads(pos_weight);
        return memory;
    }
};

// Split the dimensions as early as the weights allow; false where they allow no split.
bool describe(const BinaryInputs& inputs, Binary& p) {
    const auto& [logits, target, weight, pos_weight] = inputs;
    p.logits = logits.pointer(), p.target = target.pointer(), p.wide_target = target.dtype.bits != logits.dtype.bits;
    p.outer = 1, p.inner = logits.numel();
    for (int32_t split = 0; split <= logits.ndim; split++) {
        if (set_weights(weight, split, p.weight, p.weight_at) &&
            set_weights(pos_weight, split, p.pos_weight, p.pos_weight_at)) {
            p.row = p.inner;
            if (p.row < SHORT_ROW) p.inner *= p.outer, p.outer = 1;  // short rows share a block
            return true;
        }
        if (split < logits.ndim) p.outer *= logits.shape[split], p.inner /= logits.shape[split];
    }
    return false;
}

void run_binary(const Binary& p, const View& logits) {
    auto* run = kernels->binary[dtype_of(logits)];
    share(p.blocks(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

// Write the loss of each element as R, or one number: the sum over `divisor`.
bool binary_forward(
    nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle pos_weight_, bool reduce, double divisor,
    nb::handle loss_
) {
    const BinaryInputs inputs(logits_, target_, weight_, pos_weight_);
    const View &logits = inputs.logits, loss(loss_, "loss", View::WRITE);
    check_wide(loss, logits);
    if (reduce) check_one(loss);
    else check_same_shape(loss, logits), check_contiguous(loss);
    inputs.memory().writes(loss);
    Binary p{};
    if (!describe(inputs, p)) return false;
    std::vector<double> partial(reduce ? size_t(p.blocks()) : 0);
    if (reduce) p.partial = partial.data();
    else p.loss = loss.pointer();
    run_binary(p, logits);
    if (reduce) {
        put_number(loss, total(partial.data(), p.blocks()) / divisor);
    }
    return true;
}

// Check the tensor to which a gradient is written against that of which it is the gradient.
void check_gradient(const View& grad, const View& of) {
    check_same_shape(grad, of), check_contiguous(grad);
    if (!same_dtype(grad, of)) grad.refuse("must have the dtype of " + std::string(of.name));
}

bool binary_backward(
    nb::handle grad_, double divisor, nb::handle logits_, nb::handle target_, nb::handle weight_,
    nb::handle pos_weight_, nb::handle grad_logits_, nb::handle grad_target_
) {
    const BinaryInputs inputs(logits_, target_, weight_, pos_weight_);
    const View grad(grad_, "grad"), &logits = inputs.logits;
    const std::optional<View> grad_logits = maybe(grad_logits_, "grad_logits", View::WRITE),
                              grad_target = maybe(grad_target_, "grad_target", View::WRITE);
    check_incoming(grad, logits, false);
    Memory memory = inputs.memory();
    memory.reads(grad);
    if (grad_logits) check_gradient(*grad_logits, logits), memory.writes(*grad_logits, &logits);
    if (grad_target) check_gradient(*grad_target, inputs.target), memory.writes(*grad_target);
    Binary p{};
    if (!describe(inputs, p)) return false;
    const Gradient g(grad, divisor, logits.dtype.bits == 64);
    p.grad = g.pointer, p.grad_rows = g.rows;
    if (grad_logits) p.grad_logits = grad_logits->pointer();
    if (grad_target) p.grad_target = grad_target->pointer();
    run_binary(p, logits);
    return true;
}

// Write the sum over `divisor` and `factor` times its gradient in one pass, as far as they are wanted.
bool run_binary_sum(
    const BinaryInputs& inputs, const std::optional<View>& loss, const std::optional<View>& grad_logits, double divisor,
    double factor
) {
    const View& logits = inputs.logits;
    Binary p{};
    if (!describe(inputs, p)) return false;
    const std::unique_ptr<double[]> partial(new double[size_t(p.blocks())]);
    p.partial = partial.get();
    const Gradient g(over(factor, divisor), logits.dtype.bits == 64);
    if (grad_logits)
        p.grad = g.pointer, p.grad_logits = grad_logits->pointer(), p.stream = is_streamed(*grad_logits, logits);
    run_binary(p, logits);
    if (loss) put_number(*loss, total(partial.get(), p.blocks()) / divisor);
    return true;
}

bool binary_sum(
    nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle pos_weight_, double divisor,
    nb::handle loss_, nb::handle grad_logits_, double factor
) {
    const BinaryInputs inputs(logits_, target_, weight_, pos_weight_);
    const View& logits = inputs.logits;
    const std::optional<View> loss = maybe(loss_, "loss", View::WRITE),
                              grad_logits = maybe(grad_logits_, "grad_logits", View::WRITE);
    Memory memory = inputs.memory();
    if (loss) check_total(*loss, logits), memory.writes(*loss);
    if (grad_logits) check_gradient(*grad_logits, logits), memory.writes(*grad_logits, &logits);
    return run_binary_sum(inputs, loss, grad_logits, divisor, factor);
}

void bind_binary(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def(
        "binary_forward", &binary_forward, "logits"_a, "target"_a, "weight"_a.none(), "pos_weight"_a.none(), "reduce"_a,
        "divisor"_a, "loss"_a
    );
    m.def(
        "binary_sum", &binary_sum, "logits"_a, "target"_a, "weight"_a.none(), "pos_weight"_a.none(), "divisor"_a,
        "loss"_a.none(), "grad_logits"_a.none(), "factor"_a = 1.0
    );
    m.def(
        "binary_backward", &binary_backward, "grad"_a, "divisor"_a, "logits"_a, "target"_a, "weight"_a.none(),
        "pos_weight"_a.none(), "grad_logits"_a.none(), "grad_target"_a.none()
    );
}

}  // namespace
