#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <torch/types.h>

#include "contrastive/adapt/adaptation.h"
#include "contrastive/adapt/text_classifier.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/class_prompts.h"
#include "contrastive/eval/image_pass.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/text/tokenizer.h"

#include "common/count_progress.h"

namespace contrastive::tools {

/// How a command opens and uses its model.
struct ModelArguments {
  std::string checkpoint;
  std::string model;
  std::string precision = "fp32";
  std::string on_bad_sample = "fail";
  std::string cache;
  int64_t batch_size = 256;
  int64_t workers = 2;
  int64_t nproc = 1;
  double timeout_seconds = 600;
};

void add_model_options(CLI::App& command, ModelArguments& arguments);

/// A labelled data set as the command line names it.
struct SetArguments {
  std::string data = {};
  std::string split = "test";
  std::string class_names = {};
  std::string class_ids = {};
};

data::ClassificationSet open_set(const SetArguments& arguments);

/// A model with what tells its features from others', on one rank.
class AdaptModel {
 public:
  explicit AdaptModel(const ModelArguments& arguments);

  /// Another model on the ranks that have met already.
  AdaptModel(const ModelArguments& arguments, const AdaptModel& first);

  models::ClipModel& model() { return loaded_.model; }
  const image::PreprocessSpec& preprocess() const { return loaded_.preprocess; }
  const text::Tokenizer& tokenizer() const { return *tokenizer_; }
  const distributed::ProcessGroup& group() const { return group_; }
  bool is_first() const { return group_.rank() == 0; }
  bool bf16() const { return arguments_.precision == "amp_bf16"; }
  const std::string& fingerprint() const { return fingerprint_; }
  std::string preprocess_words() const;
  std::string preprocess_sha256() const;

  /// `what` stands in the progress line.
  eval::ImagePassOptions image_pass(const std::string& what);

  /// Embeddings of all images that can be read, on every rank, in CPU memory or mapped from the cache, if there is one;
  /// with `places` also those of the places in them (CALIP).
  adapt::LabelledQueries features(const data::ClassificationSet& set, const std::string& what, bool places = false);

  /// Prompts by names as eval::class_prompts takes them, several joined by '+'.
  static eval::ClassPrompts prompts(const std::string& source, const data::ClassificationSet& set);

  adapt::TextClassifier classifier(const eval::ClassPrompts& prompts, const data::ClassificationSet& set,
                                   adapt::PromptPooling pooling);

 private:
  AdaptModel(const ModelArguments& arguments, distributed::ProcessGroup group, torch::Device device);

  ModelArguments arguments_;
  distributed::ProcessGroup group_;
  eval::LoadedModel loaded_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::string fingerprint_;
  std::optional<CountProgress> progress_;
};

}  // namespace contrastive::tools
