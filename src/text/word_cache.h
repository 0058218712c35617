#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace contrastive::text {

/// Remembers the ids of words. Thread-safe and bounded: a shard that is full starts anew.
class WordCache {
 public:
  /// At most `capacity` words; fewer than one a shard remember none.
  explicit WordCache(int64_t capacity);

  /// Appends the ids of a remembered word; false if it is not remembered.
  bool append_ids(std::string_view word, std::vector<int32_t>& ids);

  /// Words longer than a real one are not worth their memory and are ignored.
  void remember(std::string_view word, std::vector<int32_t> ids);

 private:
  static constexpr size_t kShards = 16;
  static constexpr size_t kMaxWordBytes = 64;

  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  struct Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> ids;
  };

  Shard& shard_of(std::string_view word) { return shards_[Hash{}(word) % kShards]; }

  size_t shard_capacity_;
  std::array<Shard, kShards> shards_;
};

}  // namespace contrastive::text
