#include "contrastive/adapt/embedding_index.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::adapt {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxNamesBytes = int64_t{64} << 30;

std::string metadata(const SafetensorsFile& file, const fs::path& path, const char* key) {
  const auto found = file.metadata().find(key);
  if (found != file.metadata().end()) return found->second;
  throw CheckpointError(fmt::format("[{}] has no {} in its metadata: is it of clip_embed?", path.string(), key));
}

/// [n + 1], the last one where a line behind the last would begin.
std::vector<int64_t> line_begins(const std::string& text) {
  std::vector<int64_t> begins{0};
  for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1)) {
    begins.push_back(static_cast<int64_t>(at) + 1);
  }
  return begins;
}

EmbeddingIndex::Part open_part(const fs::path& folder, std::string& model_sha256) {
  const auto path = folder / "features.safetensors";
  const SafetensorsFile file(path);
  if (metadata(file, path, "kind") != "images")
    throw DataError(fmt::format("[{}] holds no images' rows", path.string()));
  if (metadata(file, path, "normalized") != "yes") {
    throw DataError(fmt::format("[{}] holds rows that aren't normalised (clip_embed --raw)", path.string()));
  }
  model_sha256 = metadata(file, path, "model_sha256");
  EmbeddingIndex::Part part;
  part.folder = folder.string();
  part.features = file.tensor("features");
  if (part.features.dim() != 2 || !at::isFloatingType(part.features.scalar_type())) {
    throw CheckpointError(fmt::format("[{}] features must be [N, E]", path.string()));
  }
  const auto names = folder / "names.txt";
  part.names = std::make_shared<const std::string>(read_text_file(names, kMaxNamesBytes));
  part.name_begin = line_begins(*part.names);
  const auto lines = static_cast<int64_t>(part.name_begin.size()) - 1;
  if (lines != part.features.size(0)) {
    throw DataError(
        fmt::format("[{}] has {} lines, but {} {} rows", names.string(), lines, path.string(), part.features.size(0)));
  }
  return part;
}

}  // namespace

EmbeddingIndex::EmbeddingIndex(const std::vector<fs::path>& folders) {
  if (folders.empty()) throw ConfigError("[embedding_index] there must be a folder");
  for (const auto& folder : folders) {
    std::string model;
    auto part = open_part(folder, model);
    if (parts_.empty()) model_sha256_ = model;
    if (model != model_sha256_ || (!parts_.empty() && part.features.size(1) != embed_dim())) {
      throw DataError(fmt::format("[embedding_index] {} is of the model {}, but {} of {}", parts_.front().folder,
                                  model_sha256_, part.folder, model));
    }
    part.first_row = size_;
    size_ += part.features.size(0);
    parts_.push_back(std::move(part));
  }
  if (size_ == 0) throw DataError(fmt::format("[embedding_index] {} holds no row", parts_.front().folder));
}

const EmbeddingIndex::Part& EmbeddingIndex::part_of(int64_t row) const {
  TORCH_CHECK(row >= 0 && row < size_, "[embedding_index] row must be in [0, ", size_, "), but is ", row);
  const auto after = std::upper_bound(parts_.begin(), parts_.end(), row,
                                      [](int64_t wanted, const Part& part) { return wanted < part.first_row; });
  return *(after - 1);
}

std::string EmbeddingIndex::folder(int64_t row) const {
  return part_of(row).folder;
}

std::string EmbeddingIndex::name(int64_t row) const {
  const auto& part = part_of(row);
  const auto at = static_cast<size_t>(row - part.first_row);
  const auto begin = part.name_begin[at];
  return part.names->substr(static_cast<size_t>(begin), static_cast<size_t>(part.name_begin[at + 1] - begin - 1));
}

torch::Tensor EmbeddingIndex::features(const torch::Tensor& rows) const {
  auto result = at::empty({rows.size(0), embed_dim()}, at::kFloat);
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const auto row = rows[i].item<int64_t>();
    const auto& part = part_of(row);
    result[i].copy_(part.features[row - part.first_row]);
  }
  return result / result.norm(2, 1, /*keepdim=*/true);
}

}  // namespace contrastive::adapt
