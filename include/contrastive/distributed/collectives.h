#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

/// Collective operations that gradients go back through. The loss that is differentiated is the sum of the ranks'
/// results: each rank goes back from its own share, and each input gets the gradient of all shares.
/// Every rank must call them in the same order and go back through each of them, or none must: x needs a gradient on
/// all ranks or on none. One process alone: x itself.
namespace contrastive::distributed {

/// The sum over the ranks, which every rank gets. Shapes: any, the same on all ranks.
CONTRASTIVE_API torch::Tensor all_reduce_sum(const torch::Tensor& x, const ProcessGroup& group);

/// The ranks' rows one after the other. Shapes: x [B, ...] to [W B, ...], the same B on all ranks.
CONTRASTIVE_API torch::Tensor all_gather_rows(const torch::Tensor& x, const ProcessGroup& group);

}  // namespace contrastive::distributed
