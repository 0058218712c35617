#include "data/class_folders.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

#include "data/data_file.h"
#include "data/sample_members.h"

namespace contrastive::data::detail {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSplits[] = {"train", "training",   "test", "testing", "val",
                                        "valid", "validation", "eval", "dev",     "trainval"};
constexpr std::string_view kImages[] = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"};
/// Images as well, which would be missing from the result if they were passed over.
constexpr std::string_view kOtherImages[] = {".tif",  ".tiff", ".ppm",  ".pgm", ".pbm", ".pnm",
                                             ".avif", ".heic", ".heif", ".jxl", ".jp2", ".jfif"};

template <size_t N>
bool contains(const std::string_view (&list)[N], const std::string& text) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

/// Bytes that aren't printable ASCII as \xNN.
std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    result += byte >= 0x20 && byte < 0x7F ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
  }
  return result;
}

/// The entries that are not hidden. Throws: DataError if the folder can't be read.
std::vector<fs::directory_entry> entries_of(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (!entry->path().filename().string().starts_with('.')) entries.push_back(*entry);
  }
  if (error) throw DataError(fmt::format("[{}] the folder can't be read: {}", folder.string(), error.message()));
  return entries;
}

/// Collects image files below a folder.
class Walk {
 public:
  explicit Walk(fs::path root) : root_(std::move(root)) {}

  /// As (folder, file name), both relative to the root.
  std::vector<std::pair<std::string, std::string>> found;
  std::vector<std::pair<std::string, std::string>> others;  ///< that can't be decoded

  void visit(const std::string& folder) {
    const auto path = root_ / folder;
    std::error_code error;
    const auto real = fs::canonical(path, error);
    if (std::find(ancestors_.begin(), ancestors_.end(), real) != ancestors_.end()) {
      throw DataError(fmt::format("[{}] the link leads back to a folder that it lies in", path.string()));
    }
    ancestors_.push_back(real);
    for (const auto& entry : entries_of(path)) {
      const auto name = entry.path().filename().string();
      // The entry knows its type from the listing; another question to the file system would take most of the time.
      if (entry.is_directory(error)) {
        visit(folder.empty() ? name : folder + "/" + name);
        continue;
      }
      const auto extension = lower_extension(entry.path());
      if (contains(kImages, extension) && entry.is_regular_file(error)) found.emplace_back(folder, name);
      if (contains(kOtherImages, extension) && entry.is_regular_file(error)) others.emplace_back(folder, name);
    }
    ancestors_.pop_back();
  }

 private:
  fs::path root_;
  std::vector<fs::path> ancestors_;
};

std::string joined(const std::pair<std::string, std::string>& file) {
  return file.first.empty() ? file.second : file.first + "/" + file.second;
}

/// A name that is another folder's, but not its own's, tells that the file has another order.
void check_order(const std::vector<std::string>& folders, const ClassList& list) {
  std::map<std::string, size_t> place_of;
  for (size_t i = 0; i < folders.size(); ++i) place_of.emplace(comparable_name(folders[i]), i);
  for (size_t i = 0; i < folders.size(); ++i) {
    const auto name = comparable_name(list.names[i]);
    const auto other = place_of.find(name);
    if (name == comparable_name(folders[i]) || other == place_of.end()) continue;
    throw DataError(fmt::format(
        "[{}] line {} is \"{}\", but class folder {} in sorted order is {}, and there is a folder {} at {}: the names "
        "must be in the order of the folders, or name the folders' order by class_ids",
        list.file.string(), i + 1, list.names[i], i + 1, folders[i], folders[other->second], other->second + 1));
  }
}

/// The class folders in the order of the classes, with names and ids of the set.
std::vector<std::string> match_by_id(const fs::path& root, const std::vector<std::string>& folders,
                                     const ClassList& list, ClassificationSet& set) {
  std::map<std::string, size_t> place_of;
  for (size_t i = 0; i < list.ids.size(); ++i) place_of.emplace(list.ids[i], i);
  std::vector<size_t> places;
  for (const auto& folder : folders) {
    const auto place = place_of.find(folder);
    if (place == place_of.end()) {
      throw DataError(fmt::format("[{}] the class folder {} is not among the {} class ids of [{}]", root.string(),
                                  folder, list.ids.size(), list.file.string()));
    }
    places.push_back(place->second);
  }
  std::sort(places.begin(), places.end());
  for (const auto place : places) {
    set.class_ids.push_back(list.ids[place]);
    set.class_names.push_back(list.names.empty() ? list.ids[place] : list.names[place]);
  }
  return set.class_ids;
}

