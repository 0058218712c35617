#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::eval {

struct TextPassOptions {
  int64_t batch_size = 256;
  bool bf16 = false;  ///< matrix products in bf16; features stay fp32
  /// Called on the first rank: texts done by all ranks so far, and in all.
  std::function<void(int64_t done, int64_t total)> on_progress = {};
};

/// Encodes texts, in eval mode (the model's mode is restored), cut at the context length. Over several ranks each takes
/// every W-th batch, so that features have the bits of a single rank's; every rank is handed all of them, in order:
/// use(begin, features [n, E]), fp32, not normalised, in CPU memory, n bounded.
CONTRASTIVE_API void encode_texts(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                  std::span<const std::string> texts, const TextPassOptions& options,
                                  const distributed::ProcessGroup& group,
                                  const std::function<void(int64_t begin, const torch::Tensor& features)>& use);

}  // namespace contrastive::eval
