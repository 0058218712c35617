#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"

namespace contrastive {

/// A safetensors file, mapped into memory: opening reads the header only.
/// Every offset, size and dtype of the header is checked against the file before it is believed.
/// Source: the safetensors format (huggingface/safetensors, README "Format").
class CONTRASTIVE_API SafetensorsFile {
 public:
  /// Throws: CheckpointError if the file is missing, truncated or malformed.
  explicit SafetensorsFile(const std::filesystem::path& file);

  /// Names in the order of the data.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(const std::string& name) const;

  /// A read-only view into the mapping (clone it to write); the mapping lives as long as the tensor.
  /// Throws: CheckpointError if there is no such tensor.
  torch::Tensor tensor(const std::string& name) const;

  /// All tensors, in the order of `names()`.
  NamedTensors tensors() const;

  /// The same, made one at a time; a tensor's pages leave memory with it.
  std::vector<LazyTensor> lazy_tensors() const;

  /// The header's "__metadata__" strings.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  struct Content;
  std::shared_ptr<const Content> content_;
  std::vector<std::string> names_;
  std::map<std::string, std::string> metadata_;
};

/// Writes tensors (any device; made contiguous) as one safetensors file, atomically: see write_file_atomically.
/// Returns: the file's SHA-256. Equal input gives equal bytes.
/// Throws: CheckpointError on a duplicate name, an unsupported dtype, or a failed write (the reason is named).
CONTRASTIVE_API std::string write_safetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                                              const std::map<std::string, std::string>& metadata = {});

/// The same for tensors that are made one at a time.
CONTRASTIVE_API std::string write_safetensors(const std::filesystem::path& file, const std::vector<LazyTensor>& tensors,
                                              const std::map<std::string, std::string>& metadata = {});

}  // namespace contrastive
