// Many growing lists of 32-bit keys in one piece of memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "raw_buffer.hpp"

namespace teramind {

// A fixed number of lists that together take up to `capacity` keys. Each is a chain of equal blocks, linked from the
// last to the first; the order within a list is therefore not that of arrival.
class KeyLists {
 public:
  KeyLists() = default;

  KeyLists(std::size_t capacity, std::size_t lists)
      : block_bits_(choose_block_bits(capacity / lists)),
        block_mask_((std::uint64_t{1} << block_bits_) - 1),
        end_(lists, 0) {
    // A list leaves at most one block unfilled, and one without a key has none.
    const std::size_t blocks = std::min(capacity, (capacity >> block_bits_) + lists);
    keys_ = RawBuffer<std::uint32_t>(blocks << block_bits_);
    previous_block_.reserve(blocks);
  }

  void append(std::size_t list, std::uint32_t key) {
    std::uint64_t end = end_[list];
    if ((end & block_mask_) == 0) end = start_block(end);  // its last block is full, or it has none
    keys_[end] = key;
    __builtin_prefetch(keys_.data() + end + kLineKeys, 1);  // hundreds of places are written to in turn
    end_[list] = end + 1;
  }

  // Calls visit(first, last) for each block of a list.
  template <class Visit>
  void for_each_block(std::size_t list, const Visit& visit) const {
    std::uint64_t end = end_[list];
    while (end != 0) {
      const std::uint64_t first = (end - 1) & ~block_mask_;
      const std::uint32_t previous = previous_block_[first >> block_bits_];
      if (previous != kNoBlock) prefetch_start(std::uint64_t{previous} << block_bits_);
      visit(keys_.data() + first, keys_.data() + end);
      end = previous == kNoBlock ? 0 : (std::uint64_t{previous} + 1) << block_bits_;
    }
  }

 private:
  static constexpr std::uint32_t kNoBlock = std::numeric_limits<std::uint32_t>::max();
  static constexpr std::size_t kLineKeys = 16;  // keys of a cache line

  // Blocks of at most a quarter of a usual list, so that unfilled ones cost at most a byte a key; else of 8 KiB, where
  // reading one after the other is nearly as fast as reading one array.
  static int choose_block_bits(std::size_t usual) {
    return std::clamp(63 - std::countl_zero(std::uint64_t{usual / 4} | 1), 2, 11);
  }

  // Asks for the first lines of a block; the hardware sees the rest coming.
  void prefetch_start(std::uint64_t first) const {
    for (std::size_t line = 0; line < 8; ++line) __builtin_prefetch(keys_.data() + first + line * kLineKeys);
  }

  // Links a block behind the one that ends at `end` (0: none) and returns where it begins.
  std::uint64_t start_block(std::uint64_t end) {
    const std::uint64_t block = previous_block_.size();
    previous_block_.push_back(end == 0 ? kNoBlock : static_cast<std::uint32_t>((end - 1) >> block_bits_));
    return block << block_bits_;
  }

  int block_bits_ = 0;
  std::uint64_t block_mask_ = 0;
  std::vector<std::uint64_t> end_;  // by list: where its last block is filled up to; 0 if it has none
  std::vector<std::uint32_t> previous_block_;
  RawBuffer<std::uint32_t> keys_;
};

}  // namespace teramind
