// Plain calls as a whole: the loss, attached to its logits, and the backward of a training step.
//
// Takes arguments just as a caller gave them, and asks torch whether anything looks on (a tracer, a mode, a transform).
// Gives a loss that autograd follows, by a Function of ops/small.py whose forward and backward stand here. Refuses
// nothing: None says that Python has to look at the arguments, and a backward that is differentiated, transformed or
// given another number than expected is left to the Function's own, in Python.

#pragma once
#include "bind_quick.h"

namespace {

// What torch does beside a call, and whether anybody watches losses; Python hands over what is asked. Never destroyed.
struct Torch {
    nb::object is_grad_enabled, tracing_state, modes, function_mode, transforms, autocast, saved_hooks, is_batched;
    nb::object forward_ad, watch;  // modules

    bool grad_enabled() const { return is_grad_enabled().is(Py_True); }
    // Whether no level of forward mode is entered.
    bool no_forward_mode() const { return nb::cast<int64_t>(forward_ad.attr(names().level)) < 0; }
    // Whether there is no tracer, no mode below autograd and no transform either.
    bool nothing_transforms() const {
        return no_forward_mode() && tracing_state().is_none() && nb::cast<int64_t>(modes()) == 0 &&
               transforms().is(Py_False);
    }
    // Whether there is no mode above autograd either, and nobody who watches losses.
    bool nothing_looks_on() const {
        return nothing_transforms() && function_mode().is(Py_False) && watch.attr(names().watcher).is_none();
    }
    // Whether autocast decides dtypes.
    bool autocasts() const { return !autocast().is(Py_False); }
    // Whether autograd keeps tensors as they are: hooks on what is saved would not see a gradient.
    bool keeps_what_is_saved() const { return saved_hooks(false).is_none(); }
    // Whether a gradient is wanted for nothing but a step: not to be differentiated, transformed or batched itself.
    // The opposite of needs_formula in ops/lean.py.
    bool is_last(nb::handle grad) const {
        return !grad_enabled() && nothing_transforms() && is_batched(grad).is(Py_False);
    }
};
Torch& torch() {
    static Torch* one = new Torch;
    return *one;
}

// What runs the Functions, and the factors that backward is likely to bring. Never destroyed.
struct Functions {
    nb::object sum, rows, binary_sum, elements;
    nb::dict expected;          // by the dtype of the logits, None where it is not known
    nb::object dtypes[DTYPES];  // of torch, once there were logits of them

    nb::object dtype(nb::handle logits, const View& x) {
        nb::object& one = dtypes[dtype_of(x)];
        if (!one) one = logits.attr(names().dtype);
        return one;
    }
};
Functions& functions() {
    static Functions* one = new Functions;
    return *one;
}

// --- forward --------------------------------------------------------------------------------------------------------

// The forward of each Function: gives the loss, and notes what autograd is to save and what was formed.
nb::object attach(nb::handle ctx, nb::handle, const nb::tuple& made) {
    if (made.size() != 3) refuse("made", "must be a loss, what is to be saved and what was formed");
    nb::setattr(ctx, names().to_save, made[1]);
    nb::setattr(ctx, names().formed, made[2]);
    return made[0];
}

bool is_followed(nb::handle logits) { return requires_grad(logits) && torch().grad_enabled(); }

// Whether a sum forms its gradient, and multiplied by what.
struct Following {
    const bool followed;
    nb::object dtype, factor = nb::none();

