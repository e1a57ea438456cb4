// The Python module crossent._native: reads tensors, lays their strides out for the kernels, and shares the tiles among threads.

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "dispatch.h"
#include "view.h"

namespace {

using Range = void (*)(int64_t begin, int64_t end, void* context);
int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Range, void* context) = nullptr;  // torch's, set at import
const Kernels* kernels = available_kernels().back();

// Below this many elements the work does not pay for a second thread.
constexpr int64_t SERIAL = 1 << 15;

template <class F> void share(int64_t tiles, int64_t elements, F&& work) {
    if (!parallel_for || elements < SERIAL || tiles < 2) return work(0, tiles);
    nb::gil_scoped_release release;
    const int64_t grain = std::max<int64_t>(1, tiles * (SERIAL / 2) / elements);
    parallel_for(0, tiles, grain, [](int64_t begin, int64_t end, void* f) { (*static_cast<F*>(f))(begin, end); }, &work);
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
            p.weight_sum += s.weight->dtype.bits == 64 ? static_cast<const double*>(p.weight)[k] : static_cast<const float*>(p.weight)[k];
    }
    p.ignore_index = s.ignore_index, p.smoothing = s.smoothing, p.share = s.smoothing / double(p.classes);
    p.rows_per_tile = p.at.classes == 1 && p.classes > 64 ? 1 : ROWS;
    return p;
}

std::optional<View> maybe(nb::handle tensor) {
    return tensor.is_none() ? std::nullopt : std::optional<View>(std::in_place, tensor);
}

// Ask for huge pages under a large new tensor: its page faults cost more than its arithmetic.
void on_huge_pages([[maybe_unused]] const View& tensor) {
#ifdef __linux__
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(tensor.pointer()) + PAGE - 1) & ~(PAGE - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor.pointer()) + tensor.numel() * tensor.dtype.bits / 8) & ~(PAGE - 1);
    if (end > start && end - start >= 2 * PAGE) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

template <class R> void put(const View& to, double value) { *static_cast<R*>(to.pointer()) = R(value); }
void put_number(const View& to, double value) { to.dtype.bits == 64 ? put<double>(to, value) : put<float>(to, value); }

enum Outcome { DONE, OUT_OF_RANGE, NEEDS_COPY };

