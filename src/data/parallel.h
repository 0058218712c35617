#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace contrastive::data::detail {

/// How many threads to start for `tasks` tasks if `wanted` were asked for; 0 means one a core, 16 at most.
inline int64_t thread_count(int64_t wanted, int64_t tasks) {
  if (wanted <= 0) wanted = std::min<int64_t>(16, std::thread::hardware_concurrency());
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(tasks, 1));
}

/// Calls `task(i)` for i in [0, count) from `threads` threads. After an exception no further task starts, and the first
/// one thrown is thrown again here.
template <typename Task>
void parallel_for(int64_t count, int64_t threads, const Task& task) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) task(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::jthread> helpers;
  for (int64_t i = 1; i < thread_count(threads, count); ++i) helpers.emplace_back(work);
  work();
  helpers.clear();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace contrastive::data::detail
