// The Python module crossent._native: reads tensors, lays their strides out for the kernels, and shares the tiles among
// threads.

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "dispatch.h"
#include "numbers.h"
#include "recycle.h"
#include "view.h"

namespace {

using Range = void (*)(int64_t begin, int64_t end, void* context);
int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Range, void* context) =
    nullptr;  // torch's, set at import
const Kernels* kernels = available_kernels().back();

// Below this many elements the work does not pay for a second thread; below that many the gradient is formed with the
// loss.
constexpr int64_t SERIAL = 1 << 15, SMALL_ELEMENTS = 1 << 14;

template <class F> void share(int64_t tiles, int64_t elements, F&& work) {
    if (!parallel_for || elements < SERIAL || tiles < 2) return work(0, tiles);
    nb::gil_scoped_release release;
    const int64_t grain = std::max<int64_t>(1, tiles * (SERIAL / 2) / elements);
    parallel_for(
        0, tiles, grain, [](int64_t begin, int64_t end, void* f) { (*static_cast<F*>(f))(begin, end); }, &work
    );
}

DType dtype_of(const View& tensor) {
    const auto [code, bits, lanes] = tensor.dtype;
    if (code == dlpack::FLOAT && bits == 32) return F32;
    if (code == dlpack::FLOAT && bits == 64) return F64;
    if (code == dlpack::BFLOAT && bits == 16) return BF16;
    if (code == dlpack::FLOAT && bits == 16) return F16;
    throw std::invalid_argument("the native kernels take float32, float64, bfloat16 and float16");
}

int64_t index_type_of(const View& tensor) {
    const int64_t width = tensor.dtype.bits == 8 ? 0 : tensor.dtype.bits == 16 ? 1 : tensor.dtype.bits == 32 ? 2 : 3;
    if (tensor.dtype.code == dlpack::INT) return I8 + width;
    if (tensor.dtype.code == dlpack::UINT) return U8 + width;
    return -1;
}

// (N, C, d1, ...) as (outer, classes, inner), or nothing where the d's do not lie as one dimension.
struct Layout {
    int64_t outer, classes, inner;
    Strides at;

    static std::optional<Layout> of(const View& x) {
        Layout found{x.shape[0], x.shape[1], 1, {x.strides[0], x.strides[1], 1}};
        for (int32_t d = x.ndim - 1; d >= 2; d--) {
            if (x.shape[d] == 1) continue;
            if (found.inner == 1) found.at.inner = x.strides[d];
            else if (x.strides[d] != found.inner * found.at.inner) return std::nullopt;
            found.inner *= x.shape[d];
        }
        return found;
    }

    bool one_run() const { return outer == 1 || inner == 1 || at.outer == inner * at.inner; }
    void merge() {
        if (inner == 1) at.inner = at.outer;
        inner *= outer;
        outer = 1;
    }
};

// Lay several tensors of one shape out alike: as one run of rows if all of them allow it.
bool lay_out(const std::vector<const View*>& tensors, std::vector<Layout>& layouts) {
    for (const View* tensor : tensors) {
        std::optional<Layout> layout = Layout::of(*tensor);
        if (!layout) return false;
        layouts.push_back(*layout);
    }
    if (std::all_of(layouts.begin(), layouts.end(), [](const Layout& l) { return l.one_run(); }))
        for (Layout& layout : layouts) layout.merge();
    return true;
}

struct Settings {
    const View& logits;
    const View& target;
    const std::optional<View>& weight;
    int64_t ignore_index;
    double smoothing;
};

Softmax describe(const Settings& s, const Layout& logits, const Layout* target) {
    Softmax p{};
    p.outer = logits.outer, p.inner = logits.inner, p.classes = logits.classes;
    p.logits = s.logits.pointer(), p.at = logits.at;
    p.target = s.target.pointer(), p.index_type = target ? -1 : index_type_of(s.target);
    if (target) p.target_at = target->at, p.wide_target = s.target.dtype.bits != s.logits.dtype.bits;
    p.weight_sum = double(p.classes);
    if (s.weight) {
        p.weight = s.weight->pointer(), p.weight_sum = 0;
        for (int64_t k = 0; k < p.classes; k++)
            p.weight_sum += s.weight->dtype.bits == 64 ? static_cast<const double*>(p.weight)[k]
                                                       : static_cast<const float*>(p.weight)[k];
    }
    p.ignore_index = s.ignore_index, p.smoothing = s.smoothing, p.share = s.smoothing / double(p.classes);
    p.per_temperature = 1;
    p.rows_per_tile = p.at.classes == 1 && p.classes > 64 ? 1 : ROWS;
    return p;
}

