#include "contrastive/models/precision.h"

#include <ATen/autocast_mode.h>

namespace contrastive::models {

AutocastGuard::AutocastGuard(torch::DeviceType device_type, bool bf16)
    : device_type_(device_type),
      enabled_before_(at::autocast::is_autocast_enabled(device_type)),
      dtype_before_(at::autocast::get_autocast_dtype(device_type)) {
  at::autocast::increment_nesting();
  at::autocast::set_autocast_enabled(device_type, bf16);
  if (bf16) at::autocast::set_autocast_dtype(device_type, at::kBFloat16);
}

AutocastGuard::~AutocastGuard() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_type_, enabled_before_);
  at::autocast::set_autocast_dtype(device_type_, dtype_before_);
}

torch::ScalarType compute_dtype(const torch::Tensor& x) {
  const auto device_type = x.device().type();
  return at::autocast::is_autocast_enabled(device_type) ? at::autocast::get_autocast_dtype(device_type)
                                                        : x.scalar_type();
}

}  // namespace contrastive::models
