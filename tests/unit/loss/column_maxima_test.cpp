#include <algorithm>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "loss/tile_kernels.h"
#include "loss/tile_math.h"
#include "tests/support/tensors.h"

namespace contrastive::loss::detail {
namespace {

ColumnMaxima nothing_yet(int64_t columns) {
  const auto filled = [&] { return at::full({columns}, kLowest<double>, at::kDouble); };
  return {filled(), filled(), filled()};
}

/// The definition, pair by pair.
ColumnMaxima by_definition(const Tile& tile, double scale) {
  const auto rows = tile.products.size(0), columns = tile.products.size(1);
  auto result = nothing_yet(columns);
  const auto products = tile.products.contiguous();
  const auto* product = products.const_data_ptr<double>();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; ++c, ++product) {
      const auto own_row = c - tile.own;
      auto& maxima = i < own_row ? result.before : i > own_row ? result.after : result.own;
      auto& maximum = maxima.data_ptr<double>()[c];
      maximum = std::max(maximum, *product * scale);
    }
  }
  return result;
}

TEST(ColumnMaximaTest, EqualTheirDefinitionWhereverTheOwnPairsLie) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {3, 70}, {70, 3}, {64, 64}, {130, 201}}) {
    for (const int64_t own :
         {-400L, -rows, 1 - rows, -rows / 2, -1L, 0L, 1L, columns / 2, columns - 1, columns, 400L}) {
      for (const double scale : {14.0, -3.0}) {
        const Tile tile{test::random_normal({rows, columns}, 7, at::kDouble), own};
        const auto actual = nothing_yet(columns);
        add_column_maxima(tile, at::full({}, scale, at::kDouble), actual);
        const auto expected = by_definition(tile, scale);
        const auto name = std::to_string(rows) + " x " + std::to_string(columns) + ", own " + std::to_string(own);
        EXPECT_TRUE(test::tensors_equal(name + " before", actual.before, expected.before));
        EXPECT_TRUE(test::tensors_equal(name + " after", actual.after, expected.after));
        EXPECT_TRUE(test::tensors_equal(name + " own", actual.own, expected.own));
      }
    }
  }
}

TEST(ColumnMaximaTest, TilesAddUp) {
  const auto products = test::random_normal({90, 50}, 8, at::kDouble);
  const auto scale = at::full({}, 2.0, at::kDouble);
  const auto actual = nothing_yet(50);
  add_column_maxima({products.narrow(0, 0, 40), -20}, scale, actual);
  add_column_maxima({products.narrow(0, 40, 50), 20}, scale, actual);
  const auto expected = by_definition({products, -20}, 2);
  EXPECT_TRUE(test::tensors_equal("before", actual.before, expected.before));
  EXPECT_TRUE(test::tensors_equal("after", actual.after, expected.after));
  EXPECT_TRUE(test::tensors_equal("own", actual.own, expected.own));
}

}  // namespace
}  // namespace contrastive::loss::detail
