#include "contrastive/adapt/label_check.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/class_order.h"

namespace contrastive::adapt {

LabelCheck check_labels(const SupportFeatures& support, const TextClassifier& classifier) {
  support.check();
  const auto predicted = classifier.logits(support.keys).argmax(1).cpu();
  LabelCheck check;
  check.num_rows = support.size();
  check.num_classes = support.num_classes;
  check.support_accuracy = predicted.eq(support.labels).to(at::kDouble).mean().item<double>();
  check.is_near_chance = eval::is_near_chance(check.support_accuracy, check.num_classes, check.num_rows);
  return check;
}

void require_sane_labels(const LabelCheck& check, double test_accuracy, int64_t num_test) {
  if (!check.is_near_chance || eval::is_near_chance(test_accuracy, check.num_classes, num_test)) return;
  // A few rows may all be hard; an accuracy that the test set's explains is no sign of wrong labels.
  const auto expected = test_accuracy * static_cast<double>(check.num_rows);
  if (expected < 5) return;
  throw DataError(fmt::format(
      "[support_set] its labels seem to be wrong: zero-shot accuracy on the support set {:.1f} %, which is near chance "
      "for {} classes, but {:.1f} % on the test images; see the order of its classes",
      100 * check.support_accuracy, check.num_classes, 100 * test_accuracy));
}

}  // namespace contrastive::adapt
