#pragma once

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::loss {

/// The loss that a model is trained with: sigmoid_loss if it has a logit bias, else contrastive_loss. Over all ranks,
/// as these. Throws: Error as these do.
CONTRASTIVE_API ContrastiveLossOutput model_loss(const models::ClipOutput& output,
                                                 const distributed::ProcessGroup& group = {});

}  // namespace contrastive::loss
