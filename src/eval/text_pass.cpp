#include "contrastive/eval/text_pass.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/models/precision.h"

#include "eval/agree.h"
#include "eval/eval_mode.h"

namespace contrastive::eval {
namespace {

/// Batches of a rank between two exchanges: bounds the memory.
constexpr int64_t kBatchesAtOnce = 32;

/// Rows of tokens, cut behind the longest where the model permits it. [N, T]
torch::Tensor tokenize(std::span<const std::string> texts, const text::Tokenizer& tokenizer,
                       const models::TextConfig& config) {
  const auto context_length = config.context_length;
  const auto count = static_cast<int64_t>(texts.size());
  auto rows = at::zeros({count, context_length}, at::kInt);
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto* row = rows.data_ptr<int32_t>() + i * context_length;
    const std::span<int32_t> span(row, static_cast<size_t>(context_length));
    longest = std::max(longest, tokenizer.tokenize(texts[static_cast<size_t>(i)], span));
  }
  return rows.narrow(1, 0, config.may_cut_padding() ? longest : context_length).to(at::kLong);
}

torch::Tensor encode_batch(models::ClipModel& model, const text::Tokenizer& tokenizer,
                           std::span<const std::string> texts, bool bf16) {
  const torch::NoGradGuard no_grad;
  const auto device = model->logit_scale.device();
  const models::AutocastGuard autocast(device.type(), bf16);
  return model->encode_text(tokenize(texts, tokenizer, model->config().text_cfg).to(device)).to(at::kFloat).cpu();
}

}  // namespace

void encode_texts(models::ClipModel& model, const text::Tokenizer& tokenizer, std::span<const std::string> texts,
                  const TextPassOptions& options, const distributed::ProcessGroup& group,
                  const std::function<void(int64_t begin, const torch::Tensor& features)>& use) {
  const detail::EvalMode eval_mode(model);
  const models::PackedWeights packed(*model);
  const auto total = static_cast<int64_t>(texts.size());
  const auto batch_size = options.batch_size;
  const auto dim = model->config().embed_dim;
  const auto round = kBatchesAtOnce * batch_size * group.size();
  for (int64_t begin = 0; begin < total; begin += round) {
    const auto end = std::min(total, begin + round);
    const auto batches = (end - begin + batch_size - 1) / batch_size;
    const auto own_batches = (batches + group.size() - 1) / group.size();
    auto own = at::zeros({own_batches, batch_size, dim});
    detail::agree(group, [&] {
      for (int64_t i = 0; i < own_batches; ++i) {
        const auto first = begin + (i * group.size() + group.rank()) * batch_size;
        if (first >= end) break;
        const auto count = std::min(batch_size, end - first);
        const auto batch = texts.subspan(static_cast<size_t>(first), static_cast<size_t>(count));
        own[i].narrow(0, 0, count).copy_(encode_batch(model, tokenizer, batch, options.bf16));
        if (options.on_progress && group.rank() == 0) {
          options.on_progress(std::min(end, begin + (i + 1) * group.size() * batch_size), total);
        }
      }
    });
    const auto all = group.all_gather(own).view({group.size(), own_batches, batch_size, dim});
    use(begin, all.transpose(0, 1).reshape({-1, dim}).narrow(0, 0, end - begin));
  }
}

}  // namespace contrastive::eval
