#include "contrastive/models/text_tower.h"

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include "contrastive/models/bert.h"
#include "contrastive/models/text_transformer.h"

namespace contrastive::models {

torch::Tensor TextTowerImpl::forward(const torch::Tensor& tokens) {
  if (!features_are_locked()) return project(forward_features(tokens));
  torch::Tensor features;
  {
    const at::NoGradGuard no_grad;
    features = forward_features(tokens);
  }
  return project(features);
}

void TextTowerImpl::check_tokens(const torch::Tensor& tokens) const {
  TORCH_CHECK(tokens.dim() == 2 && tokens.scalar_type() == at::kLong && tokens.size(1) >= 1 &&
                  tokens.size(1) <= config_.context_length,
              "[encode_text] tokens must be int64 [B, T] with 1 <= T <= ", config_.context_length,
              " (the context length), but are ", tokens.scalar_type(), " ", tokens.sizes());
  if (!tokens.is_cpu() || tokens.numel() == 0) return;
  const auto [lowest, highest] = tokens.aminmax();
  TORCH_CHECK(lowest.item<int64_t>() >= 0 && highest.item<int64_t>() < config_.vocab_size,
              "[encode_text] token ids must be in [0, ", config_.vocab_size, ") (the vocabulary), but range from ",
              lowest.item<int64_t>(), " to ", highest.item<int64_t>());
}

std::shared_ptr<TextTowerImpl> make_text_tower(const ModelConfig& config, torch::Device device) {
  const auto& text = config.text_cfg;
  if (text.is_bert()) return std::make_shared<BertImpl>(text, config.embed_dim, device);
  const auto activation = activation_of(config.quick_gelu, text.gelu_tanh);
  return std::make_shared<TextTransformerImpl>(text, config.embed_dim, activation, device);
}

}  // namespace contrastive::models
