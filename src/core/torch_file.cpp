#include "contrastive/core/torch_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "core/shown.h"
#include "core/torch_dtypes.h"
#include "core/unpickler.h"
#include "core/zip_archive.h"

namespace contrastive {
namespace detail {

/// The mapped file and its directory.
class TorchArchive {
 public:
  explicit TorchArchive(const std::filesystem::path& file)
      : where_(file.string()), mapping_(map(file)), zip_(where_, recognised(mapping_->bytes())), folder_(folder()) {
    check_byte_order();
  }

  const std::string& where() const { return where_; }
  const ZipArchive& zip() const { return zip_; }
  const std::shared_ptr<MappedFile>& mapping() const { return mapping_; }

  /// A member of the archive's one folder.
  const ZipMember* find(std::string_view name) const { return zip_.find(folder_ + std::string(name)); }

  /// Most of what tensors may claim together: a few views of everything, but not an expanded number a billion times.
  uint64_t most_tensor_bytes() const {
    constexpr uint64_t kMaxViews = 4;
    constexpr uint64_t kFreeBytes = 64 << 20;
    return std::min(zip_.total_bytes(), UINT64_MAX / (2 * kMaxViews)) * kMaxViews + kFreeBytes;
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw CheckpointError(fmt::format("[{}] {}", where_, message));
  }

 private:
  static std::shared_ptr<MappedFile> map(const std::filesystem::path& file) {
    try {
      return std::make_shared<MappedFile>(file);
    } catch (const Error& error) {
      throw CheckpointError(error.what());
    }
  }

  /// The file itself, unless its first bytes tell that it is something else.
  std::span<const uint8_t> recognised(std::span<const uint8_t> file) const {
    const auto holds = [&](size_t position, std::string_view bytes) {
      return file.size() >= position + bytes.size() &&
             std::memcmp(file.data() + position, bytes.data(), bytes.size()) == 0;
    };
    // A pickle of protocol 2 that begins with the number 0x1950a86a20f9469cfc6c.
    constexpr std::string_view kLegacyMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);
    if (holds(0, kLegacyMagic) || holds(257, "ustar")) {
      fail(
          "is in PyTorch's format of before 1.6, which is not read; convert it with Python: "
          "torch.save(torch.load(\"old.pt\", map_location=\"cpu\"), \"new.pt\")");
    }
    if (!holds(0, "PK")) fail("is not a PyTorch file: it does not begin as a zip archive");
    return file;
  }

  std::string folder() const {
    constexpr std::string_view kPickle = "/data.pkl";
    std::string found;
    for (const auto& member : zip_.members()) {
      if (!member.name.ends_with(kPickle)) continue;
      const auto name = member.name.substr(0, member.name.size() - kPickle.size());
      if (name.empty() || name.find('/') != std::string_view::npos) continue;
      if (!found.empty()) fail("has two folders with a data.pkl");
      found = std::string(name) + "/";
    }
    if (found.empty()) fail("is a zip archive, but not a PyTorch file: no folder in it has a data.pkl");
    return found;
  }

  void check_byte_order() const {
    constexpr std::string_view kLittle = "little";
    const auto* member = find("byteorder");
    if (member == nullptr) return;  // before PyTorch 2.1: little
    std::string order(std::min<uint64_t>(member->bytes, kLittle.size() + 1), '\0');
    if (order.size() == member->bytes) {
      zip_.read(*member, {reinterpret_cast<uint8_t*>(order.data()), order.size()});
    }
    if (order != kLittle) fail(fmt::format("has byte order '{}', only 'little' is read", shown(order)));
  }

  std::string where_;
  std::shared_ptr<MappedFile> mapping_;
  ZipArchive zip_;
  std::string folder_;
};

/// The bytes behind tensors.
class TorchStorage {
 public:
  TorchStorage(std::shared_ptr<const TorchArchive> archive, const ZipMember& member)
      : archive_(std::move(archive)), member_(member) {}

  const TorchArchive& archive() const { return *archive_; }
  uint64_t bytes() const { return member_.bytes; }

