#include "contrastive/data/shard_index.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <unordered_map>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/data/shard_list.h"

#include "data/index_file.h"
#include "data/parallel.h"
#include "data/read_file.h"
#include "data/shard_scan.h"
#include "data/tar_format.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

detail::FileStamp stamp_of(const fs::path& shard) {
  try {
    return detail::ReadFile(shard).stamp();
  } catch (const DataError& error) {
    throw DataError(fmt::format("[{}] {}", shard.string(), error.what()));
  }
}

ShardTable build_table(const fs::path& shard, const detail::FileStamp& stamp) {
  const auto fail = [&](std::string_view key, std::string_view extension) {
    throw DataError(fmt::format("[{}] sample {} has two members .{}", shard.string(), key, extension));
  };
  detail::ShardScan scan;
  detail::scan_shard(shard, fail, scan);
  if (stamp_of(shard) != stamp) {
    throw DataError(fmt::format("[{}] changed while it was indexed; is it still being written?", shard.string()));
  }
  return std::move(scan.table);
}

/// What became of one shard; each is written by one thread.
struct Outcome {
  detail::FileStamp stamp;
  std::shared_ptr<const ShardTable> table;
  std::string error;
  bool built = false;
  bool stored = true;
};

Outcome load_or_build(const fs::path& shard, const fs::path& directory) {
  Outcome outcome;
  try {
    const auto places = detail::index_places(shard, directory);
    outcome.stamp = stamp_of(shard);
    auto table = detail::load_index(places, outcome.stamp);
    if (!table) {
      outcome.built = true;
      table = build_table(shard, outcome.stamp);
      table->keys.shrink_to_fit();
      outcome.stored = detail::store_index(places, *table, outcome.stamp);
    }
    outcome.table = std::make_shared<const ShardTable>(std::move(*table));
  } catch (const Error& error) {
    outcome.error = error.what();
  }
  return outcome;
}

void throw_if_any_failed(const std::vector<Outcome>& outcomes) {
  constexpr int64_t kNamed = 10;
  std::string errors;
  int64_t failed = 0;
  for (const auto& outcome : outcomes) {
    if (outcome.error.empty() || ++failed > kNamed) continue;
    errors += (errors.empty() ? "" : "; ") + outcome.error;
  }
  if (failed > kNamed) errors += fmt::format("; and {} more shards can't be indexed", failed - kNamed);
  if (failed > 0) throw DataError(errors);
}

void warn_if_not_stored(const std::vector<Outcome>& outcomes, const fs::path& directory) {
  const auto count = std::count_if(outcomes.begin(), outcomes.end(), [](const Outcome& o) { return !o.stored; });
  if (count == 0) return;
  log(LogLevel::warning,
      fmt::format("the index of {} shards can be written neither beside them nor to \"{}\"; they will be "
                  "indexed again at the next start",
                  count, directory.string()));
}

}  // namespace

std::string_view IndexedSample::key() const {
  const auto row = static_cast<size_t>(row_);
  const auto begin = table_->key_begin[row];
  return std::string_view(table_->keys).substr(begin, table_->key_begin[row + 1] - begin);
}

int64_t IndexedSample::num_members() const {
  const auto row = static_cast<size_t>(row_);
  return table_->member_begin[row + 1] - table_->member_begin[row];
}

IndexedMember IndexedSample::member(int64_t i) const {
  CONTRASTIVE_INTERNAL_ASSERT(i >= 0 && i < num_members());
  const auto at = table_->member_begin[static_cast<size_t>(row_)] + static_cast<size_t>(i);
  return {table_->extensions[table_->member_extension[at]], table_->member_block[at] * detail::kTarBlock,
          table_->member_length[at]};
}

std::optional<IndexedMember> IndexedSample::find(std::string_view extension) const {
  for (int64_t i = 0; i < num_members(); ++i) {
    const auto candidate = member(i);
    if (candidate.extension == extension) return candidate;
  }
  return std::nullopt;
}

std::string IndexedSample::member_list() const {
  std::string list;
  for (int64_t i = 0; i < num_members(); ++i) list += fmt::format("{}.{}", i == 0 ? "" : ", ", member(i).extension);
  return list;
}

fs::path default_index_directory() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return value ? fs::path(value) : fs::path();
  };
  if (const auto cache = variable("CONTRASTIVE_CACHE"); !cache.empty()) return cache / "index";
  if (const auto cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "contrastive" / "index";
  if (const auto home = variable("HOME"); !home.empty()) return home / ".cache" / "contrastive" / "index";
  return {};
}

ShardIndex ShardIndex::open(std::vector<fs::path> shards, const ShardIndexOptions& options) {
  require_shards_exist(shards);
  const auto directory = options.cache_directory.empty() ? default_index_directory() : options.cache_directory;

  // A shard that is listed twice is loaded once: two threads must not write one file.
  std::vector<const fs::path*> unique;
  std::unordered_map<std::string, size_t> numbers;
  for (const auto& shard : shards) {
    if (numbers.emplace(shard.string(), unique.size()).second) unique.push_back(&shard);
  }
  std::vector<Outcome> outcomes(unique.size());
  detail::parallel_for(static_cast<int64_t>(unique.size()), options.threads, [&](int64_t i) {
    outcomes[static_cast<size_t>(i)] = load_or_build(*unique[static_cast<size_t>(i)], directory);
  });
  throw_if_any_failed(outcomes);
  warn_if_not_stored(outcomes, directory);

  ShardIndex index;
  for (auto& shard : shards) {
    const auto& outcome = outcomes[numbers.at(shard.string())];
    index.begin_.push_back(index.begin_.back() + outcome.table->size());
    index.shards_.push_back({std::move(shard), outcome.stamp.bytes, outcome.stamp.mtime_ns, outcome.table});
  }
  index.num_built_ = std::count_if(outcomes.begin(), outcomes.end(), [](const Outcome& o) { return o.built; });
  return index;
}

IndexedSample ShardIndex::sample(int64_t index) const {
  if (index < 0 || index >= size()) {
    throw DataError(fmt::format("sample index {} is outside [0, {})", index, size()));
  }
  const auto shard = std::upper_bound(begin_.begin(), begin_.end(), index) - begin_.begin() - 1;
  return {*entry(shard).table, shard, index - shard_begin(shard)};
}

}  // namespace contrastive::data
