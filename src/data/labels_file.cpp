#include "data/labels_file.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

#include "data/json_file.h"

namespace contrastive::data::detail {
namespace {

namespace fs = std::filesystem;

/// Samples of another source with other labels.
class RelabelledSource : public SampleSource {
 public:
  RelabelledSource(std::shared_ptr<const SampleSource> source, std::vector<std::vector<int64_t>> labels)
      : source_(std::move(source)), labels_(std::move(labels)) {}

  int64_t size() const override { return source_->size(); }

  void read(int64_t index, RandomStream& random, Sample& sample) const override {
    source_->read(index, random, sample);
    sample.label = -1;
    sample.labels = labels_[static_cast<size_t>(index)];
  }

  std::string key(int64_t index) const override { return source_->key(index); }
  std::string describe(int64_t index) const override { return source_->describe(index); }
  std::string settings() const override { return source_->settings(); }
  int64_t bytes_read() const override { return source_->bytes_read(); }

  std::string fingerprint() const override {
    auto text = source_->fingerprint() + "\n";
    for (const auto& labels : labels_) text += fmt::format("{}\n", fmt::join(labels, ","));
    return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }

 private:
  std::shared_ptr<const SampleSource> source_;
  std::vector<std::vector<int64_t>> labels_;
};

std::string stem_of(const std::string& key) {
  return fs::path(key).stem().string();
}

/// A file of labels and what its entries belong to.
struct LabelsFile {
  fs::path path;
  nlohmann::ordered_json json;
  int64_t num_labels;

  std::vector<int64_t> labels(const nlohmann::ordered_json& entry, const std::string& sample) const {
    std::vector<int64_t> labels;
    const auto list = entry.is_array() ? entry : nlohmann::ordered_json::array({entry});
    for (const auto& item : list) {
      if (!item.is_number_integer()) {
        throw_json_type(path, fmt::format("sample {}", sample), "class indices", item);
      }
      // A number above int64's range would turn negative below, and is refused as well.
      const auto label = item.get<int64_t>();
      if (label < 0 || label >= num_labels) {
        throw DataError(fmt::format("[{}] sample {}: the label is {}, but there are {} class names: expected [0, {})",
                                    path.string(), sample, label, num_labels, num_labels));
      }
      labels.push_back(label);
    }
    std::sort(labels.begin(), labels.end());
    labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
    return labels;
  }
};

std::vector<std::vector<int64_t>> labels_of_list(const LabelsFile& file, const std::vector<std::string>& keys) {
  std::vector<std::string> stems;
  for (const auto& key : keys) stems.push_back(stem_of(key));
  std::vector<size_t> order(keys.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return stems[a] < stems[b]; });
  std::vector<std::vector<int64_t>> labels(keys.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const auto sample = order[i];
    if (i > 0 && stems[order[i - 1]] == stems[sample]) {
      throw DataError(
          fmt::format("[{}] the samples {} and {} have the same file name, so that a list has no order for "
                      "them: use an object by key",
                      file.path.string(), keys[order[i - 1]], keys[sample]));
    }
    labels[sample] = file.labels(file.json[i], keys[sample]);
  }
  return labels;
}

std::vector<std::vector<int64_t>> labels_of_object(const LabelsFile& file, const std::vector<std::string>& keys) {
  // Ordered JSON objects look keys up one by one.
  std::map<std::string, const nlohmann::ordered_json*> entries;
  for (const auto& [key, value] : file.json.items()) entries[key] = &value;
  std::vector<std::vector<int64_t>> labels;
  for (const auto& key : keys) {
    const nlohmann::ordered_json* entry = nullptr;
    for (const auto& name : {key, fs::path(key).filename().string(), stem_of(key)}) {
      const auto found = entries.find(name);
      if (!entry && found != entries.end()) entry = found->second;
    }
    if (!entry) throw DataError(fmt::format("[{}] has no labels for the sample {}", file.path.string(), key));
    labels.push_back(file.labels(*entry, key));
  }
  return labels;
}

}  // namespace

std::shared_ptr<const SampleSource> with_labels_file(std::shared_ptr<const SampleSource> source, const fs::path& path,
                                                     int64_t num_labels) {
  const LabelsFile file{path, read_json_file(path), num_labels};
  if (!file.json.is_array() && !file.json.is_object()) {
    throw_json_type(path, "the file", "a list of lists of class indices, or an object of such lists", file.json);
  }
  if (static_cast<int64_t>(file.json.size()) != source->size()) {
    throw DataError(fmt::format("[{}] has labels of {} samples, but the set has {} samples", path.string(),
                                file.json.size(), source->size()));
  }
  std::vector<std::string> keys;
  for (int64_t i = 0; i < source->size(); ++i) keys.push_back(source->key(i));
  auto labels = file.json.is_array() ? labels_of_list(file, keys) : labels_of_object(file, keys);
  return std::make_shared<RelabelledSource>(std::move(source), std::move(labels));
}

}  // namespace contrastive::data::detail
