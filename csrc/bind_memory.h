// New tensors in recycled memory; recycle.h says why.
//
// Takes a shape, strides in elements and a dtype as DLPack writes it. Gives a capsule that torch.from_dlpack makes a
// tensor of, or None where memory cannot be recycled. Refuses shapes and strides that reach beyond the memory of so
// many elements, and what is no dtype.

#pragma once
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include "bind_checks.h"
#include "layout.h"
#include "recycle.h"
#include "view.h"

namespace {

// A DLPack tensor in recycled memory, to be consumed by torch.from_dlpack.
struct Owned {
    dlpack::Managed managed;
    size_t bytes;
    std::vector<int64_t> shape, strides;
};

// How many bytes a dense tensor takes.
size_t bytes_of(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, uint8_t code, uint8_t bits) {
    const bool integer = code == dlpack::INT || code == dlpack::UINT, brain = code == dlpack::BFLOAT;
    if (brain ? bits != 16 : !(bits == 16 || bits == 32 || bits == 64 || (integer && bits == 8)))
        refuse("bits", "must be those of a number");
    if (!integer && !brain && code != dlpack::FLOAT) refuse("code", "must be that of integers or floats");
    if (shape.size() != strides.size()) refuse("strides", "must be as many as the dimensions of shape");
    int64_t elements = 1, last = 0, extent = 0;
    for (size_t d = 0; d < shape.size(); d++) {
        if (shape[d] < 0 || strides[d] < 0) refuse(shape[d] < 0 ? "shape" : "strides", "must not be negative");
        if (__builtin_mul_overflow(elements, shape[d], &elements))
            refuse("shape", "has more elements than can be counted");
        if (shape[d] > 0 &&
            (__builtin_mul_overflow(shape[d] - 1, strides[d], &extent) || __builtin_add_overflow(last, extent, &last)))
            refuse("strides", "reach too far");
    }
    if (elements > 0 && last >= elements) refuse("strides", "must not reach beyond the elements of shape");
    if (elements > int64_t(1) << 56) refuse("shape", "has more elements than any memory");
    return size_t(elements) * (bits / 8);
}

nb::object recycled(
    const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, uint8_t code, uint8_t bits
) {
    const size_t bytes = bytes_of(shape, strides, code, bits);
    if (bytes == 0) return nb::none();
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

void bind_memory(nb::module_& m) {
    using nb::literals::operator""_a;
    recycler();  // made before there can be a second thread that forks
    m.attr("RECYCLES") = Recycler::AVAILABLE;
    m.def(
        "stream_from", [](int64_t bytes) { return std::exchange(streamed_from(), bytes); }, "bytes"_a,
        "Say from how many bytes on new gradients are written past the caches; return what was said before."
    );
    m.def("recycled", &recycled, "shape"_a, "strides"_a, "code"_a, "bits"_a);
}

}  // namespace
