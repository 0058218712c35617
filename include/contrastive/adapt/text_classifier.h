#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/class_prompts.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::adapt {

/// How the embeddings of a class's prompts become the class's weight.
enum class PromptPooling {
  mean_direction,  ///< each normalised, averaged, normalised again: Radford et al. 2021; CuPL
  mean_score,      ///< each normalised, averaged: a class's score is the mean of its prompts' cosines; VisDesc
};

/// Class embeddings made from texts, which every adapter starts from.
struct TextClassifier {
  torch::Tensor weights = {};       ///< [C, D]; of length 1 with mean_direction
  torch::Tensor prompts = {};       ///< [P, D], every prompt's embedding, L2-normalised, class after class
  torch::Tensor prompt_class = {};  ///< [P] int64, never falling
  std::vector<std::string> class_names = {};
  std::string prompt_name = {};    ///< which prompts: "clip_80", "cupl.json", ...
  std::string prompt_sha256 = {};  ///< of them
  PromptPooling pooling = PromptPooling::mean_direction;
  /// What cosines are multiplied by: how much the texts weigh beside the support images. The published methods take
  /// 100, CLIP's own logit scale, which the ranges of their hyper-parameters go with. It changes no zero-shot
  /// prediction.
  double scale = 100;

  int64_t num_classes() const { return weights.size(0); }

  /// scale * features . weights^T. Shapes: features [N, D] to [N, C].
  CONTRASTIVE_API torch::Tensor logits(const torch::Tensor& features) const;

  CONTRASTIVE_API TextClassifier to(at::ScalarType dtype) const;
};

/// From embeddings of prompts that need not be normalised. Shapes: prompts [P, D], prompt_class [P] int64, never
/// falling. Throws: DataError naming the first class without a prompt, or values that aren't finite.
CONTRASTIVE_API TextClassifier make_text_classifier(const torch::Tensor& prompts, const torch::Tensor& prompt_class,
                                                    std::vector<std::string> class_names,
                                                    PromptPooling pooling = PromptPooling::mean_direction);

/// Encodes the prompts of every class, in eval mode, fp32; over several ranks each takes its share, and all get the
/// same. The scale is the model's own (exp of its logit_scale). `class_names`: one a class.
CONTRASTIVE_API TextClassifier encode_text_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                                      const eval::ClassPrompts& prompts,
                                                      std::vector<std::string> class_names, PromptPooling pooling,
                                                      bool bf16 = false, const distributed::ProcessGroup& group = {});

/// All prompts of both, class by class: CuPL+e is templates and sentences together, every prompt with the same weight.
/// Throws: Error unless both have the same number of classes.
CONTRASTIVE_API eval::ClassPrompts join_prompts(const eval::ClassPrompts& a, const eval::ClassPrompts& b);

}  // namespace contrastive::adapt
