#pragma once

#include <cstdint>

namespace contrastive::image::detail {

/// a * b / 255, rounded, for a and b in [0, 255]: the integer form PIL uses for alpha and CMYK.
inline int multiply_255(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

}  // namespace contrastive::image::detail
