#include "contrastive/distributed/collectives.h"

#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace contrastive::distributed {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Keeps a group from the forward to the backward pass.
struct KeptGroup : torch::CustomClassHolder {
  explicit KeptGroup(ProcessGroup kept) : group(std::move(kept)) {}
  ProcessGroup group;
};

void keep(AutogradContext* context, const ProcessGroup& group) {
  context->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<KeptGroup>(group));
}

ProcessGroup kept_by(AutogradContext* context) {
  return c10::static_intrusive_pointer_cast<KeptGroup>(context->saved_data["group"].toCapsule())->group;
}

torch::Tensor summed(const torch::Tensor& x, const ProcessGroup& group) {
  auto sum = x.clone(at::MemoryFormat::Contiguous);
  group.all_reduce(sum);
  return sum;
}

class AllReduceSum : public torch::autograd::Function<AllReduceSum> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, const ProcessGroup& group) {
    keep(context, group);
    return summed(x, group);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {summed(gradients[0], kept_by(context)), torch::Tensor()};
  }
};

class AllGatherRows : public torch::autograd::Function<AllGatherRows> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, const ProcessGroup& group) {
    keep(context, group);
    return group.all_gather(x.contiguous());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {kept_by(context).reduce_scatter(gradients[0].contiguous()), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor all_reduce_sum(const torch::Tensor& x, const ProcessGroup& group) {
  return group.is_alone() ? x : AllReduceSum::apply(x, group);
}

torch::Tensor all_gather_rows(const torch::Tensor& x, const ProcessGroup& group) {
  return group.is_alone() ? x : AllGatherRows::apply(x, group);
}

}  // namespace contrastive::distributed
