// Plain calls in one step, some of which are so small that most of their time is Python's.
//
// Takes arguments just as a caller gave them, looks at them once, makes the results and fills them. Gives a loss and
// what its gradient is made of. Refuses nothing: what is empty says that Python has to look at the arguments.

#pragma once
#include "bind_binary.h"
#include "bind_softmax.h"

namespace {

// LARGE: bytes from which on memory is recycled, which Python does. FEW_NUMBERS: up to so many numbers of rows are
// converted here, and kept as bytes; more are left to torch, whose tensors are then worth the call.
constexpr int64_t LARGE = 1 << 20, FEW_NUMBERS = 8192;

// How results are made; Python hands it over at import. Never destroyed.
struct Makers {
    nb::object empty_like;  // torch's
    nb::object recycled_like, lse_of, rows_of;
    nb::object number;  // makes a 0-d tensor of the dtype of another tensor
    // One of each dtype, and the last losses of rows: empty_like of them costs half of what a new tensor costs. Each is
    // held while Python is called, where another thread may put its own in its place.
    struct Last {
        nb::object losses;
        int64_t rows = 0;
    };
    nb::object numbers[DTYPES];
    Last last[DTYPES];

    nb::object like(nb::handle tensor, const View& x) const {
        return (x.numel() * (x.dtype.bits / 8) < LARGE ? empty_like : recycled_like)(tensor);
    }
    nb::object number_like(nb::handle tensor, const View& x) {
        nb::object one = numbers[dtype_of(x)];
        if (!one) one = number(tensor), numbers[dtype_of(x)] = one;
        return empty_like(one);
    }
    nb::object losses_of(nb::handle tensor, nb::handle target, const View& x, bool few) {
        if (!few || x.ndim != 2) return rows_of(tensor, target, few);
        const Last known = last[dtype_of(x)];
        if (known.losses && known.rows == x.shape[0]) return empty_like(known.losses);
        const nb::object losses = rows_of(tensor, target, few);
        // Both at once: what was there goes, which may run Python, when the new ones are in place.
        const Last gone = std::exchange(last[dtype_of(x)], Last{losses, x.shape[0]});
        return empty_like(losses);
    }
};
Makers& makers() {
    static Makers* one = new Makers;
    return *one;
}

void know_makers(
    nb::object empty_like, nb::object recycled_like, nb::object lse_of, nb::object rows_of, nb::object number
) {
    for (const nb::object* each : {&empty_like, &recycled_like, &lse_of, &rows_of, &number})
        if (!PyCallable_Check(each->ptr())) throw nb::type_error("what makes results must be callable");
    Makers& m = makers();
    m.empty_like = std::move(empty_like), m.recycled_like = std::move(recycled_like);
    m.lse_of = std::move(lse_of), m.rows_of = std::move(rows_of), m.number = std::move(number);
}

// The names of attributes that every call asks for: to look one up by a C string makes a string each time.
struct Names {
    nb::object requires_grad = intern("requires_grad"), dtype = intern("dtype"), to_save = intern("to_save"),
               saved_tensors = intern("saved_tensors"), formed = intern("formed"), backward = intern("backward"),
               forward_cls = intern("_forward_cls"), level = intern("_current_level"), watcher = intern("watcher");

