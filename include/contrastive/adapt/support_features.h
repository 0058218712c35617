#pragma once

#include <cstdint>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// Labelled image features that an adapter learns from: a support set's, or some rows of it.
struct SupportFeatures {
  torch::Tensor keys = {};    ///< [M, D] fp32 or fp64, L2-normalised
  torch::Tensor labels = {};  ///< [M] int64 in [0, num_classes), in CPU memory, never falling
  int64_t num_classes = 0;
  /// Each crop of the images by itself, L2-normalised: [M, V, D]. Undefined where there is one crop, the key.
  torch::Tensor views = {};

  int64_t size() const { return keys.size(0); }

  /// Rows of each class. [C] int64
  CONTRASTIVE_API torch::Tensor counts() const;

  /// Where each class begins, and the end: class c has rows [offsets[c], offsets[c + 1]). [C + 1] int64
  CONTRASTIVE_API torch::Tensor offsets() const;

  /// The sum of each class's keys. [C, D]
  CONTRASTIVE_API torch::Tensor class_sums() const;

  /// The given rows (int64 [R], rising). Classes keep their numbers.
  CONTRASTIVE_API SupportFeatures rows(const torch::Tensor& indices) const;

  /// Every view as a sample of its own: [M * V, D] with labels [M * V]; the keys, if there are no views.
  CONTRASTIVE_API SupportFeatures all_views() const;

  /// The same in another floating-point type.
  CONTRASTIVE_API SupportFeatures to(at::ScalarType dtype) const;

  /// Throws: Error for wrong shapes, dtypes or an order of labels that isn't theirs; DataError for values that aren't
  /// finite, rows that aren't normalised, fewer than two classes, and classes without a row (the first are named).
  CONTRASTIVE_API void check() const;
};

/// Brings rows into the order of their classes; rows of a class keep their order.
CONTRASTIVE_API SupportFeatures sort_by_class(const torch::Tensor& keys, const torch::Tensor& labels,
                                              int64_t num_classes, const torch::Tensor& views = {});

}  // namespace contrastive::adapt
