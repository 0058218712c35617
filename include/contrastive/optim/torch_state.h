#pragma once

#include "contrastive/core/export.h"
#include "contrastive/core/torch_file.h"
#include "contrastive/optim/adamw.h"

/// Going on from a training checkpoint of open_clip: {"state_dict": ..., "optimizer": torch.optim.AdamW's state, ...}.
namespace contrastive::optim {

struct TorchAdamWSettings {
  AdamWOptions options;
  double lr = 0;  ///< of the last step
};

/// The settings in the file's parameter groups; the weight decay is the decayed group's.
/// Throws: CheckpointError if the file has no AdamW state, or groups that differ in more than weight decay.
CONTRASTIVE_API TorchAdamWSettings torch_adamw_settings(const TorchFile& file);

/// The file's moments under AdamW::state's names. The file numbers parameters as open_clip does: those without weight
/// decay first, each kind in the order of `parameters` (ClipModel::named_trainable has open_clip's order).
/// Throws: CheckpointError if their number, a shape or the step counts don't fit.
CONTRASTIVE_API NamedTensors adamw_state_from_torch(const TorchFile& file, const NamedTensors& parameters,
                                                    const DecayRule& decays);

}  // namespace contrastive::optim
