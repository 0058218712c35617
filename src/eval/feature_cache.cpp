#include "contrastive/eval/feature_cache.h"

#include <charconv>
#include <memory>
#include <span>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/writer_lock.h"
#include "contrastive/eval/feature_writer.h"

#include "eval/agree.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr size_t kKeyLength = 16;

fs::path labels_file(const FeatureCacheOptions& options) {
  auto file = feature_cache_file(options);
  return file.replace_extension(".labels.txt");
}

fs::path lock_file(const FeatureCacheOptions& options) {
  auto file = feature_cache_file(options);
  return file.replace_extension(".lock");
}

FeatureFileOptions writer_options(const FeatureCacheOptions& options) {
  return {.features = feature_cache_file(options),
          .names = labels_file(options),
          .num_inputs = options.num_samples,
          .inputs_per_part = options.samples_per_part,
          .settings = options.settings};
}

void write(FeatureWriter& writer, const LabelledFeatures& part) {
  const auto begin = writer.next_input(), end = writer.part_end();
  TORCH_CHECK(part.features.dim() == 2 && part.features.scalar_type() == at::kFloat && part.labels.dim() == 1 &&
                  part.labels.scalar_type() == at::kLong && part.labels.size(0) == part.features.size(0) &&
                  part.features.size(0) <= end - begin,
              "[feature_cache] features of samples ", begin, " to ", end,
              " must be fp32 [n, D] with n <= ", end - begin, " and int64 labels [n], but are ",
              part.features.scalar_type(), " ", part.features.sizes(), " with labels ", part.labels.scalar_type(), " ",
              part.labels.sizes());
  const auto labels = part.labels.cpu().contiguous();
  std::vector<std::string> lines;
  for (int64_t i = 0; i < labels.size(0); ++i) lines.push_back(std::to_string(labels.const_data_ptr<int64_t>()[i]));
  const auto num_left_out = static_cast<size_t>(end - begin - labels.size(0));
  writer.write_part(part.features.cpu().contiguous(), lines,
                    std::vector<SkippedInput>(num_left_out, {"sample", "left out"}));
}

torch::Tensor read_labels(const fs::path& file, int64_t count) {
  const auto text = read_text_file(file);
  auto labels = at::empty({count}, at::kLong);
  const char* place = text.data();
  const char* const end = text.data() + text.size();
  for (int64_t i = 0; i < count; ++i) {
    const auto [next, error] = std::from_chars(place, end, labels.data_ptr<int64_t>()[i]);
    if (error != std::errc() || next == end || *next != '\n') {
      throw CheckpointError(fmt::format("[{}] line {} must be a label", file.string(), i + 1));
    }
    place = next + 1;
  }
  if (place != end) throw CheckpointError(fmt::format("[{}] must have {} lines, but has more", file.string(), count));
  return labels;
}

LabelledFeatures open(const FeatureCacheOptions& options) {
  const auto path = feature_cache_file(options);
  const auto features = SafetensorsFile(path).tensor("features");
  if (features.dim() != 2 || features.scalar_type() != at::kFloat) {
    throw CheckpointError(fmt::format("[{}] must hold fp32 features [N, D]", path.string()));
  }
  if (features.size(0) == 0) throw DataError(fmt::format("[{}] all samples were left out", path.string()));
  return {features, read_labels(labels_file(options), features.size(0))};
}

}  // namespace

fs::path feature_cache_file(const FeatureCacheOptions& options) {
  std::string text;
  for (const auto& [key, value] : options.settings)
    text += fmt::format("{}:{}{}:{}", key.size(), key, value.size(), value);
  text += fmt::format("samples:{}", options.num_samples);
  const auto hash = sha256_hex(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  return options.folder / (hash.substr(0, kKeyLength) + ".safetensors");
}

LabelledFeatures cached_features(const FeatureCacheOptions& options, const FeatureProducer& produce,
                                 const distributed::ProcessGroup& group) {
  const bool is_writer = group.rank() == 0;
  std::unique_ptr<WriterLock> lock;
  std::unique_ptr<FeatureWriter> writer;
  int64_t begin = 0, end = 0;
  const auto find_next = [&] {
    begin = writer->next_input();
    end = writer->part_end();
  };
  detail::agree(group, [&] {
    if (!is_writer) return;
    make_folder(options.folder);
    writer = std::make_unique<FeatureWriter>(writer_options(options));
    if (!writer->is_complete()) {
      lock = std::make_unique<WriterLock>(lock_file(options), feature_cache_file(options));
      writer = std::make_unique<FeatureWriter>(writer_options(options));  // another process may have gone on meanwhile
    }
    find_next();
  });
  while (true) {
    auto range = at::tensor({begin, end}, at::kLong);
    group.broadcast(range);
    begin = range[0].item<int64_t>();
    end = range[1].item<int64_t>();
    if (begin >= options.num_samples) break;
    const auto part = produce(begin, end);
    detail::agree(group, [&] {
      if (!is_writer) return;
      write(*writer, part);
      find_next();
    });
  }
  detail::agree(group, [&] {
    if (is_writer && lock) writer->finish();
    lock.reset();
  });
  LabelledFeatures features;
  detail::agree(group, [&] { features = open(options); });
  return features;
}

}  // namespace contrastive::eval
