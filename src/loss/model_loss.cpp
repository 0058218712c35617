#include "contrastive/loss/model_loss.h"

#include "contrastive/loss/sigmoid_loss.h"

namespace contrastive::loss {

ContrastiveLossOutput model_loss(const models::ClipOutput& output) {
  if (!output.logit_bias.defined()) {
    return contrastive_loss(output.image_features, output.text_features, output.logit_scale);
  }
  return sigmoid_loss(output.image_features, output.text_features, output.logit_scale, output.logit_bias);
}

}  // namespace contrastive::loss