  /// All of it as one flat tensor. `release`: its pages leave memory with it.
  at::Tensor flat(at::ScalarType dtype, bool release) const {
    const auto element_bytes = static_cast<uint64_t>(c10::elementSize(dtype));
    const auto numel = static_cast<int64_t>(member_.bytes / element_bytes);
    if (dtype == at::kBool) return bools();
    const auto* data = archive_->zip().stored(member_).data();
    if (member_.is_deflated || reinterpret_cast<uintptr_t>(data) % element_bytes != 0) {
      return copy().slice(0, 0, numel * static_cast<int64_t>(element_bytes)).view(dtype);
    }
    const auto forget = [mapping = archive_->mapping(), member = member_, release](void*) {
      if (release) mapping->release(member.begin, member.stored_bytes);
    };
    return at::from_blob(const_cast<uint8_t*>(data), {numel}, forget, at::TensorOptions().dtype(dtype));
  }

 private:
  at::Tensor copy() const {
    const std::lock_guard lock(mutex_);
    if (!copy_.defined()) copy_ = read();
    return copy_;
  }

  /// A C++ bool must be 0 or 1, which bytes of a file need not be.
  at::Tensor bools() const {
    const std::lock_guard lock(mutex_);
    if (!bools_.defined()) bools_ = read().ne(0);
    return bools_;
  }

  at::Tensor read() const {
    auto target = at::empty({static_cast<int64_t>(member_.bytes)}, at::kByte);
    archive_->zip().read(member_, {target.data_ptr<uint8_t>(), member_.bytes});
    return target;
  }

  std::shared_ptr<const TorchArchive> archive_;
  ZipMember member_;
  mutable std::mutex mutex_;
  mutable at::Tensor copy_;
  mutable at::Tensor bools_;
};

namespace {

using Kind = TorchValue::Kind;
using NodeKind = PickleNode::Kind;

/// PyTorch's own bound.
constexpr size_t kMaxDimensions = 64;
/// Keys are compared, and become parts of names: a long one that is remembered could be used in every dict.
constexpr size_t kMaxKeyBytes = 4096;
constexpr size_t kMaxStorageKeyBytes = 256;

bool starts_with_class(const TorchValue& value) {
  return value.is(Kind::kObject) && value.as_object().arguments.is(Kind::kNone);
}

}  // namespace

/// Gives the values of a pickle their meaning, one after the other in an order where all parts come first.
class TorchValueMaker {
 public:
  TorchValueMaker(std::shared_ptr<const TorchArchive> archive, const PickleGraph& graph)
      : archive_(std::move(archive)), graph_(graph), values_(graph.nodes.size()) {}

