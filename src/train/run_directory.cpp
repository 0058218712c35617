#include "contrastive/train/run_directory.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/log.h"
#include "contrastive/train/checkpoint.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigName = "config.yaml";

std::string join_lines(const std::vector<std::string>& lines) {
  return fmt::format("{}", fmt::join(lines, "\n  "));
}

/// What of a map's entries differs from those of another.
ConfigNode without_defaults(const ConfigNode& node, const ConfigNode& defaults) {
  auto result = ConfigNode::make_map();
  for (const auto& [key, place, value] : node.entries) {
    const auto* standard = defaults.find(key);
    if (standard != nullptr && to_json(value, -1) == to_json(*standard, -1)) continue;
    const bool are_maps =
        standard != nullptr && value.kind == ConfigNode::Kind::map && standard->kind == ConfigNode::Kind::map;
    result.add(key, are_maps ? without_defaults(value, *standard) : value);
  }
  return result;
}

}  // namespace

RunDirectory::RunDirectory(const RunOptions& options, const ResumeRequest& resume) : path_(options.run_directory()) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) throw Error(fmt::format("[run {}] the folder can't be made: {}", path_.string(), error.message()));
  lock();
  try {
    choose_checkpoint(resume);
    store_config(options);
  } catch (...) {
    ::close(lock_descriptor_);
    throw;
  }
}

RunDirectory::~RunDirectory() {
  ::close(lock_descriptor_);
}

void RunDirectory::lock() {
  const auto file = path_ / ".lock";
  lock_descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_descriptor_ < 0) {
    throw Error(fmt::format("[run {}] {} can't be opened: {}", path_.string(), file.string(), std::strerror(errno)));
  }
  if (::flock(lock_descriptor_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_descriptor_);
    throw Error(fmt::format("[run {}] another process is training in this folder", path_.string()));
  }
}

void RunDirectory::choose_checkpoint(const ResumeRequest& resume) {
  const CheckpointStore store(path_, 1);
  const auto latest = store.latest();
  if (resume.from == "auto") {
    resume_from_ = latest;
  } else if (resume.from != "none") {
    resume_from_ = fs::path(resume.from);
    if (!fs::is_directory(*resume_from_)) {
      throw CheckpointError(fmt::format("[checkpoint {}] is not a folder", resume.from));
    }
  } else if (latest) {
    throw ConfigError(fmt::format(
        "[run {}] has checkpoints, the latest {}; go on with --resume auto, or give the new run another name",
        path_.string(), latest->filename().string()));
  }
}

void RunDirectory::store_config(const RunOptions& options) const {
  const auto file = path_ / kConfigName;
  if (fs::exists(file) && resume_from_) {
    const auto differences = compare(read_options<RunOptions>(load_config(file)), options);
    if (!differences.of_training.empty()) {
      throw ConfigError(fmt::format(
          "[run {}] was started with another configuration:\n  {}\ngo on with the stored one (--config {}), "
          "or give the new run another name",
          path_.string(), join_lines(differences.of_training), file.string()));
    }
    for (const auto& line : differences.of_bookkeeping) log(LogLevel::info, "changed since the run's start: " + line);
  }
  write_file_atomically(file, to_yaml(options));
}

std::string training_config_hash(const RunOptions& options) {
  RunOptions plain = options;
  const RunOptions defaults;
  plain.name = "";
  plain.output = defaults.output;
  plain.threads = defaults.threads;
  plain.log = defaults.log;
  plain.checkpoint = defaults.checkpoint;
  plain.eval = defaults.eval;
  plain.distributed = defaults.distributed;
  plain.distributed.gradient_dtype = options.distributed.gradient_dtype;
  plain.distributed.sync_batch_norm = options.distributed.sync_batch_norm;
  plain.data.workers = defaults.data.workers;
  plain.data.prefetch_batches = defaults.data.prefetch_batches;
  plain.data.max_bad_samples = defaults.data.max_bad_samples;
  plain.image.batch_size = defaults.image.batch_size;
  plain.image.cache = defaults.image.cache;
  plain.where_to_get = defaults.where_to_get;
  plain.tokenizer = defaults.tokenizer;
  // Gives the same gradients to the bit.
  std::erase_if(plain.model.entries, [](const auto& entry) { return entry.key == "checkpoint_activations"; });
  // A key that a later version adds, with a default that changes nothing, leaves the hash as it is.
  const auto text = to_json(without_defaults(options_to_node(plain), options_to_node(defaults)), -1);
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace contrastive::train
