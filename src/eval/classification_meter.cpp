#include "contrastive/eval/classification_meter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/vector_clones.h"

#include "eval/gather_rows.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kTop = 5;
constexpr int64_t kNoClass = -1;
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

/// How many classes stand before `own`: comparisons with a score that is not a number are false.
CONTRASTIVE_VECTOR_CLONES int64_t count_before(const float* scores, int64_t num_classes, int64_t own) {
  const float score = scores[own];
  int32_t before = 0;
  for (int64_t j = 0; j < own; ++j) before += scores[j] >= score ? 1 : 0;
  for (int64_t j = own + 1; j < num_classes; ++j) before += scores[j] > score ? 1 : 0;
  return before;
}

CONTRASTIVE_VECTOR_CLONES float largest(const float* scores, int64_t num_classes) {
  constexpr int64_t kLanes = 16;
  std::array<float, kLanes> best;
  best.fill(-std::numeric_limits<float>::infinity());
  int64_t j = 0;
  for (; j + kLanes <= num_classes; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) best[k] = scores[j + k] > best[k] ? scores[j + k] : best[k];
  }
  for (; j < num_classes; ++j) best[0] = scores[j] > best[0] ? scores[j] : best[0];
  return *std::max_element(best.begin(), best.end());
}

/// The class that stands first; kNoClass if no score is a number.
int64_t first_class(const float* scores, int64_t num_classes) {
  const auto* found = std::find(scores, scores + num_classes, largest(scores, num_classes));
  return found == scores + num_classes ? kNoClass : found - scores;
}

/// The label that stands first among those of an image.
int64_t first_label(const float* scores, std::span<const int64_t> labels) {
  auto best = labels[0];
  for (const auto label : labels.subspan(1)) {
    const bool is_before = std::isnan(scores[best])
                               ? !std::isnan(scores[label]) || label < best
                               : scores[label] > scores[best] || (scores[label] == scores[best] && label < best);
    if (is_before) best = label;
  }
  return best;
}

double share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::optional<double> share_if_any(int64_t part, int64_t whole) {
  return whole == 0 ? std::nullopt : std::optional(share(part, whole));
}

torch::Tensor to_rows(const ConfusionCounts& confusion) {
  auto rows = at::empty({static_cast<int64_t>(confusion.size()), 3}, at::kLong);
  auto* row = rows.data_ptr<int64_t>();
  for (const auto& [pair, count] : confusion) {
    row = std::copy_n(std::array{pair.first, pair.second, count}.begin(), 3, row);
  }
  return rows;
}

ConfusionCounts from_rows(const torch::Tensor& rows) {
  ConfusionCounts confusion;
  const auto values = rows.accessor<int64_t, 2>();
  for (int64_t i = 0; i < values.size(0); ++i) confusion[{values[i][0], values[i][1]}] += values[i][2];
  return confusion;
}

}  // namespace

std::optional<double> ClassCounts::recall() const {
  return share_if_any(hits, samples);
}

std::optional<double> ClassCounts::precision() const {
  return share_if_any(hits, predicted);
}

ClassificationMeter::ClassificationMeter(int64_t num_classes, std::vector<int64_t> first_of_group)
    : num_classes_(num_classes) {
  TORCH_CHECK(num_classes >= 1, "[classification_meter] num_classes must be at least 1, but is ", num_classes);
  if (first_of_group.empty()) return;
  TORCH_CHECK(static_cast<int64_t>(first_of_group.size()) == num_classes,
              "[classification_meter] first_of_group must have ", num_classes, " entries, but has ",
              first_of_group.size());
  bool merges = false;
  for (int64_t i = 0; i < num_classes; ++i) {
    const auto first = first_of_group[static_cast<size_t>(i)];
    TORCH_CHECK(first >= 0 && first <= i && first_of_group[static_cast<size_t>(first)] == first,
                "[classification_meter] first_of_group[", i, "] must be the lowest class of its group, but is ", first);
    merges = merges || first != i;
  }
  if (merges) first_of_group_ = std::move(first_of_group);
}

void ClassificationMeter::check_scores(const torch::Tensor& scores) const {
  TORCH_CHECK(scores.dim() == 2 && scores.size(1) == num_classes_ && at::isFloatingType(scores.scalar_type()),
              "[classification_meter] scores must be floating point [N, ", num_classes_, "], but are ",
              scores.scalar_type(), " ", scores.sizes());
}

void ClassificationMeter::check_label(int64_t label, int64_t row) const {
  if (label >= 0 && label < num_classes_) return;
  throw DataError(
      fmt::format("[classification_meter] row {}: the label must be in [0, {}), but is {}", row, num_classes_, label));
}

void ClassificationMeter::count_row(const float* scores, std::span<const int64_t> labels) {
  const auto label = first_label(scores, labels);
  const bool can_hit = !std::isnan(scores[label]);
  const auto rank = can_hit ? count_before(scores, num_classes_, label) : num_classes_;
  const auto predicted = can_hit && rank == 0 ? label : first_class(scores, num_classes_);
  ++confusion_[{label, predicted}];
  if (can_hit && rank < kTop) ++top5_hits_;
  const bool is_of_one_class = std::all_of(labels.begin(), labels.end(), [&](auto each) { return each == label; });
  if (num_classes_ == 2 && first_of_group_.empty() && is_of_one_class) {
    const auto margin = static_cast<double>(scores[1]) - static_cast<double>(scores[0]);
    margins_.push_back({std::isnan(margin) ? -std::numeric_limits<double>::infinity() : margin, label == 1});
  }
}

