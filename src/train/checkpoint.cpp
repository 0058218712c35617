#include "contrastive/train/checkpoint.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/version.h"
#include "contrastive/eval/model_folder.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kStateFile = "state.json";
constexpr const char* kOptimizerPrefix = "optimizer";
constexpr const char* kPartialSuffix = ".partial-";
constexpr int kFormat = 1;

[[noreturn]] void fail(const fs::path& folder, const std::string& message) {
  throw CheckpointError(fmt::format("[checkpoint {}] {}", folder.string(), message));
}

json to_json(const RunState& state, const std::map<std::string, std::string>& digests) {
  return {{"format", kFormat},
          {"library_version", version()},
          {"step", state.step},
          {"samples_seen", state.samples_seen},
          {"data_position", state.samples_seen},
          {"rng", {{"seed", state.seed}}},
          {"world_size", state.world_size},
          {"skipped_steps", state.skipped_steps},
          {"skipped_samples", state.skipped_samples},
          {"train_seconds", state.train_seconds},
          {"data_fingerprint", state.data_fingerprint},
          {"config_hash", state.config_hash},
          {"sha256", digests}};
}

RunState from_json(const json& document) {
  RunState state;
  state.step = document.at("step");
  state.samples_seen = document.at("samples_seen");
  state.seed = document.at("rng").at("seed");
  state.world_size = document.at("world_size");
  state.skipped_steps = document.at("skipped_steps");
  state.skipped_samples = document.at("skipped_samples");
  state.train_seconds = document.at("train_seconds");
  state.data_fingerprint = document.at("data_fingerprint");
  state.config_hash = document.at("config_hash");
  return state;
}

json read_state_file(const fs::path& folder) {
  if (!fs::is_directory(folder)) fail(folder, "is not a folder");
  std::string text;
  try {
    text = read_text_file(folder / kStateFile);
  } catch (const Error& error) {
    fail(folder, fmt::format("has no readable {}: {}", kStateFile, error.what()));
  }
  auto document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object() || !document.contains("sha256") || !document["sha256"].is_object()) {
    fail(folder, fmt::format("{} is damaged: not a JSON object with digests", kStateFile));
  }
  if (document.value("format", 0) != kFormat) {
    fail(folder,
         fmt::format("{} has format {}, this version reads {}", kStateFile, document.value("format", 0), kFormat));
  }
  return document;
}

std::vector<std::string> optimizer_files(const json& digests) {
  std::vector<std::string> names;
  for (const auto& [name, digest] : digests.items()) {
    if (name.starts_with(kOptimizerPrefix)) names.push_back(name);
  }
  return names;
}

void verify_files(const fs::path& folder, const json& document) {
  const auto& digests = document["sha256"];
  for (const char* needed : {eval::kWeightsFile, eval::kConfigFile}) {
    if (!digests.contains(needed)) fail(folder, fmt::format("{} does not list {}", kStateFile, needed));
  }
  if (optimizer_files(digests).empty()) fail(folder, fmt::format("{} lists no optimizer*.safetensors", kStateFile));
  for (const auto& [name, expected] : digests.items()) {
    if (!fs::is_regular_file(folder / name)) fail(folder, fmt::format("{} is missing", name));
    const auto found = sha256_hex_of_file(folder / name);
    if (expected != found) {
      fail(folder, fmt::format("{}: sha256 is {}..., {} says {}...: the file changed after it was written", name,
                               found.substr(0, 8), kStateFile,
                               expected.is_string() ? expected.get<std::string>().substr(0, 8) : "?"));
    }
  }
}

std::string digest_of_text(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

/// The file system's own errors as ours.
template <typename Action>
void with_file_errors(const fs::path& folder, const char* operation, const Action& action) {
  try {
    action();
  } catch (const fs::filesystem_error& error) {
    fail(folder, fmt::format("{} failed: {}", operation, error.code().message()));
  } catch (const CheckpointError& error) {
    fail(folder, fmt::format("{} failed: {}", operation, error.what()));
  } catch (const Error& error) {
    fail(folder, fmt::format("{} failed: {}", operation, error.what()));
  }
}

/// The state that all parts hold together; where a part repeats a tensor (the number of steps), the first counts.
NamedTensors read_optimizer(const fs::path& folder) {
  NamedTensors tensors;
  std::set<std::string> names;
  for (const auto& file : optimizer_files(read_state_file(folder)["sha256"])) {
    for (auto& tensor : SafetensorsFile(folder / file).tensors()) {
      if (names.insert(tensor.first).second) tensors.push_back(std::move(tensor));
    }
  }
  return tensors;
}

/// Without what belongs to parameters of the model that are not among those `owned`.
NamedTensors own_part(NamedTensors state, const NamedTensors& all, const NamedTensors& owned) {
  std::set<std::string> foreign;
  for (const auto& [name, parameter] : all) foreign.insert(name);
  for (const auto& [name, parameter] : owned) foreign.erase(name);
  std::erase_if(state, [&](const auto& entry) {
    const auto dot = entry.first.find('.');  // "exp_avg.<parameter>"
    return dot != std::string::npos && foreign.contains(entry.first.substr(dot + 1));
  });
  return state;
}

bool is_partial(const fs::path& folder) {
  return folder.filename().string().find(kPartialSuffix) != std::string::npos;
}

/// In the model's order, also where some of them lie in a file.
std::vector<LazyTensor> all_weights(const CheckpointContent& content) {
  auto tensors = lazy(content.weights);
  if (content.absent.empty()) return tensors;
  tensors.insert(tensors.end(), content.absent.begin(), content.absent.end());
  return models::complete_state(content.config, tensors).tensors;
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path run_directory, int64_t keep)
    : directory_(std::move(run_directory) / "checkpoints"), keep_(keep) {
  with_file_errors(directory_, "opening", [&] {
    fs::create_directories(directory_);
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (is_partial(entry.path())) fs::remove_all(entry.path());
    }
  });
}

