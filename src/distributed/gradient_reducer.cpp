#include "contrastive/distributed/gradient_reducer.h"

#include <algorithm>
#include <map>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace contrastive::distributed {
namespace {

/// A part of the parameters, whose gradients travel together.
struct Bucket {
  std::vector<size_t> members;   ///< indices into the parameters
  torch::Tensor gradients;       ///< [n], padded to a multiple of the ranks
  torch::Tensor sent, received;  ///< with bf16: [n]
  size_t missing = 0;            ///< gradients that are not there yet
  bool is_sent = false;
  Pending pending;
};

/// A view of a part of a flat buffer, laid out in memory as `like` is.
torch::Tensor view_like(const torch::Tensor& flat, int64_t begin, const torch::Tensor& like) {
  const auto part = flat.narrow(0, begin, like.numel());
  return like.is_non_overlapping_and_dense() ? part.as_strided(like.sizes(), like.strides()) : part.view(like.sizes());
}

}  // namespace

struct GradientReducer::Impl {
  NamedTensors parameters;
  ProcessGroup group;
  ReducerOptions options;
  std::vector<Bucket> buckets;
  std::vector<size_t> bucket_of;     ///< by parameter
  std::vector<torch::Tensor> views;  ///< gradients by parameter
  std::vector<bool> is_there;        ///< by parameter
  size_t next_bucket = 0;            ///< the first that was not sent
  bool armed = false;

  void make_buckets();
  void close_bucket(Bucket bucket);
  void gradient_is_there(size_t parameter);
  void send_ready_buckets();
  void send(Bucket& bucket) const;
  void receive(Bucket& bucket) const;
  void require_all_gradients() const;
};

namespace {

class GradientHook : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit GradientHook(std::function<void()> action) : action_(std::move(action)) {}
  void operator()(const torch::Tensor&) override { action_(); }

 private:
  std::function<void()> action_;
};

}  // namespace

void GradientReducer::Impl::make_buckets() {
  bucket_of.resize(parameters.size());
  views.resize(parameters.size());
  is_there.resize(parameters.size());
  Bucket bucket;
  int64_t bytes = 0;
  for (size_t i = parameters.size(); i-- > 0;) {
    const auto& parameter = parameters[i].second;
    const auto limit = buckets.empty() ? options.first_bucket_bytes : options.bucket_bytes;
    const bool fits =
        bucket.members.empty() || (bytes + static_cast<int64_t>(parameter.nbytes()) <= limit &&
                                   parameter.scalar_type() == parameters[bucket.members.front()].second.scalar_type());
    if (!fits) {
      close_bucket(std::move(bucket));
      bucket = {};
      bytes = 0;
    }
    bucket.members.push_back(i);
    bytes += static_cast<int64_t>(parameter.nbytes());
  }
  if (!bucket.members.empty()) close_bucket(std::move(bucket));
}

void GradientReducer::Impl::close_bucket(Bucket bucket) {
  int64_t values = 0;
  for (const auto i : bucket.members) values += parameters[i].second.numel();
  const auto padded = (values + group.size() - 1) / group.size() * group.size();
  const auto& first = parameters[bucket.members.front()].second;
  bucket.gradients = at::zeros({padded}, first.options().requires_grad(false));
  if (options.bf16) {
    bucket.sent = at::empty({padded}, bucket.gradients.options().dtype(at::kBFloat16));
    bucket.received = at::empty_like(bucket.sent);
  }
  int64_t begin = 0;
  for (const auto i : bucket.members) {
    bucket_of[i] = buckets.size();
    views[i] = view_like(bucket.gradients, begin, parameters[i].second);
    begin += parameters[i].second.numel();
  }
  buckets.push_back(std::move(bucket));
}

void GradientReducer::Impl::gradient_is_there(size_t parameter) {
  if (!armed) return;
  TORCH_CHECK(!is_there[parameter], "[gradient reducer] the gradient of ", parameters[parameter].first,
              " was added to twice in the last backward pass of a step");
  is_there[parameter] = true;
  --buckets[bucket_of[parameter]].missing;
  send_ready_buckets();
}

/// In order: operations must start in the same order on every rank.
void GradientReducer::Impl::send_ready_buckets() {
  for (; next_bucket < buckets.size() && buckets[next_bucket].missing == 0; ++next_bucket) send(buckets[next_bucket]);
}

void GradientReducer::Impl::send(Bucket& bucket) const {
  const at::NoGradGuard no_grad;
  if (!options.bf16) {
    bucket.pending = group.start_all_reduce(bucket.gradients);
    return;
  }
  bucket.sent.copy_(bucket.gradients);
  bucket.pending = group.start_all_to_all(bucket.received, bucket.sent);
}

/// With bf16 each rank has got its part of the bucket from all ranks: it adds them up and gives everyone the sum.
void GradientReducer::Impl::receive(Bucket& bucket) const {
  const at::NoGradGuard no_grad;
  bucket.pending.wait();
  if (!options.bf16) return;
  const auto own_part = bucket.received.view({group.size(), -1}).to(at::kFloat).sum(0).to(at::kBFloat16);
  bucket.gradients.copy_(group.all_gather(own_part));
}

void GradientReducer::Impl::require_all_gradients() const {
  std::vector<std::string> names;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!is_there[i]) names.push_back(parameters[i].first);
  }
  TORCH_CHECK(names.empty(), "[gradient reducer] the loss does not depend on these parameters: ",
              fmt::format("{}", fmt::join(names, ", ")), "; they must not require a gradient");
}

GradientReducer::GradientReducer(const NamedTensors& parameters, const ProcessGroup& group,
                                 const ReducerOptions& options)
    : impl_(std::make_unique<Impl>()) {
  impl_->parameters = parameters;
  impl_->group = group;
  impl_->options = options;
  if (group.is_alone()) return;
  impl_->make_buckets();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto action = [state = impl_.get(), i] { state->gradient_is_there(i); };
    torch::autograd::impl::set_post_acc_grad_hooks(parameters[i].second, std::make_unique<GradientHook>(action));
  }
}

GradientReducer::~GradientReducer() {
  if (impl_->group.is_alone()) return;
  for (const auto& [name, parameter] : impl_->parameters) {
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  }
}

void GradientReducer::start_step() {
  if (impl_->group.is_alone()) return;
  impl_->armed = false;
  for (auto& bucket : impl_->buckets) bucket.gradients.zero_();
  for (size_t i = 0; i < impl_->views.size(); ++i) impl_->parameters[i].second.mutable_grad() = impl_->views[i];
}

void GradientReducer::arm(const std::set<std::string>& complete) {
  if (impl_->group.is_alone()) return;
  auto& state = *impl_;
  state.armed = true;
  state.next_bucket = 0;
  for (auto& bucket : state.buckets) bucket.missing = bucket.members.size();
  for (size_t i = 0; i < state.parameters.size(); ++i) {
    state.is_there[i] = complete.contains(state.parameters[i].first);
    if (state.is_there[i]) --state.buckets[state.bucket_of[i]].missing;
  }
  state.send_ready_buckets();
}

void GradientReducer::finish() {
  if (impl_->group.is_alone()) return;
  impl_->armed = false;
  impl_->require_all_gradients();
  for (auto& bucket : impl_->buckets) impl_->receive(bucket);
}

}  // namespace contrastive::distributed
