#include "adapt/gaussian_classifier.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include <ATen/ATen.h>

namespace contrastive::adapt::detail {
namespace {

constexpr int64_t kRowsAtATime = 4096;
/// Traces of the covariance of rows of length 1 below this are rounding.
constexpr double kSmallestTrace = 1e-12;

/// Calls `visit` with every row in fp64, some thousand at a time, and their labels on the rows' device.
void for_each_part(const std::vector<LabelledRows>& blocks,
                   const std::function<void(const torch::Tensor& rows, const torch::Tensor& labels)>& visit) {
  for (const auto& [rows, labels] : blocks) {
    for (int64_t begin = 0; begin < rows.size(0); begin += kRowsAtATime) {
      const auto end = std::min(rows.size(0), begin + kRowsAtATime);
      visit(rows.slice(0, begin, end).to(at::kDouble), labels.slice(0, begin, end).to(rows.device()));
    }
  }
}

torch::Tensor class_means(const std::vector<LabelledRows>& blocks, int64_t num_classes) {
  const auto options = blocks.front().rows.options().dtype(at::kDouble);
  auto sums = at::zeros({num_classes, blocks.front().rows.size(1)}, options);
  auto counts = at::zeros({num_classes, 1}, options);
  for_each_part(blocks, [&](const torch::Tensor& rows, const torch::Tensor& labels) {
    sums.index_add_(0, labels, rows);
    counts.index_add_(0, labels, at::ones({rows.size(0), 1}, options));
  });
  return sums / counts;
}

}  // namespace

LinearClassifier fit_gaussians(const std::vector<LabelledRows>& blocks, int64_t num_classes) {
  const auto means = class_means(blocks, num_classes);
  const auto dim = means.size(1);
  auto scatter = at::zeros({dim, dim}, means.options());  // (n - 1) S
  int64_t num_rows = 0;
  for_each_part(blocks, [&](const torch::Tensor& rows, const torch::Tensor& labels) {
    const auto centred = rows - means.index_select(0, labels);
    scatter.addmm_(centred.t(), centred);
    num_rows += rows.size(0);
  });
  const double trace = scatter.trace().item<double>() / static_cast<double>(std::max<int64_t>(1, num_rows - 1));
  auto weights = means;
  if (trace > kSmallestTrace) {
    scatter.diagonal().add_(trace);
    weights = at::cholesky_solve(means.t(), at::linalg_cholesky(scatter)).t();
  }
  weights = weights * static_cast<double>(dim);
  const auto bias = (means * weights).sum(1) * -0.5 - std::log(static_cast<double>(num_classes));
  const auto dtype = blocks.front().rows.scalar_type();
  return {weights.to(dtype).contiguous(), bias.to(dtype)};
}

}  // namespace contrastive::adapt::detail
