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
      : shift_(63 - std::countl_zero(divisor - 1)),
        multiplier_(static_cast<std::uint32_t>((std::uint64_t{1} << shift_) / divisor + 1)) {}

  [[nodiscard]] std::uint32_t operator()(std::uint32_t n) const {
    return static_cast<std::uint32_t>((std::uint64_t{n} * multiplier_) >> shift_);
  }

 private:
  int shift_;
  std::uint32_t multiplier_;
};

// The same for a power of two, in a third of the time.
class Shifter {
 public:
  explicit Shifter(std::uint32_t divisor) : shift_(std::countr_zero(divisor)) {}
  [[nodiscard]] std::uint32_t operator()(std::uint32_t n) const { return n >> shift_; }

 private:
  int shift_;
};

// The smallest float that is not below `extent`: x < extent and x < least_bound<T>(extent) mean the same for every T x.
// Integers are compared with `extent` itself.
template <class T>
T least_bound(std::uint32_t extent) {
  const T bound = static_cast<T>(extent);
  if constexpr (std::is_floating_point_v<T>) {
    if (static_cast<double>(bound) < extent) return std::nextafter(bound, std::numeric_limits<T>::infinity());
  }
  return bound;
}

// What a value inside is rounded down to: 32-bit conversions of floats exist in every SIMD instruction set.
template <class T>
using Whole = std::conditional_t<std::is_floating_point_v<T>, std::int32_t, T>;

// Whether 0 <= value < extent, false for NaN; `bound` is the least_bound of `extent` where T is a float.
template <class T>
bool is_inside(T value, T bound, std::uint32_t extent) {
  if constexpr (std::is_floating_point_v<T>) {
    return value >= T{0} && value < bound;
  } else if constexpr (std::is_unsigned_v<T>) {
    return value < extent;
  } else {
    return value >= 0 && static_cast<std::make_unsigned_t<T>>(value) < extent;
  }
}

// The loop itself. `step` is the stride in bytes; where it is a constant, the loop becomes SIMD code.
template <class T, class Step, class Divide>
void decode_loop(const char* first, Step step, std::size_t size, std::uint32_t extent, Divide divide,
                 std::uint32_t* cells) {
  const T bound = least_bound<T>(extent);
  for (std::size_t i = 0; i < size; ++i) {
    T value;  // copied, because a column need not be aligned
    std::memcpy(&value, first + static_cast<std::ptrdiff_t>(i) * step, sizeof(T));
    const bool inside = is_inside(value, bound, extent);
    const T safe = inside ? value : T{0};  // what is outside may not even be convertible
    const std::uint32_t cell = divide(static_cast<std::uint32_t>(static_cast<Whole<T>>(safe)));
    cells[i] = inside ? cell : kOutside;
  }
}

template <class T>
void decode_typed(const char* first, std::ptrdiff_t stride, std::size_t size, std::uint32_t extent,
                  std::uint32_t cell_size, std::uint32_t* cells) {
  constexpr std::integral_constant<std::ptrdiff_t, sizeof(T)> kContiguous;
  const auto loop = [&](auto step) {
    if (std::has_single_bit(cell_size)) {
      decode_loop<T>(first, step, size, extent, Shifter(cell_size), cells);
    } else {
      decode_loop<T>(first, step, size, extent, Divider(cell_size), cells);
    }
  };
  if (stride == kContiguous) {
    loop(kContiguous);
  } else {
    loop(stride);
  }
}

// cells[i] = floor(column[first + i] / cell_size) where 0 <= column[first + i] < extent, kOutside elsewhere.
inline void decode_cells(const Column& column, std::size_t first, std::size_t size, std::uint32_t extent,
                         std::uint32_t cell_size, std::uint32_t* cells) {
  const char* start = static_cast<const char*>(column.data) + static_cast<std::ptrdiff_t>(first) * column.stride;
  const auto run = [&]<class T>(std::type_identity<T>) {
    decode_typed<T>(start, column.stride, size, extent, cell_size, cells);
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

// Asks the memory for elements that are decoded soon: of several columns read in turn, piece by piece, the hardware
// loses track.
inline void prefetch(const Column& column, std::size_t first, std::size_t size) {
  constexpr std::ptrdiff_t kLine = 64;
  if (column.stride <= 0 || column.stride > kLine) return;
  const char* const start = static_cast<const char*>(column.data) + static_cast<std::ptrdiff_t>(first) * column.stride;
  const char* const end = start + static_cast<std::ptrdiff_t>(size) * column.stride;
  for (const char* line = start; line < end; line += kLine) __builtin_prefetch(line);
}

}  // namespace teramind
