#include "contrastive/loss/sigmoid_loss.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/models/precision.h"

#include "loss/loss_inputs.h"

namespace contrastive::loss {
namespace {

constexpr const char* kOperation = "sigmoid_loss";

struct Gradients {
  torch::Tensor image, text, scale, bias;
};

/// Loss and gradients of one batch, a tile of whole rows (images) at a time.
class TiledSigmoidLoss {
 public:
  TiledSigmoidLoss(const torch::Tensor& image, const torch::Tensor& text, const torch::Tensor& scale,
                   const torch::Tensor& bias, bool needs_gradient)
      : image_(image), text_(text), scale_(scale), bias_(bias), rows_(image.size(0)), needs_gradient_(needs_gradient) {
    loss_ = at::zeros({}, image.options());
    hits_ = at::zeros({}, image.options().dtype(at::kLong));
    if (!needs_gradient) return;
    gradients_ = {at::empty_like(image), at::zeros_like(text), at::zeros({}, image.options()),
                  at::zeros({}, image.options())};
  }

  ContrastiveLossOutput run() {
    const auto step = detail::tile_rows(image_, rows_);
    for (int64_t begin = 0; begin < rows_; begin += step) add_tile(begin, std::min(step, rows_ - begin));
    if (needs_gradient_) {
      gradients_.image.mul_(scale_);
      gradients_.text.mul_(scale_);
    }
    return {loss_ / rows_, hits_.to(image_.scalar_type()) / rows_};
  }

  const Gradients& gradients() const { return gradients_; }

 private:
  void add_tile(int64_t begin, int64_t size) {
    const auto image_rows = image_.narrow(0, begin, size);
    auto logits = image_rows.mm(text_.t()).mul_(scale_).add_(bias_);  // [size, B]
    const auto targets = at::arange(begin, begin + size, hits_.options());
    hits_ += (logits.argmax(1) == targets).sum();
    auto right = logits.neg_();  // z (scale <i, t> + bias): the larger, the better
    right.diagonal(begin).neg_();
    loss_ -= at::log_sigmoid(right).sum();
    if (needs_gradient_) add_gradients(right.neg_().sigmoid_(), image_rows, begin, size);
  }

  /// `slope`: derivative of a pair's loss by how wrong it is. Overwritten.
  void add_gradients(torch::Tensor slope, const torch::Tensor& image_rows, int64_t begin, int64_t size) {
    slope.diagonal(begin).neg_();
    slope.div_(rows_);  // d loss / d logit
    auto image_gradient = gradients_.image.narrow(0, begin, size);
    at::mm_out(image_gradient, slope, text_);
    gradients_.scale += (image_gradient * image_rows).sum();
    gradients_.bias += slope.sum();
    gradients_.text.addmm_(slope.t(), image_rows);
  }

  torch::Tensor image_, text_, scale_, bias_, loss_, hits_;
  int64_t rows_;
  bool needs_gradient_;
  Gradients gradients_;
};

/// The loss is a scalar, so the gradients of its inputs are known in the forward pass up to a factor.
class SigmoidLossFunction : public torch::autograd::Function<SigmoidLossFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& image,
                                                const torch::Tensor& text, const torch::Tensor& scale,
                                                const torch::Tensor& bias, bool needs_gradient) {
    TiledSigmoidLoss tiled(image, text, scale, bias, needs_gradient);
    const auto output = tiled.run();
    const auto& gradients = tiled.gradients();
    if (needs_gradient) {
      context->save_for_backward({gradients.image, gradients.text, gradients.scale, gradients.bias});
    }
    context->mark_non_differentiable({output.accuracy});
    return {output.loss, output.accuracy};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    torch::autograd::variable_list results;
    for (const auto& saved : context->get_saved_variables()) results.push_back(saved * gradients[0]);
    results.emplace_back();
    return results;
  }
};

}  // namespace

ContrastiveLossOutput sigmoid_loss(const torch::Tensor& image_features, const torch::Tensor& text_features,
                                   const torch::Tensor& logit_scale, const torch::Tensor& logit_bias) {
  detail::check_features(kOperation, image_features, text_features);
  detail::check_scalar(kOperation, "logit_scale", logit_scale, image_features);
  detail::check_scalar(kOperation, "logit_bias", logit_bias, image_features);
  const models::AutocastGuard no_autocast(image_features.device().type(), /*bf16=*/false);
  const auto dtype = at::promote_types(image_features.scalar_type(), at::kFloat);
  const bool needs_gradient =
      at::GradMode::is_enabled() && (image_features.requires_grad() || text_features.requires_grad() ||
                                     logit_scale.requires_grad() || logit_bias.requires_grad());
  const auto output = SigmoidLossFunction::apply(image_features.to(dtype), text_features.to(dtype),
                                                 logit_scale.to(dtype), logit_bias.to(dtype), needs_gradient);
  return {output[0], output[1]};
}

}  // namespace contrastive::loss
