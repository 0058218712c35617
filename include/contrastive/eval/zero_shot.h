#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::eval {

/// Zero-shot classification results. All shares lie in [0, 1].
struct ZeroShotMetrics {
  double top1_accuracy = 0;
  double top5_accuracy = 0;          ///< 1 where there are at most 5 classes
  double mean_per_class_recall = 0;  ///< mean over the classes that occur in the data
  int64_t num_samples = 0;
};

struct ZeroShotOptions {
  int64_t batch_size = 256;
  int64_t workers = 2;
  bool bf16 = false;
  std::string prompts = {};   ///< a set that text::prompt_set knows; "": the data set's own templates
  bool canonicalize = false;  ///< of templates and class names big_vision's canonical form (text/prompts.h)
};

/// The mean of each class's prompt embeddings: every prompt's embedding is normalised, averaged over the templates,
/// and normalised again. Shapes: prompt_features [C, T, E], not normalised, to [C, E].
/// Source: Radford et al. 2021, section 3.1.4; the released notebook.
CONTRASTIVE_API torch::Tensor average_prompts(const torch::Tensor& prompt_features);

/// The classifier of a set of class names: every template filled with every name, encoded and averaged. [C, E]
/// Over several ranks each encodes some of the batches of prompts; all get the same classifier.
CONTRASTIVE_API torch::Tensor build_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                               const std::vector<std::string>& class_names,
                                               const std::vector<std::string>& templates,
                                               const ZeroShotOptions& options,
                                               const distributed::ProcessGroup& group = {});

/// The classifier of a data set: its class names in the prompts that the options name. [C, E]
/// Throws: ConfigError if there are no such prompts.
CONTRASTIVE_API torch::Tensor set_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                             const data::ClassificationSet& set, const ZeroShotOptions& options,
                                             const distributed::ProcessGroup& group = {});

/// Counts hits of scores [N, C] against labels [N] int64; a tie is won by the class that comes first.
class CONTRASTIVE_API ZeroShotMeter {
 public:
  explicit ZeroShotMeter(int64_t num_classes);
  void add(const torch::Tensor& scores, const torch::Tensor& labels);

  /// Takes in what the other ranks counted.
  void add_ranks(const distributed::ProcessGroup& group);

  ZeroShotMetrics metrics() const;

 private:
  torch::Tensor class_samples_, class_hits_, class_top5_hits_;  ///< [C] int64 each
};

/// Classifies every image of a set by its nearest class embedding, on the model's device, in eval mode; the model's
/// mode is restored. Over several ranks each takes every W-th batch; all get the result, which is the same to the bit
/// whatever their number. Throws: DataError naming the sample that can't be read; ConfigError if there are no such
/// prompts.
CONTRASTIVE_API ZeroShotMetrics evaluate_zero_shot(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                                   const text::Tokenizer& tokenizer, const data::ClassificationSet& set,
                                                   const ZeroShotOptions& options,
                                                   const distributed::ProcessGroup& group = {});

}  // namespace contrastive::eval
