// New tensors in recycled memory; recycle.h says why.
//
// Takes a shape, strides in elements and a dtype as DLPack writes it. Gives a capsule that torch.from_dlpack makes a
// tensor of, or None where memory cannot be recycled. Refuses nothing.

#pragma once
#include <nanobind/stl/vector.h>

#include <vector>

#include "recycle.h"
#include "view.h"

namespace {

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

void bind_memory(nb::module_& m) {
    using nb::literals::operator""_a;
    m.attr("RECYCLES") = Recycler::AVAILABLE;
    m.def("recycled", &recycled, "shape"_a, "strides"_a, "code"_a, "bits"_a);
}

}  // namespace
