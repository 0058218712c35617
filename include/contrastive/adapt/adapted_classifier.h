#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"
#include "contrastive/eval/classifier.h"

namespace contrastive::adapt {

/// A fitted adapter with its hyper-parameters and class names, as it is saved and served: an image's scores depend on
/// that image alone. Const members are thread-safe.
class CONTRASTIVE_API AdaptedClassifier {
 public:
  /// `about`: what else is worth knowing, kept in the file ("protocol": "support-cv"). Throws: Error unless adapter,
  /// values and class names go together, or before fit().
  AdaptedClassifier(std::shared_ptr<const Adapter> adapter, ParameterValues values,
                    std::vector<std::string> class_names, std::string model_sha256,
                    std::map<std::string, std::string> about = {});

  /// What save() wrote. Throws: CheckpointError naming the file and what is wrong with it.
  static AdaptedClassifier open(const std::filesystem::path& file);

  /// One safetensors file, written at once or not at all. Throws: CheckpointError if the write fails.
  void save(const std::filesystem::path& file) const;

  /// Shapes: features [N, D], L2-normalised, to [N, C]. fp16 and bf16 are brought to the adapter's dtype.
  torch::Tensor logits(const QueryFeatures& queries) const;

  /// The k classes with the highest scores of each image (all, if there are fewer), best first, ties by label;
  /// `probability` is the softmax of the scores.
  std::vector<std::vector<eval::Prediction>> classify(const QueryFeatures& queries, int64_t k = 5) const;

  /// Throws: DataError that shows both fingerprints, unless features are made by the model that the adapter was fitted
  /// on.
  void require_model(const std::string& model_sha256) const;

  const Adapter& adapter() const { return *adapter_; }
  const ParameterValues& values() const { return values_; }
  const std::vector<std::string>& class_names() const { return class_names_; }
  const std::map<std::string, std::string>& about() const { return about_; }

 private:
  std::shared_ptr<const Adapter> adapter_;
  ParameterValues values_;
  std::vector<std::string> class_names_;
  std::string model_sha256_;
  std::map<std::string, std::string> about_;
};

}  // namespace contrastive::adapt
