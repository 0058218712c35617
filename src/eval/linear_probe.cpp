#include "contrastive/eval/linear_probe.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/core/random.h"
#include "contrastive/eval/few_shot.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kStepsPerDecade = 8;
constexpr int64_t kFirstDecade = -6;
constexpr int64_t kLastStep = 12 * kStepsPerDecade;  // 1e6
constexpr int64_t kCoarseSteps = 2 * kStepsPerDecade;
constexpr int64_t kTileRows = 4096;
constexpr int64_t kMaxValidationShots = 4;
/// Keeps the draw of held-out samples apart from that of shots.
constexpr int64_t kHeldOutDraw = 1;

double c_of(int64_t step) {
  return std::pow(10.0, kFirstDecade + static_cast<double>(step) / kStepsPerDecade);
}

/// Fits at steps of c's grid, and what they gave.
class Sweep {
 public:
  Sweep(const TrainingRows& train, const TrainingRows& validation, int64_t num_classes,
        const LinearProbeOptions& options)
      : validation_(validation), options_(options), regression_({train}, num_classes) {}

  void full() {
    for (int64_t step = 0; step <= kLastStep; ++step) try_step(step, /*keep_all=*/false);
  }

  void binary() {
    for (int64_t step = 0; step <= kLastStep; step += kCoarseSteps) try_step(step, /*keep_all=*/true);
    for (auto width = kCoarseSteps / 2; width >= 1; width /= 2) {
      const auto middle = best_;
      for (const auto step : {middle - width, middle + width}) {
        if (step >= 0 && step <= kLastStep) try_step(step, /*keep_all=*/true);
      }
    }
  }

  SweepResult result() {
    SweepResult found{c_of(best_), {}, classifiers_.at(best_)};
    for (const auto& [step, point] : points_) found.curve.push_back(point);
    return found;
  }

 private:
  void try_step(int64_t step, bool keep_all) {
    auto regression = options_.regression;
    regression.c = c_of(step);
    auto fit = regression_.fit(regression, nearest(step));
    const SweepPoint point{regression.c, evaluate_classifier(fit.classifier, validation_).top1_accuracy, fit.iterations,
                           fit.converged};
    points_[step] = point;
    if (points_.size() == 1 || is_better(step)) best_ = step;
    if (!keep_all) std::erase_if(classifiers_, [&](const auto& item) { return item.first != best_; });
    classifiers_[step] = std::move(fit.classifier);
    if (options_.on_point) options_.on_point(point);
  }

  bool is_better(int64_t step) const {
    const auto accuracy = points_.at(step).validation_accuracy, best = points_.at(best_).validation_accuracy;
    return accuracy > best || (accuracy == best && step < best_);
  }

  /// The smaller c of two that are as near.
  std::optional<LinearClassifier> nearest(int64_t step) const {
    const auto found = std::min_element(classifiers_.begin(), classifiers_.end(), [&](const auto& a, const auto& b) {
      return std::abs(a.first - step) < std::abs(b.first - step);
    });
    return found == classifiers_.end() ? std::nullopt : std::optional(found->second);
  }

  const TrainingRows& validation_;
  const LinearProbeOptions& options_;
  LogisticRegression regression_;
  std::map<int64_t, SweepPoint> points_;
  std::map<int64_t, LinearClassifier> classifiers_;
  int64_t best_ = 0;
};

void check(const LinearProbeOptions& options) {
  if (!(options.held_out_share > 0 && options.held_out_share < 1)) {
    throw ConfigError(
        fmt::format("[linear_probe] held_out_share must be above 0 and below 1, but is {}", options.held_out_share));
  }
}

TrainingRows all_rows(const LabelledFeatures& samples) {
  return {.features = samples.features, .labels = samples.labels};
}

TrainingRows chosen_rows(const LabelledFeatures& samples, const torch::Tensor& rows) {
  return {.features = samples.features, .labels = samples.labels, .rows = rows};
}