  TorchValue run() {
    for (const auto index : graph_.order) values_[index] = value(graph_.nodes[index]);
    return values_[graph_.root];
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { archive_->fail("the pickle " + message); }

  TorchValue value(const PickleNode& node) {
    switch (node.kind) {
      case NodeKind::kNone:
        return TorchValue();
      case NodeKind::kBool:
        return TorchValue(node.integer != 0);
      case NodeKind::kInt:
        return TorchValue(node.integer);
      case NodeKind::kFloat:
        return TorchValue(node.real);
      case NodeKind::kString:
        return TorchValue(Kind::kString, std::string(node.text));
      case NodeKind::kBytes:
        return TorchValue(Kind::kBytes, std::string(node.text));
      case NodeKind::kBigInt:
        return class_object("builtins.int", TorchValue(Kind::kBytes, std::string(node.text)));
      case NodeKind::kList:
        return TorchValue(Kind::kList, list(node.children, 0));
      case NodeKind::kTuple:
        return TorchValue(Kind::kTuple, list(node.children, 0));
      case NodeKind::kSet:
        return class_object("builtins.set", TorchValue(Kind::kList, list(node.children, 0)));
      case NodeKind::kDict:
        return TorchValue(dict(node.children, 0));
      case NodeKind::kGlobal:
        return class_object(fmt::format("{}.{}", node.text, node.name), {});
      case NodeKind::kPersistent:
        return storage(values_[node.children[0]]);
      case NodeKind::kObject:
        return object(node);
    }
    fail("holds a value of no kind");
  }

  static TorchValue class_object(std::string type, TorchValue items) {
    return TorchValue(
        TorchObject{.type = TorchValue(Kind::kString, std::move(type)), .arguments = {}, .state = {}, .items = items});
  }

  TorchValue::List list(const std::vector<uint32_t>& children, size_t first) const {
    TorchValue::List items;
    items.reserve(children.size() - first);
    for (size_t i = first; i < children.size(); ++i) items.push_back(values_[children[i]]);
    return items;
  }

  TorchValue::Dict dict(const std::vector<uint32_t>& children, size_t first) const {
    TorchValue::Dict entries;
    entries.reserve((children.size() - first) / 2);
    std::set<std::string_view> strings;
    std::set<int64_t> integers;
    for (size_t i = first; i < children.size(); i += 2) {
      const auto& key = values_[children[i]];
      const bool is_text = key.is(Kind::kString) || key.is(Kind::kBytes);
      if (is_text && key.as_string().size() > kMaxKeyBytes) {
        fail(fmt::format("has a key of {} bytes, at most {} are accepted", key.as_string().size(), kMaxKeyBytes));
      }
      if (key.is(Kind::kString) && !strings.insert(key.as_string()).second) {
        fail(fmt::format("has '{}' twice in one dict", shown(key.as_string())));
      }
      if (key.is(Kind::kInt) && !integers.insert(key.as_int()).second) {
        fail(fmt::format("has {} twice in one dict", key.as_int()));
      }
      entries.emplace_back(key, values_[children[i + 1]]);
    }
    return entries;
  }

  TorchValue items(const PickleNode& node) const {
    constexpr size_t kFirst = PickleNode::kFirstItem;
    switch (node.items) {
      case PickleNode::Items::kNone:
        return {};
      case PickleNode::Items::kValues:
        return TorchValue(Kind::kList, list(node.children, kFirst));
      case PickleNode::Items::kPairs:
        return TorchValue(dict(node.children, kFirst));
    }
    return {};
  }

  /// A class or function with its arguments. The known ones are done; all others stay what they are.
  TorchValue object(const PickleNode& node) {
    const auto& callable = values_[node.children[0]];
    const auto& arguments = values_[node.children[1]];
    if (starts_with_class(callable)) {
      const auto known = known_object(callable.as_object().type.as_string(), arguments.items(), node);
      if (known.has_value()) return *known;
    }
    return TorchValue(TorchObject{
        .type = starts_with_class(callable) ? callable.as_object().type : TorchValue(Kind::kString, std::string()),
        .arguments = arguments,
        .state = node.state == PickleNode::kNoNode ? TorchValue() : values_[node.state],
        .items = items(node)});
  }

  std::optional<TorchValue> known_object(const std::string& type, const TorchValue::List& arguments,
                                         const PickleNode& node) {
    if (type == "collections.OrderedDict" && arguments.empty() && node.items != PickleNode::Items::kValues) {
      return TorchValue(dict(node.children, PickleNode::kFirstItem));
    }
    if (type == "torch.Size" && arguments.size() == 1 && arguments[0].is(Kind::kTuple)) return arguments[0];
    if (type.starts_with("torch.jit._pickle.")) return tagged(type, arguments);
    return tensor_object(type, arguments);
  }

  /// TorchScript wraps containers to tell their static type, which their values tell as well.
  static std::optional<TorchValue> tagged(std::string_view type, const TorchValue::List& arguments) {
    constexpr std::array<std::string_view, 5> kWrappers{"restore_type_tag", "build_intlist", "build_tensorlist",
                                                        "build_doublelist", "build_boollist"};
    type.remove_prefix(std::string_view("torch.jit._pickle.").size());
    if (std::find(kWrappers.begin(), kWrappers.end(), type) == kWrappers.end() || arguments.empty()) return {};
    return arguments[0];
  }

  std::optional<TorchValue> tensor_object(const std::string& type, const TorchValue::List& arguments) {
    if (type == "torch._tensor._rebuild_from_type_v2" && arguments.size() == 4 && starts_with_class(arguments[0]) &&
        arguments[2].is(Kind::kTuple)) {
      const auto& function = arguments[0].as_object().type.as_string();
      if (function == type) return {};
      return tensor_object(function, arguments[2].items());  // a subclass, or a tensor with attributes
    }
    if (type == "torch._utils._rebuild_tensor") return rebuilt(arguments, 4, 4);
    if (type == "torch._utils._rebuild_tensor_v2") return rebuilt(arguments, 6, 7);
    if (type == "torch._utils._rebuild_tensor_v3") return rebuilt(arguments, 7, 8);
    if (type == "torch._utils._rebuild_parameter" || type == "torch._utils._rebuild_parameter_with_state") {
      if (arguments.empty() || !arguments[0].is(Kind::kTensor)) fail("makes a parameter without a tensor");
      return arguments[0];
    }
    return {};
  }

  /// Arguments: storage, offset, sizes, strides, and from version 2 requires_grad and hooks, then in version 3 a dtype,
  /// then metadata.
  TorchValue rebuilt(const TorchValue::List& arguments, size_t least, size_t most) {
    if (arguments.size() < least || arguments.size() > most || !arguments[0].is(Kind::kTensor)) {
      fail("makes a tensor without a storage, an offset, sizes and strides");
    }
    const bool has_metadata = least > 4 && arguments.size() == most;
    if (has_metadata && arguments.back().is(Kind::kDict) && !arguments.back().entries().empty()) {
      fail("holds a tensor that is conjugated or negated lazily, which is not read");
    }
    TorchTensor tensor = arguments[0].as_tensor();
    if (least == 7) tensor.dtype_ = dtype_of(arguments[6]);
    tensor.storage_offset_ = number(arguments[1]);
    tensor.sizes_ = numbers(arguments[2]);
    tensor.strides_ = numbers(arguments[3]);
    check_bounds(tensor);
    return TorchValue(std::move(tensor));
  }

  int64_t number(const TorchValue& value) const {
    if (!value.is(Kind::kInt) || value.as_int() < 0) {
      fail("makes a tensor with a size, stride or offset that is not a count");
    }
    return value.as_int();
  }

  std::vector<int64_t> numbers(const TorchValue& value) const {
    if ((!value.is(Kind::kTuple) && !value.is(Kind::kList)) || value.items().size() > kMaxDimensions) {
      fail(fmt::format("makes a tensor whose sizes or strides are not up to {} numbers", kMaxDimensions));
    }
    std::vector<int64_t> result;
    for (const auto& item : value.items()) result.push_back(number(item));
    return result;
  }

  at::ScalarType dtype_of(const TorchValue& value) const {
    const auto type = starts_with_class(value) ? value.as_object().type.as_string() : std::string();
    for (const auto& known : kTorchDtypes) {
      if (type == known.dtype_name) return known.dtype;
    }
    fail(fmt::format("makes a tensor of dtype '{}', which is not supported", shown(type)));
  }

  void check_bounds(TorchTensor& tensor) const {
    const auto element_bytes = static_cast<int64_t>(c10::elementSize(tensor.dtype_));
    const auto refuse = [&] {
      fail(
          fmt::format("holds a tensor of sizes [{}], strides [{}] and offset {}, which does not fit its storage of {} "
                      "elements",
                      fmt::join(tensor.sizes_, ", "), fmt::join(tensor.strides_, ", "), tensor.storage_offset_,
                      tensor.storage_->bytes() / static_cast<uint64_t>(element_bytes)));
    };
    if (tensor.sizes_.size() != tensor.strides_.size()) refuse();
    int64_t bytes = element_bytes;
    int64_t last = tensor.storage_offset_;
    bool is_empty = false;
    bool overflow = false;
    for (size_t i = 0; i < tensor.sizes_.size(); ++i) {
      const auto size = tensor.sizes_[i];
      is_empty |= size == 0;
      // Products of the sizes beside a zero must not overflow either.
      overflow |= __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
      int64_t reach = 0;
      overflow |= __builtin_mul_overflow(std::max<int64_t>(size - 1, 0), tensor.strides_[i], &reach);
      overflow |= __builtin_add_overflow(last, reach, &last);
    }
    const auto numel = tensor.storage_->bytes() / static_cast<uint64_t>(element_bytes);
    if (overflow || (!is_empty && static_cast<uint64_t>(last) >= numel)) refuse();
    tensor.nbytes_ = is_empty ? 0 : static_cast<uint64_t>(bytes);
    if (const auto most = archive_->most_tensor_bytes(); tensor.nbytes_ > most) {
      fail(fmt::format("expands a tensor to {} bytes, at most {} are accepted of this file", tensor.nbytes_, most));
    }
  }

  /// A storage is a flat tensor over all of it. `id`: ("storage", class, key, device, numel).
  TorchValue storage(const TorchValue& id) {
    if (!id.is(Kind::kTuple) || id.items().size() != 5 || !id.items()[0].is(Kind::kString) ||
        id.items()[0].as_string() != "storage" || !starts_with_class(id.items()[1]) ||
        !id.items()[2].is(Kind::kString) || id.items()[2].as_string().size() > kMaxStorageKeyBytes ||
        !id.items()[4].is(Kind::kInt) || id.items()[4].as_int() < 0) {
      fail("refers to something outside that is not a storage");
    }
    const auto& key = id.items()[2].as_string();
    TorchTensor tensor;
    tensor.dtype_ = storage_dtype(id.items()[1].as_object().type.as_string());
    tensor.sizes_ = {id.items()[4].as_int()};
    tensor.strides_ = {1};
    auto& known = storages_[key];
    if (known == nullptr) known = open_storage(key);
    tensor.storage_ = known;
    const auto element_bytes = static_cast<uint64_t>(c10::elementSize(tensor.dtype_));
    if (static_cast<uint64_t>(tensor.sizes_[0]) != known->bytes() / element_bytes) {
      fail(fmt::format("claims {} elements of {} bytes in storage '{}', which has {} bytes", tensor.sizes_[0],
                       element_bytes, shown(key), known->bytes()));
    }
    tensor.nbytes_ = static_cast<uint64_t>(tensor.sizes_[0]) * element_bytes;
    return TorchValue(std::move(tensor));
  }

  std::shared_ptr<const TorchStorage> open_storage(const std::string& key) const {
    const auto* member = archive_->find("data/" + key);
    if (member == nullptr) fail(fmt::format("refers to storage '{}', which the file does not have", shown(key)));
    return std::make_shared<const TorchStorage>(archive_, *member);
  }

  at::ScalarType storage_dtype(const std::string& type) const {
    if (type == "torch.storage.UntypedStorage" || type == "torch.UntypedStorage") return at::kByte;
    for (const auto& known : kTorchDtypes) {
      if (known.storage_name != nullptr && type == known.storage_name) return known.dtype;
    }
    fail(fmt::format("has a storage of class '{}', which is not supported", shown(type)));
  }

  std::shared_ptr<const TorchArchive> archive_;
  const PickleGraph& graph_;
  std::vector<TorchValue> values_;
  std::unordered_map<std::string, std::shared_ptr<const TorchStorage>> storages_;
};

namespace {

std::string pickle_bytes(const TorchArchive& archive, const ZipMember& member) {
  std::string bytes(member.bytes, '\0');
  archive.zip().read(member, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()});
  return bytes;
}

TorchValue read_root(const std::shared_ptr<const TorchArchive>& archive) {
  const auto& member = *archive->find("data.pkl");
  std::string inflated;
  std::string_view pickle;
  if (member.is_deflated) {
    inflated = pickle_bytes(*archive, member);
    pickle = inflated;
  } else {
    const auto stored = archive->zip().stored(member);
    pickle = {reinterpret_cast<const char*>(stored.data()), stored.size()};
  }
  const auto graph = read_pickle(archive->where(), pickle);
  return TorchValueMaker(archive, graph).run();
}

/// Walks what a file holds; shared parts are walked again, so that the steps are bounded.
class Flattener {
 public:
  Flattener(const TorchArchive& archive, const TorchValue& value) : archive_(archive) { walk(value, ""); }

