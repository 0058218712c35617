#include "contrastive/data/classification_set.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/webdataset_source.h"

#include "data/sample_members.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxListBytes = 64 << 20;
constexpr int64_t kMaxShards = 1'000'000;

/// Where the parts of a data set lie.
struct Layout {
  fs::path root;   ///< where the lists are, unless they are in the split folder
  fs::path split;  ///< where the shards are
};

std::string splits_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (fs::exists(entry.path() / "nshards.txt", error)) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

Layout find_layout(const fs::path& given, const std::string& split) {
  auto folder = fs::absolute(given).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "cifar10/"
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw DataError(
        fmt::format("[{}] is not a folder; expected a data set in CLIP_benchmark's layout", given.string()));
  }
  if (fs::exists(folder / "nshards.txt", error)) return {folder.parent_path(), folder};
  if (fs::exists(folder / split / "nshards.txt", error)) return {folder, folder / split};
  throw DataError(fmt::format("[{}] there is neither {}/nshards.txt nor nshards.txt; splits here: {}", given.string(),
                              split, splits_in(folder)));
}

std::string read_list_file(const fs::path& file) {
  try {
    return read_text_file(file, kMaxListBytes);
  } catch (const Error& error) {
    throw DataError(error.what());
  }
}

/// The file in the split folder or in the data set's, or nothing.
std::optional<fs::path> find_file(const Layout& layout, const char* name) {
  std::error_code error;
  for (const auto& folder : {layout.split, layout.root}) {
    if (fs::exists(folder / name, error)) return folder / name;
  }
  return std::nullopt;
}

fs::path require_file(const Layout& layout, const char* name) {
  if (const auto file = find_file(layout, name)) return *file;
  throw DataError(
      fmt::format("[{}] {} is missing; looked there and in {}", layout.root.string(), name, layout.split.string()));
}

/// The lines of a list, stripped; empty ones at the end don't count, others are errors.
std::vector<std::string> read_lines(const fs::path& file, const char* what) {
  const auto content = read_list_file(file);
  if (const auto invalid = detail::first_invalid_utf8(content)) {
    throw DataError(fmt::format("[{}] is not UTF-8: wrong byte at {}", file.string(), *invalid));
  }
  std::vector<std::string> lines;
  for (const auto line : detail::split_lines(content)) lines.emplace_back(detail::strip(line));
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (lines.empty()) throw DataError(fmt::format("[{}] holds no {}", file.string(), what));
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty()) throw DataError(fmt::format("[{}] line {}: the {} is empty", file.string(), i + 1, what));
  }
  return lines;
}

std::vector<std::string> read_templates(const fs::path& file) {
  auto templates = read_lines(file, "template");
  for (size_t i = 0; i < templates.size(); ++i) {
    if (templates[i].find("{c}") == std::string::npos) {
      throw DataError(fmt::format("[{}] line {}: the template \"{}\" has no {{c}} for the class name", file.string(),
                                  i + 1, templates[i]));
    }
  }
  return templates;
}

int64_t read_num_shards(const fs::path& file) {
  const auto content = read_list_file(file);
  const auto text = detail::strip(content);
  int64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count < 1 || count > kMaxShards) {
    throw DataError(fmt::format("[{}] expected the number of shards in [1, {}], but found \"{}\"", file.string(),
                                kMaxShards, text.substr(0, 40)));
  }
  return count;
}

std::vector<fs::path> find_shards(const fs::path& folder) {
  const auto count = read_num_shards(folder / "nshards.txt");
  std::vector<fs::path> shards;
  for (int64_t i = 0; i < count; ++i) shards.push_back(folder / fmt::format("{}.tar", i));
  try {
    require_shards_exist(shards);
  } catch (const DataError& error) {
    throw DataError(
        fmt::format("[{}] says there are {} shards: {}", (folder / "nshards.txt").string(), count, error.what()));
  }
  const auto further = folder / fmt::format("{}.tar", count);
  if (fs::exists(further)) {
    throw DataError(fmt::format("[{}] says there are {} shards, but {} exists as well",
                                (folder / "nshards.txt").string(), count, further.filename().string()));
  }
  return shards;
}

void check_type(const Layout& layout) {
  const auto file = find_file(layout, "dataset_type.txt");
  if (!file) return;
  const auto content = read_list_file(*file);
  const auto type = detail::strip(content);
  if (type == "retrieval" || type == "multilabel") {
    throw DataError(fmt::format("[{}] the data set is for {}, expected classification", file->string(), type));
  }
}

}  // namespace

ClassificationSet open_classification_folder(const fs::path& folder, const std::string& split) {
  const auto layout = find_layout(folder, split);
  check_type(layout);
  ClassificationSet set;
  set.name = layout.root.filename().string();
  set.class_names = read_lines(require_file(layout, "classnames.txt"), "class name");
  set.templates = read_templates(require_file(layout, "zeroshot_classification_templates.txt"));

  WebdatasetOptions options;
  options.image_keys = "webp;png;jpg;jpeg";
  options.need_caption = false;
  options.need_label = true;
  options.num_labels = static_cast<int64_t>(set.class_names.size());
  set.source = std::make_shared<WebdatasetSource>(ShardIndex::open(find_shards(layout.split)), options);
  return set;
}

}  // namespace contrastive::data
