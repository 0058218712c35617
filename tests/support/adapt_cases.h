#pragma once

#include <cstdint>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/adapt/adapter.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/tensors.h"

namespace contrastive::test {

/// Rows of length 1 in directions that depend on the seed only. fp64
inline torch::Tensor unit_rows(at::IntArrayRef sizes, uint64_t seed) {
  const auto rows = random_normal(sizes, seed, at::kDouble);
  return rows / rows.norm(2, -1, /*keepdim=*/true);
}

/// A random support set with these many rows of each class, and `num_views` views of each row (none for 0).
inline adapt::SupportFeatures random_support(const std::vector<int64_t>& counts, int64_t dim, int64_t num_views,
                                             uint64_t seed) {
  std::vector<int64_t> labels;
  for (size_t label = 0; label < counts.size(); ++label) {
    labels.insert(labels.end(), static_cast<size_t>(counts[label]), static_cast<int64_t>(label));
  }
  const auto num_rows = static_cast<int64_t>(labels.size());
  adapt::SupportFeatures support{
      unit_rows({num_rows, dim}, seed), indices(labels), static_cast<int64_t>(counts.size()), {}};
  if (num_views > 0) support.views = unit_rows({num_rows, num_views, dim}, seed + 1);
  return support;
}

/// A classifier of these weights alone.
inline adapt::TextClassifier classifier_of(const torch::Tensor& weights) {
  adapt::TextClassifier classifier;
  classifier.weights = weights;
  classifier.prompts = weights;
  classifier.prompt_class = at::arange(weights.size(0), at::kLong);
  return classifier;
}

inline adapt::SupportFeatures support_of(const AdaptFixture& fixture) {
  return {fixture.keys, fixture.labels, fixture.weights.size(0), {}};
}

/// The same support set with class c as class `place[c]`.
inline adapt::SupportFeatures permuted_classes(const adapt::SupportFeatures& support, const torch::Tensor& place) {
  return adapt::sort_by_class(support.keys, place.index_select(0, support.labels), support.num_classes, support.views);
}

/// An orthogonal matrix.
inline torch::Tensor rotation(int64_t dim, uint64_t seed) {
  return std::get<0>(at::linalg_qr(random_normal({dim, dim}, seed, at::kDouble)));
}

/// The highest class of each row.
inline torch::Tensor predictions(const torch::Tensor& logits) {
  return logits.argmax(1);
}

/// Whether what state() gives makes an adapter, that nothing was fitted to, score as the first one does, to the bit.
inline ::testing::AssertionResult scores_after_restore(const adapt::Adapter& fitted, adapt::Adapter& empty,
                                                       const adapt::QueryFeatures& queries) {
  empty.restore(fitted.state());
  return tensors_equal("logits", empty.logits(queries, fitted.fixed_values()),
                       fitted.logits(queries, fitted.fixed_values()));
}

}  // namespace contrastive::test