  /// In the file's order.
  std::vector<std::pair<std::string, const TorchTensor*>> take() {
    if (tensors_.empty()) archive_.fail("holds no tensors in a dict, a list or a TorchScript module");
    return std::move(tensors_);
  }

 private:
  void walk(const TorchValue& value, const std::string& name) {
    constexpr size_t kMaxSteps = 2'000'000;
    if (++num_steps_ > kMaxSteps) archive_.fail(fmt::format("holds more than {} values to look through", kMaxSteps));
    switch (value.kind()) {
      case Kind::kTensor:
        return add(value.as_tensor(), name);
      case Kind::kList:
      case Kind::kTuple:
        for (size_t i = 0; i < value.items().size(); ++i)
          step(value.items()[i], name, [&] { return std::to_string(i); });
        return;
      case Kind::kDict:
        return walk_entries(value, name);
      case Kind::kObject:
        // TorchScript's modules have code in the archive; of other classes nobody knows what their state means.
        if (value.as_object().type.as_string().starts_with("__torch__.") && value.as_object().state.is(Kind::kDict)) {
          walk_entries(value.as_object().state, name);
        }
        return;
      default:
        return;
    }
  }

  void walk_entries(const TorchValue& dict, const std::string& name) {
    for (const auto& [key, value] : dict.entries()) {
      if (key.is(Kind::kString)) step(value, name, [&key = key] { return key.as_string(); });
      if (key.is(Kind::kInt)) step(value, name, [&key = key] { return std::to_string(key.as_int()); });
    }
  }

