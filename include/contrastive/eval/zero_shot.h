#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/class_prompts.h"
#include "contrastive/eval/classification_meter.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::eval {

struct ZeroShotOptions {
  int64_t batch_size = 256;
  int64_t workers = 2;
  bool bf16 = false;
  std::string prompts = {};   ///< see class_prompts; "": the data set's own templates
  bool canonicalize = false;  ///< of templates and class names big_vision's canonical form (text/prompts.h)
  std::function<void(int64_t done, int64_t total)> on_prompts = {};  ///< see TextPassOptions::on_progress
};

/// The mean of each class's prompt embeddings: every prompt's embedding is normalised, averaged over the templates,
/// and normalised again. Shapes: prompt_features [C, T, E], not normalised, to [C, E].
/// Source: Radford et al. 2021, section 3.1.4; the released notebook.
CONTRASTIVE_API torch::Tensor average_prompts(const torch::Tensor& prompt_features);

/// A zero-shot classifier's embeddings of the classes. Classes with the same prompts share a row, so that their scores
/// are equal to the bit.
struct ClassEmbeddings {
  torch::Tensor rows;       ///< [U, E] fp32, L2-normalised
  torch::Tensor row_of;     ///< [C] int64, the row of each class
  int64_t num_prompts = 0;  ///< that were encoded; 0: the embeddings were known

  int64_t num_classes() const { return row_of.size(0); }
  CONTRASTIVE_API void to(torch::Device device);

  /// The cosines of features [N, E] (L2-normalised, on the same device) with the classes. [N, C] fp32
  CONTRASTIVE_API torch::Tensor scores(const torch::Tensor& features) const;
};

/// Encodes every prompt and averages them by class as average_prompts does, in batches that the ranks take in turn; all
/// get the same classifier, on the model's device. In eval mode; the model's mode is restored.
CONTRASTIVE_API ClassEmbeddings build_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                                 const ClassPrompts& prompts, const ZeroShotOptions& options,
                                                 const distributed::ProcessGroup& group = {});

/// Classifies every image of a set by its nearest class embedding, on the model's device, in eval mode; the model's
/// mode is restored. Over several ranks each takes every W-th batch; all get the result, which is the same to the bit
/// whatever their number. Throws: DataError naming the sample that can't be read; ConfigError if there are no such
/// prompts.
CONTRASTIVE_API ClassificationMetrics evaluate_zero_shot(
    models::ClipModel& model, const image::PreprocessSpec& preprocess, const text::Tokenizer& tokenizer,
    const data::ClassificationSet& set, const ZeroShotOptions& options, const distributed::ProcessGroup& group = {});

}  // namespace contrastive::eval
