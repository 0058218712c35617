#include "contrastive/loss/contrastive_loss.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/models/precision.h"

#include "loss/loss_inputs.h"

namespace contrastive::loss {
namespace {

constexpr const char* kOperation = "contrastive_loss";

/// Maximum and sum of exp(x - maximum) of many rows (or columns) at once. The two are kept apart: their logarithmic sum
/// would lose, at logits of 100, the digits that decide whether a gradient vanishes.
struct SoftmaxStatistics {
  torch::Tensor maximum, sum;  ///< [B]

  /// Takes in further values of the same rows.
  void merge(const SoftmaxStatistics& other) {
    const auto joint = at::maximum(maximum, other.maximum);
    sum = sum * (maximum - joint).exp_() + other.sum * (other.maximum - joint).exp_();
    maximum = joint;
  }

  /// Cross-entropies of targets with these logits. Shapes: [B] to [B].
  torch::Tensor cross_entropy(const torch::Tensor& target_logits) const { return maximum - target_logits + sum.log(); }
};

SoftmaxStatistics statistics_over(const torch::Tensor& logits, int64_t dim) {
  const auto maximum = logits.amax(dim, /*keepdim=*/true);
  return {maximum.squeeze(dim), (logits - maximum).exp_().sum(dim)};
}

struct Gradients {
  torch::Tensor image, text, scale;
};

/// Loss and gradients of one batch, a tile of whole rows (images) at a time.
class TiledLoss {
 public:
  TiledLoss(const torch::Tensor& image, const torch::Tensor& text, const torch::Tensor& scale)
      : image_(image),
        text_(text),
        scale_(scale),
        rows_(image.size(0)),
        tile_rows_(detail::tile_rows(image, image.size(0))) {}

  ContrastiveLossOutput forward() {
    row_ = {at::empty({rows_}, image_.options()), at::empty({rows_}, image_.options())};
    column_ = {at::full({rows_}, -std::numeric_limits<double>::infinity(), image_.options()),
               at::zeros({rows_}, image_.options())};
    const auto target_logits = at::empty({rows_}, image_.options());
    auto hits = at::zeros({}, image_.options().dtype(at::kLong));
    for (int64_t begin = 0; begin < rows_; begin += tile_rows_) {
      const auto logits = tile(begin);
      const auto size = logits.size(0);
      const auto of_rows = statistics_over(logits, 1);
      row_.maximum.narrow(0, begin, size).copy_(of_rows.maximum);
      row_.sum.narrow(0, begin, size).copy_(of_rows.sum);
      column_.merge(statistics_over(logits, 0));
      target_logits.narrow(0, begin, size).copy_(logits.diagonal(begin));
      hits += (logits.argmax(1) == targets(begin, size)).sum();
    }
    const auto losses = row_.cross_entropy(target_logits) + column_.cross_entropy(target_logits);
    return {losses.mean() / 2, hits.to(image_.scalar_type()) / rows_};
  }

  /// Of the loss that forward() returned.
  Gradients backward() const {
    Gradients gradients{at::empty_like(image_), at::zeros_like(text_), at::zeros({}, image_.options())};
    for (int64_t begin = 0; begin < rows_; begin += tile_rows_) {
      const auto logits = tile(begin);
      const auto size = logits.size(0);
      const auto image_rows = image_.narrow(0, begin, size);
      const auto logit_gradient = tile_gradient(logits, begin);
      auto image_gradient = gradients.image.narrow(0, begin, size);
      at::mm_out(image_gradient, logit_gradient, text_);
      gradients.scale += (image_gradient * image_rows).sum();
      gradients.text.addmm_(logit_gradient.t(), image_rows);
    }
    gradients.image.mul_(scale_);
    gradients.text.mul_(scale_);
    return gradients;
  }

 private:
  torch::Tensor tile(int64_t begin) const {
    const auto size = std::min(tile_rows_, rows_ - begin);
    return image_.narrow(0, begin, size).mm(text_.t()).mul_(scale_);  // [size, B]
  }

  torch::Tensor targets(int64_t begin, int64_t size) const {
    return at::arange(begin, begin + size, image_.options().dtype(at::kLong));
  }

  /// (softmax over the row + softmax over the column - 2 at the target) / 2 B.
  torch::Tensor tile_gradient(const torch::Tensor& logits, int64_t begin) const {
    const auto size = logits.size(0);
    auto result = (logits - row_.maximum.narrow(0, begin, size).unsqueeze(1)).exp_();
    result.div_(row_.sum.narrow(0, begin, size).unsqueeze(1));
    result.diagonal(begin).sub_(1);
    auto by_column = (logits - column_.maximum).exp_().div_(column_.sum);
    by_column.diagonal(begin).sub_(1);
    return result.add_(by_column).div_(2 * rows_);
  }

  torch::Tensor image_, text_, scale_;
  int64_t rows_, tile_rows_;
  SoftmaxStatistics row_, column_;
};

/// The loss is a scalar, so the gradients of its inputs are known in the forward pass up to a factor.
class ContrastiveLossFunction : public torch::autograd::Function<ContrastiveLossFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& image,
                                                const torch::Tensor& text, const torch::Tensor& scale,
                                                bool needs_gradient) {
    TiledLoss tiled(image, text, scale);
    const auto output = tiled.forward();
    if (needs_gradient) {
      const auto gradients = tiled.backward();
      context->save_for_backward({gradients.image, gradients.text, gradients.scale});
    }
    context->mark_non_differentiable({output.accuracy});
    return {output.loss, output.accuracy};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * gradients[0], saved[1] * gradients[0], saved[2] * gradients[0], torch::Tensor()};
  }
};

}  // namespace

ContrastiveLossOutput contrastive_loss(const torch::Tensor& image_features, const torch::Tensor& text_features,
                                       const torch::Tensor& logit_scale) {
  detail::check_features(kOperation, image_features, text_features);
  detail::check_scalar(kOperation, "logit_scale", logit_scale, image_features);
  const models::AutocastGuard no_autocast(image_features.device().type(), /*bf16=*/false);
  const auto dtype = at::promote_types(image_features.scalar_type(), at::kFloat);
  const bool needs_gradient =
      at::GradMode::is_enabled() &&
      (image_features.requires_grad() || text_features.requires_grad() || logit_scale.requires_grad());
  const auto output = ContrastiveLossFunction::apply(image_features.to(dtype), text_features.to(dtype),
                                                     logit_scale.to(dtype), needs_gradient);
  return {output[0], output[1]};
}

}  // namespace contrastive::loss
