// The product of a block that is added to a sum in float, for Python.
//
// Takes g and x in bfloat16 with their rows' numbers side by side, and sums in float, contiguous. Gives gᵀ x added to
// the sums, or in their place. Refuses what does not fit together (bind_checks.h), and processors without products of
// pairs of bfloat16, by returning false.

#pragma once
#include "bind_checks.h"
#include "launch.h"
#include "layout.h"

namespace {

// X as tiles of FEATURES features, each of pairs of rows; 0 where there are none.
std::vector<uint32_t> paired(const View& x) {
    const int64_t rows = x.shape[0], features = x.shape[1], pairs = (rows + 1) / 2,
                  tiles = (features + FEATURES - 1) / FEATURES;
    std::vector<uint32_t> to(size_t(tiles * pairs * FEATURES), 0);
    const uint16_t* from = static_cast<const uint16_t*>(x.pointer());
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t row = 0; row < rows; row++) {
            const uint16_t* line = from + row * x.strides[0] + tile * FEATURES;
            uint32_t* out = to.data() + (tile * pairs + row / 2) * FEATURES;
            const int64_t n = std::min(FEATURES, features - tile * FEATURES);
            for (int64_t i = 0; i < n; i++) out[i] |= uint32_t(line[i]) << 16 * (row % 2);
        }
    return to;
}

// A matrix in bfloat16 whose rows are runs of numbers.
void check_matrix(const View& x) {
    if (!has_dtype(x, dlpack::BFLOAT, 16)) x.refuse("must be bfloat16");
    if (x.ndim != 2 || x.numel() == 0) x.refuse("must be a matrix that is not empty, got shape " + x.text());
    if (x.shape[1] != 1 && x.strides[1] != 1) x.refuse("must have rows that lie in one piece");
}

bool accumulate(nb::handle g_, nb::handle x_, nb::handle sums_, bool first) {
    const View g(g_, "g"), x(x_, "x"), sums(sums_, "sums", View::WRITE);
    check_matrix(g), check_matrix(x), check_contiguous(sums);
    if (x.shape[0] != g.shape[0]) x.refuse("must have as many rows as g, got " + x.text() + " and " + g.text());
    if (!has_dtype(sums, dlpack::FLOAT, 32)) sums.refuse("must be float32");
    if (sums.ndim != 2 || sums.shape[0] != g.shape[1] || sums.shape[1] != x.shape[1])
        sums.refuse("must have a row for each column of g and as many columns as x, got " + sums.text());
    Memory{&g, &x}.writes(sums);
    if (!kernels->accumulate) return false;
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

void bind_product(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def("accumulate", &accumulate, "g"_a, "x"_a, "sums"_a, "first"_a);
}

}  // namespace
