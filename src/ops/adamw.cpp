#include "contrastive/ops/adamw.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>

#include "contrastive/ops/vector_math.h"

namespace contrastive::ops {
namespace {

// Values that a thread takes at a time.
constexpr int64_t kGrain = int64_t{1} << 14;

/// The step's numbers as the loop needs them.
struct Factors {
  explicit Factors(const AdamWStep& s)
      : kept(static_cast<float>(1 - s.lr * s.decay)),
        rate(static_cast<float>(s.lr / (1 - std::pow(s.beta1, s.step)))),
        root_factor(static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, s.step)))),
        eps(static_cast<float>(s.eps)),
        beta2(static_cast<float>(s.beta2)),
        one_minus_beta1(static_cast<float>(1 - s.beta1)),
        one_minus_beta2(static_cast<float>(1 - s.beta2)),
        grad_factor(static_cast<float>(1 / s.grad_divisor)) {}

  float kept, rate, root_factor, eps, beta2, one_minus_beta1, one_minus_beta2, grad_factor;
};

struct Values {
  float* parameter;
  const float* gradient;
  float *exp_avg, *exp_avg_sq;
  at::BFloat16* copy;  ///< or null

  Values from(int64_t begin) const {
    return {parameter + begin, gradient + begin, exp_avg + begin, exp_avg_sq + begin,
            copy == nullptr ? nullptr : copy + begin};
  }
};

template <bool has_copy>
CONTRASTIVE_INLINE void update_body(const Values& v, int64_t count, const Factors& f) {
  auto *parameter = v.parameter, *exp_avg = v.exp_avg, *exp_avg_sq = v.exp_avg_sq;
  const auto* gradient = v.gradient;
  auto* copy = v.copy;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * f.grad_factor;
    const float m = exp_avg[i] + f.one_minus_beta1 * (g - exp_avg[i]);
    const float s = f.beta2 * exp_avg_sq[i] + f.one_minus_beta2 * g * g;
    const float value = parameter[i] * f.kept - f.rate * m / (std::sqrt(s) * f.root_factor + f.eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = s;
    parameter[i] = value;
    if constexpr (has_copy) detail::store(copy[i], value);
  }
}

CONTRASTIVE_VECTOR_CLONES void update_with_copy(const Values& values, int64_t count, const Factors& factors) {
  update_body<true>(values, count, factors);
}
CONTRASTIVE_VECTOR_CLONES void update(const Values& values, int64_t count, const Factors& factors) {
  update_body<false>(values, count, factors);
}

void check(const char* name, const torch::Tensor& tensor, const torch::Tensor& parameter, at::ScalarType dtype) {
  TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.sizes() == parameter.sizes() &&
                  tensor.is_non_overlapping_and_dense() && tensor.strides() == parameter.strides(),
              "[adamw_step] ", name, " must be a dense ", parameter.sizes(), " of ", dtype,
              " in CPU memory, in the parameter's order, but is ", tensor.sizes(), " ", tensor.scalar_type(), " on ",
              tensor.device());
}

}  // namespace

void adamw_step(const torch::Tensor& parameter, const torch::Tensor& gradient, const torch::Tensor& exp_avg,
                const torch::Tensor& exp_avg_sq, const torch::Tensor& bf16_copy, const AdamWStep& step) {
  RECORD_USER_SCOPE("contrastive::adamw");
  check("parameter", parameter, parameter, at::kFloat);
  check("gradient", gradient, parameter, at::kFloat);
  check("exp_avg", exp_avg, parameter, at::kFloat);
  check("exp_avg_sq", exp_avg_sq, parameter, at::kFloat);
  if (bf16_copy.defined()) check("bf16_copy", bf16_copy, parameter, at::kBFloat16);
  const Values values{parameter.mutable_data_ptr<float>(), gradient.const_data_ptr<float>(),
                      exp_avg.mutable_data_ptr<float>(), exp_avg_sq.mutable_data_ptr<float>(),
                      bf16_copy.defined() ? bf16_copy.mutable_data_ptr<at::BFloat16>() : nullptr};
  const Factors factors(step);
  at::parallel_for(0, parameter.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const auto part = values.from(begin);
    part.copy != nullptr ? update_with_copy(part, end - begin, factors) : update(part, end - begin, factors);
  });
  parameter.unsafeGetTensorImpl()->bump_version();
}

}  // namespace contrastive::ops
