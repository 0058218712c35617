#include "contrastive/eval/search.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/models/precision.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kQueryTile = 256;
constexpr int64_t kIndexTile = 8192;
constexpr int64_t kLowBits = 0xFFFFFFFF;
constexpr int64_t kMaxRows = kLowBits;

/// Between the bits of a float and an integer that is ordered as the floats are; its own inverse.
torch::Tensor flip_order(const torch::Tensor& bits) {
  return bits.bitwise_xor(bits.bitwise_right_shift(31).bitwise_and(0x7FFFFFFF));
}

/// Packs score and row into one number that is larger for the better candidate: no two are equal, so a top-k over them
/// has one answer. Shapes: scores [Q, T] fp32 to int64.
torch::Tensor pack(const torch::Tensor& scores, int64_t first_row) {
  constexpr auto kInfinity = std::numeric_limits<double>::infinity();
  const auto ordered = at::nan_to_num(scores, -kInfinity, kInfinity, -kInfinity) + 0.0;  // -0 becomes 0
  const auto rows = at::arange(scores.size(1), scores.options().dtype(at::kLong)) + first_row;
  return flip_order(ordered.view(at::kInt)).to(at::kLong).bitwise_left_shift(32).bitwise_or(kLowBits - rows);
}

SearchResult unpack(const torch::Tensor& keys) {
  const auto scores = flip_order(keys.bitwise_right_shift(32).to(at::kInt)).view(at::kFloat);
  return {kLowBits - keys.bitwise_and(kLowBits), scores};
}

/// The best keys of a tile of queries over the whole index. [Q, k]
torch::Tensor best_keys(const torch::Tensor& queries, const torch::Tensor& index, int64_t k) {
  torch::Tensor best;
  for (int64_t begin = 0; begin < index.size(0); begin += kIndexTile) {
    const auto end = std::min(index.size(0), begin + kIndexTile);
    const auto tile = index.slice(0, begin, end).to(queries.options());
    auto keys = pack(queries.matmul(tile.t()), begin);
    if (best.defined()) keys = at::cat({best, keys}, 1);
    best = std::get<0>(keys.topk(std::min(k, keys.size(1))));
  }
  return best;
}

void check(const torch::Tensor& queries, const torch::Tensor& index, int64_t k) {
  TORCH_CHECK(queries.dim() == 2 && index.dim() == 2 && queries.size(1) == index.size(1) &&
                  at::isFloatingType(queries.scalar_type()) && at::isFloatingType(index.scalar_type()),
              "[search] queries and index must be floating point [Q, E] and [M, E], but are ", queries.scalar_type(),
              " ", queries.sizes(), " and ", index.scalar_type(), " ", index.sizes());
  TORCH_CHECK(index.size(0) >= 1 && index.size(0) <= kMaxRows, "[search] index must have 1 to ", kMaxRows,
              " rows, but has ", index.size(0));
  TORCH_CHECK(k >= 1, "[search] k must be at least 1, but is ", k);
}

}  // namespace

SearchResult search(const torch::Tensor& queries, const torch::Tensor& index, int64_t k) {
  check(queries, index, k);
  const torch::NoGradGuard no_grad;
  const models::AutocastGuard full_precision(queries.device().type(), false);
  k = std::min(k, index.size(0));
  std::vector<torch::Tensor> keys{at::empty({0, k}, queries.options().dtype(at::kLong))};
  for (int64_t begin = 0; begin < queries.size(0); begin += kQueryTile) {
    const auto end = std::min(queries.size(0), begin + kQueryTile);
    keys.push_back(best_keys(queries.slice(0, begin, end).to(at::kFloat), index, k));
  }
  return unpack(at::cat(keys));
}

}  // namespace contrastive::eval
