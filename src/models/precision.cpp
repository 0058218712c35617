#include "contrastive/models/precision.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"
#include "contrastive/ops/matrix.h"

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

torch::Tensor ComputeCopy::of(const torch::Tensor& parameter, torch::ScalarType dtype) {
  const auto source = parameter.detach();
  const bool is_packed = packs_ > 0 && !c10::GradMode::is_enabled() && source.is_cpu() && ops::can_pack(dtype);
  if (!is_packed && source.scalar_type() == dtype) return source;
  std::unique_lock lock(mutex_);
  if (!(is_kept_ || is_packed) || source.is_inference() || c10::InferenceMode::is_enabled()) {
    lock.unlock();  // threads that only read don't wait for each other
    return source.to(dtype);
  }
  return copy_as(source, dtype, is_packed);
}

torch::Tensor ComputeCopy::copy_as(const torch::Tensor& source, torch::ScalarType dtype, bool is_packed) {
  const bool fits = copy_.defined() && copy_.scalar_type() == dtype && copy_.device() == source.device() &&
                    copy_.sizes() == source.sizes() && copy_.is_mkldnn() == is_packed;
  if (fits && source_ == source.const_data_ptr() && version_ == source._version()) return copy_;
  if (is_packed) {
    copy_ = ops::pack_weight(source.to(dtype));
  } else if (fits && copy_.use_count() == 1) {
    copy_.copy_(source);
  } else {  // a graph still holds the last one
    copy_ = source.to(dtype);
  }
  source_ = source.const_data_ptr();
  version_ = source._version();
  return copy_;
}

void ComputeCopy::keep() {
  const std::lock_guard lock(mutex_);
  is_kept_ = true;
}

void ComputeCopy::pack() {
  const std::lock_guard lock(mutex_);
  ++packs_;
}

void ComputeCopy::unpack() {
  const std::lock_guard lock(mutex_);
  if (--packs_ == 0 && copy_.defined() && copy_.is_mkldnn()) copy_.reset();
}

torch::Tensor ComputeCopy::begin_update(const torch::Tensor& parameter) {
  const std::lock_guard lock(mutex_);
  const bool is_free = copy_.defined() && !copy_.is_mkldnn() && copy_.use_count() == 1 &&
                       copy_.storage().use_count() == 1 && copy_.scalar_type() == at::kBFloat16 &&
                       source_ == parameter.const_data_ptr() && copy_.strides() == parameter.strides();
  return is_free ? copy_ : torch::Tensor();
}

void ComputeCopy::confirm_update(const torch::Tensor& parameter) {
  const std::lock_guard lock(mutex_);
  version_ = parameter._version();
}

std::vector<std::pair<torch::Tensor, ComputeCopy*>> compute_copies(const torch::nn::Module& model) {
  std::vector<std::pair<torch::Tensor, ComputeCopy*>> result;
  for (const auto& module : model.modules()) {
    if (const auto* linear = module->as<LinearImpl>()) result.emplace_back(linear->weight, &linear->copy());
    if (const auto* attention = module->as<AttentionImpl>()) {
      result.emplace_back(attention->in_proj_weight, &attention->in_proj_copy());
    }
  }
  return result;
}

PackedWeights::PackedWeights(const torch::nn::Module& model) {
  for (const auto& [parameter, copy] : compute_copies(model)) copies_.push_back(copy);
  for (auto* copy : copies_) copy->pack();
}

PackedWeights::~PackedWeights() {
  for (auto* copy : copies_) copy->unpack();
}

torch::ScalarType compute_dtype(const torch::Tensor& x) {
  const auto device_type = x.device().type();
  return at::autocast::is_autocast_enabled(device_type) ? at::autocast::get_autocast_dtype(device_type)
                                                        : x.scalar_type();
}

}  // namespace contrastive::models