bool are_numbers(const std::vector<std::string>& folders) {
  return std::all_of(folders.begin(), folders.end(),
                     [](const std::string& folder) { return whole_number(folder).has_value(); });
}

std::vector<std::string> match_classes(const fs::path& root, std::vector<std::string> folders, const ClassList& list,
                                       ClassificationSet& set) {
  const std::set<std::string> ids(list.ids.begin(), list.ids.end());
  const bool are_indices =
      are_numbers(folders) &&
      std::none_of(folders.begin(), folders.end(), [&](const auto& folder) { return ids.contains(folder); });
  if (!list.ids.empty() && !are_indices) return match_by_id(root, folders, list, set);
  if (are_indices && !list.names.empty()) {
    std::sort(folders.begin(), folders.end(),
              [](const auto& a, const auto& b) { return *whole_number(a) < *whole_number(b); });
  }
  set.class_ids = folders;
  set.class_names = list.names.empty() ? folders : list.names;
  if (set.class_names.size() != folders.size()) {
    throw DataError(fmt::format(
        "[{}] there are {} class folders, but [{}] has {} class names: expected one a folder, or class_ids that tell "
        "which name belongs to which folder",
        root.string(), folders.size(), list.file.string(), list.names.size()));
  }
  if (!list.names.empty()) check_order(folders, list);
  return folders;
}

}  // namespace

std::vector<std::string> subfolders(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : entries_of(folder)) {
    std::error_code error;
    if (!entry.is_directory(error)) continue;
    names.push_back(entry.path().filename().string());
    if (first_invalid_utf8(names.back())) {
      throw DataError(
          fmt::format("[{}] the name of the folder \"{}\" is not UTF-8", folder.string(), escaped(names.back())));
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool is_split_name(const std::string& folder) {
  return contains(kSplits, lower(folder));
}

fs::path find_class_root(const fs::path& data, const std::string& split) {
  if (!split.empty() && is_folder(data / split) && !subfolders(data / split).empty()) return data / split;
  const auto folders = subfolders(data);
  std::vector<std::string> splits;
  for (const auto& folder : folders) {
    if (is_split_name(folder) && folder != split && !subfolders(data / folder).empty()) splits.push_back(folder);
  }
  if (!splits.empty()) {
    throw DataError(
        fmt::format("[{}] there is no split {}; splits here: {}", data.string(), split, fmt::join(splits, ", ")));
  }
  return data;
}

std::vector<std::string> find_images(const fs::path& root, const std::string& folder) {
  Walk walk(root);
  walk.visit(folder);
  if (!walk.others.empty()) {
    throw DataError(fmt::format("[{}] the image {} is of a format that can't be decoded: expected {}", root.string(),
                                joined(*std::min_element(walk.others.begin(), walk.others.end())),
                                fmt::join(kImages, ", ")));
  }
  std::sort(walk.found.begin(), walk.found.end());
  std::vector<std::string> paths;
  for (const auto& file : walk.found) paths.push_back(joined(file));
  return paths;
}

std::vector<ListedImage> list_class_folders(const fs::path& root, const std::vector<std::string>& folders,
                                            const ClassList& list, ClassificationSet& set) {
  const auto ordered = match_classes(root, folders, list, set);
  std::vector<ListedImage> images;
  for (size_t i = 0; i < ordered.size(); ++i) {
    const auto paths = find_images(root, ordered[i]);
    if (paths.empty()) {
      throw DataError(fmt::format("[{}] the class folder {} holds no image ({})", root.string(), ordered[i],
                                  fmt::join(kImages, ", ")));
    }
    for (const auto& path : paths) images.push_back({path, static_cast<int64_t>(i), {}});
  }
  return images;
}

}  // namespace contrastive::data::detail
