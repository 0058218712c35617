#include "text/word_cache.h"

#include <utility>

namespace contrastive::text {

WordCache::WordCache(int64_t capacity) : shard_capacity_(static_cast<size_t>(capacity) / kShards) {}

bool WordCache::append_ids(std::string_view word, std::vector<int32_t>& ids) {
  if (shard_capacity_ == 0 || word.size() > kMaxWordBytes) return false;
  auto& shard = shard_of(word);
  const std::scoped_lock lock(shard.mutex);
  const auto found = shard.ids.find(word);
  if (found == shard.ids.end()) return false;
  ids.insert(ids.end(), found->second.begin(), found->second.end());
  return true;
}

void WordCache::remember(std::string_view word, std::vector<int32_t> ids) {
  if (shard_capacity_ == 0 || word.size() > kMaxWordBytes) return;
  auto& shard = shard_of(word);
  const std::scoped_lock lock(shard.mutex);
  if (shard.ids.size() >= shard_capacity_) shard.ids.clear();
  shard.ids.emplace(word, std::move(ids));
}

}  // namespace contrastive::text
