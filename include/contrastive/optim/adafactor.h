#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/optim/optimizer.h"

namespace contrastive::optim {

/// How Adafactor looks at a parameter. Which axes it factors depends on the shape, and other programs keep the same
/// values in other shapes.
struct AdafactorLayout {
  int64_t parts = 1;           ///< equal parts along dimension 0, each with statistics of its own
  std::vector<int64_t> shape;  ///< of one part; row-major over its values

  /// The axes of `shape` in the other program's order, if it isn't theirs already: of axes of equal length the later
  /// one counts as the longer.
  std::vector<int64_t> axis_order = {};
};

/// By the parameter's name and shape.
using AdafactorLayoutRule = std::function<AdafactorLayout(const std::string& name, at::IntArrayRef shape)>;

/// A parameter of this library's models as big_vision's of the same role: query, key and value projections are separate
/// there, of shape [D, heads, D / heads], output projections are [heads, D / heads, D], convolution kernels end in the
/// channels. Everything else has the same axes, or these in the reverse order, which makes no difference.
/// Args: heads_image, heads_text, attention heads of the tower whose parameters start with "visual." and of the other.
CONTRASTIVE_API AdafactorLayout adafactor_layout(const std::string& name, at::IntArrayRef shape, int64_t heads_image,
                                                 int64_t heads_text);

struct AdafactorOptions {
  double beta2 = 0.999;  ///< the decay of the second moment after s steps is min(beta2, 1 - s^(-decay_exponent))
  double decay_exponent = 0.8;
  double eps = 1e-30;                             ///< added to squared gradients
  int64_t min_factored = 32;                      ///< the second longest axis must have this length
  std::optional<double> clipping_threshold = {};  ///< largest root mean square of an update, before momentum
  std::optional<double> momentum = 0.9;           ///< of an exponential mean, without bias correction
  bool bf16_momentum = true;                      ///< how it is kept between steps; rounds `momentum` itself, too
  AdafactorLayoutRule layout = {};                ///< empty: each parameter in its own shape
};

/// big_vision's variant of Adafactor: Adam whose second moment is kept as the means over rows and columns of a tensor's
/// two longest axes (other axes are batches of such matrices), or value by value where these are short. The learning
/// rate is absolute; updates are not scaled by the size of the parameters.
/// State: "exp_avg.<name>" in the parameter's shape, "exp_avg_sq.<name>" or "exp_avg_sq_row.<name>" and
/// "exp_avg_sq_col.<name>" in the layout's shape with the parts in front, averaged axes 1.
/// Source: Shazeer and Stern 2018, arXiv 1804.04235; Zhai et al. 2022, arXiv 2106.04560, section 3.4;
/// big_vision/optax.py as it runs compiled: the momentum that is applied is the sum before it is rounded to bf16.
class CONTRASTIVE_API Adafactor : public Optimizer {
 public:
  /// Throws: Error if a layout doesn't hold as many values as its parameter.
  Adafactor(NamedTensors parameters, AdafactorOptions options, std::vector<ParameterSettings> settings);

 private:
  /// What is kept of a parameter.
  struct Moments {
    std::vector<int64_t> shape;                       ///< [parts, shape of a part]
    std::optional<std::pair<int64_t, int64_t>> axes;  ///< that are factored, the longer first; of `shape`
    torch::Tensor exp_avg;                            ///< undefined without momentum
    torch::Tensor exp_avg_sq;                         ///< not factored
    torch::Tensor exp_avg_sq_row, exp_avg_sq_col;     ///< factored: means over the longer and over the shorter axis
  };

  Moments make_moments(const std::string& name, const torch::Tensor& parameter) const;
  void update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) override;
  NamedTensors moments() const override;

  /// The decay of the second moment in this step.
  torch::Tensor decay_at(const torch::Tensor& step, at::ScalarType dtype) const;

  /// Takes squared gradients into the second moments.
  void accumulate(std::span<const Update> updates, const std::vector<torch::Tensor>& gradients);

  /// A gradient over the root of its second moment, in the layout's shape.
  torch::Tensor scaled(const Moments& moments, const torch::Tensor& gradient) const;

  /// Replaces directions by the momentum that they change.
  void add_momentum(std::span<const Update> updates, std::vector<torch::Tensor>& directions);

  AdafactorOptions options_;
  std::vector<Moments> moments_;  ///< of parameters(), in order
};

}  // namespace contrastive::optim
