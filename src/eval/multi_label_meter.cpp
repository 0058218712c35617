#include "contrastive/eval/multi_label_meter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "eval/gather_rows.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kRecallSteps = 10;

struct ScoredImage {
  float score;
  bool is_positive;
};

/// A point of the curve: the images at and above a score.
struct CurvePoint {
  int64_t hits;
  int64_t images;
  double precision() const { return static_cast<double>(hits) / static_cast<double>(images); }
};

/// One point for each score that occurs, the highest first.
std::vector<CurvePoint> curve_of(std::vector<ScoredImage>& images) {
  std::sort(images.begin(), images.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
  std::vector<CurvePoint> curve;
  CurvePoint point{0, 0};
  for (size_t i = 0; i < images.size(); ++i) {
    point.hits += images[i].is_positive ? 1 : 0;
    ++point.images;
    if (i + 1 == images.size() || images[i + 1].score != images[i].score) curve.push_back(point);
  }
  return curve;
}

double eleven_point(const std::vector<CurvePoint>& curve, int64_t positives) {
  std::array<double, kRecallSteps + 1> best{};
  for (const auto& point : curve) {
    const auto reached = point.hits * kRecallSteps / positives;  // in whole steps, exactly
    auto& value = best[static_cast<size_t>(reached)];
    value = std::max(value, point.precision());
  }
  double sum = 0;
  double largest = 0;
  for (auto step = best.rbegin(); step != best.rend(); ++step) {
    largest = std::max(largest, *step);
    sum += largest;
  }
  return sum / static_cast<double>(best.size());
}

double average_precision(const std::vector<CurvePoint>& curve, int64_t positives) {
  double sum = 0;
  int64_t hits = 0;
  for (const auto& point : curve) {
    sum += static_cast<double>(point.hits - hits) * point.precision();
    hits = point.hits;
  }
  return sum / static_cast<double>(positives);
}

ClassAveragePrecision evaluate_class(const torch::Tensor& scores, const torch::Tensor& targets, int64_t column) {
  const auto score = scores.accessor<float, 2>();
  const auto target = targets.accessor<uint8_t, 2>();
  std::vector<ScoredImage> images;
  ClassAveragePrecision result;
  for (int64_t i = 0; i < score.size(0); ++i) {
    const float value = score[i][column];
    images.push_back({std::isnan(value) ? -std::numeric_limits<float>::infinity() : value, target[i][column] != 0});
    result.positives += target[i][column];
  }
  if (result.positives == 0) return result;
  const auto curve = curve_of(images);
  result.eleven_point = eleven_point(curve, result.positives);
  result.average_precision = average_precision(curve, result.positives);
  return result;
}

}  // namespace

MultiLabelMeter::MultiLabelMeter(int64_t num_classes) : num_classes_(num_classes) {
  TORCH_CHECK(num_classes >= 1, "[multi_label_meter] num_classes must be at least 1, but is ", num_classes);
  scores_.push_back(at::empty({0, num_classes}));
  targets_.push_back(at::empty({0, num_classes}, at::kByte));
}

void MultiLabelMeter::add(const torch::Tensor& scores, std::span<const std::vector<int64_t>> label_lists) {
  TORCH_CHECK(scores.dim() == 2 && scores.size(1) == num_classes_ && at::isFloatingType(scores.scalar_type()),
              "[multi_label_meter] scores must be floating point [N, ", num_classes_, "], but are ",
              scores.scalar_type(), " ", scores.sizes());
  TORCH_CHECK(scores.size(0) == static_cast<int64_t>(label_lists.size()), "[multi_label_meter] there must be ",
              scores.size(0), " lists of labels, but are ", label_lists.size());
  auto targets = at::zeros(scores.sizes(), at::kByte);
  auto target = targets.accessor<uint8_t, 2>();
  for (size_t i = 0; i < label_lists.size(); ++i) {
    for (const auto label : label_lists[i]) {
      if (label < 0 || label >= num_classes_) {
        throw DataError(fmt::format("[multi_label_meter] row {}: labels must be in [0, {}), but one is {}", i,
                                    num_classes_, label));
      }
      target[static_cast<int64_t>(i)][label] = 1;
    }
  }
  scores_.push_back(scores.detach().to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous());
  targets_.push_back(targets);
}

void MultiLabelMeter::add_ranks(const distributed::ProcessGroup& group) {
  if (group.is_alone()) return;
  scores_ = {detail::gather_rows(at::cat(scores_), group)};
  targets_ = {detail::gather_rows(at::cat(targets_), group)};
}

MultiLabelMetrics MultiLabelMeter::metrics() const {
  const auto scores = at::cat(scores_);
  const auto targets = at::cat(targets_);
  MultiLabelMetrics result;
  result.num_samples = scores.size(0);
  for (int64_t column = 0; column < num_classes_; ++column) {
    const auto& each = result.classes.emplace_back(evaluate_class(scores, targets, column));
    result.num_classes_without_positives += each.positives == 0 ? 1 : 0;
    result.mean_eleven_point += each.eleven_point.value_or(0);
    result.mean_average_precision += each.average_precision.value_or(0);
  }
  const auto counted = num_classes_ - result.num_classes_without_positives;
  if (counted == 0) return result;
  result.mean_eleven_point /= static_cast<double>(counted);
  result.mean_average_precision /= static_cast<double>(counted);
  return result;
}

}  // namespace contrastive::eval
