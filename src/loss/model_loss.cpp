#include "contrastive/loss/model_loss.h"

#include "contrastive/loss/sigmoid_loss.h"

namespace contrastive::loss {

ContrastiveLossOutput model_loss(const models::ClipOutput& output, const distributed::ProcessGroup& group) {
  const auto &image = output.image_features, &text = output.text_features;
  if (!output.logit_bias.defined()) return contrastive_loss(image, text, output.logit_scale, group);
  return sigmoid_loss(image, text, output.logit_scale, output.logit_bias, group);
}

}  // namespace contrastive::loss