    Following(nb::handle logits, const View& x) : followed(is_followed(logits)) {
        if (followed) dtype = functions().dtype(logits, x), factor = functions().expected[dtype];
    }
    // Hooks on what is saved would not see a gradient that is formed in forward.
    bool can_be_quick() const { return !followed || torch().keeps_what_is_saved(); }
    std::optional<double> number() const {
        return factor.is_none() ? std::nullopt : std::optional(nb::cast<double>(factor));
    }
};

// In a list, from which it is taken once.
nb::list gradients_of(const QuickSum& made) {
    nb::list gradients;
    if (!made.gradient.is_none()) gradients.append(made.gradient);
    return gradients;
}

// What `formed` holds, as ops/small.py reads it. Of a sum: a list with its gradient, the factor of that gradient, the
// dtype of the logits, whether it is a mean (or a binary sum's divisor), and the numbers of the target.
constexpr size_t GRADIENTS = 0, FACTOR = 1, NUMBERS_OF_SUM = 4;
// Of losses of rows: the bytes that a few of them keep, or None, and the numbers of the target. Of elements: None.
constexpr size_t KEPT = 0, IGNORE_INDEX = 1, SMOOTHING = 2, SIZE_OF_ROWS = 3;

nb::object quick_cross_entropy(const Given& given, Reduction reduction) {
    std::optional<Inputs> inputs = plain_inputs(given);
    if (!inputs) return nb::none();
    const auto& [logits, target, weight, ignore_index, smoothing] = given;
    const nb::object none = nb::none();
    if (reduction != NONE) {
        const Following following(logits, inputs->logits);
        if (!following.can_be_quick()) return none;
        const bool mean = reduction == MEAN;
        const QuickSum made = quick_sum(*inputs, logits, mean, following.number());
        if (!made.loss || !following.followed) return made.loss ? made.loss : none;
        const auto& [_, dtype, factor] = following;
        const nb::object formed =
            nb::make_tuple(gradients_of(made), factor, dtype, mean, given.ignore_index, given.smoothing);
        return functions().sum(logits, nb::make_tuple(made.loss, nb::make_tuple(logits, target, weight, none), formed));
    }
    QuickRows made = quick_rows(*inputs, logits, target);
    if (!made.losses) return none;
    if (!made.as_logits) made.losses = made.losses.attr("to")(functions().dtype(logits, inputs->logits));
    if (!is_followed(logits)) return made.losses;
    // Bytes are kept as they are, but a tensor is saved, which autograd frees and shows to hooks.
    const nb::object &kept = made.few ? made.kept : none, &saved = made.few ? none : made.kept;
    const nb::object formed = nb::make_tuple(kept, given.ignore_index, given.smoothing);
    return functions().rows(logits, nb::make_tuple(made.losses, nb::make_tuple(logits, target, weight, saved), formed));
}

nb::object quick_binary_cross_entropy(const Given& given, Reduction reduction) {
    const std::optional<BinaryInputs> inputs = plain_binary_inputs(given);
    if (!inputs) return nb::none();
    const nb::handle logits = given.logits;
    const nb::object none = nb::none(), to_save = nb::make_tuple(logits, given.target, none);
    if (reduction != NONE) {
        const Following following(logits, inputs->logits);
        if (!following.can_be_quick()) return none;
        const QuickSum made = quick_binary_sum(*inputs, logits, reduction == MEAN, following.number());
        if (!made.loss || !following.followed) return made.loss ? made.loss : none;
        const nb::object formed = nb::make_tuple(gradients_of(made), following.factor, following.dtype, made.divisor);
        return functions().binary_sum(logits, nb::make_tuple(made.loss, to_save, formed));
    }
    const nb::object losses = quick_binary_elements(*inputs, logits);
    if (!is_followed(logits)) return losses;
    return functions().elements(logits, nb::make_tuple(losses, to_save, nb::make_tuple(none)));
}

// --- the arguments of a call ----------------------------------------------------------------------------------------

// All arguments of a loss, as a tuple in the order of its signature, whose names and defaults Python hands over.
class Arguments {
  public:
    Arguments(const nb::list& names, nb::tuple defaults, const std::vector<const char*>& looked_at)
        : defaults_(std::move(defaults)) {
        if (nb::len(names) != defaults_.size()) refuse("defaults", "must be as many as the names");
        for (const char* name : looked_at) position_.push_back(nb::cast<size_t>(names.attr("index")(name)));
        for (size_t i = 0; i < defaults_.size(); i++)
            if (std::find(position_.begin(), position_.end(), i) == position_.end()) others_.push_back(i);
    }
    // Whether only those that are looked at are not just their defaults.
    bool rest_is_default(const nb::tuple& given) const {
        return given.size() == defaults_.size() &&
               std::all_of(others_.begin(), others_.end(), [&](size_t i) { return same(given[i], defaults_[i]); });
    }
    nb::handle at(const nb::tuple& given, size_t i) const { return PyTuple_GetItem(given.ptr(), position_[i]); }

