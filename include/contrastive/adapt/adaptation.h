#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/adapt/grid_search.h"
#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::adapt {

/// Images with labels, which an adapter is tested or searched on; over several ranks each has its share.
struct LabelledQueries {
  QueryFeatures queries = {};
  torch::Tensor labels = {};  ///< [N] int64
};

/// What is to be fitted, and how its hyper-parameters are found.
struct AdaptationRequest {
  std::string adapter = "tip-x";
  std::map<std::string, std::string> settings = {};  ///< see make_adapter
  Protocol protocol = Protocol::fixed;
  SupportCvOptions cv = {};
  /// Scores may depend on all test images at once (Adapter::observe), as published for TIP-X: an image's score is then
  /// another one in other company. Without it they depend on the support set or, with the protocol val, on the
  /// validation images.
  bool transductive = false;
};

/// An adapter ready for use and how well it did. Shares lie in [0, 1].
struct Adaptation {
  std::unique_ptr<Adapter> adapter = {};
  ParameterValues values = {};
  std::optional<GridAccuracy> search = {};  ///< none with the protocol fixed, or without hyper-parameters
  double top1_accuracy = 0;
  double mean_per_class_recall = 0;
  int64_t num_samples = 0;
  double fit_seconds = 0;
  double search_seconds = 0;
  double score_seconds = 0;
};

/// Fits an adapter, finds its hyper-parameters by the protocol, and scores the test images with them. `validation` is
/// looked at with the protocol val only. Support set and classifier are the same on every rank.
/// Throws: ConfigError for the request (val without validation images, unknown adapter); DataError as fit, logits and
/// cross_validate.
CONTRASTIVE_API Adaptation adapt_and_test(const AdaptationRequest& request, const SupportFeatures& support,
                                          const TextClassifier& classifier, const LabelledQueries& test,
                                          const LabelledQueries* validation = nullptr,
                                          const distributed::ProcessGroup& group = {});

}  // namespace contrastive::adapt