  template <typename Key>
  void step(const TorchValue& value, const std::string& name, const Key& key) {
    // Most values of a long list are numbers: they need no name.
    const bool may_hold_tensors = value.is(Kind::kTensor) || value.is(Kind::kDict) || value.is(Kind::kList) ||
                                  value.is(Kind::kTuple) || value.is(Kind::kObject);
    if (!may_hold_tensors) return walk(value, name);
    const auto longer = name.empty() ? key() : name + "." + key();
    constexpr size_t kMaxNameBytes = 64 << 20;
    name_bytes_ += longer.size();
    if (name_bytes_ > kMaxNameBytes) {
      archive_.fail(fmt::format("needs names of more than {} bytes for its tensors", kMaxNameBytes));
    }
    walk(value, longer);
  }

  void add(const TorchTensor& tensor, const std::string& name) {
    if (!names_.insert(name).second) archive_.fail(fmt::format("has two tensors named '{}'", shown(name)));
    tensor_bytes_ += tensor.nbytes();  // a tensor is bounded, so that the sum can't wrap before it is too large
    if (const auto most = archive_.most_tensor_bytes(); tensor_bytes_ > most) {
      archive_.fail(fmt::format("expands its tensors to more than {} bytes", most));
    }
    tensors_.emplace_back(name, &tensor);
  }

