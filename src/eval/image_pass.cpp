#include "contrastive/eval/image_pass.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/data/evaluation_loader.h"
#include "contrastive/data/normalize.h"
#include "contrastive/models/precision.h"

#include "eval/agree.h"
#include "eval/eval_mode.h"
#include "eval/gather_rows.h"
#include "eval/pipeline.h"

namespace contrastive::eval {
namespace {

constexpr size_t kNamedSkips = 10;

/// Samples [begin, end) of another source.
class SourceRange : public data::SampleSource {
 public:
  SourceRange(const data::SampleSource& source, int64_t begin, int64_t end)
      : source_(source), begin_(begin), size_(end - begin) {}

  int64_t size() const override { return size_; }
  void read(int64_t index, RandomStream& random, data::Sample& sample) const override {
    source_.read(begin_ + index, random, sample);
  }
  std::string describe(int64_t index) const override { return source_.describe(begin_ + index); }
  std::string fingerprint() const override { return source_.fingerprint(); }

 private:
  const data::SampleSource& source_;
  int64_t begin_;
  int64_t size_;
};

/// One rank's share of a pass.
class Pass {
 public:
  Pass(models::ClipModel& model, const image::PreprocessSpec& preprocess, const ImagePassOptions& options)
      : model_(model), preprocess_(preprocess), options_(options), device_(model->logit_scale.device()) {}

  void run(const data::SampleSource& source, int64_t begin, const distributed::ProcessGroup& group,
           const std::function<void(const FeatureBatch&)>& use) {
    data::EvaluationLoader loader(source, preprocess_, options_.batch_size, options_.workers, group.rank(),
                                  group.size(), options_.skip_bad_samples);
    const auto batches = (source.size() + options_.batch_size - 1) / options_.batch_size;
    const auto own_batches = std::max<int64_t>(0, (batches - group.rank() + group.size() - 1) / group.size());
    int64_t number = 0;
    const auto encode = [&](const data::LabelledBatch& batch) {
      const auto result = features_of(batch, begin, source);
      if (!result.samples.empty()) use(result);
      ++number;
      if (group.rank() != 0 || !options_.on_progress) return;
      options_.on_progress(std::min(number * group.size() * options_.batch_size, source.size()), source.size());
    };
    detail::run_batches(
        own_batches, device_, [&](int64_t) { return loader.next().value(); }, encode);
  }

  const SkippedSamples& skipped() const { return skipped_; }

 private:
  FeatureBatch features_of(const data::LabelledBatch& batch, int64_t begin, const data::SampleSource& source) {
    const torch::NoGradGuard no_grad;
    FeatureBatch result;
    std::vector<int64_t> kept;
    for (size_t row = 0; row < batch.failures.size(); ++row) {
      const auto index = batch.first_sample + static_cast<int64_t>(row);
      if (!batch.failures[row].empty()) {
        skip(source.describe(index), batch.failures[row]);
        continue;
      }
      kept.push_back(static_cast<int64_t>(row));
      result.samples.push_back(begin + index);
      result.label_lists.push_back(batch.label_lists[row]);
    }
    if (kept.empty()) return result;
    result.features = encode(batch.images);
    result.labels = batch.labels;
    if (kept.size() < batch.failures.size()) {
      const auto rows = at::tensor(kept, at::kLong);
      result.features = result.features.index_select(0, rows.to(device_));
      result.labels = result.labels.index_select(0, rows);
    }
    return result;
  }

  torch::Tensor encode(const torch::Tensor& pixels) {
    return detail::encode_in_parts(pixels, device_, [this](const torch::Tensor& part) { return encode_at_once(part); });
  }

  torch::Tensor encode_at_once(const torch::Tensor& pixels) {
    const auto images = data::normalize_images(pixels, preprocess_.mean, preprocess_.std, device_);
    const models::AutocastGuard autocast(device_.type(), options_.bf16);
    if (options_.stage == FeatureStage::tower) return model_->visual->forward_features(images).to(at::kFloat);
    if (options_.stage == FeatureStage::places) return models::l2_normalize(model_->encode_places(images)).flatten(1);
    const auto embeddings = model_->encode_image(images);
    return options_.stage == FeatureStage::projection ? embeddings.to(at::kFloat) : models::l2_normalize(embeddings);
  }

