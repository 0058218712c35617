#include "contrastive/train/checkpoint_saver.h"

#include <chrono>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kErrorPrefix = "error: ";

std::string key_of(int64_t step, const std::string& what) {
  return fmt::format("checkpoint/{}/{}", step, what);
}

/// `constant`: names of those that nobody will change.
NamedTensors copy_of(const NamedTensors& tensors, const std::set<std::string>& constant = {}) {
  NamedTensors copies;
  for (const auto& [name, tensor] : tensors) {
    copies.emplace_back(name, tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/!constant.contains(name)));
  }
  return copies;
}

}  // namespace

CheckpointSaver::CheckpointSaver(const fs::path& run_directory, const distributed::ProcessGroup& group,
                                 const CheckpointSaverOptions& options)
    : run_directory_(run_directory), group_(group), options_(options) {
  options_.sharded = options.sharded && !group.is_alone();
  if (group.rank() == 0) store_.emplace(run_directory, options.keep);
}

CheckpointSaver::~CheckpointSaver() {
  if (writing_.valid()) writing_.wait();
}

void CheckpointSaver::start(const CheckpointContent& content) {
  CONTRASTIVE_INTERNAL_ASSERT(!is_busy());
  if (!store_ && !options_.sharded) return;
  if (!options_.background) {
    std::promise<SavedCheckpoint> done;
    done.set_value(write(content));
    writing_ = done.get_future();
    return;
  }
  auto copy = content;
  if (store_) copy.weights = copy_of(content.weights, content.constant);
  copy.optimizer = copy_of(content.optimizer);
  writing_ = std::async(std::launch::async, [this, copy = std::move(copy)] { return write(copy); });
}

std::optional<SavedCheckpoint> CheckpointSaver::result() {
  if (!is_busy() || writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return std::nullopt;
  return writing_.get();
}

std::optional<SavedCheckpoint> CheckpointSaver::wait() {
  if (!is_busy()) return std::nullopt;
  return writing_.get();
}

SavedCheckpoint CheckpointSaver::write(const CheckpointContent& content) {
  SavedCheckpoint saved;
  saved.step = content.state.step;
  try {
    if (store_) {
      saved.folder = write_as_first(content);
    } else {
      write_own_part(content);
    }
  } catch (const std::exception& error) {
    saved.error = error.what();
  }
  return saved;
}

fs::path CheckpointSaver::write_as_first(const CheckpointContent& content) {
  if (!options_.sharded) return store_->save(content);
  const auto step = content.state.step;
  bool others_know = false;
  try {
    return store_->save(content, group_.size(), [&](const fs::path& folder) {
      others_know = true;
      group_.set_value(key_of(step, "folder"), folder.filename().string());
      return collect_parts(folder, step);
    });
  } catch (const std::exception& error) {
    if (!others_know) group_.set_value(key_of(step, "folder"), kErrorPrefix + std::string(error.what()));
    throw;
  }
}

std::map<std::string, std::string> CheckpointSaver::collect_parts(const fs::path& folder, int64_t step) const {
  std::map<std::string, std::string> digests;
  for (int64_t rank = 1; rank < group_.size(); ++rank) {
    const auto value = group_.get_value(key_of(step, std::to_string(rank)));
    if (value.starts_with(kErrorPrefix)) {
      throw CheckpointError(fmt::format("rank {}: {}", rank, value.substr(std::string(kErrorPrefix).size())));
    }
    const auto name = optimizer_file_name(rank, group_.size());
    if (!fs::exists(folder / name)) {
      throw CheckpointError(
          fmt::format("rank {} wrote {}, but rank 0 does not see it: with distributed.shard_optimizer "
                      "all ranks need the run's folder on a shared file system",
                      rank, name));
    }
    digests[name] = value;
  }
  return digests;
}

/// Of a rank that isn't the first: writes its part where rank 0 says, and leaves the digest or the error for it.
void CheckpointSaver::write_own_part(const CheckpointContent& content) const {
  const auto key = key_of(content.state.step, std::to_string(group_.rank()));
  const auto folder = group_.get_value(key_of(content.state.step, "folder"));
  if (folder.starts_with(kErrorPrefix)) return;  // rank 0 reports it
  const auto file = run_directory_ / "checkpoints" / folder / optimizer_file_name(group_.rank(), group_.size());
  try {
    group_.set_value(key, write_safetensors(file, content.optimizer));
  } catch (const Error& error) {
    group_.set_value(key, kErrorPrefix + std::string(error.what()));
  }
}

}  // namespace contrastive::train
