// Binary cross entropy for Python.
//
// Takes tensors of one shape with their dimensions in the order in which the logits lie, weights expanded to that
// shape. Gives losses and gradients in tensors that Python made; both functions return whether the strides were taken.
// Refuses weights whose strides allow no split of the dimensions into two that can be walked as one.

#pragma once
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

// Split the dimensions as early as the weights allow; false where they allow no split.
bool describe(
    const View& logits, const View& target, const std::optional<View>& weight, const std::optional<View>& pos_weight,
    Binary& p
) {
    p.logits = logits.pointer(), p.target = target.pointer(), p.wide_target = target.dtype.bits != logits.dtype.bits;
    p.outer = 1, p.inner = logits.numel();
    for (int32_t split = 0; split <= logits.ndim; split++) {
        if (set_weights(weight, split, p.weight, p.weight_at) &&
            set_weights(pos_weight, split, p.pos_weight, p.pos_weight_at))
            return true;
        if (split < logits.ndim) p.outer *= logits.shape[split], p.inner /= logits.shape[split];
    }
    return false;
}

// Write the loss of each element as R, or one number: the sum over `divisor`.
bool binary_forward(
    nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle pos_weight_, bool reduce, double divisor,
    nb::handle loss_
) {
    const View logits(logits_), target(target_), loss(loss_);
    const std::optional<View> weight = maybe(weight_), pos_weight = maybe(pos_weight_);
    Binary p{};
    if (!describe(logits, target, weight, pos_weight, p)) return false;
    std::vector<double> partial(reduce ? size_t(p.blocks()) : 0);
    if (reduce) p.partial = partial.data();
    else p.loss = loss.pointer();
    auto* run = kernels->binary[dtype_of(logits)];
    share(p.blocks(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    if (reduce) {
        double sum = 0;
        for (double part : partial) sum += part;
        put_number(loss, sum / divisor);
    }
    return true;
}

bool binary_backward(
    nb::handle grad_, double divisor, nb::handle logits_, nb::handle target_, nb::handle weight_,
    nb::handle pos_weight_, nb::handle grad_logits_, nb::handle grad_target_
) {
    const View grad(grad_), logits(logits_), target(target_);
    const std::optional<View> weight = maybe(weight_), pos_weight = maybe(pos_weight_);
    const std::optional<View> grad_logits = maybe(grad_logits_), grad_target = maybe(grad_target_);
    Binary p{};
    if (!describe(logits, target, weight, pos_weight, p)) return false;
    const Gradient g(grad, divisor, logits.dtype.bits == 64);
    p.grad = g.pointer, p.grad_rows = g.rows;
    if (grad_logits) p.grad_logits = grad_logits->pointer();
    if (grad_target) p.grad_target = grad_target->pointer();
    auto* run = kernels->binary[dtype_of(logits)];
    share(p.blocks(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    return true;
}

void bind_binary(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def(
        "binary_forward", &binary_forward, "logits"_a, "target"_a, "weight"_a.none(), "pos_weight"_a.none(), "reduce"_a,
        "divisor"_a, "loss"_a
    );
    m.def(
        "binary_backward", &binary_backward, "grad"_a, "divisor"_a, "logits"_a, "target"_a, "weight"_a.none(),
        "pos_weight"_a.none(), "grad_logits"_a.none(), "grad_target"_a.none()
    );
}

}  // namespace