void ClassificationMeter::add(const torch::Tensor& scores, const torch::Tensor& labels) {
  TORCH_CHECK(labels.dim() == 1 && labels.scalar_type() == at::kLong && labels.size(0) == scores.size(0),
              "[classification_meter] labels must be int64 [", scores.size(0), "], but are ", labels.scalar_type(), " ",
              labels.sizes());
  const auto values = labels.to(at::kCPU).contiguous();
  std::vector<std::vector<int64_t>> lists;
  lists.reserve(static_cast<size_t>(values.size(0)));
  for (const auto label : std::span(values.const_data_ptr<int64_t>(), static_cast<size_t>(values.size(0)))) {
    lists.push_back({label});
  }
  add(scores, lists);
}

void ClassificationMeter::add(const torch::Tensor& scores, std::span<const std::vector<int64_t>> label_lists) {
  check_scores(scores);
  TORCH_CHECK(scores.size(0) == static_cast<int64_t>(label_lists.size()), "[classification_meter] there must be ",
              scores.size(0), " lists of labels, but are ", label_lists.size());
  for (size_t i = 0; i < label_lists.size(); ++i) {
    for (const auto label : label_lists[i]) check_label(label, static_cast<int64_t>(i));
  }
  const auto values = scores.detach().to(at::kCPU, at::kFloat).contiguous();
  std::vector<int64_t> labels;
  std::vector<float> merged(first_of_group_.size());
  for (size_t i = 0; i < label_lists.size(); ++i) {
    if (label_lists[i].empty()) {
      ++num_unlabelled_;
      continue;
    }
    labels = label_lists[i];
    const auto* row = values.const_data_ptr<float>() + static_cast<int64_t>(i) * num_classes_;
    if (!first_of_group_.empty()) {
      for (auto& label : labels) label = first_of_group_[static_cast<size_t>(label)];
      std::fill(merged.begin(), merged.end(), kNotANumber);
      for (size_t j = 0; j < merged.size(); ++j) {
        auto& best = merged[static_cast<size_t>(first_of_group_[j])];
        if (!(row[j] <= best) && !std::isnan(row[j])) best = row[j];
      }
      row = merged.data();
    }
    count_row(row, labels);
  }
}

void ClassificationMeter::add_ranks(const distributed::ProcessGroup& group) {
  if (group.is_alone()) return;
  confusion_ = from_rows(detail::gather_rows(to_rows(confusion_), group));
  auto counts = at::tensor({top5_hits_, num_unlabelled_}, at::kLong);
  group.all_reduce(counts);
  top5_hits_ = counts[0].item<int64_t>();
  num_unlabelled_ = counts[1].item<int64_t>();
  if (num_classes_ != 2) return;
  auto own = at::empty({static_cast<int64_t>(margins_.size()), 2}, at::kDouble);
  auto* row = own.data_ptr<double>();
  for (const auto& margin : margins_) {
    *row++ = margin.value;
    *row++ = margin.is_positive ? 1 : 0;
  }
  const auto all = detail::gather_rows(own, group);
  const auto values = all.accessor<double, 2>();
  margins_.clear();
  for (int64_t i = 0; i < values.size(0); ++i) margins_.push_back({values[i][0], values[i][1] != 0});
}

std::optional<double> ClassificationMeter::roc_auc() const {
  auto sorted = margins_;
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.value < b.value; });
  const auto total = static_cast<int64_t>(sorted.size());
  const int64_t positives = std::count_if(sorted.begin(), sorted.end(), [](const auto& m) { return m.is_positive; });
  const auto negatives = total - positives;
  if (positives == 0 || negatives == 0) return std::nullopt;
  // Pairs count double, so that a tie is 1: whole numbers, whose sum doesn't depend on the order of the samples.
  int64_t doubled_wins = 0;
  int64_t negatives_below = 0;
  for (size_t begin = 0; begin < sorted.size();) {
    size_t end = begin;
    std::array<int64_t, 2> tied{};
    while (end < sorted.size() && sorted[end].value == sorted[begin].value) ++tied[sorted[end++].is_positive ? 1 : 0];
    doubled_wins += tied[1] * (2 * negatives_below + tied[0]);
    negatives_below += tied[0];
    begin = end;
  }
  return static_cast<double>(doubled_wins) / (2 * static_cast<double>(positives) * static_cast<double>(negatives));
}

std::vector<ClassCounts> ClassificationMeter::class_counts() const {
  std::vector<ClassCounts> classes(static_cast<size_t>(num_classes_));
  for (const auto& [pair, count] : confusion_) {
    const auto [label, predicted] = pair;
    classes[static_cast<size_t>(label)].samples += count;
    if (predicted == kNoClass) continue;
    classes[static_cast<size_t>(predicted)].predicted += count;
  }
  for (const auto& [pair, count] : confusion_) {
    // A score that is not a number gives no prediction, so these are hits.
    if (pair.first == pair.second) classes[static_cast<size_t>(pair.first)].hits = count;
  }
  return classes;
}

ClassificationMetrics ClassificationMeter::metrics() const {
  ClassificationMetrics result;
  int64_t hits = 0;
  int64_t occurring = 0;
  double recalls = 0;
  for (const auto& each : class_counts()) {
    result.num_samples += each.samples;
    hits += each.hits;
    if (each.samples == 0) continue;
    ++occurring;
    recalls += share(each.hits, each.samples);
  }
  result.num_unlabelled = num_unlabelled_;
  result.top1_accuracy = share(hits, result.num_samples);
  result.top5_accuracy = share(top5_hits_, result.num_samples);
  result.mean_top1_top5 = (result.top1_accuracy + result.top5_accuracy) / 2;
  if (occurring > 0) result.mean_per_class_recall = recalls / static_cast<double>(occurring);
  result.roc_auc = roc_auc();
  return result;
}

}  // namespace contrastive::eval
