#include "contrastive/data/classification_set.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/image_list.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/webdataset_source.h"

#include "data/class_folders.h"
#include "data/class_list.h"
#include "data/data_file.h"
#include "data/delimited_file.h"
#include "data/label_check.h"
#include "data/labels_file.h"
#include "data/shard_folder.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

int64_t num_classes(const ClassificationSet& set) {
  return static_cast<int64_t>(set.class_names.size());
}

/// Gives the set the names of a list, and ids if there are some.
void take_classes(detail::ClassList&& list, ClassificationSet& set) {
  set.class_names = std::move(list.names);
  set.class_ids = std::move(list.ids);
  if (set.class_names.empty()) set.class_names = set.class_ids;
}

DataError no_names(const fs::path& where) {
  return DataError(fmt::format("[{}] classnames.txt is missing here and in its parent; class_names may name a file",
                               where.string()));
}

bool read_is_multi_label(const detail::ShardFolder& folder) {
  const auto type = detail::dataset_type(folder);
  if (type == "retrieval") {
    throw DataError(
        fmt::format("[{}] the data set is for retrieval (dataset_type.txt), expected classification: use "
                    "the retrieval task",
                    folder.root.string()));
  }
  return type == "multilabel";
}

ClassificationSet open_shards(const detail::ShardFolder& folder, const ClassificationSetOptions& given) {
  ClassificationSet set;
  set.is_multi_label = read_is_multi_label(folder);
  set.name = folder.root.filename().string();
  auto list = detail::read_class_list(given, folder.folders());
  const auto names_file = list.file.string();
  take_classes(std::move(list), set);
  if (set.class_names.empty()) throw no_names(folder.split);
  set.templates = detail::find_templates(folder.folders());

  const auto index = ShardIndex::open(detail::find_shards(folder.split));
  WebdatasetOptions options;
  options.image_keys = "webp;png;jpg;jpeg";
  options.need_caption = false;
  options.need_label = given.labels.empty();
  options.label_vector = set.is_multi_label;
  options.num_labels = num_classes(set);
  auto source = std::make_shared<WebdatasetSource>(index, options);
  if (options.need_label && !set.is_multi_label) detail::check_labels(index, set.class_names, names_file);
  set.source = std::move(source);
  return set;
}

/// Images of all classes in one folder, which get their labels from a file.
std::vector<ListedImage> list_unlabelled(const fs::path& root) {
  std::vector<ListedImage> images;
  for (const auto& path : detail::find_images(root, "")) images.push_back({path, -1, {}});
  return images;
}

[[noreturn]] void throw_no_data_set(const fs::path& data, const std::string& split) {
  throw DataError(fmt::format(
      "[{}] there is no data set: expected {}/nshards.txt or nshards.txt with .tar files, class folders in {} or here, "
      "or a CSV file",
      data.string(), split, split));
}

bool is_flat_folder(const fs::path& folder) {
  return detail::is_folder(folder) && detail::subfolders(folder).empty();
}

/// Also of "." and "pets/".
fs::path parent_of(const fs::path& folder) {
  auto normal = fs::absolute(folder).lexically_normal();
  if (!normal.has_filename()) normal = normal.parent_path();
  return normal.parent_path();
}

ClassificationSet open_folders(const fs::path& data, const ClassificationSetOptions& options) {
  const bool is_flat = !options.labels.empty() && !options.split.empty() && is_flat_folder(data / options.split);
  const auto root = is_flat ? data / options.split : detail::find_class_root(data, options.split);
  const auto folders = detail::subfolders(root);
  ClassificationSet set;
  set.name = detail::last_part(data);
  std::vector<fs::path> places{root, data};
  if (!options.labels.empty() || detail::is_split_name(set.name)) places.push_back(parent_of(data));
  set.templates = detail::find_templates(places);
  auto list = detail::read_class_list(options, places, folders);
  std::vector<ListedImage> images;
  if (options.labels.empty()) {
    if (folders.empty()) throw_no_data_set(data, options.split);
    images = detail::list_class_folders(root, folders, list, set);
  } else {
    // The indices of the file are those of all classes, also of those without a folder.
    take_classes(std::move(list), set);
    if (set.class_names.empty()) set.class_names = set.class_ids = folders;
    images = list_unlabelled(root);
  }
  set.source = std::make_shared<ImageListSource>(root, std::move(images));
  if (set.class_names.empty()) throw no_names(root);
  return set;
}

