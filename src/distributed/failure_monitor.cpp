#include "distributed/failure_monitor.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/chrono.h>
#include <fmt/format.h>

namespace contrastive::distributed::detail {
namespace {

using std::chrono::milliseconds;

constexpr const char* kCauseKey = "failure";
constexpr milliseconds kLongestInterval{1000};
constexpr milliseconds kShortestInterval{50};
constexpr int kIntervalsPerTimeout = 10;
/// Signs of life that a rank may owe before it is taken for dead, once there is another reason to think so.
constexpr int kMissedSigns = 3;
/// How long a rank's own thread may take to notice by itself that the job has failed.
constexpr milliseconds kPatience{5000};
/// How long a failing rank waits for others: to be heard, and until they have let go of the store.
constexpr milliseconds kLastWords{3000};
constexpr milliseconds kPollInterval{20};

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

int64_t operations_in(const std::string& sign) {
  const auto space = sign.find(' ');
  return space == std::string::npos ? 0 : std::stoll(sign.substr(space + 1));
}

}  // namespace

std::string publish_cause(c10d::Store& store, const std::string& cause) {
  return store.compareSet(kCauseKey, std::string(), cause);
}

FailureMonitor::FailureMonitor(c10::intrusive_ptr<c10d::Store> store, int64_t rank, int64_t world_size,
                               bool hosts_store, const ConnectOptions& options)
    : store_(std::move(store)),
      rank_(rank),
      world_size_(world_size),
      hosts_store_(hosts_store),
      options_(options),
      interval_(std::clamp(options.timeout / kIntervalsPerTimeout, kShortestInterval, kLongestInterval)),
      thread_([this] { run(); }) {}

FailureMonitor::~FailureMonitor() {
  leave();
  thread_.join();
}

std::optional<std::string> FailureMonitor::cause() const {
  const std::lock_guard lock(mutex_);
  return cause_;
}

std::string FailureMonitor::fail(const std::string& message) {
  std::unique_lock lock(mutex_);
  own_thread_knows_ = true;
  if (cause_) return *cause_;
  request_ = message;
  changed_.notify_all();
  changed_.wait_for(lock, kLastWords, [&] { return cause_.has_value(); });
  const auto result = cause_.value_or(message);
  // The store must outlive the others' look at it.
  if (hosts_store_) changed_.wait_for(lock, kLastWords, [&] { return left_; });
  return result;
}

std::string FailureMonitor::find_cause(const std::string& symptom) {
  std::unique_lock lock(mutex_);
  own_thread_knows_ = true;
  symptom_ = symptom;
  changed_.notify_all();
  const auto limit = kMissedSigns * interval_ + kLastWords;
  changed_.wait_for(lock, limit, [&] { return cause_.has_value(); });
  return cause_.value_or(symptom);
}

void FailureMonitor::leave() {
  std::unique_lock lock(mutex_);
  leaving_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, options_.timeout, [&] { return left_; });
}

void FailureMonitor::run() {
  try {
    while (beat()) {
      std::unique_lock lock(mutex_);
      const bool hurry = symptom_ && !cause_;
      changed_.wait_for(lock, hurry ? kShortestInterval : interval_,
                        [&] { return leaving_ || (request_ && !cause_) || (symptom_ && !hurry && !cause_); });
    }
    if (hosts_store_) wait_for_others(cause() ? kLastWords : options_.timeout);
  } catch (const std::exception&) {  // whoever serves the store ended without leaving
    know(hosts_store_ ? "the job's store failed" : "the job's store is gone: rank 0, or its launcher, was killed");
    for (const auto begin = Clock::now(); Clock::now() - begin < kPatience; std::this_thread::sleep_for(interval_)) {
      const std::lock_guard lock(mutex_);
      if (own_thread_knows_ || leaving_) break;
    }
    warn_stuck();
  }
  const std::lock_guard lock(mutex_);
  left_ = true;
  changed_.notify_all();
}

/// One round; false if it was the last.
bool FailureMonitor::beat() {
  publish_requests();
  store_->set(key_of("alive", rank_), fmt::format("{} {}", ++beats_, operations_.load()));
  look_for_cause();
  if (cause()) {
    store_->set(key_of("left", rank_), std::string("1"));
    warn_stuck();
    const std::lock_guard lock(mutex_);
    return !own_thread_knows_ && !leaving_;
  }
  watch_signs();
  if (!is_leaving()) return true;
  store_->set(key_of("left", rank_), std::string("1"));
  return false;
}

