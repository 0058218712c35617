#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::adapt {

/// How many images are right at every point of an adapter's grid.
struct GridAccuracy {
  std::vector<Parameter> parameters = {};
  torch::Tensor correct = {};  ///< int64, one dimension a parameter, of its grid's size
  int64_t num_samples = 0;

  /// The first of the best points, in the order of the loops.
  CONTRASTIVE_API ParameterValues best() const;
  CONTRASTIVE_API int64_t best_correct() const;

  /// The best point that lies in the middle of others: of the points with the highest count, the one whose neighbours
  /// (one step along each parameter, the point itself included) have the highest mean; the first of equals.
  CONTRASTIVE_API ParameterValues plateau_centre() const;

  /// Along each parameter, others as at the best point: the lowest and the highest accuracy in [0, 1].
  struct Range {
    double lowest = 0;
    double highest = 0;
  };
  CONTRASTIVE_API std::vector<Range> sensitivity() const;

  /// The counts of both added. Throws: Error unless both are of the same grid.
  CONTRASTIVE_API void add(const GridAccuracy& other);
};

/// Counts right predictions at every point. Equal to scoring every point by
/// base + outer_value * outer + inner_value * inner in the features' dtype and taking the first of the highest classes,
/// to the last image; but goes once through the classes for all values of the inner parameter: the values at which an
/// image is right form an interval. Shapes: labels [N] int64.
/// Over several ranks each has its share of the images; all get the sum.
CONTRASTIVE_API GridAccuracy search_grid(const Adapter& adapter, const QueryFeatures& queries,
                                         const torch::Tensor& labels, const distributed::ProcessGroup& group = {});

/// Who chose the hyper-parameters, and on what. Part of every result's name.
enum class Protocol {
  fixed,        ///< the defaults: nothing was searched
  support_cv,   ///< searched on held-out parts of the support set: no image beyond it was seen
  val,          ///< searched on a labelled validation set
  test_oracle,  ///< searched on the labelled test set: an upper bound, no result
};

CONTRASTIVE_API std::string protocol_name(Protocol protocol);  ///< "fixed", "support-cv", "val", "test-oracle"

/// Throws: ConfigError that lists the names.
CONTRASTIVE_API Protocol parse_protocol(const std::string& name);

struct SupportCvOptions {
  int64_t folds = 5;  ///< fewer where a class has fewer rows
  int64_t seed = 0;
};

/// Searches the grid on the support set itself: its rows are dealt to folds class by class, each fold is scored by an
/// adapter that was fitted on the others, and counts are added up. Throws: DataError if a class has a single row.
CONTRASTIVE_API GridAccuracy cross_validate(const std::function<std::unique_ptr<Adapter>()>& make,
                                            const SupportFeatures& support, const TextClassifier& classifier,
                                            const SupportCvOptions& options = {});

}  // namespace contrastive::adapt
