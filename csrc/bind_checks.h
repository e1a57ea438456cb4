// What the binding asks of tensors and numbers before a kernel sees them.
//
// Takes views by the names of their arguments. Gives nothing. Refuses, by a ValueError that names the argument,
// whatever a kernel would read or write beside its memory, take for numbers of another type, or have no answer to.

#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

#include "layout.h"

namespace {

[[noreturn]] void refuse(const char* name, const std::string& rule) {
    throw std::invalid_argument(std::string(name) + " " + rule);
}

// --- dtypes ---------------------------------------------------------------------------------------------------------

bool same_dtype(const View& a, const View& b) { return !(a.dtype != b.dtype); }
bool has_dtype(const View& x, uint8_t code, int bits) { return x.dtype.code == code && x.dtype.bits == bits; }

// R: what is computed of logits is float, or double for double.
int wide_bits(const View& logits) { return dtype_of(logits) == F64 ? 64 : 32; }
void check_wide(const View& x, const View& logits) {
    const int bits = wide_bits(logits);
    if (!has_dtype(x, dlpack::FLOAT, bits)) x.refuse("must be float" + std::to_string(bits) + " for such logits");
}
void check_like_or_wide(const View& x, const View& logits) {
    if (!same_dtype(x, logits) && !has_dtype(x, dlpack::FLOAT, wide_bits(logits)))
        x.refuse("must have the dtype of the logits, or float" + std::to_string(wide_bits(logits)));
}

// --- shapes ---------------------------------------------------------------------------------------------------------

void check_contiguous(const View& x) {
    if (!contiguous(x)) x.refuse("must be contiguous");
}
// Without gaps, in any order of the dimensions.
void check_dense(const View& x) {
    if (contiguous(x)) return;
    std::vector<std::pair<int64_t, int64_t>> axes;
    for (int32_t d = 0; d < x.ndim; d++)
        if (x.shape[d] != 1) axes.emplace_back(x.strides[d], x.shape[d]);
    std::sort(axes.begin(), axes.end());
    int64_t run = 1;
    for (const auto& [stride, size] : axes) {
        if (stride != run && x.numel() > 0) x.refuse("must have no gaps between its elements");
        run *= size;
    }
}
void check_same_shape(const View& x, const View& like) {
    if (x.ndim != like.ndim || !std::equal(x.shape, x.shape + x.ndim, like.shape))
        x.refuse("must have the shape of " + std::string(like.name) + ", " + like.text() + ", got " + x.text());
}
void check_one(const View& x) {
    if (x.numel() != 1) x.refuse("must be one number, got shape " + x.text());
}

// One number, in the dtype of the logits or wide.
void check_total(const View& x, const View& logits) {
    if (!same_dtype(x, logits)) check_wide(x, logits);
    check_one(x);
}

// (N, d1, ...) of logits (N, C, d1, ...), with `lead` dimensions before it.
void check_rows(const View& x, const View& logits, int32_t lead = 0) {
    bool fits = x.ndim == logits.ndim - 1 + lead && x.shape[lead] == logits.shape[0];
    for (int32_t d = 2; fits && d < logits.ndim; d++) fits = x.shape[lead + d - 1] == logits.shape[d];
    if (!fits) x.refuse("must have one number for each row of logits of shape " + logits.text() + ", got " + x.text());
}
// Numbers that a kernel walks without strides, R, one a row.
void check_row_numbers(const View& x, const View& logits) {
    check_wide(x, logits), check_rows(x, logits), check_contiguous(x);
}
// R, one a class.
void check_class_numbers(const View& x, const View& logits) {
    check_wide(x, logits), check_contiguous(x);
    if (x.ndim != 1 || x.shape[0] != logits.shape[1])
        x.refuse("must have one number for each of " + std::to_string(logits.shape[1]) + " classes, got " + x.text());
}
// (2, N, d1, ...): the rows' tops and log_sums.
void check_lse(const View& x, const View& logits) {
    check_wide(x, logits), check_contiguous(x);
    if (x.ndim < 1 || x.shape[0] != 2) x.refuse("must have shape (2, N, d1, ...), got " + x.text());
    check_rows(x, logits, 1);
}
// What arrives from the loss: one number of any dtype, or R, laid out as the loss of each row or element is.
void check_incoming(const View& grad, const View& logits, bool rows) {
    dtype_of(grad);
    if (grad.ndim == 0) return;
    check_wide(grad, logits), check_contiguous(grad);
    rows ? check_rows(grad, logits) : check_same_shape(grad, logits);
}

// --- memory ---------------------------------------------------------------------------------------------------------

// The memory of a call's tensors: what is written must lie apart from all else.
class Memory {
  public:
    explicit Memory(std::initializer_list<const View*> read) {
        for (const View* x : read) reads(*x);
    }
    void reads(const View& x) { parts_.at(size_++) = Part{x, span_of(x)}; }
    void reads(const std::optional<View>& x) {
        if (x) reads(*x);
    }
    // Written elements must lie apart from each other too; `over` is the one tensor in whose place they may lie.
    void writes(const View& x, const View* over = nullptr) {
        if (overlaps_itself(x)) x.refuse("must not have several elements in one place: it is written to");
        const Part part{x, span_of(x)};
        for (size_t i = 0; i < size_; i++) {
            const Part& other = parts_[i];
            const bool apart = part.span.second <= other.span.first || other.span.second <= part.span.first;
            if (apart ||
                (over && other.pointer == over->pointer() && in_place_of(x, *over) && other.name == over->name))
                continue;
            x.refuse("must not share memory with " + std::string(other.name) + ": it is written to");
        }
        parts_.at(size_++) = part;
    }

