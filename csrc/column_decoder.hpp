// Columns of any number type to small unsigned integers: the bin along one axis, or the gene.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "rasterize.hpp"

namespace teramind {

// What a decoder gives for a value outside [0, extent). Every index of a value inside is below it.
inline constexpr std::uint32_t kOutside = 0x80000000;

// n / divisor for 0 <= n < 2^31 as a multiplication and a shift, which compilers turn into SIMD code and a division
// they do not. With l = ceil(log2(divisor)) and m = floor(2^(31+l) / divisor) + 1 the excess m * divisor - 2^(31+l)
// is in (0, 2^l], for which n * m >> (31+l) is exact (Granlund and Montgomery, PLDI 1994, theorem 4.2).
class Divider {
 public:
  explicit Divider(std::uint32_t divisor)
      : shift_(31 + std::bit_width(divisor - 1)),
        multiplier_(static_cast<std::uint32_t>((std::uint64_t{1} << shift_) / divisor + 1)) {}

  [[nodiscard]] std::uint32_t operator()(std::uint32_t n) const {
    return static_cast<std::uint32_t>((std::uint64_t{n} * multiplier_) >> shift_);
  }

 private:
  int shift_;
  std::uint32_t multiplier_;
};

// The smallest T that is not below `extent`: x < extent and x < least_bound<T>(extent) mean the same for every T x.
template <class T>
T least_bound(std::uint32_t extent) {
  const T bound = static_cast<T>(extent);
  return static_cast<double>(bound) < extent ? std::nextafter(bound, std::numeric_limits<T>::infinity()) : bound;
}

// Decodes columns of one type. One step is one cell: a bin along an axis (divider = bin size) or a gene (divider 1).
template <class T>
class CellDecoder {
 public:
  CellDecoder(std::uint32_t extent, Divider divide) : extent_(extent), divide_(divide) {
    if constexpr (std::is_floating_point_v<T>) bound_ = least_bound<T>(extent);
  }

  [[nodiscard]] std::uint32_t operator()(T value) const {
    if constexpr (std::is_floating_point_v<T>) {
      const bool inside = (value >= T{0}) & (value < bound_);  // false for NaN
      const auto whole = static_cast<std::uint32_t>(static_cast<std::int32_t>(inside ? value : T{0}));
      return divide_(whole) | (inside ? 0U : kOutside);
    } else {
      const bool inside = static_cast<std::uint64_t>(static_cast<std::int64_t>(value)) < extent_;
      return divide_(inside ? static_cast<std::uint32_t>(value) : 0U) | (inside ? 0U : kOutside);
    }
  }

 private:
  std::uint64_t extent_;
  T bound_{};
  Divider divide_;
};

template <class T>
void decode_typed(const char* first, std::ptrdiff_t stride, std::size_t size, std::uint32_t extent, Divider divide,
                  std::uint32_t* cells) {
  const CellDecoder<T> decode(extent, divide);
  const auto loop = [&](auto step) {
    for (std::size_t i = 0; i < size; ++i) {
      T value;  // copied, because a column need not be aligned
      std::memcpy(&value, first + static_cast<std::ptrdiff_t>(i) * step, sizeof(T));
      cells[i] = decode(value);
    }
  };
  constexpr auto kContiguous = static_cast<std::ptrdiff_t>(sizeof(T));
  if (stride == kContiguous) {
    loop(std::integral_constant<std::ptrdiff_t, kContiguous>{});  // a stride known when compiled becomes SIMD code
  } else {
    loop(stride);
  }
}

// cells[i] = floor(column[first + i] / cell size) where 0 <= column[first + i] < extent, kOutside elsewhere.
inline void decode_cells(const Column& column, std::size_t first, std::size_t size, std::uint32_t extent,
                         Divider divide, std::uint32_t* cells) {
  const char* start = static_cast<const char*>(column.data) + static_cast<std::ptrdiff_t>(first) * column.stride;
  const auto run = [&]<class T>(std::type_identity<T>) {
    decode_typed<T>(start, column.stride, size, extent, divide, cells);
  };
  switch (column.type) {
    case ElementType::int8: return run(std::type_identity<std::int8_t>{});
    case ElementType::uint8: return run(std::type_identity<std::uint8_t>{});
    case ElementType::int16: return run(std::type_identity<std::int16_t>{});
    case ElementType::uint16: return run(std::type_identity<std::uint16_t>{});
    case ElementType::int32: return run(std::type_identity<std::int32_t>{});
    case ElementType::uint32: return run(std::type_identity<std::uint32_t>{});
    case ElementType::int64: return run(std::type_identity<std::int64_t>{});
    case ElementType::uint64: return run(std::type_identity<std::uint64_t>{});
    case ElementType::float32: return run(std::type_identity<float>{});
    case ElementType::float64: return run(std::type_identity<double>{});
  }
  throw std::logic_error("unknown element type");
}

}  // namespace teramind
