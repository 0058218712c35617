#include "data/shard_folder.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/data/shard_list.h"

#include "data/class_list.h"
#include "data/data_file.h"
#include "data/sample_members.h"

namespace contrastive::data::detail {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxShards = 1'000'000;

std::vector<fs::path> tar_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const auto& path = entry->path();
    if (path.extension() == ".tar" && !path.filename().string().starts_with('.')) files.push_back(path);
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool has_folders(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->is_directory(error)) return true;
  }
  return false;
}

/// Whether there is a file at all, and none but archives.
bool holds_archives_only(const fs::path& folder) {
  std::error_code error;
  bool holds_any = false;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().starts_with('.')) continue;
    if (entry->path().extension() != ".tar") return false;
    holds_any = true;
  }
  return holds_any;
}

bool has_shards(const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder / "nshards.txt", error)) return true;
  // An archive beside folders is what they were unpacked from.
  return !tar_files(folder).empty() && !has_folders(folder);
}

/// Stricter than has_shards(), as nobody named the folder: one of images with an archive in it is no split of shards.
bool is_shard_split(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / "nshards.txt", error) || fs::exists(folder / "0.tar", error) ||
         holds_archives_only(folder);
}

std::vector<std::string> splits_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->is_directory(error) && is_shard_split(entry->path())) names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

int64_t read_num_shards(const fs::path& file) {
  const auto content = read_utf8_file(file);
  const auto text = strip(content);
  int64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count < 1 || count > kMaxShards) {
    throw DataError(fmt::format("[{}] expected the number of shards in [1, {}], but found \"{}\"", file.string(),
                                kMaxShards, text.substr(0, 40)));
  }
  return count;
}

}  // namespace

std::optional<ShardFolder> find_shard_folder(const fs::path& given, const std::string& split) {
  auto folder = fs::absolute(given).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "cifar10/"
  if (!is_folder(folder)) return std::nullopt;
  if (has_shards(folder)) return ShardFolder{folder.parent_path(), folder};
  if (!split.empty() && has_shards(folder / split)) return ShardFolder{folder, folder / split};
  // The split is there, though not in shards.
  std::error_code error;
  if (!split.empty() && is_folder(folder / split) && !fs::is_empty(folder / split, error)) return std::nullopt;
  const auto splits = splits_in(folder);
  if (splits.empty()) return std::nullopt;
  throw DataError(fmt::format("[{}] there are no shards of the split {}; splits here: {}", given.string(), split,
                              fmt::join(splits, ", ")));
}

std::vector<fs::path> find_shards(const fs::path& folder) {
  const auto list = folder / "nshards.txt";
  std::error_code error_code;
  if (!fs::exists(list, error_code)) return tar_files(folder);
  const auto count = read_num_shards(list);
  std::vector<fs::path> shards;
  for (int64_t i = 0; i < count; ++i) shards.push_back(folder / fmt::format("{}.tar", i));
  try {
    require_shards_exist(shards);
  } catch (const DataError& error) {
    throw DataError(fmt::format("[{}] says there are {} shards: {}", list.string(), count, error.what()));
  }
  const auto further = folder / fmt::format("{}.tar", count);
  if (fs::exists(further, error_code)) {
    throw DataError(fmt::format("[{}] says there are {} shards, but {} exists as well", list.string(), count,
                                further.filename().string()));
  }
  return shards;
}

std::string dataset_type(const ShardFolder& folder) {
  const auto file = find_file(folder.folders(), "dataset_type.txt");
  return file ? std::string(strip(read_utf8_file(*file))) : std::string();
}

}  // namespace contrastive::data::detail
