// What kernels are told of a tensor: its dtype, its strides as (outer, classes, inner), and a number where it is one.
//
// Takes a View. Gives a Layout where the dimensions behind the classes can be walked as one, and nothing where they
// cannot: then Python makes a copy. Refuses dtypes that no kernel is compiled for.

#pragma once
#include <algorithm>
#include <optional>
#include <vector>
#ifdef __unix__
#include <unistd.h>
#endif

#include "numbers.h"
#include "problem.h"
#include "view.h"

namespace {

std::optional<View> maybe(nb::handle tensor, const char* name, View::Use use = View::READ) {
    return tensor.is_none() ? std::nullopt : std::optional<View>(std::in_place, tensor, name, use);
}

DType dtype_of(const View& tensor) {
    const auto [code, bits, lanes] = tensor.dtype;
    if (code == dlpack::FLOAT && bits == 32) return F32;
    if (code == dlpack::FLOAT && bits == 64) return F64;
    if (code == dlpack::BFLOAT && bits == 16) return BF16;
    if (code == dlpack::FLOAT && bits == 16) return F16;
    tensor.refuse("must be float32, float64, bfloat16 or float16, which the native kernels take");
}

// Whether there are kernels for it, as dtype_of would refuse otherwise.
bool is_float(const View& tensor) {
    const auto [code, bits, lanes] = tensor.dtype;
    return code == dlpack::FLOAT ? bits >= 16 : code == dlpack::BFLOAT;
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
        Layout layout{x.shape[0], x.shape[1], 1, {x.strides[0], x.strides[1], 1}};
        for (int32_t d = x.ndim - 1; d >= 2; d--) {
            if (x.shape[d] == 1) continue;
            if (layout.inner == 1) layout.at.inner = x.strides[d];
            else if (x.strides[d] != layout.inner * layout.at.inner) return std::nullopt;
            layout.inner *= x.shape[d];
        }
        return layout;
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

bool contiguous(const View& x) {
    int64_t run = 1;
    for (int32_t d = x.ndim - 1; d >= 0; run *= x.shape[d], d--)
        if (x.shape[d] != 1 && x.strides[d] != run) return false;
    return true;
}

// Write a number that is a tensor of its own, and read one. Every nan is written as the same nan, since passes that
// compute the same numbers in another order differ in its sign.
void put_number(const View& to, double value) {
    if (value != value) value = std::numeric_limits<double>::quiet_NaN();
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

// Σ of n numbers that lie `step` apart, half by half, so that n roundings to one side do not add up.
double total(const double* parts, int64_t n, int64_t step = 1) {
    if (n > 8) return total(parts, n / 2, step) + total(parts + n / 2 * step, n - n / 2, step);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += parts[i * step];
    return sum;
}

// How many bytes the last-level cache holds; 0 where the system does not say.
int64_t last_cache() {
#ifdef _SC_LEVEL3_CACHE_SIZE
    return std::max<int64_t>(0, sysconf(_SC_LEVEL3_CACHE_SIZE));
#else
    return 0;
#endif
}

// From how many bytes on a new gradient is written past the caches: it and its logits would take a fifth of the last
// one, which other programs fill as well, and whatever reads it next would hardly find it there. A gradient in half
// precision is never written so: there the time of the caches is hidden behind that of the arithmetic.
constexpr int64_t STREAMED = 8 << 20;
int64_t& streamed_from() {
    static int64_t bytes = std::max(STREAMED, last_cache() / 10);
    return bytes;
}

bool is_streamed(const View& gradient, const View& of) {
    const int64_t bytes = gradient.numel() * gradient.dtype.bits / 8;
    const bool aligned = reinterpret_cast<uintptr_t>(gradient.pointer()) % (gradient.dtype.bits / 8) == 0;
    return gradient.pointer() != of.pointer() && gradient.dtype.bits >= 32 && aligned && bytes >= streamed_from();
}

// A gradient divided by what a mean divided by; that of a mean over nothing is 0.
double over(double grad, double divisor) { return divisor == 0 ? 0.0 : grad / divisor; }

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
            set(over(number(grad), divisor), wide_rows);
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

}  // namespace
