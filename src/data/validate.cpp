#include "contrastive/data/validate.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_set>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "data/parallel.h"
#include "data/read_file.h"
#include "data/sample_members.h"
#include "data/shard_scan.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using Kind = ShardProblemKind;

constexpr int64_t kChunk = 64;  // samples a thread takes at a time

/// One shard after the walk over its headers.
struct ScannedShard {
  fs::path path;
  detail::ShardScan scan;
  std::vector<ShardProblem> problems;

  void report(std::string_view key, Kind kind, std::string reason) {
    problems.push_back({path, std::string(key), kind, std::move(reason)});
  }
};

void report_duplicate_keys(ScannedShard& shard) {
  std::unordered_set<std::string_view> seen;
  for (int64_t row = 0; row < shard.scan.table.size(); ++row) {
    const auto key = IndexedSample(shard.scan.table, 0, row).key();
    if (seen.insert(key).second) continue;
    shard.report(key, Kind::duplicate_key, "an earlier sample of the shard has the same key");
  }
}

ScannedShard scan(const fs::path& path) {
  ScannedShard shard;
  shard.path = path;
  const auto on_duplicate = [&](std::string_view key, std::string_view extension) {
    shard.report(key, Kind::duplicate_extension, fmt::format("the sample has two members .{}", extension));
  };
  bool complete = false;
  try {
    detail::scan_shard(path, on_duplicate, shard.scan);
    complete = true;
  } catch (const Error& error) {
    shard.report(shard.scan.unfinished_key, Kind::damaged_archive,
                 fmt::format("{}; {} samples lie before it", error.what(), shard.scan.table.size()));
  }
  if (complete && !shard.scan.has_end_blocks) {
    shard.report("", Kind::missing_end_blocks,
                 "the archive has no end blocks: it may have been cut between two samples");
  }
  if (complete && shard.scan.table.size() == 0) shard.report("", Kind::no_samples, "the archive holds no sample");
  report_duplicate_keys(shard);
  return shard;
}

/// What a chunk of samples contributes to the report.
struct Tally {
  int64_t images_ok = 0;
  int64_t captions_ok = 0;
  int64_t captions = 0;
  int64_t caption_bytes = 0;
  int64_t caption_bytes_max = 0;
  std::vector<ShardProblem> problems;
};

/// Checks one sample and adds what it finds to a tally.
class SampleCheck {
 public:
  SampleCheck(const ValidationOptions& options, const detail::MemberKeys& keys, const ScannedShard& shard, int64_t row,
              const detail::ReadFile& file, Tally& tally)
      : options_(options),
        keys_(keys),
        shard_(shard.path),
        sample_(shard.scan.table, 0, row),
        file_(file),
        tally_(tally) {}

  void run() {
    check_image();
    if (options_.members.need_caption) check_caption();
    if (options_.members.need_label) check_label();
  }

 private:
  void report(Kind kind, std::string reason) {
    tally_.problems.push_back({shard_, std::string(sample_.key()), kind, std::move(reason)});
  }

  void check_image() {
    const auto content = load(keys_.image, "image", Kind::missing_image);
    if (!content) return;
    try {
      image::decode_image(*content, options_.decoding);
      ++tally_.images_ok;
    } catch (const Error& error) {
      report(Kind::undecodable_image, error.what());
    }
  }

  void check_caption() {
    const auto content = load(keys_.caption, "caption", Kind::missing_caption);
    if (!content) return;
    try {
      count_captions(detail::parse_captions(text_of(*content), keys_.json_field, options_.members.caption_lines));
    } catch (const detail::MissingCaption& error) {
      report(Kind::missing_caption, error.what());
    } catch (const detail::EmptyCaption& error) {
      report(Kind::empty_caption, error.what());
    } catch (const DataError& error) {
      report(Kind::malformed_caption, error.what());
    }
  }

  void count_captions(const std::vector<std::string>& captions) {
    ++tally_.captions_ok;
    for (const auto& caption : captions) {
      const auto bytes = static_cast<int64_t>(caption.size());
      ++tally_.captions;
      tally_.caption_bytes += bytes;
      tally_.caption_bytes_max = std::max(tally_.caption_bytes_max, bytes);
    }
  }

  void check_label() {
    const auto content = load(detail::kLabelKeys, "label", Kind::missing_label);
    if (!content) return;
    try {
      detail::parse_label(text_of(*content), options_.members.num_labels);
    } catch (const DataError& error) {
      report(Kind::malformed_label, error.what());
    }
  }

  /// A member's content, or nothing if it is missing, too large or unreadable, which is then reported.
  std::optional<std::vector<uint8_t>> load(const std::vector<std::string>& keys, const char* what, Kind missing) {
    auto problem = missing;
    try {
      const auto member = detail::require_member(sample_, keys, what);
      problem = Kind::oversized_member;
      detail::check_length(member, options_.members.max_member_bytes);
      problem = Kind::unreadable;
      std::vector<uint8_t> content(static_cast<size_t>(member.length));
      file_.read(member.offset, content);
      return content;
    } catch (const DataError& error) {
      report(problem, error.what());
      return std::nullopt;
    }
  }

