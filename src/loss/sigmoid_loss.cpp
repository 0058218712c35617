#include "contrastive/loss/sigmoid_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/models/precision.h"

#include "loss/loss_inputs.h"
#include "loss/tiled_batch.h"

namespace contrastive::loss {
namespace {

constexpr const char* kOperation = "sigmoid_loss";

/// Loss and gradients of one rank's rows, in one sweep over the tiles.
class SigmoidLoss {
 public:
  SigmoidLoss(const torch::Tensor& image, const torch::Tensor& text, const torch::Tensor& scale,
              const torch::Tensor& bias, const detail::NeededGradients& needed, const distributed::ProcessGroup& group)
      : batch_(image, text, scale.scalar_type(), needed, group), scale_(scale), bias_(bias), needed_(needed) {
    const auto filled = [&](double value) { return at::full({batch_.rows()}, value, scale.options()); };
    rows_ = {filled(0), filled(batch_.lowest()), filled(batch_.lowest()), filled(0), filled(0)};
  }

  ContrastiveLossOutput run() {
    batch_.start_gathering();
    for (const auto& place : batch_.places()) {
      const auto part = [&](const torch::Tensor& tensor) { return tensor.narrow(0, place.row, place.rows); };
      const auto tile = batch_.products(place);
      batch_.add_accuracy_statistics(place, tile, scale_);
      detail::products_to_slopes(
          tile, scale_, bias_,
          {part(rows_.own), part(rows_.before), part(rows_.after), part(rows_.loss), part(rows_.slope)});
      if (needed_.any()) batch_.add_gradients(place, tile.products);
    }
    return batch_.mean_over_ranks(rows_.loss, rows_.own, rows_.before, rows_.after);
  }

  /// Of the loss that run() returned: of image, text, scale, bias.
  torch::autograd::variable_list gradients() {
    const double factor = 1 / static_cast<double>(batch_.all_rows());
    const auto features = batch_.take_gradients(scale_, factor);
    return {features.image, features.text, features.scale,
            (rows_.slope.sum(at::kDouble) * factor).to(bias_.scalar_type())};
  }

 private:
  detail::TiledBatch batch_;
  torch::Tensor scale_, bias_;  // []
  detail::NeededGradients needed_;
  detail::SigmoidStatistics rows_;
};

/// The loss is a scalar, so the gradients of its inputs are known in the forward pass up to a factor.
class SigmoidLossFunction : public torch::autograd::Function<SigmoidLossFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& image,
                                                const torch::Tensor& text, const torch::Tensor& scale,
                                                const torch::Tensor& bias, const detail::NeededGradients& needed,
                                                const distributed::ProcessGroup& group) {
    const auto dtype = at::promote_types(image.scalar_type(), at::kFloat);
    SigmoidLoss sigmoid(image, text, scale.to(dtype), bias.to(dtype), needed, group);
    const auto output = sigmoid.run();
    if (needed.any()) context->save_for_backward(sigmoid.gradients());
    context->mark_non_differentiable({output.accuracy});
    return {output.loss, output.accuracy};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto results = detail::scaled(context->get_saved_variables(), gradients[0]);
    results.resize(6);
    return results;
  }
};

}  // namespace

ContrastiveLossOutput sigmoid_loss(const torch::Tensor& image_features, const torch::Tensor& text_features,
                                   const torch::Tensor& logit_scale, const torch::Tensor& logit_bias,
                                   const distributed::ProcessGroup& group) {
  detail::check_features(kOperation, image_features, text_features);
  detail::check_scalar(kOperation, "logit_scale", logit_scale, image_features);
  detail::check_scalar(kOperation, "logit_bias", logit_bias, image_features);
  const auto needed = detail::needed_gradients(image_features, text_features, {logit_scale, logit_bias});
  detail::check_same_on_all_ranks(kOperation, image_features, needed, group);
  const models::AutocastGuard no_autocast(image_features.device().type(), /*bf16=*/false);
  const auto output = SigmoidLossFunction::apply(image_features, text_features, logit_scale, logit_bias, needed, group);
  return {output[0], output[1]};
}

}  // namespace contrastive::loss
