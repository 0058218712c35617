#pragma once

#include <functional>

#include <torch/nn/module.h>
#include <torch/types.h>

namespace contrastive::models::detail {

/// The forward pass of a block: from one tensor to one.
using BlockForward = std::function<torch::Tensor(const torch::Tensor&)>;

/// run(x) without keeping what is computed within: the backward pass runs it again, with this call's autocast state,
/// and adds up the gradients of its parameters then. It must compute the same thing again and keep alive what it uses.
/// Parameters get their gradients even if x needs none. Throws from the backward pass: Error if that is to return
/// gradients (torch::autograd::grad) instead of adding them to the parameters, or to build a graph itself.
/// Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
torch::Tensor checkpointed(const torch::Tensor& x, const BlockForward& run);

/// run(x), where `run` is a forward pass of `block`: checkpointed if asked for in a training step, if anything in it
/// needs a gradient.
torch::Tensor run_block(bool checkpoint, const torch::nn::Module& block, const torch::Tensor& x,
                        const BlockForward& run);

/// Whether this thread runs a block again for its gradient: running statistics have moved already.
bool is_rerunning();

}  // namespace contrastive::models::detail
