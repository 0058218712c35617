#pragma once

#include <cstdint>

#include "contrastive/adapt/support_features.h"
#include "contrastive/adapt/text_classifier.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// What the text classifier makes of a support set: labels in a wrong order show as an accuracy near chance.
struct LabelCheck {
  double support_accuracy = 0;  ///< of the support set's own labels, in [0, 1]
  bool is_near_chance = false;  ///< at most three standard deviations of guessing above 1 / C
  int64_t num_rows = 0;
  int64_t num_classes = 0;
};

CONTRASTIVE_API LabelCheck check_labels(const SupportFeatures& support, const TextClassifier& classifier);

/// Throws: DataError with both accuracies, if the support set's is near chance while the test images' zero-shot
/// accuracy (of num_test images) isn't.
CONTRASTIVE_API void require_sane_labels(const LabelCheck& check, double test_accuracy, int64_t num_test);

}  // namespace contrastive::adapt
