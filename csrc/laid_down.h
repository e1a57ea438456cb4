// Softmax problems of a few rows with many classes that lie apart in memory.
//
// Takes a Softmax problem that is ready to run. Gives it another one of the same rows, which lie one by one, and brings
// their gradient back. Refuses probabilities, and what is better off as tiles: those stay as they are.

#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "problem.h"

namespace {

// Memory of a thread, aligned as vectors are: for what it keeps of a row or a tile, or for rows that are laid down. It
// stays with the thread: fresh pages would cost a small call more than what it computes.
enum Use { KEPT_POWERS, LAID_DOWN };
template <Use USE> void* scratch(size_t bytes) {
    thread_local std::unique_ptr<void, decltype(&std::free)> memory(nullptr, &std::free);
    thread_local size_t size = 0;
    if (bytes > size) {
        memory.reset(), size = 0;
        memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
        size = bytes;
    }
    return memory.get();
}

// A few rows with many classes that lie apart, laid down one by one for the time of a call: as a tile they would take
// as long as LANES rows. Their gradient is brought to its place in the end.
class LaidDown {
  public:
    LaidDown(Softmax& p, DType dtype) : size_(dtype == F64 ? 8 : dtype == F32 ? 4 : 2) {
        if (p.at.classes == 1 || p.index_type < 0 || p.classes < MANY || p.rows() > MOST_ROWS) return;
        const size_t bytes = size_t((p.rows() * p.classes * size_ + 63) / 64 * 64);
        char* logits = static_cast<char*>(scratch<LAID_DOWN>(2 * bytes));
        move(p, p.at, static_cast<const char*>(p.logits), logits);
        const Strides row_by_row{p.classes * p.inner, 1, p.classes};
        p.logits = logits, p.at = row_by_row, p.rows_per_tile = 1;
        if (!p.grad_logits) return;
        to_ = static_cast<char*>(p.grad_logits), to_at_ = p.grad_at;
        p.grad_logits = gradient_ = logits + bytes, p.grad_at = row_by_row;
    }

    void finish(const Softmax& p) const {
        if (gradient_) move(p, to_at_, to_, static_cast<const char*>(gradient_));
    }

  private:
    static constexpr int64_t MANY = 257, MOST_ROWS = 8;
    static constexpr int64_t PART = 16;  // classes that are moved together: both sides stay in the nearest cache

    // From where rows lie apart to where they lie one by one, or back, by which of the two may be written to.
    template <class A, class B> void move(const Softmax& p, const Strides& at, A* apart, B* rows) const {
        if (size_ == 8) move_as<uint64_t>(p, at, apart, rows);
        else if (size_ == 4) move_as<uint32_t>(p, at, apart, rows);
        else move_as<uint16_t>(p, at, apart, rows);
    }
    template <class T, class A, class B> static void move_as(const Softmax& p, const Strides& at, A* apart_, B* rows_) {
        constexpr bool back = std::is_const_v<B>;
        using Apart = std::conditional_t<back, T, const T>;
        using Rows = std::conditional_t<back, const T, T>;
        Apart* apart = reinterpret_cast<Apart*>(apart_);
        Rows* rows = reinterpret_cast<Rows*>(rows_);
        for (int64_t o = 0; o < p.outer; o++)
            for (int64_t first = 0; first < p.classes; first += PART)
                for (int64_t i = 0; i < p.inner; i++)
                    for (int64_t k = first; k < std::min(p.classes, first + PART); k++) {
                        Apart& one = apart[o * at.outer + k * at.classes + i * at.inner];
                        Rows& other = rows[(o * p.inner + i) * p.classes + k];
                        if constexpr (back) one = other;
                        else other = one;
                    }
    }

    int64_t size_;
    char *gradient_ = nullptr, *to_ = nullptr;
    Strides to_at_{};
};

}  // namespace
