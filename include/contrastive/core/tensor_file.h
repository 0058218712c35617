#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"

namespace contrastive {

/// A file of named tensors, opened: nothing but its header was read.
struct TensorFile {
  std::vector<LazyTensor> tensors;              ///< in file order
  std::map<std::string, std::string> metadata;  ///< of a safetensors file
  bool is_torchscript = false;                  ///< a TorchScript archive, as OpenAI's CLIP files are
};

/// Opens a safetensors file, or one of torch.save, torch.jit.save or numpy.savez, whatever its name; of a training
/// checkpoint of PyTorch the model's tensors. Throws: CheckpointError if it is none of these, damaged, or holds no
/// tensors.
CONTRASTIVE_API TensorFile open_tensor_file(const std::filesystem::path& file);

}  // namespace contrastive
