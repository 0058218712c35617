#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/options.h"

namespace contrastive::eval {

/// One evaluation on one data set. A subcommand of clip_eval fills one from its flags; a suite lists some. Paths are
/// relative to the working directory (in a suite to its `root`).
struct EvaluationTask {
  std::string task = "zero-shot";  ///< zero-shot, retrieval, linear-probe or few-shot
  std::string data;                ///< a data set: see data::open_classification_set, data::open_retrieval_set
  std::string name;                ///< of the result; "": <data set>_<task>
  std::string split = "test";

  // The data set, where it doesn't say so itself.
  std::string class_names;         ///< file, or `imagenet`
  std::string class_ids;           ///< file, or `imagenet`
  std::string labels;              ///< file with several labels an image, any of which is right (ReaL)
  std::string images;              ///< folder that a captions file's images lie in
  std::string captions;            ///< captions file in place of the data set's
  int64_t captions_per_image = 0;  ///< the first so many; 0: all
  std::string image_key;           ///< column of a CSV file; "": the usual names
  std::string label_key;
  std::string caption_key;
  std::string separator;  ///< of a CSV file; "": by its extension

  // zero-shot
  std::vector<std::string>
      prompts;                    ///< see eval::class_prompts; several are compared in one pass; empty: the data set's
  bool canonicalize = false;      ///< class names and templates in lower case without punctuation
  bool merge_duplicates = false;  ///< classes of the same name count as one
  bool per_class = false;         ///< a row for each class in the result
  bool confusion = false;         ///< counts of (label, predicted) in the result
  bool accept_class_order = false;  ///< report a score although the class names seem to be in another order

  // linear-probe, few-shot
  std::string train;  ///< data set to learn from; "": `data`
  std::string train_split = "train";
  std::string val_split;           ///< of the training set, to choose C on; "": a part of the training split
  std::string features = "tower";  ///< before the projection (`tower`) or behind it (`embedding`)
  std::optional<double> c;         ///< inverse strength of the penalty; null: chosen by the sweep
  std::string sweep = "binary";    ///< binary or full
  std::vector<int64_t> shots;      ///< samples a class; empty: linear-probe all of them, few-shot 1, 5, 10 and 25
  int64_t seeds = 3;               ///< draws of few samples
  double l2 = 1024;                ///< penalty of few-shot

  template <typename Fields>
  void fields(Fields& f) {
    f("task", task, one_of({"zero-shot", "retrieval", "linear-probe", "few-shot"}));
    f("data", data, required());
    f("name", name);
    f("split", split);
    f("class_names", class_names);
    f("class_ids", class_ids);
    f("labels", labels);
    f("images", images);
    f("captions", captions);
    f("captions_per_image", captions_per_image, at_least(0));
    f("image_key", image_key);
    f("label_key", label_key);
    f("caption_key", caption_key);
    f("separator", separator);
    f("prompts", prompts);
    f("canonicalize", canonicalize);
    f("merge_duplicates", merge_duplicates);
    f("per_class", per_class);
    f("confusion", confusion);
    f("accept_class_order", accept_class_order);
    f("train", train);
    f("train_split", train_split);
    f("val_split", val_split);
    f("features", features, one_of({"tower", "embedding"}));
    f("c", c, greater_than(0));
    f("sweep", sweep, one_of({"binary", "full"}));
    f("shots", shots, at_least(1));
    f("seeds", seeds, at_least(1));
    f("l2", l2, greater_than(0));
  }

  /// Reports settings that the task has no use for.
  CONTRASTIVE_API void validate(const OptionScope& scope) const;
};

}  // namespace contrastive::eval