  static std::string_view text_of(const std::vector<uint8_t>& content) {
    return {reinterpret_cast<const char*>(content.data()), content.size()};
  }

  const ValidationOptions& options_;
  const detail::MemberKeys& keys_;
  const fs::path& shard_;
  IndexedSample sample_;
  const detail::ReadFile& file_;
  Tally& tally_;
};

/// A run of samples of one shard.
struct Chunk {
  size_t shard;
  int64_t begin;
  int64_t end;
};

std::vector<Chunk> split_into_chunks(const std::vector<ScannedShard>& shards) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < shards.size(); ++i) {
    const auto size = shards[i].scan.table.size();
    for (int64_t begin = 0; begin < size; begin += kChunk) chunks.push_back({i, begin, std::min(begin + kChunk, size)});
  }
  return chunks;
}

/// Opens the shard anew: thousands of shards must not need thousands of file descriptors.
Tally check_chunk(const ValidationOptions& options, const detail::MemberKeys& keys, const ScannedShard& shard,
                  const Chunk& chunk) {
  Tally tally;
  try {
    const detail::ReadFile file(shard.path);
    for (auto row = chunk.begin; row < chunk.end; ++row) SampleCheck(options, keys, shard, row, file, tally).run();
  } catch (const DataError& error) {
    const IndexedSample first(shard.scan.table, 0, chunk.begin);
    const auto reason =
        fmt::format("{}; this sample and the {} after it were not read", error.what(), chunk.end - chunk.begin - 1);
    tally.problems.push_back({shard.path, std::string(first.key()), Kind::unreadable, reason});
  }
  return tally;
}

int64_t count_of(const ValidationReport& report, Kind kind) {
  const auto found = report.counts.find(kind);
  return found == report.counts.end() ? 0 : found->second;
}

ValidationReport summarise(std::vector<ScannedShard>& shards, const std::vector<Chunk>& chunks,
                           std::vector<Tally>& tallies) {
  ValidationReport report;
  int64_t captions = 0;
  int64_t caption_bytes = 0;
  const auto append = [&](std::vector<ShardProblem>& problems) {
    for (auto& problem : problems) {
      ++report.counts[problem.kind];
      report.problems.push_back(std::move(problem));
    }
  };
  size_t next = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    report.samples += shards[i].scan.table.size();
    for (; next < chunks.size() && chunks[next].shard == i; ++next) {
      auto& tally = tallies[next];
      report.images_ok += tally.images_ok;
      report.captions_ok += tally.captions_ok;
      report.caption_bytes_max = std::max(report.caption_bytes_max, tally.caption_bytes_max);
      captions += tally.captions;
      caption_bytes += tally.caption_bytes;
      append(tally.problems);
    }
    append(shards[i].problems);
  }
  report.captions_missing = count_of(report, Kind::missing_caption);
  report.captions_empty = count_of(report, Kind::empty_caption);
  if (captions > 0) report.caption_bytes_mean = static_cast<double>(caption_bytes) / static_cast<double>(captions);
  return report;
}

}  // namespace

const char* to_string(ShardProblemKind kind) {
  switch (kind) {
    case Kind::damaged_archive:
      return "damaged archive";
    case Kind::missing_end_blocks:
      return "missing end blocks";
    case Kind::no_samples:
      return "no samples";
    case Kind::duplicate_extension:
      return "duplicate extension";
    case Kind::duplicate_key:
      return "duplicate key";
    case Kind::missing_image:
      return "missing image";
    case Kind::undecodable_image:
      return "undecodable image";
    case Kind::missing_caption:
      return "missing caption";
    case Kind::empty_caption:
      return "empty caption";
    case Kind::malformed_caption:
      return "malformed caption";
    case Kind::missing_label:
      return "missing label";
    case Kind::malformed_label:
      return "malformed label";
    case Kind::oversized_member:
      return "oversized member";
    case Kind::unreadable:
      return "unreadable";
  }
  return "unknown";
}

ValidationReport validate_shards(const std::vector<fs::path>& paths, const ValidationOptions& options) {
  const auto keys = detail::parse_member_keys(options.members);
  const auto num_shards = static_cast<int64_t>(paths.size());
  std::vector<ScannedShard> shards(paths.size());
  detail::parallel_for(num_shards, options.threads,
                       [&](int64_t i) { shards[static_cast<size_t>(i)] = scan(paths[static_cast<size_t>(i)]); });

  const auto chunks = split_into_chunks(shards);
  const auto num_chunks = static_cast<int64_t>(chunks.size());
  int64_t total = 0;
  for (const auto& chunk : chunks) total += chunk.end - chunk.begin;
  std::vector<Tally> tallies(chunks.size());
  std::mutex mutex;
  int64_t done = 0;
  detail::parallel_for(num_chunks, options.threads, [&](int64_t i) {
    const auto& chunk = chunks[static_cast<size_t>(i)];
    tallies[static_cast<size_t>(i)] = check_chunk(options, keys, shards[chunk.shard], chunk);
    if (!options.progress) return;
    const std::lock_guard lock(mutex);
    done += chunk.end - chunk.begin;
    options.progress(done, total);
  });
  return summarise(shards, chunks, tallies);
}

}  // namespace contrastive::data
