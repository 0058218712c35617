#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/eval/classification_meter.h"

namespace contrastive::eval {

/// A class whose images are mostly taken for another one.
struct ClassMismatch {
  int64_t label = 0;
  int64_t predicted = 0;
  int64_t count = 0;    ///< images of `label` that are taken for `predicted`
  int64_t samples = 0;  ///< images of `label`
};

/// Signs that class names and labels are in different orders.
struct ClassOrderSuspicion {
  double accuracy = 0;                  ///< as counted, over the classes with enough samples
  double matched_accuracy = 0;          ///< the same if each label is given a name of its own that fits it best
  double chance_accuracy = 0;           ///< what such a matching finds where labels and predictions are unrelated
  std::vector<ClassMismatch> examples;  ///< the five clearest at most
};

/// Decides whether a low accuracy comes from names in another order: labels are matched one to one with predicted
/// classes, greedily by count. It is suspicious if four in five labels are matched with the class that they are most
/// often taken for (by more than a quarter of their samples), and if the matching gives at least 0.3 and three times
/// the accuracy, and twice and 0.2 more than the same matching on labels that are dealt out anew (so neither few
/// samples nor a classifier that favours some classes are suspicious). Classes with fewer than 5 samples don't count;
/// at least 8 classes with most of the samples must be left.
CONTRASTIVE_API std::optional<ClassOrderSuspicion> suspect_class_order(const ConfusionCounts& confusion);

/// Whether an accuracy is at most three standard deviations of guessing above 1 / C. False where that says nothing:
/// fewer than two classes, or no samples.
CONTRASTIVE_API bool is_near_chance(double accuracy, int64_t num_classes, int64_t num_samples);

}  // namespace contrastive::eval