/// Labels index tables: none may lie outside them.
void check_labels(const torch::Tensor& labels, int64_t num_classes) {
  TORCH_CHECK(labels.dim() == 1 && labels.scalar_type() == at::kLong,
              "[linear_probe] labels must be [N] int64, but are ", labels.scalar_type(), " ", labels.sizes());
  if (labels.size(0) == 0) return;
  const auto smallest = labels.min().item<int64_t>(), largest = labels.max().item<int64_t>();
  if (smallest >= 0 && largest < num_classes) return;
  throw DataError(
      fmt::format("[linear_probe] labels must be in [0, {}), but range from {} to {}", num_classes, smallest, largest));
}

/// The members of `all` that aren't among `some`; both sorted by class, as draw_shots gives them.
torch::Tensor without(const torch::Tensor& all, const torch::Tensor& some) {
  return all.masked_select(at::isin(all, some).logical_not());
}

/// Fits the drawn samples and reports the test samples.
class FewShotProbe {
 public:
  FewShotProbe(const LabelledFeatures& train, const LabelledFeatures& test, int64_t num_classes,
               const LinearProbeOptions& options)
      : train_(train), test_(test), num_classes_(num_classes), options_(options) {}

  void add_draw(int64_t seed, FewShotProbeMetrics& metrics) const {
    const auto rows = draw_shots(train_.labels, num_classes_, metrics.shots, seed);
    auto regression = options_.regression;
    std::optional<LinearClassifier> start;
    if (options_.sweep != SweepMode::none) {
      const auto more = metrics.shots + std::min(metrics.shots, kMaxValidationShots);
      const auto validation = without(draw_shots(train_.labels, num_classes_, more, seed), rows);
      auto found = sweep_c(copy_of(rows), copy_of(validation), num_classes_, options_);
      regression.c = found.c;
      start = std::move(found.classifier);
    }
    const auto fit = LogisticRegression({copy_of(rows)}, num_classes_).fit(regression, start);
    metrics.c.push_back(regression.c);
    metrics.draws.push_back(evaluate_classifier(fit.classifier, all_rows(test_)));
  }

 private:
  TrainingRows copy_of(const torch::Tensor& rows) const {
    const auto own = rows.to(train_.features.device());
    return {.features = train_.features.index_select(0, own), .labels = train_.labels.index_select(0, rows)};
  }

  const LabelledFeatures& train_;
  const LabelledFeatures& test_;
  int64_t num_classes_;
  const LinearProbeOptions& options_;
};

}  // namespace

SweepResult sweep_c(const TrainingRows& train, const TrainingRows& validation, int64_t num_classes,
                    const LinearProbeOptions& options) {
  const auto num_samples = validation.rows.defined() ? validation.rows.size(0) : validation.labels.size(0);
  if (num_samples == 0) throw DataError("[linear_probe] there are no validation samples to choose c by");
  check_labels(validation.labels, num_classes);
  if (options.sweep == SweepMode::none) throw ConfigError("[linear_probe] a sweep must be binary or full, not none");
  Sweep sweep(train, validation, num_classes, options);
  if (options.sweep == SweepMode::full) {
    sweep.full();
  } else {
    sweep.binary();
  }
  return sweep.result();
}

LinearProbeResult linear_probe(const LabelledFeatures& train, const std::optional<LabelledFeatures>& validation,
                               const LabelledFeatures& test, int64_t num_classes, const LinearProbeOptions& options) {
  check(options);
  check_labels(train.labels, num_classes);
  check_labels(test.labels, num_classes);
  if (test.labels.size(0) == 0) throw DataError("[linear_probe] there are no test samples");
  LinearProbeResult result;
  auto regression = options.regression;
  std::optional<LinearClassifier> start;
  if (options.sweep != SweepMode::none) {
    auto sweep = [&] {
      if (validation) return sweep_c(all_rows(train), all_rows(*validation), num_classes, options);
      const auto split = hold_out(train.labels, num_classes, options.held_out_share, options.seed);
      return sweep_c(chosen_rows(train, split.kept), chosen_rows(train, split.held_out), num_classes, options);
    }();
    regression.c = sweep.c;
    result.curve = std::move(sweep.curve);
    start = std::move(sweep.classifier);
  }
  std::vector<TrainingRows> parts{all_rows(train)};
  if (validation) parts.push_back(all_rows(*validation));
  result.c = regression.c;
  result.fit = LogisticRegression(std::move(parts), num_classes).fit(regression, start);
  result.test = evaluate_classifier(result.fit.classifier, all_rows(test));
  return result;
}

