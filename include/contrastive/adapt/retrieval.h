#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/embedding_index.h"
#include "contrastive/adapt/support_set.h"
#include "contrastive/adapt/text_classifier.h"
#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/class_prompts.h"

namespace contrastive::adapt {

struct RetrievalOptions {
  int64_t per_class = 16;          ///< images taken, if there are as many
  int64_t min_per_class = 1;       ///< what the fallback fills a class up to
  int64_t candidates = 0;          ///< best rows of each prompt that are looked at; 0: 4 * per_class + 64
  double duplicate_cosine = 0.94;  ///< of two images of a class that are more alike the better one stays
  double excluded_cosine = 0.97;   ///< an image that is more like an evaluation image is left out
  bool one_class = true;           ///< an image stands only for the class, of all, that it scores highest for
};

/// What was left out, and why. An image is counted by the first reason that holds.
struct RetrievalReport {
  int64_t excluded = 0;     ///< near an evaluation image
  int64_t other_class = 0;  ///< better for another class
  int64_t duplicates = 0;   ///< near a better image of its class
  int64_t fallbacks = 0;    ///< taken all the same, to reach min_per_class
};

/// A support set from class names alone: for each class the images of the index that lie nearest to its prompts.
///
/// Every prompt's best rows (`candidates` of them) are found exactly; a class's are merged by score (an image counts by
/// its best prompt), the highest first, of equals the lower row. Where the rules leave fewer than min_per_class, the
/// best of those that are better for another class are taken, then near duplicates, and marked "fallback"; images near
/// evaluation ones never, nor, with one_class, those that another class has taken.
///
/// `prompts` are the texts of the classifier's prompt embeddings, of the model that made the index. excluded [T, E]:
/// features of evaluation images, or undefined. Over several ranks, all of which must see the index, each searches its
/// share of the rows; all get the same set.
/// Throws: DataError if index and classifier are of other widths, or that lists classes with too few images;
/// ConfigError if an option is out of range. Source: Udandarao et al. 2023 (SuS-LC), section 3.1. Deviates: exact
/// search, prompts merged by score instead of one after the other, explicit classes.
CONTRASTIVE_API SupportSet retrieve_support(const EmbeddingIndex& index, const TextClassifier& classifier,
                                            const eval::ClassPrompts& prompts, const torch::Tensor& excluded,
                                            const RetrievalOptions& options, RetrievalReport* report = nullptr,
                                            const distributed::ProcessGroup& group = {});

}  // namespace contrastive::adapt
