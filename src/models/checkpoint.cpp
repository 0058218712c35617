#include "models/checkpoint.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

namespace contrastive::models::detail {
namespace {

thread_local bool rerunning = false;

/// Sets what autocast does on this thread for the life of the object. The cache of cast weights is off: what one pass
/// has cast, with its graph or without one, must not be found by another.
class AutocastState {
 public:
  AutocastState(at::DeviceType device_type, bool enabled, at::ScalarType dtype)
      : device_type_(device_type),
        enabled_before_(at::autocast::is_autocast_enabled(device_type)),
        dtype_before_(at::autocast::get_autocast_dtype(device_type)),
        cache_before_(at::autocast::is_autocast_cache_enabled()) {
    set(enabled, dtype, /*cache=*/false);
  }
  ~AutocastState() { set(enabled_before_, dtype_before_, cache_before_); }
  AutocastState(const AutocastState&) = delete;
  AutocastState& operator=(const AutocastState&) = delete;

 private:
  void set(bool enabled, at::ScalarType dtype, bool cache) const {
    at::autocast::set_autocast_enabled(device_type_, enabled);
    at::autocast::set_autocast_dtype(device_type_, dtype);
    at::autocast::set_autocast_cache_enabled(cache);
  }

  at::DeviceType device_type_;
  bool enabled_before_;
  at::ScalarType dtype_before_;
  bool cache_before_;
};

class Rerunning {
 public:
  Rerunning() : before_(rerunning) { rerunning = true; }
  ~Rerunning() { rerunning = before_; }
  Rerunning(const Rerunning&) = delete;
  Rerunning& operator=(const Rerunning&) = delete;

 private:
  bool before_;
};

/// What the backward pass needs to run a block as the forward pass did.
struct Call : torch::CustomClassHolder {
  explicit Call(BlockForward block_forward, at::DeviceType type)
      : run(std::move(block_forward)),
        device_type(type),
        autocast(at::autocast::is_autocast_enabled(type)),
        autocast_dtype(at::autocast::get_autocast_dtype(type)) {}

  torch::Tensor operator()(const torch::Tensor& x) const {
    const AutocastState state(device_type, autocast, autocast_dtype);
    return run(x);
  }

  BlockForward run;
  at::DeviceType device_type;
  bool autocast;
  at::ScalarType autocast_dtype;
};

class CheckpointFunction : public torch::autograd::Function<CheckpointFunction> {
 public:
  /// `anchor` makes the result need a gradient where x doesn't.
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& /*anchor*/, const BlockForward& run) {
    const auto call = c10::make_intrusive<Call>(run, x.device().type());
    context->save_for_backward({x});
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    return (*call)(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    TORCH_CHECK(torch::autograd::Engine::get_default_engine().is_checkpoint_valid() && !at::GradMode::is_enabled(),
                "[activation checkpointing] the backward pass must add gradients to all parameters: neither "
                "torch::autograd::grad nor a graph of the gradients is possible");
    const auto x = context->get_saved_variables()[0];
    const auto call = c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    const auto input = x.detach().requires_grad_(x.requires_grad());
    torch::Tensor output;
    {
      const Rerunning mark;
      const at::AutoGradMode with_graph(true);
      output = (*call)(input);
    }
    torch::autograd::backward({output}, {gradients[0]});
    return {input.grad(), torch::Tensor(), torch::Tensor()};
  }
};

bool has_trainable(const torch::nn::Module& block) {
  const auto parameters = block.parameters();
  return std::any_of(parameters.begin(), parameters.end(), [](const auto& each) { return each.requires_grad(); });
}

}  // namespace

torch::Tensor checkpointed(const torch::Tensor& x, const BlockForward& run) {
  return CheckpointFunction::apply(x, at::empty({0}, x.options().dtype(at::kFloat)).requires_grad_(), run);
}

torch::Tensor run_block(bool checkpoint, const torch::nn::Module& block, const torch::Tensor& x,
                        const BlockForward& run) {
  const bool is_step = checkpoint && block.is_training() && at::GradMode::is_enabled();
  return is_step && (x.requires_grad() || has_trainable(block)) ? checkpointed(x, run) : run(x);
}

bool is_rerunning() {
  return rerunning;
}

}  // namespace contrastive::models::detail