HeldOut hold_out(const torch::Tensor& labels, int64_t num_classes, double share, int64_t seed) {
  check_labels(labels, num_classes);
  const auto own = labels.cpu().contiguous();
  std::vector<std::vector<int64_t>> members(static_cast<size_t>(num_classes));
  for (int64_t i = 0; i < own.numel(); ++i) {
    members[static_cast<size_t>(own.const_data_ptr<int64_t>()[i])].push_back(i);
  }
  auto is_held_out = at::zeros({own.numel()}, at::kBool);
  for (int64_t label = 0; label < num_classes; ++label) {
    const auto& indices = members[static_cast<size_t>(label)];
    const auto size = static_cast<int64_t>(indices.size());
    if (size < 2) continue;
    const auto wanted = std::llround(share * static_cast<double>(size));
    RandomStream random(static_cast<uint64_t>(seed), RandomPurpose::few_shot, {label, kHeldOutDraw});
    const Permutation order(random.next(), size);
    for (int64_t i = 0; i < std::min<int64_t>(wanted, size - 1); ++i) {
      is_held_out.data_ptr<bool>()[indices[static_cast<size_t>(order(i))]] = true;
    }
  }
  return {is_held_out.logical_not().nonzero().view(-1), is_held_out.nonzero().view(-1)};
}

ClassificationMetrics evaluate_classifier(const LinearClassifier& classifier, const TrainingRows& samples) {
  ClassificationMeter meter(classifier.bias.size(0));
  const auto& rows = samples.rows;
  const auto count = rows.defined() ? rows.size(0) : samples.features.size(0);
  const torch::NoGradGuard no_grad;
  for (int64_t begin = 0; begin < count; begin += kTileRows) {
    const auto end = std::min(count, begin + kTileRows);
    const auto of_tile = [&](const torch::Tensor& all) {
      return rows.defined() ? all.index_select(0, rows.slice(0, begin, end).to(all.device()))
                            : all.slice(0, begin, end);
    };
    const auto features = of_tile(samples.features).to(classifier.weights.options());
    meter.add(classifier.scores(features), of_tile(samples.labels));
  }
  return meter.metrics();
}

double FewShotProbeMetrics::mean_top1() const {
  double sum = 0;
  for (const auto& draw : draws) sum += draw.top1_accuracy;
  return sum / static_cast<double>(draws.size());
}

double FewShotProbeMetrics::top1_deviation() const {
  if (draws.size() < 2) return 0;
  const double mean = mean_top1();
  double squares = 0;
  for (const auto& draw : draws) squares += (draw.top1_accuracy - mean) * (draw.top1_accuracy - mean);
  return std::sqrt(squares / static_cast<double>(draws.size() - 1));
}

std::vector<FewShotProbeMetrics> probe_few_shot(const LabelledFeatures& train, const LabelledFeatures& test,
                                                int64_t num_classes, const FewShotProbeOptions& options) {
  const auto& shots = options.shots;
  if (shots.empty() || *std::min_element(shots.begin(), shots.end()) < 1 || options.seeds < 1) {
    throw ConfigError("[few_shot] shots must be numbers of at least 1, and seeds at least 1");
  }
  check_labels(train.labels, num_classes);
  check_labels(test.labels, num_classes);
  const FewShotProbe probe(train, test, num_classes, options.probe);
  std::vector<FewShotProbeMetrics> results;
  for (const auto number : shots) {
    FewShotProbeMetrics metrics{.shots = number, .draws = {}, .c = {}};
    for (int64_t seed = 0; seed < options.seeds; ++seed) probe.add_draw(seed, metrics);
    results.push_back(std::move(metrics));
  }
  return results;
}

}  // namespace contrastive::eval