// What makes a member of the family other than cross entropy itself: an object by the names of native.py's `Member`,
// which holds the record of a call's numbers as `settings`; None for cross entropy.
struct Members {
    std::optional<View> bias, spread;

    void set(Softmax& p, nb::handle member) {
        if (member.is_none()) return;
        const nb::object settings = member.attr("settings");
        const auto number = [](nb::handle of, const char* name) {
            const nb::object value = of.attr(name);
            return value.is_none() ? 0.0 : nb::cast<double>(value);
        };
        p.per_temperature = 1 / number(settings, "temperature"), p.cap = number(settings, "softcap");
        p.margin = number(settings, "margin"), p.z_loss = number(settings, "z_loss");
        p.penalty = nb::cast<int64_t>(member.attr("penalty"));
        p.penalty_a = number(member, "penalty_a"), p.penalty_b = number(member, "penalty_b");
        p.masked = nb::cast<bool>(member.attr("masked"));
        if (const nb::object given = member.attr("bias"); !given.is_none())
            bias.emplace(given), p.bias = bias->pointer();
        if (const nb::object given = member.attr("spread"); !given.is_none()) {
            spread.emplace(given), p.spread = spread->pointer();
            p.share = p.smoothing / number(member, "allowed"), p.weight_sum = number(member, "spread_sum");
        }
    }
};

// lse has the rows' tops, then their log_sums.
void set_lse(Softmax& p, void* lse, int64_t size) {
    p.top = lse, p.log_sum = static_cast<char*>(lse) + p.outer * p.inner * size;
}

std::optional<View> maybe(nb::handle tensor) {
    return tensor.is_none() ? std::nullopt : std::optional<View>(std::in_place, tensor);
}

// A number that is a tensor of its own.
void put_number(const View& to, double value) {
    switch (dtype_of(to)) {
        case F64: *static_cast<double*>(to.pointer()) = value; break;
        case F32: *static_cast<float*>(to.pointer()) = float(value); break;
        case BF16: narrow(float(value), *static_cast<bf16*>(to.pointer())); break;
        default: narrow(float(value), *static_cast<half*>(to.pointer()));
    }
}
double number(const View& from) {
    switch (dtype_of(from)) {
        case F64: return *static_cast<const double*>(from.pointer());
        case F32: return double(*static_cast<const float*>(from.pointer()));
        case BF16: return double(widen(*static_cast<const bf16*>(from.pointer())));
        default: return double(widen(*static_cast<const half*>(from.pointer())));
    }
}

// The gradient of a loss as the kernels take it: R, one number or one for each row, divided by what a mean divides by.
struct Gradient {
    double wide;
    float narrow;
    const void* pointer;
    bool rows;

    Gradient(const View& grad, double divisor, bool wide_rows) : rows(grad.ndim > 0) {
        if (rows) {
            pointer = grad.pointer();
        } else {
            set(number(grad) / divisor, wide_rows);
        }
    }
    Gradient(double value, bool wide_rows) : rows(false) { set(value, wide_rows); }
    Gradient(const Gradient&) = delete;

  private:
    void set(double value, bool wide_rows) {
        wide = value, narrow = float(value);
        pointer = wide_rows ? static_cast<const void*>(&wide) : static_cast<const void*>(&narrow);
    }
};

enum Reduction { NONE, SUM, MEAN };

// Run the forward kernels: write the loss and return what the rows weigh, or nothing if an index is out of range.
std::optional<double> forward(Softmax& p, DType dtype, int64_t elements, int64_t reduction, const View& loss) {
    std::atomic<bool> out_of_range{false};
    std::vector<double> partial(size_t(2 * p.tiles()));
    p.partial = partial.data(), p.out_of_range = &out_of_range;
    auto* run = kernels->softmax_forward[dtype];
    share(p.tiles(), elements, [&](int64_t begin, int64_t end) { run(p, begin, end); });
    if (out_of_range) return std::nullopt;
    double sums[2] = {0, 0};
    for (size_t i = 0; i < partial.size(); i++) sums[i % 2] += partial[i];
    if (reduction != NONE) put_number(loss, reduction == MEAN ? sums[0] / sums[1] : sums[0]);
    return sums[1];
}

