#include "data/labels_file.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
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
class LabelsFile {
 public:
  LabelsFile(fs::path file, int64_t count) : path(std::move(file)), json(read_json_file(path)), num_labels(count) {}

  fs::path path;
  nlohmann::ordered_json json;
  int64_t num_labels;

  std::vector<int64_t> labels(const nlohmann::ordered_json& entry, const std::string& sample) const {
    std::vector<int64_t> labels;
    // Copies of deeply nested values would overflow the stack.
    if (entry.is_array()) {
      for (const auto& item : entry) labels.push_back(label(item, sample));
    } else {
      labels.push_back(label(entry, sample));
    }
    std::sort(labels.begin(), labels.end());
    labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
    return labels;
  }

 private:
  int64_t label(const nlohmann::ordered_json& item, const std::string& sample) const {
    if (!item.is_number_integer()) {
      throw_json_type(path, fmt::format("sample {}", sample), "class indices", item);
    }
    // A number above int64's range turns negative, and is refused as well.
    const auto label = item.get<int64_t>();
    if (label >= 0 && label < num_labels) return label;
    throw DataError(fmt::format("[{}] sample {}: the label is {}, but there are {} class names: expected [0, {})",
                                path.string(), sample, label, num_labels, num_labels));
  }
};

/// The number that a file name without extension ends in; nothing if there is none, or a huge one.
std::optional<size_t> trailing_number(const std::string& stem) {
  size_t number = 0;
  const auto begin = stem.find_last_not_of("0123456789") + 1;
  const auto [end, error] = std::from_chars(stem.data() + begin, stem.data() + stem.size(), number);
  return error == std::errc() ? std::optional(number) : std::nullopt;
}

/// The samples' numbers tell their order: that of a data set may be another one, such as by class.
std::vector<std::vector<int64_t>> labels_of_list(const LabelsFile& file, const std::vector<std::string>& keys) {
  std::vector<std::vector<int64_t>> labels(keys.size());
  std::vector<const std::string*> sample_of(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto number = trailing_number(stem_of(keys[i]));
    if (!number || *number < 1 || *number > keys.size()) {
      throw DataError(fmt::format(
          "[{}] is a list, but the sample {} doesn't end in a number from 1 to {} that would tell its place "
          "there: use an object by file name or key",
          file.path.string(), keys[i], keys.size()));
    }
    const auto place = *number - 1;
    if (sample_of[place]) {
      throw DataError(
          fmt::format("[{}] is a list, but the samples {} and {} end in the same number: use an object by "
                      "file name or key",
                      file.path.string(), *sample_of[place], keys[i]));
    }
    sample_of[place] = &keys[i];
    labels[i] = file.labels(file.json[place], keys[i]);
  }
  return labels;
}

std::vector<std::vector<int64_t>> labels_of_object(const LabelsFile& file, const std::vector<std::string>& keys) {
  // Ordered JSON objects look keys up one by one.
  std::map<std::string, const nlohmann::ordered_json*> entries;
  for (const auto& [key, value] : file.json.items()) entries[key] = &value;
  std::map<const nlohmann::ordered_json*, std::string> taken;
  std::vector<std::vector<int64_t>> labels;
  for (const auto& key : keys) {
    const nlohmann::ordered_json* entry = nullptr;
    for (const auto& name : {key, fs::path(key).filename().string(), stem_of(key)}) {
      const auto found = entries.find(name);
      if (!entry && found != entries.end()) entry = found->second;
    }
    if (!entry) throw DataError(fmt::format("[{}] has no labels for the sample {}", file.path.string(), key));
    const auto [first, is_new] = taken.emplace(entry, key);
    if (!is_new) {
      throw DataError(fmt::format("[{}] the samples {} and {} have the same file name: use their keys",
                                  file.path.string(), first->second, key));
    }
    labels.push_back(file.labels(*entry, key));
  }
  return labels;
}

}  // namespace

std::shared_ptr<const SampleSource> with_labels_file(std::shared_ptr<const SampleSource> source, const fs::path& path,
                                                     int64_t num_labels) {
  const LabelsFile file(path, num_labels);
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
