// Gᵀ X added to sums in float, for G and X in bfloat16: torch's product would round each block's share of the sums.
//
// Takes a Product and groups [begin, end) of GROUP columns of G. Gives the sums of those columns, or replaces them.
// Refuses processors without products of pairs of bfloat16: ACCUMULATE is null there.

#pragma once
#include "numbers.h"
#include "problem.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

namespace {

constexpr int TALL = 8, VECTORS = FEATURES / 16;  // columns of G and vectors of X at a time
constexpr int64_t DEEP = 512;                     // pairs of rows at a time

// Columns [from, from + GROUP) of some pairs of rows of G, TALL of them side by side; 0 where there are none.
INLINE void lay_out(const Product& p, int64_t from, int64_t pair, int64_t pairs, uint32_t* to) {
    const int64_t columns = p.columns - from < GROUP ? p.columns - from : GROUP;
    for (int64_t k = 0; k < pairs; k++) {
        const int64_t row = 2 * (pair + k);
        const uint16_t *low = p.g + row * p.g_step + from, *high = row + 1 < p.rows ? low + p.g_step : nullptr;
        for (int64_t c = 0; c < GROUP; c++) {
            uint32_t both = 0;
            if (c < columns) both = uint32_t(low[c]) | (high ? uint32_t(high[c]) << 16 : 0);
            to[(c / TALL * pairs + k) * TALL + c % TALL] = both;
        }
    }
}

// TALL columns of G by a tile of X, into as many rows of the sums as there are.
INLINE void multiply(
    const uint32_t* g, const uint32_t* x, int64_t pairs, float* sums, const Product& p, int64_t tall, int64_t wide,
    bool first
) {
    __m512 sum[TALL][VECTORS];
    for (int i = 0; i < TALL; i++)
        for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = (__m512bh)_mm512_loadu_si512(x + k * FEATURES + 16 * v);
        for (int i = 0; i < TALL; i++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(int(g[k * TALL + i]));
            for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], left, right[v]);
        }
    }
    for (int i = 0; i < TALL; i++)
        for (int v = 0; v < VECTORS; v++) {
            const int64_t remaining = wide - 16 * v;
            if (i >= tall || remaining <= 0) continue;
            const __mmask16 mask = remaining >= 16 ? __mmask16(0xffff) : __mmask16((1u << remaining) - 1);
            float* to = sums + i * p.features + 16 * v;
            if (!first) sum[i][v] = _mm512_add_ps(sum[i][v], _mm512_maskz_loadu_ps(mask, to));
            _mm512_mask_storeu_ps(to, mask, sum[i][v]);
        }
}

// Groups [begin, end) of columns.
static void accumulate(const Product& p, int64_t begin, int64_t end) {
    alignas(64) uint32_t g[GROUP * DEEP];
    const int64_t all = (p.rows + 1) / 2;
    for (int64_t pair = 0; pair < all; pair += DEEP) {
        const int64_t pairs = all - pair < DEEP ? all - pair : DEEP;
        for (int64_t group = begin; group < end; group++) {
            const int64_t from = group * GROUP;
            lay_out(p, from, pair, pairs, g);
            for (int64_t feature = 0; feature < p.features; feature += FEATURES) {
                const uint32_t* x = p.x + feature / FEATURES * (all * FEATURES) + pair * FEATURES;
                const int64_t wide = p.features - feature;
                for (int64_t c = 0; c < GROUP && from + c < p.columns; c += TALL)
                    multiply(
                        g + c * pairs, x, pairs, p.sums + (from + c) * p.features + feature, p, p.columns - from - c,
                        wide, p.first && pair == 0
                    );
            }
        }
    }
}

}  // namespace
#define ACCUMULATE accumulate
#else
#define ACCUMULATE nullptr
#endif
