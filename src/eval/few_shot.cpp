#include "contrastive/eval/few_shot.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/random.h"
#include "contrastive/data/selected_samples.h"

#include "eval/agree.h"

namespace contrastive::eval {
namespace {

constexpr double kStdEpsilon = 1e-5;
constexpr double kBiasConstant = 100;

torch::Tensor to_fp64(const torch::Tensor& features) {
  return features.detach().to(at::kCPU, at::kDouble);
}

void check(const data::ClassificationSet& train, const data::ClassificationSet& test, const FewShotOptions& options) {
  if (train.class_names != test.class_names) {
    throw DataError(fmt::format("[few_shot] the classes of {} ({}) and {} ({}) must be the same", train.name,
                                train.class_names.size(), test.name, test.class_names.size()));
  }
  if (train.source->size() < 1 || test.source->size() < 1) throw DataError("[few_shot] a set without samples");
  const bool has_shots = !options.shots.empty() && *std::min_element(options.shots.begin(), options.shots.end()) >= 1;
  if (!has_shots) throw ConfigError("[few_shot] shots must be numbers of at least 1");
  if (options.seeds < 1)
    throw ConfigError(fmt::format("[few_shot] seeds must be at least 1, but is {}", options.seeds));
}

/// Sorted indices of all samples that any draw takes.
std::vector<int64_t> all_drawn(const torch::Tensor& labels, int64_t num_classes, const FewShotOptions& options) {
  const auto most = *std::max_element(options.shots.begin(), options.shots.end());
  std::set<int64_t> drawn;
  for (int64_t seed = 0; seed < options.seeds; ++seed) {
    const auto indices = draw_shots(labels, num_classes, most, seed);
    drawn.insert(indices.data_ptr<int64_t>(), indices.data_ptr<int64_t>() + indices.numel());
  }
  return {drawn.begin(), drawn.end()};
}

}  // namespace

LinearRegression::LinearRegression(const torch::Tensor& features, const torch::Tensor& labels, int64_t num_classes,
                                   double l2_reg) {
  TORCH_CHECK(features.dim() == 2 && features.size(0) > 0 && labels.dim() == 1 && labels.size(0) == features.size(0),
              "[linear_regression] features must be [N, D] and labels [N] with N >= 1, but are ", features.sizes(),
              " and ", labels.sizes());
  TORCH_CHECK(l2_reg > 0, "[linear_regression] l2_reg must be above 0, but is ", l2_reg);
  const auto classes = labels.to(at::kCPU, at::kLong);
  TORCH_CHECK(classes.min().item<int64_t>() >= 0 && classes.max().item<int64_t>() < num_classes,
              "[linear_regression] labels must be in [0, ", num_classes, "), but range from ",
              classes.min().item<int64_t>(), " to ", classes.max().item<int64_t>());
  const auto samples = to_fp64(features);
  mean_ = samples.mean(0, /*keepdim=*/true);
  std_ = samples.std(0, /*unbiased=*/false, /*keepdim=*/true) + kStdEpsilon;
  const auto x = standardised(samples);                                      // [N, D + 1]
  const auto y = at::one_hot(classes, num_classes).to(at::kDouble) * 2 - 1;  // [N, C]

  // (x^T x + l2 I)^-1 x^T y = x^T (x x^T + l2 I)^-1 y: the smaller of the two systems.
  const bool is_tall = x.size(0) >= x.size(1);
  const auto products = is_tall ? x.t().matmul(x) : x.matmul(x.t());
  const auto factor = at::linalg_cholesky(products + l2_reg * at::eye(products.size(0), products.options()));
  weights_ = is_tall ? at::cholesky_solve(x.t().matmul(y), factor) : x.t().matmul(at::cholesky_solve(y, factor));
}

torch::Tensor LinearRegression::scores(const torch::Tensor& features) const {
  TORCH_CHECK(features.dim() == 2 && features.size(1) == mean_.size(1), "[linear_regression] features must be [M, ",
              mean_.size(1), "], but are ", features.sizes());
  return standardised(to_fp64(features)).matmul(weights_);
}

/// With the constant beside it. Shapes: [N, D] to [N, D + 1].
torch::Tensor LinearRegression::standardised(const torch::Tensor& features) const {
  return at::constant_pad_nd((features - mean_) / std_, {0, 1}, kBiasConstant);
}

torch::Tensor read_labels(const data::ClassificationSet& set) {
  const auto num_classes = static_cast<int64_t>(set.class_names.size());
  auto labels = at::empty({set.source->size()}, at::kLong);
  RandomStream random(0, RandomPurpose::few_shot, {});
  data::Sample sample;
  for (int64_t i = 0; i < labels.size(0); ++i) {
    set.source->read(i, random, sample);
    if (sample.label < 0 || sample.label >= num_classes) {
      throw DataError(fmt::format("{}: the label must be in [0, {}), but is {}", set.source->describe(i), num_classes,
                                  sample.label));
    }
    labels.data_ptr<int64_t>()[i] = sample.label;
  }
  return labels;
}

torch::Tensor draw_shots(const torch::Tensor& labels, int64_t num_classes, int64_t shots, int64_t seed) {
  TORCH_CHECK(labels.dim() == 1 && labels.scalar_type() == at::kLong, "[draw_shots] labels must be [N] int64, but are ",
              labels.sizes(), " ", labels.scalar_type());
  const auto own = labels.cpu().contiguous();
  std::vector<std::vector<int64_t>> members(static_cast<size_t>(num_classes));
  for (int64_t i = 0; i < own.numel(); ++i) members.at(static_cast<size_t>(own.data_ptr<int64_t>()[i])).push_back(i);
  std::vector<int64_t> drawn;
  for (int64_t label = 0; label < num_classes; ++label) {
    const auto& indices = members[static_cast<size_t>(label)];
    if (indices.empty()) continue;
    RandomStream random(static_cast<uint64_t>(seed), RandomPurpose::few_shot, {label});
    const Permutation order(random.next(), static_cast<int64_t>(indices.size()));
    for (int64_t i = 0; i < std::min(shots, order.size()); ++i) {
      drawn.push_back(indices[static_cast<size_t>(order(i))]);
    }
  }
  return at::tensor(drawn, at::kLong);
}

double top1_share(const torch::Tensor& scores, const torch::Tensor& labels) {
  return scores.argmax(1).eq(labels.to(scores.device())).to(at::kDouble).mean().item<double>();
}

double FewShotMetrics::mean() const {
  return std::accumulate(accuracies.begin(), accuracies.end(), 0.0) / static_cast<double>(accuracies.size());
}

std::vector<FewShotMetrics> evaluate_few_shot(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                              const data::ClassificationSet& train, const data::ClassificationSet& test,
                                              const FewShotOptions& options, const distributed::ProcessGroup& group,
                                              SkippedSamples* skipped) {
  check(train, test, options);
  const auto num_classes = static_cast<int64_t>(train.class_names.size());
  torch::Tensor labels;
  detail::agree(group, [&] { labels = read_labels(train); });
  const auto drawn = all_drawn(labels, num_classes, options);
  auto pass = options.pass;
  pass.stage = FeatureStage::tower;
  const auto tested = collect_features(model, preprocess, *test.source, 0, test.source->size(), pass, group);
  pass.skip_bad_samples = false;
  const data::SelectedSamples chosen(*train.source, drawn);
  const auto known = collect_features(model, preprocess, chosen, 0, chosen.size(), pass, group);
  const auto rows_of_drawn = at::tensor(drawn, at::kLong);

  std::vector<FewShotMetrics> results;
  for (const auto shots : options.shots) {
    FewShotMetrics metrics{.shots = shots, .accuracies = {}};
    for (int64_t seed = 0; seed < options.seeds; ++seed) {
      const auto rows = at::searchsorted(rows_of_drawn, draw_shots(labels, num_classes, shots, seed));
      const LinearRegression regression(known.features.index_select(0, rows), known.labels.index_select(0, rows),
                                        num_classes, options.l2_reg);
      metrics.accuracies.push_back(top1_share(regression.scores(tested.features), tested.labels));
    }
    results.push_back(std::move(metrics));
  }
  if (skipped != nullptr) *skipped = tested.skipped;
  return results;
}

}  // namespace contrastive::eval