  const TorchArchive& archive_;
  std::vector<std::pair<std::string, const TorchTensor*>> tensors_;
  std::set<std::string> names_;
  size_t num_steps_ = 0;
  size_t name_bytes_ = 0;
  uint64_t tensor_bytes_ = 0;
};

const char* kind_name(Kind kind) {
  constexpr std::array kNames{"None",   "a bool",  "an int", "a float",  "a string", "bytes",
                              "a list", "a tuple", "a dict", "a tensor", "an object"};
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace
}  // namespace detail

torch::Tensor TorchTensor::load() const {
  return view(/*release=*/false);
}

torch::Tensor TorchTensor::view(bool release) const {
  if (nbytes_ == 0) return at::empty(sizes_, at::TensorOptions().dtype(dtype_));
  return storage_->flat(dtype_, release).as_strided(sizes_, strides_, storage_offset_);
}

TorchValue::TorchValue(Kind kind, std::string text)
    : kind_(kind), data_(std::make_shared<const std::string>(std::move(text))) {
  CONTRASTIVE_INTERNAL_ASSERT(kind == Kind::kString || kind == Kind::kBytes);
}

TorchValue::TorchValue(Kind kind, List items) : kind_(kind), data_(std::make_shared<const List>(std::move(items))) {
  CONTRASTIVE_INTERNAL_ASSERT(kind == Kind::kList || kind == Kind::kTuple);
}

TorchValue::TorchValue(Dict entries) : kind_(Kind::kDict), data_(std::make_shared<const Dict>(std::move(entries))) {}

TorchValue::TorchValue(TorchTensor tensor)
    : kind_(Kind::kTensor), data_(std::make_shared<const TorchTensor>(std::move(tensor))) {}

TorchValue::TorchValue(TorchObject object)
    : kind_(Kind::kObject), data_(std::make_shared<const TorchObject>(std::move(object))) {}

void TorchValue::fail(const char* expected) const {
  throw CheckpointError(
      fmt::format("[PyTorch file] a value is {}, but {} was expected", detail::kind_name(kind_), expected));
}

template <typename Content>
const Content& TorchValue::shared(const char* expected) const {
  const auto* content = std::get_if<std::shared_ptr<const Content>>(&data_);
  if (content == nullptr) fail(expected);
  return **content;
}

bool TorchValue::as_bool() const {
  if (kind_ != Kind::kBool) fail("a bool");
  return std::get<bool>(data_);
}

int64_t TorchValue::as_int() const {
  if (kind_ != Kind::kInt) fail("an int");
  return std::get<int64_t>(data_);
}

double TorchValue::as_float() const {
  if (kind_ == Kind::kInt) return static_cast<double>(as_int());
  if (kind_ != Kind::kFloat) fail("a float");
  return std::get<double>(data_);
}

const std::string& TorchValue::as_string() const {
  return shared<std::string>("a string");
}

const TorchValue::List& TorchValue::items() const {
  return shared<List>("a list");
}

const TorchValue::Dict& TorchValue::entries() const {
  return shared<Dict>("a dict");
}

const TorchTensor& TorchValue::as_tensor() const {
  return shared<TorchTensor>("a tensor");
}

const TorchObject& TorchValue::as_object() const {
  return shared<TorchObject>("an object");
}

const TorchValue* TorchValue::find(std::string_view key) const {
  const auto& dict = kind_ == Kind::kObject ? as_object().state : *this;
  if (dict.kind_ != Kind::kDict) return nullptr;
  for (const auto& [name, value] : dict.entries()) {
    if (name.is(Kind::kString) && name.as_string() == key) return &value;
  }
  return nullptr;
}

TorchFile::TorchFile(const std::filesystem::path& file)
    : archive_(std::make_shared<const detail::TorchArchive>(file)),
      is_torchscript_(archive_->find("constants.pkl") != nullptr),
      root_(detail::read_root(archive_)) {}

NamedTensors TorchFile::tensors(const TorchValue& value) const {
  NamedTensors result;
  for (const auto& [name, tensor] : detail::Flattener(*archive_, value).take()) {
    result.emplace_back(name, tensor->load());
  }
  return result;
}

std::vector<LazyTensor> TorchFile::lazy_tensors(const TorchValue& value) const {
  std::vector<LazyTensor> result;
  for (const auto& [name, tensor] : detail::Flattener(*archive_, value).take()) {
    result.push_back(
        {name, tensor->dtype(), tensor->sizes(), [tensor = *tensor] { return tensor.view(/*release=*/true); }});
  }
  return result;
}

const TorchValue& TorchFile::state_dict_value() const {
  for (const auto* key : {"state_dict", "model"}) {
    const auto* found = root_.is(TorchValue::Kind::kDict) ? root_.find(key) : nullptr;
    if (found != nullptr && found->is(TorchValue::Kind::kDict)) return *found;
  }
  return root_;
}

}  // namespace contrastive