  private:
    static nb::object intern(const char* name) { return nb::steal(PyUnicode_InternFromString(name)); }
};
const Names& names() {
    static const Names* one = new Names;
    return *one;
}

bool requires_grad(nb::handle tensor) { return tensor.attr(names().requires_grad).is(Py_True); }

// What a caller gave.
struct Given {
    nb::handle logits, target, weight;
    int64_t ignore_index = -100;
    double smoothing = 0;
};

// The tensors of a call that needs nothing of what Python checks: plain ones on the CPU that fit together, and no
// derivative but that of the logits. Strides are looked at later.
std::optional<Inputs> plain_inputs(const Given& given) try {
    const auto& [logits_, target_, weight_, ignore_index, smoothing] = given;
    if (!plain(logits_) || !plain(target_) || !(weight_.is_none() || plain(weight_))) return {};
    View logits(logits_, "logits", View::LOOK), target(target_, "target", View::LOOK);
    if (!is_float(logits) || !logits.on_cpu() || !target.on_cpu() || logits.ndim < 2 || logits.numel() == 0) return {};
    const bool soft = index_type_of(target) < 0;
    if (soft ? target.dtype != logits.dtype || ignore_index >= 0 || requires_grad(target_) : !contiguous(target))
        return {};
    if (target.ndim != logits.ndim - !soft || target.shape[0] != logits.shape[0]) return {};
    for (int32_t d = 1; d < target.ndim; d++)
        if (target.shape[d] != logits.shape[soft ? d : d + 1]) return {};
    std::optional<View> weight;
    if (!weight_.is_none()) {
        weight.emplace(weight_, "weight", View::LOOK);
        if (!weight->on_cpu() || weight->dtype != logits.dtype || weight->dtype.bits < 32 || requires_grad(weight_))
            return {};
        if (weight->ndim != 1 || weight->shape[0] != logits.shape[1] || !contiguous(*weight)) return {};
        weight->see_to(weight_);
    }
    logits.see_to(logits_), target.see_to(target_);
    return Inputs(std::move(logits), std::move(target), std::move(weight), ignore_index, smoothing);
} catch (const nb::python_error& error) {        // of a tensor that DLPack cannot describe, such as a sparse one
    if (!error.matches(PyExc_Exception)) throw;  // but a request to stop
    return {};
} catch (const std::exception&) {
    return {};
}
std::optional<BinaryInputs> plain_binary_inputs(const Given& given) try {
    const auto &logits_ = given.logits, &target_ = given.target;
    if (!plain(logits_) || !plain(target_) || requires_grad(target_)) return {};
    View logits(logits_, "logits", View::LOOK), target(target_, "target", View::LOOK);
    if (!is_float(logits) || !same_dtype(target, logits) || !logits.on_cpu() || !target.on_cpu() || logits.numel() == 0)
        return {};
    if (target.ndim != logits.ndim || !std::equal(logits.shape, logits.shape + logits.ndim, target.shape)) return {};
    if (!contiguous(logits) || !contiguous(target)) return {};
    logits.see_to(logits_), target.see_to(target_);
    return BinaryInputs(std::move(logits), std::move(target));
} catch (const nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    return {};
} catch (const std::exception&) {
    return {};
}

// What was made like the logits. A mode that sees how it is made may have made something else.
std::optional<View> fresh_like(nb::handle made, const char* name, const View& logits) {
    std::optional<View> view = maybe(made, name, View::FRESH);
    if (view) check_same_shape(*view, logits), check_dense(*view);
    if (view && !same_dtype(*view, logits)) view->refuse("must have the dtype of the logits");
    return view;
}
struct FreshSum {
    std::optional<View> loss, gradient;

    FreshSum(nb::handle loss_, nb::handle gradient_, const View& logits)
        : loss(maybe(loss_, "loss", View::FRESH)), gradient(fresh_like(gradient_, "grad_logits", logits)) {
        check_total(*loss, logits);
    }
};

// top and log_sum of rows, from forward to backward: a tensor, and of a few rows a string of bytes, which costs a
// tenth of one.
class KeptSums {
  public:
    KeptSums(nb::handle logits_, const View& logits, int64_t rows) {
        if (rows > FEW_NUMBERS) object_ = makers().lse_of(logits_);
        else object_ = nb::steal(PyBytes_FromStringAndSize(nullptr, size(logits, rows)));
        if (!object_) throw nb::python_error();
        look(logits, rows);
    }
    KeptSums(nb::handle kept, const View& logits) : object_(nb::borrow(kept)) {
        look(logits, logits.numel() / logits.shape[1]);
    }

    void set(Softmax& p, const View& logits) const { set_lse(p, pointer_, wide_bits(logits) / 8); }
    nb::object object() const { return object_; }
    bool few() const { return PyBytes_Check(object_.ptr()); }

  private:
    static Py_ssize_t size(const View& logits, int64_t rows) { return Py_ssize_t(2 * rows * wide_bits(logits) / 8); }
    void look(const View& logits, int64_t rows) {
        if (PyBytes_Check(object_.ptr())) {
            if (PyBytes_Size(object_.ptr()) != size(logits, rows)) refuse("lse", "must have two numbers for each row");
            pointer_ = PyBytes_AsString(object_.ptr());
        } else {
            const View lse(object_, "lse");
            check_lse(lse, logits), pointer_ = lse.pointer();
        }
    }