std::optional<int64_t> integer(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

bool is_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // "nan" and "infinity" are words.
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

/// Finds the class that a label of a CSV file means.
class LabelLookup {
 public:
  explicit LabelLookup(const ClassificationSet& set) : count_(num_classes(set)) {
    for (int64_t i = 0; i < count_; ++i) {
      const auto [entry, is_new] = by_word_.emplace(set.class_names[static_cast<size_t>(i)], i);
      if (!is_new) shared_[entry->first] = i;
    }
    for (size_t i = 0; i < set.class_ids.size(); ++i) by_word_.emplace(set.class_ids[i], static_cast<int64_t>(i));
  }

  /// Throws: DataError that doesn't name the place.
  int64_t find(const std::string& text) const {
    if (text.empty()) throw DataError("the label is empty");
    if (const auto label = integer(text)) {
      if (*label >= 0 && *label < count_) return *label;
      throw DataError(
          fmt::format("the label is {}, but there are {} class names: expected [0, {})", text, count_, count_));
    }
    if (const auto other = shared_.find(text); other != shared_.end()) {
      throw DataError(fmt::format("the label \"{}\" is the name of the classes {} and {}: use indices or ids", text,
                                  by_word_.at(text), other->second));
    }
    const auto found = by_word_.find(text);
    if (found != by_word_.end()) return found->second;
    throw DataError(fmt::format("the label \"{}\" is none of the {} class names or ids", text, count_));
  }

 private:
  int64_t count_;
  std::map<std::string, int64_t> by_word_;
  std::map<std::string, int64_t> shared_;  ///< names of several classes, with the last of these
};

/// The classes of a CSV file that has no names beside it.
std::vector<std::string> distinct_labels(const fs::path& file, const std::vector<detail::DelimitedRow>& rows) {
  std::vector<std::string> names;
  for (const auto& row : rows) {
    const auto& label = row.values[1];
    if (label.empty()) throw DataError(fmt::format("[{}] line {}: the label is empty", file.string(), row.line));
    if (integer(label)) {
      throw DataError(
          fmt::format("[{}] line {}: the label is the index {}, but there are no class names: class_names "
                      "should name a file",
                      file.string(), row.line, label));
    }
    if (is_number(label)) {
      throw DataError(
          fmt::format("[{}] line {}: the label is the number {}, but expected a class's name, or an index "
                      "and class_names",
                      file.string(), row.line, label));
    }
    names.push_back(label);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

ClassificationSet open_csv(const fs::path& file, const ClassificationSetOptions& options) {
  const bool need_label = options.labels.empty();
  const auto rows =
      detail::read_delimited_file(file, options.separator,
                                  {{options.image_key, detail::kImageColumns, "image_key"},
                                   {need_label ? options.label_key : "", {"label", "class"}, "label_key", need_label}});
  const auto folder = fs::absolute(file).lexically_normal().parent_path();
  ClassificationSet set;
  set.name = file.stem().string();
  set.templates = detail::find_templates({folder});
  take_classes(detail::read_class_list(options, {folder}), set);
  if (set.class_names.empty() && !need_label) throw no_names(folder);
  if (set.class_names.empty()) set.class_names = distinct_labels(file, rows);

  const LabelLookup lookup(set);
  std::vector<ListedImage> images;
  for (const auto& row : rows) {
    try {
      if (row.values[0].empty()) throw DataError("the image's path is empty");
      images.push_back({row.values[0], need_label ? lookup.find(row.values[1]) : -1, {}});
    } catch (const DataError& error) {
      throw DataError(fmt::format("[{}] line {}: {}", file.string(), row.line, error.what()));
    }
  }
  set.source = std::make_shared<ImageListSource>(folder, std::move(images));
  return set;
}

ClassificationSet open_any(const fs::path& data, const ClassificationSetOptions& options) {
  if (detail::is_file(data)) return open_csv(data, options);
  if (!detail::is_folder(data)) {
    throw DataError(
        fmt::format("[{}] is not a folder or file; expected a data set: a webdataset folder in "
                    "CLIP_benchmark's layout, class folders or a CSV file",
                    data.string()));
  }
  if (const auto folder = detail::find_shard_folder(data, options.split)) return open_shards(*folder, options);
  return open_folders(data, options);
}

}  // namespace

ClassificationSet open_classification_set(const fs::path& data, const ClassificationSetOptions& options) {
  auto set = open_any(data, options);
  if (options.labels.empty()) return set;
  set.source = detail::with_labels_file(set.source, options.labels, num_classes(set));
  set.is_multi_label = true;
  return set;
}

ClassificationSet open_classification_folder(const fs::path& folder, const std::string& split) {
  ClassificationSetOptions options;
  options.split = split;
  return open_classification_set(folder, options);
}

}  // namespace contrastive::data