  private:
    // Of one type too: True is not 1.0. Nothing but a number or a text is compared.
    static bool same(nb::handle a, nb::handle b) {
        if (a.is(b)) return true;
        if (Py_TYPE(a.ptr()) != Py_TYPE(b.ptr()) || !(PyFloat_CheckExact(b.ptr()) || PyUnicode_CheckExact(b.ptr())))
            return false;
        return PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ) == 1;
    }

    nb::tuple defaults_;
    std::vector<size_t> position_, others_;
};

// None where it is no reduction, or where something looks on, or decides dtypes.
std::optional<Reduction> plain_reduction(nb::handle logits, nb::handle reduction) {
    if (!functions().sum || !plain(logits) || !PyUnicode_CheckExact(reduction.ptr()) || !torch().nothing_looks_on() ||
        torch().autocasts())
        return {};
    const std::pair<const char*, Reduction> reductions[] = {{"mean", MEAN}, {"sum", SUM}, {"none", NONE}};
    for (const auto& [name, value] : reductions)
        if (PyUnicode_CompareWithASCIIString(reduction.ptr(), name) == 0) return value;
    return {};
}

// A function that takes all arguments of cross_entropy, as a tuple in the order of these names.
nb::object short_cross_entropy(nb::list names, nb::tuple defaults) {
    const Arguments arguments(
        names, defaults, {"input", "target", "weight", "ignore_index", "label_smoothing", "reduction"}
    );
    return nb::cpp_function([arguments](const nb::tuple& given) -> nb::object {
        if (!arguments.rest_is_default(given)) return nb::none();
        const auto at = [&](size_t i) { return arguments.at(given, i); };
        const std::optional<Reduction> reduction = plain_reduction(at(0), at(5));
        if (!reduction || !PyLong_CheckExact(at(3).ptr()) || !PyFloat_CheckExact(at(4).ptr())) return nb::none();
        Given of{at(0), at(1), at(2), -100, PyFloat_AsDouble(at(4).ptr())};
        if (!nb::try_cast(at(3), of.ignore_index) || !(of.smoothing >= 0 && of.smoothing <= 1)) return nb::none();
        try {
            return quick_cross_entropy(of, *reduction);
        } catch (const OutOfRange&) {  // which Python says in full
            return nb::none();
        }
    });
}

// The same for binary_cross_entropy_with_logits.
nb::object short_binary_cross_entropy(nb::list names, nb::tuple defaults) {
    const Arguments arguments(names, defaults, {"input", "target", "reduction"});
    return nb::cpp_function([arguments](const nb::tuple& given) -> nb::object {
        if (!arguments.rest_is_default(given)) return nb::none();
        const Given of{arguments.at(given, 0), arguments.at(given, 1), Py_None};
        const std::optional<Reduction> reduction = plain_reduction(of.logits, arguments.at(given, 2));
        return reduction ? quick_binary_cross_entropy(of, *reduction) : nb::none();
    });
}

// --- backward -------------------------------------------------------------------------------------------------------

nb::object in_python(nb::handle ctx, nb::handle grad) {
    return ctx.attr(names().forward_cls).attr(names().backward)(ctx, grad);
}

// What was formed with a loss, as many as it has to be.
nb::tuple formed_with(nb::handle ctx, size_t least) {
    auto formed = nb::cast<nb::tuple>(ctx.attr(names().formed));
    if (formed.size() < least) refuse("ctx", "must have what was formed with the loss");
    return formed;
}
// What autograd saved, which refuses where it was written to.
nb::tuple saved_with(nb::handle ctx, size_t size) {
    auto saved = nb::cast<nb::tuple>(ctx.attr(names().saved_tensors));
    if (saved.size() != size) refuse("ctx", "must have what was saved with the loss");
    return saved;
}
nb::object for_logits(nb::handle gradient) { return nb::make_tuple(gradient, nb::none()); }

