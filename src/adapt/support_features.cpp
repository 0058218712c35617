#include "contrastive/adapt/support_features.h"

#include <algorithm>
#include <string>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

/// How far a row's length may be from 1: that of rows that were stored in fp16 before.
constexpr double kLengthTolerance = 1e-2;
constexpr int64_t kMaxNamed = 10;

void check_shapes(const SupportFeatures& support) {
  const auto& [keys, labels, num_classes, views] = support;
  TORCH_CHECK(
      keys.defined() && keys.dim() == 2 && (keys.scalar_type() == at::kFloat || keys.scalar_type() == at::kDouble),
      "[support_features] keys must be [M, D] fp32 or fp64");
  TORCH_CHECK(labels.defined() && labels.device().is_cpu() && labels.scalar_type() == at::kLong && labels.dim() == 1 &&
                  labels.size(0) == keys.size(0),
              "[support_features] labels must be [", keys.size(0), "] int64 in CPU memory");
  TORCH_CHECK(!views.defined() || (views.dim() == 3 && views.size(0) == keys.size(0) && views.size(1) >= 1 &&
                                   views.size(2) == keys.size(1) && views.scalar_type() == keys.scalar_type()),
              "[support_features] views must be [", keys.size(0), ", V, ", keys.size(1), "] of the keys' dtype");
  if (labels.size(0) == 0) return;
  TORCH_CHECK(labels.diff().ge(0).all().item<bool>(), "[support_features] rows must be sorted by class");
  TORCH_CHECK(labels[0].item<int64_t>() >= 0 && labels[-1].item<int64_t>() < num_classes,
              "[support_features] labels must be in [0, ", num_classes, "), but range from ", labels[0].item<int64_t>(),
              " to ", labels[-1].item<int64_t>());
}

void check_rows(const torch::Tensor& rows, const char* what) {
  const auto lengths = rows.flatten(0, -2).norm(2, -1).to(at::kDouble);
  if (!lengths.isfinite().all().item<bool>()) {
    const auto row = lengths.isfinite().logical_not().nonzero()[0].item<int64_t>();
    throw DataError(
        fmt::format("[support_features] {} must be finite, but row {} of {} isn't", what, row, lengths.size(0)));
  }
  const auto off = (lengths - 1).abs();
  if (off.max().item<double>() > kLengthTolerance) {
    const auto row = off.argmax().item<int64_t>();
    throw DataError(fmt::format("[support_features] {} must be L2-normalised, but row {} has length {:.4g}", what, row,
                                lengths[row].item<double>()));
  }
}

void check_classes(const SupportFeatures& support) {
  if (support.num_classes < 2) {
    throw DataError(fmt::format("[support_features] at least 2 classes are needed, but there {}",
                                support.num_classes == 1 ? "is 1" : "are none"));
  }
  const auto empty = support.counts().eq(0).nonzero().flatten();
  if (empty.numel() == 0) return;
  std::string shown;
  for (int64_t i = 0; i < std::min(kMaxNamed, empty.numel()); ++i) {
    shown += fmt::format("{}{}", i == 0 ? "" : ", ", empty[i].item<int64_t>());
  }
  throw DataError(fmt::format("[support_features] every class needs a row, but {} of {} have none: classes {}{}",
                              empty.numel(), support.num_classes, shown, empty.numel() > kMaxNamed ? ", ..." : ""));
}

}  // namespace

torch::Tensor SupportFeatures::counts() const {
  return at::bincount(labels, {}, num_classes).slice(0, 0, num_classes);
}

torch::Tensor SupportFeatures::offsets() const {
  return at::constant_pad_nd(counts().cumsum(0), {1, 0});
}

torch::Tensor SupportFeatures::class_sums() const {
  return at::zeros({num_classes, keys.size(1)}, keys.options()).index_add_(0, labels.to(keys.device()), keys);
}

SupportFeatures SupportFeatures::rows(const torch::Tensor& indices) const {
  const auto on_device = indices.to(keys.device());
  return {keys.index_select(0, on_device), labels.index_select(0, indices), num_classes,
          views.defined() ? views.index_select(0, on_device) : views};
}

SupportFeatures SupportFeatures::all_views() const {
  if (!views.defined()) return {keys, labels, num_classes, {}};
  return {views.flatten(0, 1), labels.repeat_interleave(views.size(1)), num_classes, {}};
}

SupportFeatures SupportFeatures::to(at::ScalarType dtype) const {
  return {keys.to(dtype), labels, num_classes, views.defined() ? views.to(dtype) : views};
}

void SupportFeatures::check() const {
  check_shapes(*this);
  check_classes(*this);
  check_rows(keys, "keys");
  if (views.defined()) check_rows(views, "views");
}

SupportFeatures sort_by_class(const torch::Tensor& keys, const torch::Tensor& labels, int64_t num_classes,
                              const torch::Tensor& views) {
  const auto own = labels.to(at::kCPU, at::kLong);
  const auto order = own.argsort(/*stable=*/true);
  return SupportFeatures{keys, own, num_classes, views}.rows(order);
}

}  // namespace contrastive::adapt