std::vector<fs::path> CheckpointStore::list() const {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("step_") && !is_partial(entry.path()) && entry.is_directory()) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

std::optional<fs::path> CheckpointStore::latest() const {
  std::error_code error;
  const auto target = fs::read_symlink(directory_ / "latest", error);
  if (!error && fs::is_directory(directory_ / target)) return directory_ / target;
  const auto folders = list();  // killed between the first rename and the first link
  return folders.empty() ? std::nullopt : std::optional(folders.back());
}

fs::path CheckpointStore::save(const CheckpointContent& content, int64_t optimizer_parts, const OtherFiles& others) {
  const auto folder = directory_ / fmt::format("step_{:08d}", content.state.step);
  fs::path partial = folder;
  partial += fmt::format("{}{}", kPartialSuffix, getpid());
  try {
    with_file_errors(folder, "writing", [&] {
      fs::create_directories(partial);
      write_files(partial, content, optimizer_parts, others);
      publish(partial, folder);
      remove_old();
    });
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    throw;
  }
  return folder;
}

void CheckpointStore::write_files(const fs::path& folder, const CheckpointContent& content, int64_t optimizer_parts,
                                  const OtherFiles& others) const {
  std::map<std::string, std::string> digests;
  digests[eval::kWeightsFile] = eval::write_weights(folder / eval::kWeightsFile, content.config, all_weights(content));
  const auto optimizer_file = optimizer_file_name(0, optimizer_parts);
  digests[optimizer_file] = write_safetensors(folder / optimizer_file, content.optimizer);
  const auto config = eval::open_clip_config(content.config, content.preprocess);
  write_file_atomically(folder / eval::kConfigFile, config);
  digests[eval::kConfigFile] = digest_of_text(config);
  for (const auto& name : eval::copy_tokenizer_files(content.tokenizer_folder, folder)) {
    digests[name] = sha256_hex_of_file(folder / name);
  }
  if (others) digests.merge(others(folder));
  write_file_atomically(folder / kStateFile, to_json(content.state, digests).dump(2) + "\n");
}

void CheckpointStore::publish(const fs::path& partial, const fs::path& folder) const {
  if (fs::exists(folder)) {  // the same step again, after resuming from an earlier one
    fs::path replaced = folder;
    replaced += fmt::format("{}replaced", kPartialSuffix);
    fs::remove_all(replaced);
    fs::rename(folder, replaced);
    fs::rename(partial, folder);
    fs::remove_all(replaced);
  } else {
    fs::rename(partial, folder);
  }
  flush_directory(directory_);
  const auto link = directory_ / fmt::format("latest{}{}", kPartialSuffix, getpid());
  fs::remove(link);
  fs::create_symlink(folder.filename(), link);
  fs::rename(link, directory_ / "latest");
  flush_directory(directory_);
}

void CheckpointStore::remove_old() const {
  const auto newest = latest();
  auto folders = list();
  std::erase_if(folders, [&](const auto& folder) { return folder == newest; });
  const auto keep_others = static_cast<size_t>(keep_ - 1);
  for (size_t i = 0; i + keep_others < folders.size(); ++i) {
    fs::path doomed = folders[i];
    doomed += fmt::format("{}old", kPartialSuffix);  // never half a checkpoint under a good name
    fs::rename(folders[i], doomed);
    fs::remove_all(doomed);
  }
}

CheckpointContent checkpoint_content(const RunState& state, const models::ClipModel& model,
                                     const image::PreprocessSpec& preprocess, const optim::Optimizer& optimizer,
                                     const fs::path& tokenizer_folder) {
  return {state, model->config(), preprocess, model->state(), optimizer.state(), tokenizer_folder};
}

std::string optimizer_file_name(int64_t part, int64_t num_parts) {
  return num_parts == 1 ? fmt::format("{}.safetensors", kOptimizerPrefix)
                        : fmt::format("{}-{:05d}-of-{:05d}.safetensors", kOptimizerPrefix, part + 1, num_parts);
}

RunState verify_checkpoint(const fs::path& folder) {
  const auto document = read_state_file(folder);
  verify_files(folder, document);
  try {
    return from_json(document);
  } catch (const json::exception& error) {
    fail(folder, fmt::format("{} is damaged: {}", kStateFile, error.what()));
  }
}

RunState load_checkpoint(const fs::path& folder, models::ClipModel& model, optim::Optimizer& optimizer) {
  const auto state = verify_checkpoint(folder);
  with_file_errors(folder, "loading", [&] {
    model->load_state(SafetensorsFile(folder / eval::kWeightsFile).lazy_tensors());
    optimizer.load_state(own_part(read_optimizer(folder), model->state(), optimizer.parameters()));
  });
  return state;
}

std::string to_text(const RunState& state) {
  return to_json(state, {}).dump();
}

RunState run_state_from_text(const std::string& text) {
  try {
    return from_json(json::parse(text));
  } catch (const json::exception& error) {
    throw CheckpointError(fmt::format("[run state] is damaged: {}", error.what()));
  }
}

}  // namespace contrastive::train
