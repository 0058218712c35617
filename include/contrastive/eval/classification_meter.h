#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::eval {

/// How often images of a class (first) were taken for a class (second); combinations that don't occur are absent.
/// A second of -1: no score was a number.
using ConfusionCounts = std::map<std::pair<int64_t, int64_t>, int64_t>;

/// Classification results. All shares lie in [0, 1]; they are 0 where there are no samples.
struct ClassificationMetrics {
  double top1_accuracy = 0;
  double top5_accuracy = 0;          ///< 1 where there are at most 5 classes
  double mean_per_class_recall = 0;  ///< mean over the classes that occur; the papers' mean per class accuracy
  double mean_top1_top5 = 0;         ///< Kinetics' metric: the mean of the two accuracies
  std::optional<double> roc_auc;     ///< for two classes that both occur: of score[1] - score[0], class 1 is positive
  int64_t num_samples = 0;
  int64_t num_unlabelled = 0;  ///< left out: their list of labels was empty
};

/// What was counted for one class.
struct ClassCounts {
  int64_t samples = 0;
  int64_t hits = 0;
  int64_t predicted = 0;  ///< images taken for this class, rightly or not

  /// Share of the class's samples that were found, and of the images taken for it that belong to it; none if there
  /// are none.
  CONTRASTIVE_API std::optional<double> recall() const;
  CONTRASTIVE_API std::optional<double> precision() const;
};

/// Counts scores [N, C] against labels; of equal scores the lower class stands before, a score that is not a number
/// stands last and is never a hit.
///
/// Scores: any floating dtype and device. Memory: a few dozen bytes for each pair of classes that was confused (at most
/// one a sample), and for two classes 9 bytes a sample.
class CONTRASTIVE_API ClassificationMeter {
 public:
  /// `first_of_group` [C]: classes with the same entry count as one, as those of the same name must; an entry is the
  /// group's lowest class (first_of_same_name makes such a list). Labels and predictions are mapped before counting, a
  /// group's score is the highest of its classes'. Empty: every class stands for itself.
  /// Throws: Error if num_classes < 1 or the list is not such a one.
  explicit ClassificationMeter(int64_t num_classes, std::vector<int64_t> first_of_group = {});

  /// Shapes: scores [N, C], labels [N] int64. Throws: DataError if a label is not in [0, C); then nothing is counted.
  void add(const torch::Tensor& scores, const torch::Tensor& labels);

  /// Images that may have several right labels: a hit is any of them. Images with an empty list are left out and
  /// counted as unlabelled. For recall and confusion an image belongs to that one of its labels which scores highest;
  /// images with both of two labels don't take part in ROC AUC. Throws: as above.
  /// Source: Beyer et al. 2020, "Are we done with ImageNet?" (ReaL labels).
  void add(const torch::Tensor& scores, std::span<const std::vector<int64_t>> label_lists);

  /// Takes in what the other ranks counted; to be called once, by all, at the end. The metrics have the same bits
  /// whatever the number of ranks.
  void add_ranks(const distributed::ProcessGroup& group);

  ClassificationMetrics metrics() const;

  /// The table [C] of what was counted; of a group only its first class has counts.
  std::vector<ClassCounts> class_counts() const;

  const ConfusionCounts& confusion() const { return confusion_; }
  int64_t num_classes() const { return num_classes_; }

 private:
  /// The margin of class 1 over class 0.
  struct Margin {
    double value;
    bool is_positive;
  };

  void check_scores(const torch::Tensor& scores) const;
  void check_label(int64_t label, int64_t row) const;
  void count_row(const float* scores, std::span<const int64_t> labels);
  std::optional<double> roc_auc() const;

  int64_t num_classes_;
  std::vector<int64_t> first_of_group_;  ///< empty: none are merged
  ConfusionCounts confusion_;
  int64_t top5_hits_ = 0;
  int64_t num_unlabelled_ = 0;
  std::vector<Margin> margins_;  ///< of two classes only
};

}  // namespace contrastive::eval
