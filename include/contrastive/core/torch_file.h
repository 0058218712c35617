#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"

namespace contrastive {

namespace detail {
class TorchArchive;
class TorchStorage;
class TorchValueMaker;
}  // namespace detail

/// A tensor of a PyTorch file: a view into a storage, checked to lie within it. Nothing was read yet.
class CONTRASTIVE_API TorchTensor {
 public:
  at::ScalarType dtype() const { return dtype_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  int64_t storage_offset() const { return storage_offset_; }

  /// Bytes of its elements; an expanded tensor has more of them than its storage.
  uint64_t nbytes() const { return nbytes_; }

  /// A read-only strided view into the mapped file (clone it to write); the mapping lives as long as the tensor.
  /// A storage that is deflated, misaligned or of bools is copied, once for all its tensors.
  /// Throws: CheckpointError if the storage does not inflate to what was stored.
  /// Thread safety: may be called from several threads.
  torch::Tensor load() const;

 private:
  friend class detail::TorchValueMaker;
  friend class TorchFile;
  TorchTensor() = default;

  torch::Tensor view(bool release) const;

  at::ScalarType dtype_ = at::kFloat;
  std::vector<int64_t> sizes_;
  std::vector<int64_t> strides_;
  int64_t storage_offset_ = 0;
  uint64_t nbytes_ = 0;
  std::shared_ptr<const detail::TorchStorage> storage_;
};

struct TorchObject;

/// One Python value of a PyTorch file. Copies are cheap and share what they hold; nothing contains itself.
class CONTRASTIVE_API TorchValue {
 public:
  enum class Kind { kNone, kBool, kInt, kFloat, kString, kBytes, kList, kTuple, kDict, kTensor, kObject };
  using List = std::vector<TorchValue>;
  using Dict = std::vector<std::pair<TorchValue, TorchValue>>;

  /// None.
  TorchValue() = default;
  explicit TorchValue(bool value) : kind_(Kind::kBool), data_(value) {}
  explicit TorchValue(int64_t value) : kind_(Kind::kInt), data_(value) {}
  explicit TorchValue(double value) : kind_(Kind::kFloat), data_(value) {}
  /// `kind`: kString or kBytes.
  TorchValue(Kind kind, std::string text);
  /// `kind`: kList or kTuple.
  TorchValue(Kind kind, List items);
  explicit TorchValue(Dict entries);
  explicit TorchValue(TorchTensor tensor);
  explicit TorchValue(TorchObject object);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }

  /// The content; each throws CheckpointError if the value is of another kind.
  bool as_bool() const;
  int64_t as_int() const;
  /// A float or an int.
  double as_float() const;
  /// A string or bytes.
  const std::string& as_string() const;
  /// Of a list or a tuple.
  const List& items() const;
  /// Of a dict, in the file's order; no two entries have equal strings or ints as keys.
  const Dict& entries() const;
  const TorchTensor& as_tensor() const;
  const TorchObject& as_object() const;

  /// What a dict, or the state of an object, holds under a string; nullptr if nothing. Takes time linear in the size.
  const TorchValue* find(std::string_view key) const;

 private:
  [[noreturn]] void fail(const char* expected) const;
  template <typename Content>
  const Content& shared(const char* expected) const;

  Kind kind_ = Kind::kNone;
  std::variant<std::monostate, bool, int64_t, double, std::shared_ptr<const std::string>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<const TorchTensor>, std::shared_ptr<const TorchObject>>
      data_;
};

/// An object of a class that is not a plain value: a TorchScript module, argparse.Namespace, a numpy scalar, or a class
/// or function itself. It is a description: no code of it was looked for, let alone run.
/// A set is a builtins.set with a list of items; an int beyond 64 bits is a builtins.int with its bytes as items (two's
/// complement, little-endian).
struct TorchObject {
  TorchValue type;       ///< the class or function, a string with the module: "argparse.Namespace"
  TorchValue arguments;  ///< a tuple: what it was called with; none where it was not called
  TorchValue state;      ///< what its attributes would be made of, mostly a dict; none if nothing
  TorchValue items;      ///< a list or a dict of what was added to it; none if nothing
};

/// A file written by torch.save (PyTorch 1.6 or later) or by torch.jit.save, mapped into memory. Opening reads the
/// pickle only, and runs nothing of it: classes that are not known become TorchObject. Of a TorchScript archive the
/// attributes are read; its code is ignored.
/// Every offset, size and stride is checked before it is believed; memory is bounded by the file's size, beside
/// the gigabyte that a hostile pickle can fill with its two million values at most.
/// Source: torch/serialization.py and torch/csrc/jit/serialization/unpickler.cpp of PyTorch 2.11.
class CONTRASTIVE_API TorchFile {
 public:
  /// Throws: CheckpointError if the file is missing, truncated, malformed, big-endian or older than PyTorch 1.6.
  explicit TorchFile(const std::filesystem::path& file);

  /// What was saved.
  const TorchValue& root() const { return root_; }

  bool is_torchscript() const { return is_torchscript_; }

  /// The tensors in a dict, a list, a tuple or a TorchScript module and in what it holds of these, in the file's order.
  /// Names are the keys or indices, joined by dots.
  /// Throws: CheckpointError if there are none, if two get one name, or if expanded ones would be many times the file.
  NamedTensors tensors(const TorchValue& value) const;

  /// The model's tensors: those of the dict under "state_dict" or else "model" if the root is a dict with one,
  /// otherwise those of the root. Throws: as tensors().
  NamedTensors state_dict() const { return tensors(state_dict_value()); }

  /// The same two, made one at a time; a tensor's pages leave memory with it.
  std::vector<LazyTensor> lazy_tensors(const TorchValue& value) const;
  std::vector<LazyTensor> lazy_state_dict() const { return lazy_tensors(state_dict_value()); }

 private:
  const TorchValue& state_dict_value() const;

  std::shared_ptr<const detail::TorchArchive> archive_;
  bool is_torchscript_ = false;
  TorchValue root_;
};

/// Writes tensors (any device; made contiguous) as a state dict that torch.load(file, weights_only=True) reads: an
/// OrderedDict in an uncompressed zip, storages aligned to 64 bytes; atomically (see AtomicFile), one tensor at a time.
/// Returns: the file's SHA-256. Equal input gives equal bytes, whatever the file is called.
/// Throws: CheckpointError on a duplicate name, a name that is not UTF-8, a dtype that PyTorch has no storage class
/// for, a tensor that is not what it was announced as, or a failed write (the reason is named).
CONTRASTIVE_API std::string write_torch_file(const std::filesystem::path& file, const std::vector<LazyTensor>& tensors);

}  // namespace contrastive
