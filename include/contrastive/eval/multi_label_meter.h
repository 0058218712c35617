#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::eval {

/// How well one class's images are ranked before the others. In [0, 1].
struct ClassAveragePrecision {
  int64_t positives = 0;  ///< images that show the class

  /// The mean over recall 0, 0.1 .. 1 of the largest precision at that recall or more; none without positives.
  std::optional<double> eleven_point;

  /// The sum of precision times growth of recall (no interpolation), as scikit-learn's average_precision_score; none
  /// without positives.
  std::optional<double> average_precision;
};

struct MultiLabelMetrics {
  double mean_eleven_point = 0;       ///< mAP of VOC2007 and the CLIP paper; over the classes with positives
  double mean_average_precision = 0;  ///< over the classes with positives
  std::vector<ClassAveragePrecision> classes;
  int64_t num_samples = 0;
  int64_t num_classes_without_positives = 0;  ///< left out of the means; CLIP_benchmark takes them in as 0
};

/// Ranks images that may show several classes, class by class.
///
/// Images of the same score are taken in together, as one point of the curve, for both kinds of AP: the order of the
/// images never matters. (CLIP_benchmark and VOC's own code leave the order of ties to the sort.) Scores that are not a
/// number stand last. Memory: 5 N C bytes.
/// Source: Everingham et al. 2010, section 4.2 (eleven points, here compared without rounding: recall 3 / 10 is 0.3).
class CONTRASTIVE_API MultiLabelMeter {
 public:
  /// Throws: Error if num_classes < 1.
  explicit MultiLabelMeter(int64_t num_classes);

  /// Shapes: scores [N, C], any floating dtype and device; one list of classes for each row, which may be empty.
  /// Throws: DataError if a label is not in [0, C); then nothing is added.
  void add(const torch::Tensor& scores, std::span<const std::vector<int64_t>> label_lists);

  /// Takes in the images of the other ranks; to be called once, by all, at the end. The metrics have the same bits
  /// whatever the number of ranks.
  void add_ranks(const distributed::ProcessGroup& group);

  MultiLabelMetrics metrics() const;

 private:
  int64_t num_classes_;
  std::vector<torch::Tensor> scores_;   ///< [N, C] fp32 each
  std::vector<torch::Tensor> targets_;  ///< [N, C] uint8 each
};

}  // namespace contrastive::eval
