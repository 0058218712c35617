#include <string>
#include <unordered_map>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/retrieval.h"
#include "contrastive/eval/text_pass.h"
#include "contrastive/models/precision.h"

#include "eval/evaluation_context.h"
#include "eval/json_text.h"

namespace contrastive::eval::detail {
namespace {

/// The captions of the images that could be read.
struct Captions {
  std::vector<std::string> distinct;  ///< equal captions are encoded once, so that their scores are equal to the bit
  torch::Tensor distinct_of;          ///< [M] of each caption
  torch::Tensor image_of;             ///< [M] row of its image's features
};

Captions captions_of(const data::RetrievalSet& set, const std::vector<int64_t>& samples) {
  std::vector<int64_t> row_of_sample(static_cast<size_t>(set.source->size()), -1);
  for (size_t row = 0; row < samples.size(); ++row) {
    row_of_sample[static_cast<size_t>(samples[row])] = static_cast<int64_t>(row);
  }
  Captions captions;
  std::vector<int64_t> distinct_of, image_of;
  std::unordered_map<std::string, int64_t> known;
  for (size_t i = 0; i < set.captions.size(); ++i) {
    const auto row = row_of_sample[static_cast<size_t>(set.caption_image[i])];
    if (row < 0) continue;  // of an image that was left out
    const auto [entry, is_new] = known.emplace(set.captions[i], static_cast<int64_t>(captions.distinct.size()));
    if (is_new) captions.distinct.push_back(set.captions[i]);
    distinct_of.push_back(entry->second);
    image_of.push_back(row);
  }
  captions.distinct_of = at::tensor(distinct_of, at::kLong);
  captions.image_of = at::tensor(image_of, at::kLong);
  return captions;
}

void report_direction(const char* name, const RetrievalDirection& direction, const RetrievalOptions& options,
                      EvaluationResult& result) {
  for (size_t i = 0; i < options.recall_at.size(); ++i) {
    const auto metric = fmt::format("{}_retrieval_recall@{}", name, options.recall_at[i]);
    result.metrics.emplace_back(metric, direction.recall[i]);
    result.shown.push_back(metric);
  }
  result.metrics.emplace_back(fmt::format("{}_retrieval_mean_rank", name), direction.mean_rank);
  result.metrics.emplace_back(fmt::format("{}_retrieval_median_rank", name), direction.median_rank);
}

}  // namespace

std::vector<EvaluationResult> run_retrieval(EvaluationContext& context, const EvaluationTask& task,
                                            const EvaluationData& data) {
  const auto& set = *data.pairs;
  const auto images = collect_features(context.model, context.preprocess, *set.source, 0, set.source->size(),
                                       context.image_pass(FeatureStage::embedding), context.group);
  const auto captions = captions_of(set, images.samples);
  TextPassOptions pass;
  pass.batch_size = context.options.batch_size;
  pass.bf16 = context.options.bf16;
  pass.on_progress = context.progress("captions");
  auto texts = at::empty({static_cast<int64_t>(captions.distinct.size()), context.model->config().embed_dim});
  encode_texts(context.model, context.need_tokenizer(), captions.distinct, pass, context.group,
               [&](int64_t begin, const torch::Tensor& rows) {
                 texts.narrow(0, begin, rows.size(0)).copy_(models::l2_normalize(rows));
               });
  const RetrievalOptions options;
  const auto metrics = retrieval_metrics(images.features, texts.index_select(0, captions.distinct_of),
                                         captions.image_of, options, context.group);
  auto result = context.new_result(task, data);
  result.task = "zeroshot_retrieval";
  result.num_samples = images.features.size(0);
  result.skipped = images.skipped;
  report_direction("image", metrics.image_retrieval, options, result);
  report_direction("text", metrics.text_retrieval, options, result);
  result.details = json_text({{"num_captions", captions.image_of.size(0)}});
  return {std::move(result)};
}

}  // namespace contrastive::eval::detail