// Hand over the gradient that forward formed, where it was formed with the factor that comes.
nb::object sum_gradient(nb::handle ctx, nb::handle grad) {
    const nb::tuple formed = formed_with(ctx, NUMBERS_OF_SUM);
    auto gradients = nb::cast<nb::list>(formed[GRADIENTS]);
    const bool as_formed = gradients.size() > 0 && torch().no_forward_mode() && !torch().grad_enabled() &&
                           holds(grad, nb::cast<double>(formed[FACTOR]));
    // Asked again, since another thread may have taken it while Python was asked.
    if (!as_formed || gradients.size() == 0) return in_python(ctx, grad);
    const nb::object gradient = gradients[0];
    gradients.clear();
    return for_logits(gradient);
}

// Form the gradient of losses of rows.
nb::object rows_gradient(nb::handle ctx, nb::handle grad) {
    if (!torch().is_last(grad)) return in_python(ctx, grad);
    const nb::tuple saved = saved_with(ctx, 4), formed = formed_with(ctx, SIZE_OF_ROWS);
    const Given given{
        saved[0], saved[1], saved[2], nb::cast<int64_t>(formed[IGNORE_INDEX]), nb::cast<double>(formed[SMOOTHING])
    };
    const nb::object gradient = quick_rows_gradient(grad, given, saved[3].is_none() ? formed[KEPT] : saved[3]);
    return gradient ? for_logits(gradient) : in_python(ctx, grad);
}

nb::object elements_gradient(nb::handle ctx, nb::handle grad) {
    if (!torch().is_last(grad)) return in_python(ctx, grad);
    const nb::tuple saved = saved_with(ctx, 3);
    const nb::object gradient = quick_binary_gradient(grad, Given{saved[0], saved[1], Py_None});
    return gradient ? for_logits(gradient) : in_python(ctx, grad);
}

// --- the module -----------------------------------------------------------------------------------------------------

// What a module of Python has by these names, which are those of Torch.
void know_torch(nb::handle questions) {
    Torch asked;
    const std::pair<const char*, nb::object Torch::*> all[] = {
        {"is_grad_enabled", &Torch::is_grad_enabled},
        {"tracing_state", &Torch::tracing_state},
        {"modes", &Torch::modes},
        {"function_mode", &Torch::function_mode},
        {"transforms", &Torch::transforms},
        {"autocast", &Torch::autocast},
        {"saved_hooks", &Torch::saved_hooks},
        {"is_batched", &Torch::is_batched},
    };
    for (const auto& [name, to] : all) {
        asked.*to = questions.attr(name);
        if (!PyCallable_Check((asked.*to).ptr())) throw nb::type_error("what torch is asked must be callable");
    }
    asked.forward_ad = questions.attr("forward_ad"), asked.watch = questions.attr("watch");
    nb::getattr(asked.forward_ad, names().level);  // raises here, and not in a call, where there is no such thing
    nb::getattr(asked.watch, names().watcher);
    torch() = asked;
}

void know_functions(nb::object sum, nb::object rows, nb::object binary_sum, nb::object elements, nb::dict expected) {
    for (const nb::object* each : {&sum, &rows, &binary_sum, &elements})
        if (!PyCallable_Check(each->ptr())) throw nb::type_error("what runs a Function must be callable");
    functions() = {sum, rows, binary_sum, elements, expected, {}};
}

void bind_attach(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def("know_makers", &know_makers, "empty_like"_a, "recycled_like"_a, "lse_of"_a, "rows_of"_a, "number"_a);
    m.def("know_torch", &know_torch, "questions"_a);
    m.def("know_functions", &know_functions, "sum"_a, "rows"_a, "binary_sum"_a, "elements"_a, "expected"_a);
    m.def("short_cross_entropy", &short_cross_entropy, "names"_a, "defaults"_a);
    m.def("short_binary_cross_entropy", &short_binary_cross_entropy, "names"_a, "defaults"_a);
    m.def("attach", &attach, "ctx"_a, "logits"_a, "made"_a);
    // Methods of what autograd shows as a node.
    m.def("sum_gradient", &sum_gradient, nb::is_method(), "grad"_a);
    m.def("rows_gradient", &rows_gradient, nb::is_method(), "grad"_a);
    m.def("elements_gradient", &elements_gradient, nb::is_method(), "grad"_a);
}

}  // namespace