/// The store is never waited for with the lock held: the rank's own thread needs that to give up.
bool FailureMonitor::is_leaving() const {
  const std::lock_guard lock(mutex_);
  return leaving_;
}

void FailureMonitor::publish_requests() {
  std::optional<std::string> request;
  {
    const std::lock_guard lock(mutex_);
    request = request_;
  }
  if (request) know(publish_cause(*store_, *request));
}

void FailureMonitor::look_for_cause() {
  if (!cause() && store_->check({kCauseKey})) know(store_->get_to_str(kCauseKey));
}

void FailureMonitor::know(const std::string& cause) {
  const std::lock_guard lock(mutex_);
  if (!cause_) {
    cause_ = cause;
    known_since_ = Clock::now();
  }
  changed_.notify_all();
}

void FailureMonitor::warn_stuck() {
  {
    const std::lock_guard lock(mutex_);
    if (own_thread_knows_ || leaving_ || Clock::now() - known_since_ < kPatience) return;
    own_thread_knows_ = true;
  }
  if (options_.on_stuck) options_.on_stuck(*cause());
}

void FailureMonitor::watch_signs() {
  std::optional<std::string> symptom;
  {
    const std::lock_guard lock(mutex_);
    symptom = symptom_;
  }
  if (symptom && suspicious_since_ == Clock::time_point{}) suspicious_since_ = Clock::now();
  const bool sees_all = symptom.has_value() || rank_ == 0;
  for (int64_t rank = 0; rank < (sees_all ? world_size_ : 1); ++rank) look_at(rank);
  if (symptom && !cause() && Clock::now() - suspicious_since_ > kMissedSigns * interval_ + kShortestInterval) {
    const auto slowest = blame_slowest_rank();
    know(publish_cause(*store_, slowest ? fmt::format("{} (rank {}: {})", *slowest, rank_, *symptom)
                                        : fmt::format("rank {}: {}", rank_, *symptom)));
  }
}

/// Reads the sign of another rank, and publishes its death if that is what it shows.
void FailureMonitor::look_at(int64_t rank) {
  const auto key = key_of("alive", rank);
  const auto now = Clock::now();
  const bool suspicious = suspicious_since_ != Clock::time_point{};
  const auto limit = suspicious ? kMissedSigns * interval_ : options_.timeout;
  if (rank == rank_ || cause()) return;
  if (!signs_.contains(rank) && !store_->check({key})) {
    const bool should_be_here = suspicious && now - suspicious_since_ > limit;
    if (should_be_here) know(publish_cause(*store_, fmt::format("rank {} never appeared", rank)));
    return;
  }
  const auto text = store_->get_to_str(key);
  auto& sign = signs_[rank];
  const auto own_delay = now - std::exchange(last_look_[rank], now);
  // A watcher that was itself stopped can't tell how long the others were silent.
  if (sign.text != text || own_delay > options_.timeout / 2) sign = {text, now};
  const auto silence = now - sign.changed;
  if (silence <= limit || store_->check({key_of("left", rank)})) return;
  know(publish_cause(*store_, fmt::format("rank {} ended or hangs: no sign of life for {:.1f} s (noticed by rank {})",
                                          rank, seconds(silence), rank_)));
}

/// The rank that has started fewer operations than this one, if there is one: the others wait for it.
std::optional<std::string> FailureMonitor::blame_slowest_rank() {
  int64_t slowest = rank_, least = operations_.load();
  for (const auto& [rank, sign] : signs_) {
    if (operations_in(sign.text) < least) {
      slowest = rank;
      least = operations_in(sign.text);
    }
  }
  if (slowest == rank_) return std::nullopt;
  return fmt::format("rank {} does not take part: it has started {} collective operations, rank {} {}", slowest, least,
                     rank_, operations_.load());
}

/// Until all others left, or the limit is over.
void FailureMonitor::wait_for_others(milliseconds limit) {
  const auto begin = Clock::now();
  for (int64_t rank = 0; rank < world_size_;) {
    if (rank == rank_ || store_->check({key_of("left", rank)})) {
      ++rank;
    } else if (Clock::now() - begin > limit) {
      return;
    } else {
      std::this_thread::sleep_for(kPollInterval);
    }
  }
}

std::string FailureMonitor::key_of(const char* what, int64_t rank) const {
  return fmt::format("{}/{}", what, rank);
}

}  // namespace contrastive::distributed::detail
