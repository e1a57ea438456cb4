// Memory for large new tensors, on huge pages and used again: a gradient of the logits is made and dropped at every
// step, and the page faults of fresh memory cost more than the arithmetic. What is dropped is kept for the next tensor
// of about its size, a few pieces at most, and marked as free to the operating system, which takes it back when anybody
// runs short. The piece that was dropped last is not marked if it is no larger than HOT: the next step takes it at
// once, and a mark costs a tenth of that step.
//
// Takes a number of bytes. Gives memory with any content. Refuses systems without MADV_FREE: null.

#pragma once
#include <cstdlib>
#include <mutex>
#include <vector>
#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>

#include <new>
#endif

class Recycler;
inline Recycler& recycler();

class Recycler {
  public:
#if defined(__linux__) && defined(MADV_FREE)
    static constexpr bool AVAILABLE = true;

    // A child has the memory of its parent, and only the thread that forked: a lock that another one held would stay
    // locked there for ever, with the list half written.
    void survive_forks() {
        pthread_atfork(
            [] { recycler().mutex_.lock(); }, [] { recycler().mutex_.unlock(); },
            [] { new (&recycler().mutex_) std::mutex; }
        );
    }

    void* take(size_t bytes) {
        bytes = rounded(bytes);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (size_t i = kept_.size(); i-- > 0;)
                if (kept_[i].bytes == bytes) {
                    void* data = kept_[i].data;
                    kept_.erase(kept_.begin() + long(i));
                    return data;
                }
        }
        void* fresh = std::aligned_alloc(PAGE, bytes);
        if (fresh && bytes >= 2 * PAGE) madvise(fresh, bytes, MADV_HUGEPAGE);
        return fresh;
    }

    void give_back(void* data, size_t bytes) {
        bytes = rounded(bytes);
        void* oldest = nullptr;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (Piece& piece : kept_) piece.mark();
            kept_.push_back({data, bytes, false});
            if (bytes > HOT) kept_.back().mark();
            if (kept_.size() > MOST) oldest = kept_.front().data, kept_.erase(kept_.begin());
        }
        std::free(oldest);
    }

  private:
    static constexpr size_t PAGE = 1 << 21, HOT = 1 << 27, MOST = 4;
    struct Piece {
        void* data;
        size_t bytes;
        bool marked;

        void mark() {
            if (!marked) madvise(data, bytes, MADV_FREE);
            marked = true;
        }
    };
    static size_t rounded(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

    std::mutex mutex_;
    std::vector<Piece> kept_;
#else
    static constexpr bool AVAILABLE = false;
    void* take(size_t) { return nullptr; }
    void give_back(void*, size_t) {}
    void survive_forks() {}
#endif
};

// Never destroyed: tensors may be dropped after everything else.
inline Recycler& recycler() {
    static Recycler* one = [] {
        auto* made = new Recycler;
        made->survive_forks();
        return made;
    }();
    return *one;
}