    nb::object object_;
    void* pointer_ = nullptr;
};

// Do something with a pointer to a tensor's numbers in half precision.
template <class F> void halves(const View& x, F&& f) {
    dtype_of(x) == BF16 ? f(static_cast<bf16*>(x.pointer())) : f(static_cast<half*>(x.pointer()));
}

// What a kernel writes as R, in the dtype of a tensor: in its memory, or beside it and rounded in the end.
class Rounded {
  public:
    explicit Rounded(const View& to) : to_(to) {
        if (to.dtype.bits < 32) wide_.reset(new float[size_t(to.numel())]);
    }
    void* pointer() { return wide_ ? wide_.get() : to_.pointer(); }
    void finish() {
        if (!wide_) return;
        halves(to_, [from = wide_.get(), n = to_.numel()](auto* to) {
            for (int64_t i = 0; i < n; i++) narrow(from[i], to[i]);
        });
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
            halves(grad, [to = wide_.get(), n = grad.numel()](const auto* from) {
                for (int64_t i = 0; i < n; i++) to[i] = widen(from[i]);
            });
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

// What is empty was not taken.
struct QuickSum {
    nb::object loss, gradient;
    double divisor = 1;
};

// A sum or mean and `factor` times its gradient, or None for the gradient.
QuickSum quick_sum(Inputs& inputs, nb::handle logits, bool mean, std::optional<double> factor) {
    QuickSum made{makers().number_like(logits, inputs.logits), nb::none()};
    if (factor) made.gradient = makers().like(logits, inputs.logits);
    const FreshSum fresh(made.loss, made.gradient, inputs.logits);
    const bool done = run_sum(inputs, fresh.loss, fresh.gradient, {}, mean, factor.value_or(1)).has_value();
    return done ? made : QuickSum{};
}

struct QuickRows {
    nb::object losses, kept;
    bool few, as_logits;  // a few rows keep bytes, more a tensor; losses in the dtype of the logits, or as R
};

QuickRows quick_rows(Inputs& inputs, nb::handle logits_, nb::handle target_) {
    if (!inputs.lay_out()) return {};
    const View& logits = inputs.logits;
    Softmax p = inputs.describe();
    const KeptSums kept(logits_, logits, p.rows());
    nb::object losses = makers().losses_of(logits_, target_, logits, p.rows() <= FEW_NUMBERS);
    const View to(losses, "loss", View::FRESH);
    check_like_or_wide(to, logits), check_rows(to, logits), check_contiguous(to);
    kept.set(p, logits);
    Rounded rounded(to);
    p.loss = rounded.pointer();
    forward(p, dtype_of(logits), NONE, to);
    rounded.finish();
    return {losses, kept.object(), kept.few(), same_dtype(to, logits)};
}

// The gradient for the logits from what quick_rows gave and the gradient of its losses.
nb::object quick_rows_gradient(nb::handle grad_, const Given& given, nb::handle kept_) {
    std::optional<Inputs> inputs;
    if (!plain(grad_) || !(inputs = plain_inputs(given))) return {};
    const View grad(grad_, "grad"), &logits = inputs->logits;
    check_rows(grad, logits);
    const KeptSums kept(kept_, logits);
    const Incoming rows(grad, logits);
    nb::object gradient = makers().like(given.logits, logits);
    const std::optional<View> to = fresh_like(gradient, "grad_logits", logits);
    if (!rows.pointer() || !inputs->lay_out(to)) return {};
    Softmax p = inputs->describe(Inputs::BACKWARD);
    kept.set(p, logits);
    p.grad = rows.pointer(), p.grad_rows = rows.each;
    set_gradient(p, *to, inputs->layouts.back());
    backward(p, dtype_of(logits));
    return gradient;
}

// --- sigmoid --------------------------------------------------------------------------------------------------------

// The same for binary losses without weights.
QuickSum quick_binary_sum(const BinaryInputs& inputs, nb::handle logits_, bool mean, std::optional<double> factor) {
    const View& logits = inputs.logits;
    QuickSum made{makers().number_like(logits_, logits), nb::none(), mean ? double(logits.numel()) : 1};
    if (factor) made.gradient = makers().like(logits_, logits);
    const FreshSum fresh(made.loss, made.gradient, logits);
    if (fresh.gradient) check_contiguous(*fresh.gradient);
    const bool done = run_binary_sum(inputs, fresh.loss, fresh.gradient, made.divisor, factor.value_or(1));
    return done ? made : QuickSum{};
}

// The losses of elements, in the dtype of the logits.
nb::object quick_binary_elements(const BinaryInputs& inputs, nb::handle logits_) {
    const View& logits = inputs.logits;
    nb::object losses = makers().like(logits_, logits);
    const View to(losses, "loss", View::FRESH);
    check_gradient(to, logits);
    Binary p{};
    describe(inputs, p);
    p.loss = to.pointer(), p.narrow_loss = true;
    run_binary(p, logits);
    return losses;
}

// The gradient for the logits from that of those losses, which keep nothing.
nb::object quick_binary_gradient(nb::handle grad_, const Given& given) {
    std::optional<BinaryInputs> inputs;
    if (!plain(grad_) || !(inputs = plain_binary_inputs(given))) return {};
    const View grad(grad_, "grad"), &logits = inputs->logits;
    check_same_shape(grad, logits);
    Binary p{};
    describe(*inputs, p);
    std::optional<Incoming> elements;
    if (same_dtype(grad, logits) && contiguous(grad)) {
        p.grad = grad.pointer(), p.grad_rows = p.narrow_grad = true;
    } else {
        elements.emplace(grad, logits);
        p.grad = elements->pointer(), p.grad_rows = elements->each;
    }
    if (!p.grad) return {};
    nb::object gradient = makers().like(given.logits, logits);
    const View to(gradient, "grad_logits", View::FRESH);
    check_gradient(to, logits);
    p.grad_logits = to.pointer();
    run_binary(p, logits);
    return gradient;
}

}  // namespace
