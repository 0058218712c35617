#include "contrastive/core/tensor_file.h"

#include <fstream>
#include <string_view>

#include "contrastive/core/npz_file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/torch_file.h"

namespace contrastive {
namespace {

/// Where the JSON of a safetensors header starts.
constexpr size_t kHeaderOffset = 8;
/// Enough for the header of a zip archive's first member and for any name that NumPy's users give to an array.
constexpr size_t kFirstBytes = 1024;

std::string first_bytes(const std::filesystem::path& file) {
  std::string bytes(kFirstBytes, '\0');
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

/// A zip archive whose first member is a .npy file; PyTorch's begin with a data.pkl. Source: PKWARE APPNOTE 4.3.7.
bool looks_like_npz(const std::string& bytes) {
  constexpr size_t kNameSize = 26, kName = 30;
  if (!bytes.starts_with("PK\3\4") || bytes.size() < kName) return false;
  const auto size = static_cast<size_t>(static_cast<uint8_t>(bytes[kNameSize])) |
                    static_cast<size_t>(static_cast<uint8_t>(bytes[kNameSize + 1])) << 8;
  return std::string_view(bytes).substr(kName, size).ends_with(".npy");
}

}  // namespace

TensorFile open_tensor_file(const std::filesystem::path& file) {
  const auto begin = std::filesystem::is_regular_file(file) ? first_bytes(file) : std::string();
  if (looks_like_npz(begin)) return {.tensors = open_npz_file(file), .metadata = {}, .is_torchscript = false};
  if (looks_like_torch(begin)) {
    const TorchFile torch_file(file);
    return {.tensors = torch_file.lazy_state_dict(), .metadata = {}, .is_torchscript = torch_file.is_torchscript()};
  }
  const SafetensorsFile safetensors(file);
  return {.tensors = safetensors.lazy_tensors(), .metadata = safetensors.metadata(), .is_torchscript = false};
}

}  // namespace contrastive