constexpr const char* OUT_OF_RANGE = "a class index is out of range";

// Return Σ of the rows' weights, or None where the layout needs a copy. `loss` is one number, or one R a row with
// `row_weight`.
std::optional<double> softmax_forward(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing,
    int64_t reduction, nb::handle loss_, nb::handle row_weight_, nb::handle lse_, nb::handle members_,
    nb::handle statistics_
) {
    const View logits(logits_), target(target_), loss(loss_), lse(lse_);
    const std::optional<View> weight = maybe(weight_), row_weight = maybe(row_weight_);
    const bool soft = index_type_of(target) < 0;
    std::vector<Layout> layouts;
    if (!lay_out(soft ? std::vector<const View*>{&logits, &target} : std::vector<const View*>{&logits}, layouts))
        return std::nullopt;
    Softmax p = describe({logits, target, weight, ignore_index, smoothing}, layouts[0], soft ? &layouts[1] : nullptr);
    Members members;
    members.set(p, members_);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    if (row_weight) p.loss = loss.pointer(), p.row_weight = row_weight->pointer();
    if (!statistics_.is_none()) {
        p.entropy = View(statistics_.attr("entropy")).pointer();
        p.target_log_prob = View(statistics_.attr("target_log_prob")).pointer();
        p.correct = static_cast<uint8_t*>(View(statistics_.attr("correct")).pointer());
    }
    const std::optional<double> total = forward(p, dtype_of(logits), logits.numel(), reduction, loss);
    if (!total) throw std::runtime_error(OUT_OF_RANGE);
    return total;
}

// Return whether the layouts were taken, or need a copy. The gradient of a mean is that of the sum over `divisor`.
bool softmax_backward(
    nb::handle grad_, double divisor, nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle lse_,
    int64_t ignore_index, double smoothing, nb::handle grad_logits_, nb::handle grad_target_, nb::handle members_
) {
    const View grad(grad_), logits(logits_), target(target_), lse(lse_);
    const std::optional<View> weight = maybe(weight_), grad_logits = maybe(grad_logits_),
                              grad_target = maybe(grad_target_);
    const bool soft = index_type_of(target) < 0;
    std::vector<const View*> tensors{&logits};
    for (const View* v :
         {soft ? &target : nullptr, grad_logits ? &*grad_logits : nullptr, grad_target ? &*grad_target : nullptr})
        if (v) tensors.push_back(v);
    std::vector<Layout> layouts;
    if (!lay_out(tensors, layouts)) return false;
    size_t next = 1;
    Softmax p =
        describe({logits, target, weight, ignore_index, smoothing}, layouts[0], soft ? &layouts[next++] : nullptr);
    Members members;
    members.set(p, members_);
    set_lse(p, lse.pointer(), lse.dtype.bits / 8);
    const Gradient g(grad, divisor, logits.dtype.bits == 64);
    p.grad = g.pointer, p.grad_rows = g.rows;
    if (grad_logits) {
        p.grad_logits = grad_logits->pointer(), p.grad_at = layouts[next++].at;
        if (p.grad_at.classes != 1) p.rows_per_tile = ROWS;
    }
    if (grad_target) p.grad_target = grad_target->pointer(), p.grad_target_at = layouts[next++].at;
    auto* run = kernels->softmax_backward[dtype_of(logits)];
    share(p.tiles(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    return true;
}

// --- calls so small that Python is what takes time -------------------------------------------------------------------

PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

bool plain(nb::handle tensor) {
    return Py_TYPE(tensor.ptr()) == tensor_type || Py_TYPE(tensor.ptr()) == parameter_type;
}
bool requires_grad(nb::handle tensor) { return nb::cast<bool>(tensor.attr("requires_grad")); }
bool contiguous(const View& x) {
    int64_t run = 1;
    for (int32_t d = x.ndim - 1; d >= 0; run *= x.shape[d], d--)
        if (x.shape[d] != 1 && x.strides[d] != run) return false;
    return true;
}

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
        if (!weight.on_cpu() || weight.dtype != logits.dtype || weight.dtype.bits < 32 || weight.ndim != 1)
            return EXTRAORDINARY;
        if (weight.shape[0] != logits.shape[1] || !contiguous(weight) || requires_grad(weight_)) return EXTRAORDINARY;
    }
    std::vector<Layout> layouts;
    if (!lay_out(soft ? std::vector<const View*>{&logits, &target} : std::vector<const View*>{&logits}, layouts))
        return EXTRAORDINARY;
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
    const View logits(logits_), target(target_), loss(loss_);
    const std::optional<View> weight = maybe(weight_), grad_logits = maybe(grad_logits_);
    const bool soft = index_type_of(target) < 0;
    std::vector<Layout> layouts;
    lay_out(soft ? std::vector<const View*>{&logits, &target} : std::vector<const View*>{&logits}, layouts);
    Softmax p =
        describe({logits, target, weight, ignore_index, smoothing}, layouts.at(0), soft ? &layouts.at(1) : nullptr);
    const int64_t size = logits.dtype.bits / 8;
    std::vector<double> lse(size_t(2 * p.outer * p.inner));
    set_lse(p, lse.data(), size);
    const std::optional<double> total = forward(p, dtype_of(logits), 0, mean ? MEAN : SUM, loss);
    if (!total) throw std::runtime_error(OUT_OF_RANGE);
    if (!grad_logits) return;
    const Gradient g(mean ? 1 / *total : 1.0, size == 8);
    p.grad = g.pointer, p.grad_logits = grad_logits->pointer(), p.grad_at = p.at;
    kernels->softmax_backward[dtype_of(logits)](p, 0, p.tiles());
}

