#include "contrastive/eval/class_order.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

namespace contrastive::eval {
namespace {

constexpr int64_t kMinClassSamples = 5;
constexpr int64_t kMinClasses = 8;
constexpr double kMinPlainShare = 0.8;
constexpr int64_t kPlainPart = 4;  ///< a plain pair holds more than one in so many of its label's samples
constexpr double kMinMatchedAccuracy = 0.3;
constexpr double kMinGain = 3;
constexpr double kMinGainOverChance = 2;
constexpr double kMinMarginOverChance = 0.2;
constexpr int kShuffles = 3;
constexpr size_t kMaxExamples = 5;
constexpr uint64_t kSeed = 8;

struct Matching {
  std::vector<ClassMismatch> pairs;
  int64_t matched = 0;
};

std::map<int64_t, int64_t> count_labels(const ConfusionCounts& confusion) {
  std::map<int64_t, int64_t> samples;
  for (const auto& [pair, count] : confusion) samples[pair.first] += count;
  return samples;
}

/// Without the classes that are too small to tell anything.
ConfusionCounts large_classes(const ConfusionCounts& confusion) {
  const auto samples = count_labels(confusion);
  ConfusionCounts result;
  for (const auto& [pair, count] : confusion) {
    if (samples.at(pair.first) >= kMinClassSamples) result.emplace(pair, count);
  }
  return result;
}

int64_t total(const ConfusionCounts& confusion) {
  int64_t sum = 0;
  for (const auto& entry : confusion) sum += entry.second;
  return sum;
}

/// Gives every label a predicted class of its own, the most frequent pairs first.
Matching match(const ConfusionCounts& confusion) {
  std::vector<ClassMismatch> candidates;
  for (const auto& [pair, count] : confusion) {
    if (pair.second >= 0) candidates.push_back({pair.first, pair.second, count, 0});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto& a, const auto& b) { return a.count > b.count; });
  Matching result;
  std::set<int64_t> labels, predictions;
  for (const auto& candidate : candidates) {
    if (labels.contains(candidate.label) || predictions.contains(candidate.predicted)) continue;
    labels.insert(candidate.label);
    predictions.insert(candidate.predicted);
    result.pairs.push_back(candidate);
    result.matched += candidate.count;
  }
  return result;
}

/// The same labels and the same predictions, dealt out to each other anew.
ConfusionCounts shuffle(const ConfusionCounts& confusion, std::mt19937_64& random) {
  std::vector<int64_t> labels, predictions;
  for (const auto& [pair, count] : confusion) {
    labels.insert(labels.end(), static_cast<size_t>(count), pair.first);
    predictions.insert(predictions.end(), static_cast<size_t>(count), pair.second);
  }
  for (size_t i = predictions.size(); i > 1; --i) std::swap(predictions[i - 1], predictions[random() % i]);
  ConfusionCounts result;
  for (size_t i = 0; i < labels.size(); ++i) ++result[{labels[i], predictions[i]}];
  return result;
}

int64_t matched_by_chance(const ConfusionCounts& confusion) {
  std::mt19937_64 random(kSeed);
  int64_t best = 0;
  for (int i = 0; i < kShuffles; ++i) best = std::max(best, match(shuffle(confusion, random)).matched);
  return best;
}

/// Whether nearly every label is matched with the class that it is most often taken for, and often enough: weak
/// classifiers, which send several labels to one class, look otherwise.
bool is_plain(const Matching& matching, const ConfusionCounts& confusion, const std::map<int64_t, int64_t>& samples) {
  std::map<int64_t, int64_t> most;
  for (const auto& [pair, count] : confusion) most[pair.first] = std::max(most[pair.first], count);
  int64_t plain = 0;
  for (const auto& pair : matching.pairs) {
    plain += pair.count == most.at(pair.label) && kPlainPart * pair.count > samples.at(pair.label) ? 1 : 0;
  }
  return static_cast<double>(plain) >= kMinPlainShare * static_cast<double>(samples.size());
}

std::vector<ClassMismatch> clearest(std::vector<ClassMismatch> pairs, const std::map<int64_t, int64_t>& samples) {
  std::erase_if(pairs, [](const auto& pair) { return pair.label == pair.predicted; });
  for (auto& pair : pairs) pair.samples = samples.at(pair.label);
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const auto& a, const auto& b) { return a.count * b.samples > b.count * a.samples; });
  pairs.resize(std::min(pairs.size(), kMaxExamples));
  return pairs;
}

}  // namespace

std::optional<ClassOrderSuspicion> suspect_class_order(const ConfusionCounts& confusion) {
  const auto counted = large_classes(confusion);
  const auto samples = count_labels(counted);
  const auto num_samples = total(counted);
  if (static_cast<int64_t>(samples.size()) < kMinClasses || 2 * num_samples <= total(confusion)) return std::nullopt;
  int64_t hits = 0;
  for (const auto& [pair, count] : counted) hits += pair.first == pair.second ? count : 0;
  const auto matching = match(counted);
  const auto share = [&](int64_t part) { return static_cast<double>(part) / static_cast<double>(num_samples); };
  ClassOrderSuspicion result{share(hits), share(matching.matched), 0, {}};
  if (result.matched_accuracy < std::max(kMinMatchedAccuracy, kMinGain * result.accuracy)) return std::nullopt;
  if (!is_plain(matching, counted, samples)) return std::nullopt;
  result.chance_accuracy = share(matched_by_chance(counted));
  if (result.matched_accuracy <
      std::max(kMinGainOverChance * result.chance_accuracy, result.chance_accuracy + kMinMarginOverChance)) {
    return std::nullopt;
  }
  result.examples = clearest(matching.pairs, samples);
  return result;
}

bool is_near_chance(double accuracy, int64_t num_classes, int64_t num_samples) {
  if (num_classes < 2 || num_samples < 1) return false;
  const auto chance = 1.0 / static_cast<double>(num_classes);
  return accuracy <= chance + 3 * std::sqrt(chance * (1 - chance) / static_cast<double>(num_samples));
}

}  // namespace contrastive::eval
