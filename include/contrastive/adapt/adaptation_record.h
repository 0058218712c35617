#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// One accuracy with all that decided it: a line of the results file. Shares lie in [0, 1].
struct AdaptationRecord {
  // What was adapted, and on what.
  std::string dataset = {};
  std::string model = {};         ///< the checkpoint
  std::string model_sha256 = {};  ///< its fingerprint
  std::string prompts = {};       ///< "cifar10", "clip_80+cupl.json", ...
  std::string prompt_pooling = {};
  std::string prompt_sha256 = {};
  double scale = 0;  ///< of the zero-shot logits

  // The support set.
  std::string support = {};         ///< "few-shot", "retrieved", "retrieved by another model", "folder" or "none"
  std::string support_sha256 = {};  ///< its fingerprint
  int64_t support_rows = 0;
  int64_t shots = 0;  ///< a class, of few-shot; else 0
  int64_t seed = 0;   ///< of the draw
  double support_accuracy = 0;

  // The method.
  std::string adapter = {};
  std::string protocol = {};  ///< "fixed", "support-cv", "val" or "test-oracle"
  bool transductive = false;
  std::map<std::string, std::string> settings = {};
  std::vector<std::pair<std::string, double>> values = {};  ///< the hyper-parameters taken

  // What came out.
  int64_t num_samples = 0;
  double top1_accuracy = 0;
  double mean_per_class_recall = 0;
  double zero_shot_accuracy = 0;
  double searched_accuracy = 0;                              ///< at the values, where they were searched; else 0
  std::vector<std::pair<std::string, double>> plateau = {};  ///< the search's plateau centre
  std::map<std::string, std::pair<double, double>> sensitivity = {};  ///< by hyper-parameter: lowest and highest
  double seconds = 0;
  std::string version = {};  ///< of the library
  std::string command = {};

  /// "tip-x/support-cv", "tip-x/val (transductive)": never without the protocol.
  CONTRASTIVE_API std::string method() const;
};

/// A JSON object in one line, doubles so that they are read back to the bit.
CONTRASTIVE_API std::string to_json(const AdaptationRecord& record);

/// Throws: DataError that names `origin` and what is missing or malformed.
CONTRASTIVE_API AdaptationRecord parse_record(const std::string& json, const std::string& origin);

/// The records of a results file, one JSON object a line. Throws: DataError naming file and line.
CONTRASTIVE_API std::vector<AdaptationRecord> read_records(const std::filesystem::path& file);

}  // namespace contrastive::adapt