// Multiply a small contiguous gradient by a number.
void scale(nb::handle grad_, nb::handle factor_) {
    const View grad(grad_);
    const double factor = number(View(factor_));
    if (factor == 1) return;
    const int64_t n = grad.numel();
    if (grad.dtype.bits == 64)
        for (int64_t i = 0; i < n; i++) static_cast<double*>(grad.pointer())[i] *= factor;
    else
        for (int64_t i = 0; i < n; i++) static_cast<float*>(grad.pointer())[i] *= float(factor);
}

// --- new tensors -----------------------------------------------------------------------------------------------------

// A DLPack tensor in recycled memory, to be consumed by torch.from_dlpack.
struct Owned {
    dlpack::Managed managed;
    size_t bytes;
    std::vector<int64_t> shape, strides;
};

nb::object recycled(
    const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, uint8_t code, uint8_t bits
) {
    size_t bytes = bits / 8;
    for (int64_t n : shape) bytes *= size_t(n);
    void* data = recycler().take(bytes);
    if (!data) return nb::none();
    auto* owned = new Owned{{}, bytes, shape, strides};
    owned->managed.tensor = {
        data, {dlpack::CPU, 0}, int32_t(shape.size()), {code, bits, 1}, owned->shape.data(), owned->strides.data(), 0
    };
    owned->managed.context = owned;
    owned->managed.deleter = [](dlpack::Managed* self) {
        auto* mine = static_cast<Owned*>(self->context);
        recycler().give_back(mine->managed.tensor.data, mine->bytes);
        delete mine;
    };
    return nb::steal(PyCapsule_New(&owned->managed, "dltensor", [](PyObject* capsule) {
        if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // consumed
        auto* left = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, "dltensor"));
        left->deleter(left);
    }));
}

// --- binary cross entropy --------------------------------------------------------------------------------------------

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

// Write the loss of each element as R, or one number: the sum over `divisor`. Both return whether the layouts were
// taken.
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

// --- the product of a block that is added to a sum in float ----------------------------------------------------------

constexpr int64_t TILE = 48;  // as WIDE_TILE in product.h

// X as tiles of TILE features, each of pairs of rows; 0 where there are none.
std::vector<uint32_t> paired(const View& x) {
    const int64_t rows = x.shape[0], features = x.shape[1], pairs = (rows + 1) / 2,
                  tiles = (features + TILE - 1) / TILE;
    std::vector<uint32_t> to(size_t(tiles * pairs * TILE), 0);
    const uint16_t* from = static_cast<const uint16_t*>(x.pointer());
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t row = 0; row < rows; row++) {
            const uint16_t* line = from + row * x.strides[0] + tile * TILE;
            uint32_t* out = to.data() + (tile * pairs + row / 2) * TILE;
            const int64_t n = std::min(TILE, features - tile * TILE);
            for (int64_t i = 0; i < n; i++) out[i] |= uint32_t(line[i]) << 16 * (row % 2);
        }
    return to;
}

