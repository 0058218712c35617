#include "train/pace.h"

#include <utility>

#include <ATen/ATen.h>

namespace contrastive::train::detail {
namespace {

// Places in the tensor that is exchanged.
enum Wish : int64_t { kCheckpoint, kEvaluation, kStop, kBadSamples, kCount };

}  // namespace

bool Interval::due_by_time(int64_t step) const {
  if (!every_minutes_ || step <= first_step_) return false;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - last_).count() >= *every_minutes_ * 60;
}

Pace::Pace(const RunOptions& options, int64_t first_step, const distributed::ProcessGroup& group,
           std::function<bool()> stop_requested)
    : group_(group),
      stop_requested_(std::move(stop_requested)),
      checkpoint_(options.checkpoint.every_steps, options.checkpoint.every_minutes, first_step),
      evaluation_(options.eval.every_steps, options.eval.every_minutes, first_step) {}

Due Pace::before_step(int64_t step, int64_t bad_samples) {
  const auto agreed = agree(own_wishes(step, bad_samples));
  const auto* counts = agreed.const_data_ptr<int64_t>();
  return {.checkpoint = checkpoint_.due_by_steps(step) || counts[kCheckpoint] > 0,
          .evaluation = evaluation_.due_by_steps(step) || counts[kEvaluation] > 0,
          .stop = counts[kStop] > 0,
          .bad_samples = counts[kBadSamples]};
}

torch::Tensor Pace::own_wishes(int64_t step, int64_t bad_samples) const {
  const bool has_the_clock = group_.rank() == 0;
  auto wishes = at::zeros({kCount}, at::kLong);
  auto* counts = wishes.data_ptr<int64_t>();
  counts[kCheckpoint] = has_the_clock && checkpoint_.due_by_time(step) ? 1 : 0;
  counts[kEvaluation] = has_the_clock && evaluation_.due_by_time(step) ? 1 : 0;
  counts[kStop] = stop_requested_ && stop_requested_() ? 1 : 0;
  counts[kBadSamples] = bad_samples;
  return wishes;
}

/// The sum of the ranks' wishes before the last step; starts the exchange of the present ones.
torch::Tensor Pace::agree(const torch::Tensor& own) {
  if (group_.is_alone()) return own;
  exchange_.wait();
  const auto agreed = under_way_.defined() ? under_way_.clone() : at::zeros_like(own);
  under_way_ = own;
  // What is done now is not wished for again.
  if (agreed[kCheckpoint].item<int64_t>() > 0) under_way_[kCheckpoint] = 0;
  if (agreed[kEvaluation].item<int64_t>() > 0) under_way_[kEvaluation] = 0;
  exchange_ = group_.start_all_reduce(under_way_);
  return agreed;
}

}  // namespace contrastive::train::detail
