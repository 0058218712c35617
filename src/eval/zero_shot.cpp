#include "contrastive/eval/zero_shot.h"

#include <algorithm>
#include <map>
#include <span>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/image_pass.h"
#include "contrastive/eval/text_pass.h"
#include "contrastive/models/precision.h"

namespace contrastive::eval {
namespace {

/// The prompts of all classes one after the other, those of classes with the same prompts once.
struct DistinctPrompts {
  std::vector<std::string> prompts;  ///< [P]
  std::vector<int64_t> rows;         ///< [P] the row that each belongs to
  std::vector<int64_t> row_of;       ///< [C]
  int64_t num_rows = 0;
};

/// Sums of normalised prompt embeddings by class, in CPU memory, where their order is always the same.
class PromptAverager {
 public:
  PromptAverager(int64_t num_classes, int64_t embed_dim)
      : sums_(at::zeros({num_classes, embed_dim})), counts_(at::zeros({num_classes}, at::kLong)) {}

  /// Shapes: features [n, E], not normalised; classes [n] int64.
  void add(const torch::Tensor& features, const torch::Tensor& classes) {
    sums_.index_add_(0, classes, models::l2_normalize(features).cpu());
    counts_.index_add_(0, classes, at::ones_like(classes));
  }

  torch::Tensor averages() const { return models::l2_normalize(sums_ / counts_.unsqueeze(1)); }  // [C, E]

 private:
  torch::Tensor sums_;    ///< [C, E]
  torch::Tensor counts_;  ///< [C] int64
};

DistinctPrompts distinct_prompts(const ClassPrompts& prompts) {
  DistinctPrompts result;
  std::map<std::vector<std::string>, int64_t> known;
  for (const auto& each : prompts.prompts) {
    const auto [entry, is_new] = known.emplace(each, result.num_rows);
    result.row_of.push_back(entry->second);
    if (!is_new) continue;
    result.prompts.insert(result.prompts.end(), each.begin(), each.end());
    result.rows.insert(result.rows.end(), each.size(), result.num_rows++);
  }
  return result;
}

}  // namespace

torch::Tensor average_prompts(const torch::Tensor& prompt_features) {
  TORCH_CHECK(prompt_features.dim() == 3, "[average_prompts] prompt_features must be [C, T, E], but are ",
              prompt_features.sizes());
  const auto classes = prompt_features.size(0);
  PromptAverager averager(classes, prompt_features.size(2));
  averager.add(prompt_features.flatten(0, 1), at::arange(classes).repeat_interleave(prompt_features.size(1)));
  return averager.averages().to(prompt_features.device());
}

void ClassEmbeddings::to(torch::Device device) {
  rows = rows.to(device);
  row_of = row_of.to(device);
}

torch::Tensor ClassEmbeddings::scores(const torch::Tensor& features) const {
  const auto scores = features.matmul(rows.t());  // [N, U]
  return rows.size(0) == num_classes() ? scores : scores.index_select(1, row_of);
}

ClassEmbeddings build_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                 const ClassPrompts& prompts, const ZeroShotOptions& options,
                                 const distributed::ProcessGroup& group) {
  const auto distinct = distinct_prompts(prompts);
  const auto num_prompts = static_cast<int64_t>(distinct.prompts.size());
  const auto rows = at::tensor(distinct.rows, at::kLong);
  PromptAverager averager(distinct.num_rows, model->config().embed_dim);
  TextPassOptions pass;
  pass.batch_size = options.batch_size;
  pass.bf16 = options.bf16;
  pass.on_progress = options.on_prompts;
  encode_texts(model, tokenizer, distinct.prompts, pass, group, [&](int64_t begin, const torch::Tensor& features) {
    averager.add(features, rows.narrow(0, begin, features.size(0)));
  });
  ClassEmbeddings result{averager.averages(), at::tensor(distinct.row_of, at::kLong), num_prompts};
  result.to(model->logit_scale.device());
  return result;
}

ClassificationMetrics evaluate_zero_shot(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                         const text::Tokenizer& tokenizer, const data::ClassificationSet& set,
                                         const ZeroShotOptions& options, const distributed::ProcessGroup& group) {
  const auto prompts = class_prompts(options.prompts, set, options.canonicalize);
  const auto classifier = build_classifier(model, tokenizer, prompts, options, group);
  ImagePassOptions pass;
  pass.batch_size = options.batch_size;
  pass.workers = options.workers;
  pass.bf16 = options.bf16;
  ClassificationMeter meter(classifier.num_classes());
  encode_images(model, preprocess, *set.source, 0, set.source->size(), pass, group,
                [&](const FeatureBatch& batch) { meter.add(classifier.scores(batch.features), batch.labels); });
  meter.add_ranks(group);
  return meter.metrics();
}

}  // namespace contrastive::eval