// Add gᵀ x to sums, or put it there; return whether this processor can. g and x are bfloat16 with their rows' numbers
// side by side, sums are float and contiguous.
bool accumulate(nb::handle g_, nb::handle x_, nb::handle sums_, bool first) {
    if (!kernels->accumulate) return false;
    const View g(g_), x(x_), sums(sums_);
    const std::vector<uint32_t> right = paired(x);
    const Product p{
        static_cast<const uint16_t*>(g.pointer()),
        g.strides[0],
        right.data(),
        static_cast<float*>(sums.pointer()),
        g.shape[0],
        g.shape[1],
        x.shape[1],
        first
    };
    share(p.groups(), g.numel(), [&](int64_t begin, int64_t end) { kernels->accumulate(p, begin, end); });
    return true;
}

void use_isa(const char* wanted) {
    const std::string name = wanted;
    for (const Kernels* found : available_kernels())
        if (name == found->name) return void(kernels = found);
    std::string names;
    for (const Kernels* found : available_kernels()) names += std::string(names.empty() ? "" : ", ") + found->name;
    throw nb::value_error(("this processor and build offer the instruction sets " + names + ", not " + name).c_str());
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The CPU kernels of crossent.";
    m.attr("ORDINARY") = int(ORDINARY);
    m.attr("SMALL") = int(SMALL);
    m.attr("RECYCLES") = Recycler::AVAILABLE;
    using nb::literals::operator""_a;
    m.def(
        "softmax_forward", &softmax_forward, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
        "reduction"_a, "loss"_a, "row_weight"_a.none(), "lse"_a, "members"_a = nb::none(), "statistics"_a = nb::none()
    );
    m.def(
        "softmax_backward", &softmax_backward, "grad"_a, "divisor"_a, "logits"_a, "target"_a, "weight"_a.none(),
        "lse"_a, "ignore_index"_a, "smoothing"_a, "grad_logits"_a.none(), "grad_target"_a.none(),
        "members"_a = nb::none()
    );
    m.def(
        "binary_forward", &binary_forward, "logits"_a, "target"_a, "weight"_a.none(), "pos_weight"_a.none(), "reduce"_a,
        "divisor"_a, "loss"_a
    );
    m.def(
        "binary_backward", &binary_backward, "grad"_a, "divisor"_a, "logits"_a, "target"_a, "weight"_a.none(),
        "pos_weight"_a.none(), "grad_logits"_a.none(), "grad_target"_a.none()
    );
    m.def("kind_of", &kind_of, "logits"_a.none(), "target"_a.none(), "weight"_a.none(), "ignore_index"_a);
    m.def(
        "softmax_small", &softmax_small, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
        "mean"_a, "loss"_a, "grad_logits"_a.none()
    );
    m.def("accumulate", &accumulate, "g"_a, "x"_a, "sums"_a, "first"_a);
    m.def("scale", &scale, "grad"_a, "factor"_a);
    m.def(
        "recycled",
        [](const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int code, int bits) {
            return recycled(shape, strides, uint8_t(code), uint8_t(bits));
        },
        "shape"_a, "strides"_a, "code"_a, "bits"_a
    );
    m.def(
        "know_types",
        [](nb::handle tensor, nb::handle parameter) {
            tensor_type = reinterpret_cast<PyTypeObject*>(tensor.ptr()),
            parameter_type = reinterpret_cast<PyTypeObject*>(parameter.ptr());
        },
        "tensor"_a, "parameter"_a
    );
    m.def("isa", [] { return kernels->name; }, "Name the instruction set in use.");
    m.def(
        "isas",
        [] {
            nb::list names;
            for (const Kernels* found : available_kernels()) names.append(found->name);
            return names;
        },
        "List the instruction sets that this build and this processor have, the best last."
    );
    m.def("use_isa", &use_isa, "name"_a, "Use the kernels of another instruction set.");
    m.def(
        "use_threads_of", [](uintptr_t address) { parallel_for = reinterpret_cast<decltype(parallel_for)>(address); },
        "Share the work by this function, torch_parallel_for; without it one thread does all."
    );
}
