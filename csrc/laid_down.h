// Softmax problems of a few rows with many classes that lie apart in memory.
//
// Takes a Softmax problem that is ready to run. Gives it another one of the same rows, which lie one by one, and brings
// their gradient back. Refuses probabilities, and what is better off as tiles: those stay as they are.

#pragma once
#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "problem.h"
#include "scratch.h"

namespace {

// A few rows with many classes that lie apart, laid down one by one for the time of a call: as a tile they would take
// as long as LANES rows. Their gradient is brought to its place in the end.
class LaidDown {
  public:
    LaidDown(Softmax& p, DType dtype) : size_(dtype == F64 ? 8 : dtype == F32 ? 4 : 2) {
        if (p.at.classes == 1 || p.index_type < 0 || p.classes < MANY || p.rows() > MOST_ROWS) return;
        const size_t bytes = size_t((p.rows() * p.classes * size_ + 63) / 64 * 64);
        if (bytes > MOST_KEPT) own_ = aligned_bytes(2 * bytes);
        char* logits = static_cast<char*>(own_ ? own_.get() : scratch<OF_ROWS>(2 * bytes));
        move(p, p.at, static_cast<const char*>(p.logits), logits);
        const Strides row_by_row{p.classes * p.inner, 1, p.classes};
        p.logits = logits, p.at = row_by_row, p.by_row = true, p.rows_per_tile = 1, p.stream = false;
        if (!p.grad_logits) return;
        to_ = static_cast<char*>(p.grad_logits), to_at_ = p.grad_at;
        p.grad_logits = gradient_ = logits + bytes, p.grad_at = row_by_row;
    }

    void finish(const Softmax& p) const {
        if (gradient_) move(p, to_at_, to_, static_cast<const char*>(gradient_));
    }

  private:
    static constexpr int64_t MANY = 257, MOST_ROWS = 16;
    static constexpr int64_t PART = 16;  // classes that are moved together: both sides stay in the nearest cache

    // From where rows lie apart to where they lie one by one, or back, by which of the two may be written to.
    template <class A, class B> void move(const Softmax& p, const Strides& at, A* apart, B* rows) const {
        if (size_ == 8) move_as<uint64_t>(p, at, apart, rows);
        else if (size_ == 4) move_as<uint32_t>(p, at, apart, rows);
        else move_as<uint16_t>(p, at, apart, rows);
    }
    template <class T, class A, class B> static void move_as(const Softmax& p, const Strides& at, A* apart_, B* rows_) {
        constexpr bool back = std::is_const_v<B>;
        auto* apart = reinterpret_cast<std::conditional_t<back, T, const T>*>(apart_);
        auto* rows = reinterpret_cast<std::conditional_t<back, const T, T>*>(rows_);
        const int64_t parts = (p.classes + PART - 1) / PART;
        share(p.outer * parts, p.rows() * p.classes, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; part++) {
                const int64_t o = part / parts, first = part % parts * PART;
                for (int64_t i = 0; i < p.inner; i++)
                    for (int64_t k = first; k < std::min(p.classes, first + PART); k++) {
                        auto& one = apart[o * at.outer + k * at.classes + i * at.inner];
                        auto& other = rows[(o * p.inner + i) * p.classes + k];
                        if constexpr (back) one = other;
                        else other = one;
                    }
            }
        });
    }

    static constexpr size_t MOST_KEPT = 1 << 20;  // bytes that a thread may keep of logits

    int64_t size_;
    Bytes own_{nullptr, &std::free};
    char *gradient_ = nullptr, *to_ = nullptr;
    Strides to_at_{};
};

}  // namespace
