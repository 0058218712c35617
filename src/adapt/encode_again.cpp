#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/adapt/support_builders.h"
#include "contrastive/core/error.h"
#include "contrastive/data/selected_samples.h"

namespace contrastive::adapt {
namespace {

constexpr size_t kMaxNamed = 10;
constexpr int64_t kSeveral = -1;

[[noreturn]] void refuse(const std::vector<std::string>& names, const char* problem) {
  const auto shown = std::vector<std::string>(names.begin(), names.begin() + std::min(names.size(), kMaxNamed));
  throw DataError(fmt::format("[encode_again] {} {}: {}{}", names.size(), problem, fmt::join(shown, ", "),
                              names.size() > kMaxNamed ? ", ..." : ""));
}

/// Where each row's image is in the source.
std::vector<int64_t> find_images(const SupportSet& set, const data::SampleSource& source) {
  std::unordered_map<std::string, int64_t> samples;
  for (int64_t i = 0; i < source.size(); ++i) {
    const auto [place, is_new] = samples.emplace(source.key(i), i);
    if (!is_new) place->second = kSeveral;
  }
  std::vector<int64_t> found;
  std::vector<std::string> missing;
  std::vector<std::string> repeated;
  for (const auto& row : set.rows) {
    const auto place = samples.find(row.key);
    if (place == samples.end()) {
      missing.push_back(row.key);
    } else if (place->second == kSeveral) {
      repeated.push_back(row.key);
    } else {
      found.push_back(place->second);
    }
  }
  if (!missing.empty()) refuse(missing, "images of the support set are not among those given");
  if (!repeated.empty()) refuse(repeated, "keys of the support set stand for several of the images given");
  return found;
}

void require_every_class(const SupportSet& set) {
  const auto counts = set.features.counts();
  std::vector<std::string> empty;
  for (int64_t c = 0; c < set.num_classes(); ++c) {
    if (counts[c].item<int64_t>() == 0) empty.push_back(set.class_names[static_cast<size_t>(c)]);
  }
  if (!empty.empty()) refuse(empty, "classes have no image that can be read");
}

}  // namespace

SupportSet encode_again(models::ClipModel& model, const image::PreprocessSpec& preprocess, const SupportSet& set,
                        const data::SampleSource& source, const eval::ImagePassOptions& pass,
                        eval::SkippedSamples* unreadable, const distributed::ProcessGroup& group) {
  const data::SelectedSamples images(source, find_images(set, source));
  auto own_pass = pass;
  own_pass.stage = eval::FeatureStage::embedding;
  own_pass.skip_bad_samples = true;
  auto encoded = eval::collect_features(model, preprocess, images, 0, images.size(), own_pass, group);
  const auto kept = at::tensor(encoded.samples, at::kLong);

  auto result = set;
  result.features = SupportFeatures{
      std::move(encoded.features), set.features.labels.index_select(0, kept), set.features.num_classes, {}};
  result.rows.clear();
  for (const auto row : encoded.samples) result.rows.push_back(set.rows[static_cast<size_t>(row)]);
  require_every_class(result);
  result.features.check();
  result.made_by["searched_with_model"] = set.model_sha256;
  result.made_by["unreadable"] = fmt::format("{}", encoded.skipped.count);
  if (unreadable != nullptr) *unreadable = std::move(encoded.skipped);
  return result;
}

}  // namespace contrastive::adapt