  void skip(std::string name, std::string reason) {
    ++skipped_.count;
    if (skipped_.first.size() < kNamedSkips) skipped_.first.push_back({std::move(name), std::move(reason)});
  }

  models::ClipModel& model_;
  const image::PreprocessSpec& preprocess_;
  const ImagePassOptions& options_;
  torch::Device device_;
  SkippedSamples skipped_;
};

/// What all ranks skipped, in the order of the ranks.
SkippedSamples gather_skipped(const SkippedSamples& own, const distributed::ProcessGroup& group) {
  if (group.is_alone()) return own;
  auto list = nlohmann::json::array();
  for (const auto& each : own.first) list.push_back({each.name, each.reason});
  const auto text = nlohmann::json{{"count", own.count}, {"first", list}}.dump(
      -1, ' ', false, nlohmann::json::error_handler_t::replace);
  SkippedSamples all;
  for (const auto& part : group.all_gather_text(text)) {
    const auto document = nlohmann::json::parse(part);
    all.count += document.at("count").get<int64_t>();
    for (const auto& each : document.at("first")) {
      if (all.first.size() < kNamedSkips) all.first.push_back({each.at(0), each.at(1)});
    }
  }
  return all;
}

/// The features of a row; how many places an image has, the first batch tells, and a rank may have none.
int64_t row_width(models::ClipModelImpl& model, FeatureStage stage, const std::vector<torch::Tensor>& batches,
                  const distributed::ProcessGroup& group) {
  if (stage == FeatureStage::tower) return model.visual->feature_width();
  if (stage != FeatureStage::places) return model.config().embed_dim;
  const auto own = at::full({1}, batches.empty() ? 0 : batches.front().size(1), at::kLong);
  return group.all_gather(own).max().item<int64_t>();
}

}  // namespace

SkippedSamples encode_images(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                             const data::SampleSource& source, int64_t begin, int64_t end,
                             const ImagePassOptions& options, const distributed::ProcessGroup& group,
                             const std::function<void(const FeatureBatch&)>& use) {
  if (begin < 0 || begin > end || end > source.size()) {
    throw Error(
        fmt::format("[encode_images] samples [{}, {}) do not lie in a source of {}", begin, end, source.size()));
  }
  const detail::EvalMode eval_mode(model);
  const SourceRange range(source, begin, end);
  const models::PackedWeights packed(*model);
  Pass pass(model, preprocess, options);
  detail::agree(group, [&] { pass.run(range, begin, group, use); });
  auto skipped = gather_skipped(pass.skipped(), group);
  if (skipped.count == end - begin && skipped.count > 0) {
    throw DataError(fmt::format("none of the {} samples can be read; the first: {}: {}", skipped.count,
                                skipped.first.front().name, skipped.first.front().reason));
  }
  return skipped;
}

CollectedFeatures collect_features(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                   const data::SampleSource& source, int64_t begin, int64_t end,
                                   const ImagePassOptions& options, const distributed::ProcessGroup& group) {
  std::vector<torch::Tensor> features;
  std::vector<torch::Tensor> labels{at::empty({0}, at::kLong)};
  std::vector<int64_t> samples;
  CollectedFeatures result;
  result.skipped = encode_images(model, preprocess, source, begin, end, options, group, [&](const FeatureBatch& batch) {
    features.push_back(batch.features.cpu());
    labels.push_back(batch.labels);
    samples.insert(samples.end(), batch.samples.begin(), batch.samples.end());
  });
  features.push_back(at::empty({0, row_width(*model, options.stage, features, group)}));
  const auto positions = detail::gather_rows(at::tensor(samples, at::kLong), group);
  const auto order = positions.argsort();
  result.features = detail::gather_rows(at::cat(features), group).index_select(0, order);
  result.labels = detail::gather_rows(at::cat(labels), group).index_select(0, order);
  const auto sorted = positions.index_select(0, order);
  result.samples.assign(sorted.const_data_ptr<int64_t>(), sorted.const_data_ptr<int64_t>() + sorted.numel());
  return result;
}

}  // namespace contrastive::eval
