#include "contrastive/eval/checkpoint_writer.h"

#include <fmt/format.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/torch_file.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/hf_config.h"
#include "contrastive/models/weight_names.h"
#include "contrastive/text/clip_vocabulary.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOpenClipWeightsFile = "open_clip_model.safetensors";
constexpr int64_t kClipVocabulary = 49408;

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw CheckpointError(fmt::format("[{}] can't be made: {}", folder.string(), error.message()));
}

std::vector<fs::path> write_open_clip(const fs::path& folder, const CheckpointSource& source) {
  make_folder(folder);
  write_weights(folder / kOpenClipWeightsFile, source.config, source.tensors);
  write_file_atomically(folder / kConfigFile, open_clip_config(source.config, source.preprocess));
  std::vector<fs::path> files{folder / kOpenClipWeightsFile, folder / kConfigFile};
  for (const auto& name : copy_tokenizer_files(source.folder, folder)) files.push_back(folder / name);
  return files;
}

std::vector<fs::path> write_hf(const fs::path& folder, const CheckpointSource& source) {
  const auto tensors = models::to_hf_clip_names(source.tensors, source.config);
  const auto config = to_json(models::to_hf_config(source.config)) + "\n";
  const auto preprocess = to_json(to_hf_preprocess(source.preprocess)) + "\n";
  make_folder(folder);
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  write_file_atomically(folder / "config.json", config);
  write_file_atomically(folder / "preprocessor_config.json", preprocess);
  std::vector<fs::path> files{folder / "model.safetensors", folder / "config.json",
                              folder / "preprocessor_config.json"};
  const auto& text = source.config.text_cfg;
  if (text.vocab_size == kClipVocabulary && text.hf_tokenizer_name.empty()) {
    const auto merges = find_resource("clip/bpe_simple_vocab_16e6.txt.gz");
    text::write_clip_vocabulary(folder, merges);
    for (const char* name : {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}) {
      files.push_back(folder / name);
    }
  } else {
    for (const auto& name : copy_tokenizer_files(source.folder, folder)) files.push_back(folder / name);
  }
  return files;
}

std::vector<fs::path> write(const fs::path& path, CheckpointFormat format, const CheckpointSource& source) {
  switch (format) {
    case CheckpointFormat::open_clip:
      return write_open_clip(path, source);
    case CheckpointFormat::hf:
      return write_hf(path, source);
    case CheckpointFormat::openai:
      write_torch_file(path, models::to_openai_weights(source.tensors, source.config));
      return {path};
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return {};
}

}  // namespace

std::vector<fs::path> write_checkpoint(const fs::path& path, CheckpointFormat format, const CheckpointSource& source,
                                       const std::function<bool(const std::string&)>& may_be_missing) {
  auto complete = source;
  complete.tensors = models::complete_state(source.config, source.tensors, may_be_missing).tensors;
  try {
    return write(path, format, complete);
  } catch (const ConfigError&) {
    throw;
  } catch (const Error& error) {
    throw CheckpointError(error.what());
  }
}

}  // namespace contrastive::eval
