#include "bench_adapt.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/adapt/grid_search.h"
#include "contrastive/eval/search.h"

#include "bench_measure.h"
#include "bench_memory.h"

namespace contrastive::tools {
namespace {

constexpr int64_t kFoundRows = 128;
constexpr int64_t kNaiveImages = 4;

/// Rows of length 1 that have a direction in common, as CLIP's have.
torch::Tensor draw_rows(int64_t count, const torch::Tensor& common, at::Generator& random) {
  auto rows = at::randn({count, common.size(0)}, random, at::TensorOptions());
  rows /= std::sqrt(static_cast<double>(common.size(0)));
  rows += common;
  return rows.div_(rows.norm(2, 1, /*keepdim=*/true));
}

struct Features {
  adapt::TextClassifier classifier;
  adapt::SupportFeatures support;
  adapt::QueryFeatures queries;
  torch::Tensor labels;
};

Features draw_features(const AdaptArguments& arguments) {
  auto random = at::detail::createCPUGenerator(1);
  const auto direction = at::randn({arguments.dim}, random, at::TensorOptions());
  const auto common = direction / direction.norm();
  Features features;
  features.classifier.weights = draw_rows(arguments.classes, 1.5 * common, random);
  features.classifier.prompts = features.classifier.weights;
  features.classifier.prompt_class = at::arange(arguments.classes, at::kLong);
  const auto labels = at::div(at::arange(arguments.rows, at::kLong) * arguments.classes, arguments.rows, "floor");
  features.support = {draw_rows(arguments.rows, common, random), labels, arguments.classes, {}};
  features.queries.features = draw_rows(arguments.images, common, random);
  features.labels = at::arange(arguments.images, at::kLong) % arguments.classes;
  return features;
}

nlohmann::ordered_json time_adapter(const AdaptArguments& arguments) {
  const auto features = draw_features(arguments);
  const auto adapter = adapt::make_adapter(arguments.adapter);
  const double before = resident_memory();
  reset_peak_memory();
  const auto fit = time_each(1, [&] { adapter->fit(features.support, features.classifier); }).front();
  nlohmann::ordered_json result;
  if (arguments.part == "grid") {
    adapt::GridAccuracy found;
    const auto search =
        time_each(1, [&] { found = adapt::search_grid(*adapter, features.queries, features.labels); }).front();
    result = {{"points", found.correct.numel()}, {"fit_seconds", fit}, {"search_seconds", search}};
  } else {
    torch::Tensor logits;
    const auto score =
        time_each(1, [&] { logits = adapter->logits(features.queries, adapter->fixed_values()); }).front();
    result = {{"fit_seconds", fit}, {"score_seconds", score}};
  }
  result["peak_memory_mb"] = peak_memory() / 1e6;
  result["peak_extra_mb"] = (peak_memory() - before) / 1e6;
  return result;
}

/// What TIP-X costs as its formulas stand, like the published code: every divergence by itself, a dense product with
/// the one-hot labels at each of the grid's 20 x 200 pairs of alpha and beta, an argmax at each of its 200,000 points.
/// Measured on a few images, and multiplied.
nlohmann::ordered_json time_naive(const AdaptArguments& arguments) {
  const auto features = draw_features(arguments);
  const auto& weights = features.classifier.weights;
  const auto signature = [&](const torch::Tensor& rows) { return (rows.matmul(weights.t()) / 0.5).log_softmax(1); };
  const auto log_q = signature(features.support.keys);
  const auto one_hot = at::one_hot(features.support.labels, arguments.classes).to(at::kFloat);
  const auto of_all = [&](int64_t images, const auto& work) {
    const auto count = std::min(images, arguments.images);
    const auto rows = features.queries.features.slice(0, 0, count);
    const auto seconds = time_each(1, [&] { work(rows); }).front();
    return seconds * static_cast<double>(arguments.images) / static_cast<double>(count);
  };
  const auto divergence = of_all(kNaiveImages, [&](const torch::Tensor& rows) {
    const auto log_p = signature(rows).unsqueeze(1);  // [n, 1, C]
    (log_p.exp() * (log_p - log_q)).sum(2);           // [n, M]
  });
  const auto cache = of_all(4 * kNaiveImages, [&](const torch::Tensor& rows) {
    ((rows.matmul(features.support.keys.t()) - 1) * 5.5).exp().matmul(one_hot);
  });
  const auto terms = at::randn({arguments.images, arguments.classes});
  const auto point = time_each(1, [&] { (terms + 0.1 * terms + 0.1 * terms).argmax(1); }).front();
  return {{"divergence_seconds", divergence},
          {"cache_seconds", cache},
          {"argmax_seconds", point},
          {"score_hours", (divergence + cache) / 3600},
          {"grid_hours", (divergence + 4000 * cache + 200000 * point) / 3600}};
}

nlohmann::ordered_json time_retrieval(const AdaptArguments& arguments) {
  auto random = at::detail::createCPUGenerator(1);
  const auto direction = at::randn({arguments.dim}, random, at::TensorOptions());
  const auto common = direction / direction.norm();
  const auto prompts = draw_rows(arguments.classes, common, random);
  auto index = at::empty({arguments.rows, arguments.dim}, at::kHalf);
  for (int64_t begin = 0; begin < arguments.rows; begin += 65536) {
    const auto end = std::min(arguments.rows, begin + 65536);
    index.slice(0, begin, end).copy_(draw_rows(end - begin, common, random));
  }
  const double before = resident_memory();
  reset_peak_memory();
  const auto seconds = time_each(1, [&] { eval::search(prompts, index, kFoundRows); }).front();
  return {{"found", kFoundRows}, {"search_seconds", seconds}, {"peak_extra_mb", (peak_memory() - before) / 1e6}};
}

}  // namespace

nlohmann::ordered_json bench_adapt(const AdaptArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(static_cast<int>(arguments.threads));
  nlohmann::ordered_json result{{"benchmark", "adapt"},         {"part", arguments.part},
                                {"adapter", arguments.adapter}, {"images", arguments.images},
                                {"classes", arguments.classes}, {"rows", arguments.rows},
                                {"dim", arguments.dim},         {"threads", at::get_num_threads()}};
  result.update(arguments.part == "retrieval" ? time_retrieval(arguments)
                : arguments.part == "naive"   ? time_naive(arguments)
                                              : time_adapter(arguments));
  return result;
}

}  // namespace contrastive::tools
