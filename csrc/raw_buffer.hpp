// Uninitialised memory that is cheap to touch for the first time.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace teramind {

// An array of `size` uninitialised values. Large ones ask for huge pages: half of the time of a memory-bound pass over
// fresh memory is otherwise spent in page faults.
template <class T>
class RawBuffer {
 public:
  RawBuffer() = default;

  explicit RawBuffer(std::size_t size) {
    const std::size_t bytes = size * sizeof(T);
    const bool large = bytes >= kLarge;
    void* memory = large ? std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage)
                         : std::malloc(bytes != 0 ? bytes : 1);
    if (memory == nullptr) throw std::bad_alloc();
    if (large) madvise(memory, bytes, MADV_HUGEPAGE);  // advice: where it is not followed, only time is lost
    data_.reset(static_cast<T*>(memory));
    size_ = size;
  }

  // Makes room for at least `size` values; what was in it is lost. The old memory goes first, so that the two are
  // never held together.
  void reserve_discarding(std::size_t size) {
    if (size <= size_) return;
    data_.reset();
    size_ = 0;
    *this = RawBuffer(size);
  }

  [[nodiscard]] T* data() const { return data_.get(); }
  T& operator[](std::size_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;
  static constexpr std::size_t kLarge = std::size_t{4} << 20;

  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };

  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace teramind
