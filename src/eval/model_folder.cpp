#include "contrastive/eval/model_folder.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/eval/preprocess_config.h"

#include "eval/activation.h"

namespace contrastive::eval {

LoadedModel load_model(const CheckpointRequest& request,
                       const std::function<bool(const std::string&)>& may_be_missing) {
  const auto source = open_checkpoint(request);
  LoadedModel loaded{
      .model = models::ClipModel(source.config), .preprocess = source.preprocess, .folder = source.folder};
  if (may_be_missing) loaded.model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{0}));
  try {
    const auto missing = loaded.model->load_state(source.tensors, may_be_missing);
    if (!missing.empty()) {
      log(LogLevel::warning, fmt::format("[{}] lacks {} tensors, now random: {}", request.path.string(), missing.size(),
                                         fmt::join(missing, ", ")));
    }
  } catch (const CheckpointError& error) {
    throw CheckpointError(
        fmt::format("[{}] ({}) does not fit its model config: {}", request.path.string(), source.format, error.what()));
  }
  loaded.model->eval();
  return loaded;
}

LoadedModel load_model(const std::filesystem::path& path) {
  CheckpointRequest request;
  request.path = path;
  return load_model(request);
}

std::string open_clip_config(const models::ModelConfig& config, const image::PreprocessSpec& preprocess) {
  auto node = ConfigNode::make_map();
  node.add("model_cfg", models::to_node(config));
  node.add("preprocess_cfg", to_node(preprocess));
  return to_json(node) + "\n";
}

std::string write_weights(const std::filesystem::path& file, const models::ModelConfig& config,
                          const std::vector<LazyTensor>& tensors) {
  return write_safetensors(file, tensors, detail::weights_metadata(config));
}

}  // namespace contrastive::eval