int softmax_forward(
    nb::handle logits_, nb::handle target_, nb::handle weight_, int64_t ignore_index, double smoothing, bool reduce,
    nb::handle loss_, nb::handle row_weight_, nb::handle top_, nb::handle log_sum_
) {
    const View logits(logits_), target(target_), loss(loss_), row_weight(row_weight_), top(top_), log_sum(log_sum_);
    const std::optional<View> weight = maybe(weight_);
    const bool soft = index_type_of(target) < 0;
    std::vector<Layout> layouts;
    if (!lay_out(soft ? std::vector<const View*>{&logits, &target} : std::vector<const View*>{&logits}, layouts)) return NEEDS_COPY;
    Softmax p = describe({logits, target, weight, ignore_index, smoothing}, layouts[0], soft ? &layouts[1] : nullptr);
    std::atomic<bool> out_of_range{false};
    std::vector<double> partial(2 * p.tiles());
    p.partial = partial.data(), p.out_of_range = &out_of_range;
    p.top = top.pointer(), p.log_sum = log_sum.pointer();
    if (!reduce) p.loss = loss.pointer(), p.row_weight = row_weight.pointer();
    auto* run = kernels->softmax_forward[dtype_of(logits)];
    share(p.tiles(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    if (out_of_range) return OUT_OF_RANGE;
    if (reduce) {
        double sums[2] = {0, 0};
        for (size_t i = 0; i < partial.size(); i++) sums[i % 2] += partial[i];
        put_number(loss, sums[0]), put_number(row_weight, sums[1]);
    }
    return DONE;
}

int softmax_backward(
    nb::handle grad_, nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle top_, nb::handle log_sum_,
    int64_t ignore_index, double smoothing, nb::handle grad_logits_, nb::handle grad_target_
) {
    const View grad(grad_), logits(logits_), target(target_), top(top_), log_sum(log_sum_);
    const std::optional<View> weight = maybe(weight_), grad_logits = maybe(grad_logits_), grad_target = maybe(grad_target_);
    const bool soft = index_type_of(target) < 0;
    std::vector<const View*> tensors{&logits};
    for (const View* v : {soft ? &target : nullptr, grad_logits ? &*grad_logits : nullptr, grad_target ? &*grad_target : nullptr})
        if (v) tensors.push_back(v);
    std::vector<Layout> layouts;
    if (!lay_out(tensors, layouts)) return NEEDS_COPY;
    size_t next = 1;
    Softmax p = describe({logits, target, weight, ignore_index, smoothing}, layouts[0], soft ? &layouts[next++] : nullptr);
    p.grad = grad.pointer(), p.grad_rows = grad.ndim > 0;
    p.top = top.pointer(), p.log_sum = log_sum.pointer();
    if (grad_logits) {
        p.grad_logits = grad_logits->pointer(), p.grad_at = layouts[next++].at;
        if (p.grad_at.classes != 1) p.rows_per_tile = ROWS;
        on_huge_pages(*grad_logits);
    }
    if (grad_target) {
        p.grad_target = grad_target->pointer(), p.grad_target_at = layouts[next++].at;
        on_huge_pages(*grad_target);
    }
    auto* run = kernels->softmax_backward[dtype_of(logits)];
    share(p.tiles(), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    return DONE;
}

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
    const std::optional<int64_t> outer = one_stride(*weight, 0, split), inner = one_stride(*weight, split, weight->ndim);
    if (!outer || !inner) return false;
    pointer = weight->pointer(), at[0] = *outer, at[1] = *inner;
    return true;
}

// Split the dimensions as early as the weights allow; false where they allow no split.
bool describe(const View& logits, const View& target, const std::optional<View>& weight, const std::optional<View>& pos_weight, Binary& p) {
    p.logits = logits.pointer(), p.target = target.pointer(), p.wide_target = target.dtype.bits != logits.dtype.bits;
    p.outer = 1, p.inner = logits.numel();
    for (int32_t split = 0; split <= logits.ndim; split++) {
        if (set_weights(weight, split, p.weight, p.weight_at) && set_weights(pos_weight, split, p.pos_weight, p.pos_weight_at)) return true;
        if (split < logits.ndim) p.outer *= logits.shape[split], p.inner /= logits.shape[split];
    }
    return false;
}

int64_t blocks(const Binary& p) { return p.outer * ((p.inner + BLOCK - 1) / BLOCK); }

int binary_forward(nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle pos_weight_, bool reduce, nb::handle loss_) {
    const View logits(logits_), target(target_), loss(loss_);
    const std::optional<View> weight = maybe(weight_), pos_weight = maybe(pos_weight_);
    Binary p{};
    if (!describe(logits, target, weight, pos_weight, p)) return NEEDS_COPY;
    std::vector<double> partial(reduce ? blocks(p) : 0);
    if (reduce) p.partial = partial.data();
    else p.loss = loss.pointer();
    auto* run = kernels->binary_forward[dtype_of(logits)];
    share(blocks(p), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    if (reduce) {
        double sum = 0;
        for (double part : partial) sum += part;
        put_number(loss, sum);
    }
    return DONE;
}

int binary_backward(
    nb::handle grad_, nb::handle logits_, nb::handle target_, nb::handle weight_, nb::handle pos_weight_,
    nb::handle grad_logits_, nb::handle grad_target_
) {
    const View grad(grad_), logits(logits_), target(target_);
    const std::optional<View> weight = maybe(weight_), pos_weight = maybe(pos_weight_);
    const std::optional<View> grad_logits = maybe(grad_logits_), grad_target = maybe(grad_target_);
    Binary p{};
    if (!describe(logits, target, weight, pos_weight, p)) return NEEDS_COPY;
    p.grad = grad.pointer(), p.grad_rows = grad.ndim > 0;
    if (grad_logits) p.grad_logits = grad_logits->pointer(), on_huge_pages(*grad_logits);
    if (grad_target) p.grad_target = grad_target->pointer(), on_huge_pages(*grad_target);
    auto* run = kernels->binary_backward[dtype_of(logits)];
    share(blocks(p), logits.numel(), [&](int64_t begin, int64_t end) { run(p, begin, end); });
    return DONE;
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
    m.attr("DONE") = int(DONE);
    m.attr("OUT_OF_RANGE") = int(OUT_OF_RANGE);
    m.attr("NEEDS_COPY") = int(NEEDS_COPY);
    using nb::literals::operator""_a;
    m.def("softmax_forward", &softmax_forward, "logits"_a, "target"_a, "weight"_a.none(), "ignore_index"_a, "smoothing"_a,
          "reduce"_a, "loss"_a, "row_weight"_a, "top"_a, "log_sum"_a);
    m.def("softmax_backward", &softmax_backward, "grad"_a, "logits"_a, "target"_a, "weight"_a.none(), "top"_a, "log_sum"_a,
          "ignore_index"_a, "smoothing"_a, "grad_logits"_a.none(), "grad_target"_a.none());
    m.def("binary_forward", &binary_forward, "logits"_a, "target"_a, "weight"_a.none(), "pos_weight"_a.none(), "reduce"_a,
          "loss"_a);
    m.def("binary_backward", &binary_backward, "grad"_a, "logits"_a, "target"_a, "weight"_a.none(), "pos_weight"_a.none(),
          "grad_logits"_a.none(), "grad_target"_a.none());
    m.def("isa", [] { return kernels->name; }, "Name the instruction set in use.");
    m.def("isas", [] {
        nb::list names;
        for (const Kernels* found : available_kernels()) names.append(found->name);
        return names;
    }, "List the instruction sets that this build and this processor have, the best last.");
    m.def("use_isa", &use_isa, "name"_a, "Use the kernels of another instruction set.");
    m.def("use_threads_of", [](uintptr_t address) { parallel_for = reinterpret_cast<decltype(parallel_for)>(address); },
          "Share the work by this function, torch_parallel_for; without it one thread does all.");
}
