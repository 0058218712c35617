#include "eval/fingerprint.h"

#include <cstdint>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/digest.h"
#include "contrastive/eval/model_folder.h"

namespace contrastive::eval::detail {

std::string digest_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::string tensors_fingerprint(std::string text, const models::ClipModelImpl& model,
                                const std::function<bool(const std::string& name)>& is_part) {
  for (const auto& [name, tensor] : model.state()) {
    if (!is_part(name)) continue;
    const auto plain = tensor.detach().cpu().contiguous();
    const auto* bytes = static_cast<const uint8_t*>(plain.const_data_ptr());
    text += fmt::format("{} {}\n", name, sha256_hex({bytes, static_cast<size_t>(plain.nbytes())}));
  }
  return digest_of(text);
}

std::string model_fingerprint(const models::ClipModelImpl& model, const image::PreprocessSpec& preprocess) {
  return tensors_fingerprint(open_clip_config(model.config(), preprocess), model, [](const auto&) { return true; });
}

std::string text_fingerprint(const models::ClipModelImpl& model) {
  // The image tower's part of the config goes along: one that differs in it alone is a rare loss of a cache.
  return tensors_fingerprint(open_clip_config(model.config(), {}), model, [](const std::string& name) {
    return !name.starts_with("visual.") && !name.starts_with("logit_");
  });
}

}  // namespace contrastive::eval::detail
