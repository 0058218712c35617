#include "contrastive/core/tensor_file.h"

#include <fstream>
#include <string_view>

#include "contrastive/core/safetensors.h"
#include "contrastive/core/torch_file.h"

namespace contrastive {
namespace {

/// Where the JSON of a safetensors header starts.
constexpr size_t kHeaderOffset = 8;

std::string first_bytes(const std::filesystem::path& file) {
  std::string bytes(kHeaderOffset + 1, '\0');
  std::ifstream stream(file, std::ios::binary);
  stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<size_t>(stream.gcount()));
  return bytes;
}

/// A zip archive, or a pickle of before PyTorch 1.6 (which the reader explains).
bool looks_like_torch(const std::string& bytes) {
  const bool is_pickle = bytes.size() > 1 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5;
  const bool is_safetensors = bytes.size() > kHeaderOffset && bytes[kHeaderOffset] == '{';
  return bytes.starts_with("PK") || (is_pickle && !is_safetensors);
}

}  // namespace

TensorFile open_tensor_file(const std::filesystem::path& file) {
  if (std::filesystem::is_regular_file(file) && looks_like_torch(first_bytes(file))) {
    const TorchFile torch_file(file);
    return {.tensors = torch_file.lazy_state_dict(), .metadata = {}, .is_torchscript = torch_file.is_torchscript()};
  }
  const SafetensorsFile safetensors(file);
  return {.tensors = safetensors.lazy_tensors(), .metadata = safetensors.metadata(), .is_torchscript = false};
}

}  // namespace contrastive
