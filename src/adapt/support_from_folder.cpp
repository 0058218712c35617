#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/adapt/support_builders.h"
#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

constexpr size_t kMaxNamed = 10;

void require_every_class(const std::vector<int64_t>& counts, const data::ClassificationSet& set) {
  std::vector<std::string> empty;
  size_t number = 0;
  for (size_t c = 0; c < counts.size(); ++c) {
    if (counts[c] > 0) continue;
    ++number;
    if (empty.size() < kMaxNamed) empty.push_back(set.class_names[c]);
  }
  if (number == 0) return;
  throw DataError(fmt::format("[from-folder] {} of {} classes of {} have no image that can be read: {}{}", number,
                              counts.size(), set.name, fmt::join(empty, ", "), number > kMaxNamed ? ", ..." : ""));
}

}  // namespace

SupportSet support_from_folder(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                               const data::ClassificationSet& set, const FromFolderOptions& options,
                               FromFolderReport* report, const distributed::ProcessGroup& group) {
  if (options.max_per_class < 0) {
    throw ConfigError(fmt::format("[from-folder] max_per_class must be at least 0, but is {}", options.max_per_class));
  }
  auto pass = options.pass;
  pass.stage = eval::FeatureStage::embedding;
  const auto all = eval::collect_features(model, preprocess, *set.source, 0, set.source->size(), pass, group);

  FromFolderReport own_report{all.skipped, 0};
  const auto features = all.features.contiguous();
  const auto width = static_cast<size_t>(features.size(1)) * sizeof(float);
  const auto num_classes = static_cast<int64_t>(set.class_names.size());
  std::vector<std::unordered_set<std::string>> seen(set.class_names.size());
  std::vector<int64_t> counts(set.class_names.size());
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < features.size(0); ++i) {
    const auto label = all.labels[i].item<int64_t>();
    if (label < 0 || label >= num_classes) {
      throw DataError(fmt::format("{}: the label must be in [0, {}), but is {}",
                                  set.source->describe(all.samples[static_cast<size_t>(i)]), num_classes, label));
    }
    const auto at = static_cast<size_t>(label);
    if (options.max_per_class > 0 && counts[at] >= options.max_per_class) continue;
    const std::string bytes(reinterpret_cast<const char*>(features.const_data_ptr<float>() + i * features.size(1)),
                            width);
    if (!seen[at].insert(bytes).second) {
      ++own_report.duplicates;
      continue;
    }
    ++counts[at];
    kept.push_back(i);
  }
  require_every_class(counts, set);

  const auto rows = at::tensor(kept, at::kLong);
  const auto labels = all.labels.index_select(0, rows);
  const auto order = labels.argsort(/*stable=*/true);
  SupportSet result;
  result.features = sort_by_class(features.index_select(0, rows), labels, num_classes);
  for (int64_t i = 0; i < order.numel(); ++i) {
    SupportSource source;
    source.data = set.name;
    source.key = set.source->key(all.samples[static_cast<size_t>(kept[static_cast<size_t>(order[i].item<int64_t>())])]);
    result.rows.push_back(std::move(source));
  }
  result.class_names = set.class_names;
  result.class_ids = set.class_ids;
  result.made_by = {{"builder", "from-folder"},
                    {"max_per_class", fmt::format("{}", options.max_per_class)},
                    {"unreadable", fmt::format("{}", own_report.unreadable.count)},
                    {"duplicates", fmt::format("{}", own_report.duplicates)}};
  result.features.check();
  if (report != nullptr) *report = std::move(own_report);
  return result;
}

}  // namespace contrastive::adapt