  private:
    using Span = std::pair<uintptr_t, uintptr_t>;
    struct Part {
        Part() = default;
        Part(const View& x, Span s) : name(x.name), pointer(x.pointer()), span(s) {}
        const char* name = nullptr;
        const void* pointer = nullptr;
        Span span;
    };

    static Span span_of(const View& x) {
        const auto start = reinterpret_cast<uintptr_t>(x.pointer());
        if (x.numel() == 0) return {start, start};
        int64_t low = 0, high = 1;
        for (int32_t d = 0; d < x.ndim; d++) (x.strides[d] < 0 ? low : high) += (x.shape[d] - 1) * x.strides[d];
        const int64_t bytes = x.dtype.bits / 8;
        return {start + uintptr_t(low * bytes), start + uintptr_t(high * bytes)};
    }
    static bool in_place_of(const View& x, const View& over) {
        if (x.pointer() != over.pointer()) return false;
        for (int32_t d = 0; d < x.ndim; d++)
            if (x.shape[d] != 1 && x.strides[d] != over.strides[d]) return false;
        return true;
    }
    // Whether some dimension steps less far than those inside it reach; right for every tensor that torch makes.
    static bool overlaps_itself(const View& x) {
        if (contiguous(x)) return false;
        std::vector<int32_t> order;
        for (int32_t d = 0; d < x.ndim; d++)
            if (x.shape[d] != 1) order.push_back(d);
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x.strides[a] < x.strides[b]; });
        int64_t reach = 0;
        for (int32_t d : order) {
            if (x.strides[d] <= reach) return x.numel() > 0;
            reach += (x.shape[d] - 1) * x.strides[d];
        }
        return false;
    }

    std::array<Part, 16> parts_;
    size_t size_ = 0;
};

// --- numbers --------------------------------------------------------------------------------------------------------

void check_number(bool holds, const char* name, double value, const char* rule) {
    if (!holds) refuse(name, std::string(rule) + ", got " + std::to_string(value));
}
void check_share(const char* name, double value) {
    check_number(value >= 0 && value <= 1, name, value, "must lie in [0, 1]");
}
void check_at_least_zero(const char* name, double value) {
    check_number(value >= 0 && std::isfinite(value), name, value, "must be finite and at least 0");
}
void check_finite(const char* name, double value) { check_number(std::isfinite(value), name, value, "must be finite"); }

}  // namespace
