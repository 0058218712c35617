#include "contrastive/core/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string_view>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/atomic_file.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "core/sha256_stream.h"

namespace contrastive {
namespace {

using nlohmann::json;

/// The format's own bound on the header.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kAlignment = 8;
/// The header holds objects, which hold shapes and offsets.
constexpr int kMaxHeaderDepth = 3;
constexpr size_t kMaxDimensions = 64;
constexpr const char* kMetadataKey = "__metadata__";

struct DtypeName {
  at::ScalarType dtype;
  const char* name;
};

constexpr std::array<DtypeName, 13> kDtypes{{{at::kFloat, "F32"},
                                             {at::kBFloat16, "BF16"},
                                             {at::kHalf, "F16"},
                                             {at::kDouble, "F64"},
                                             {at::kLong, "I64"},
                                             {at::kInt, "I32"},
                                             {at::kShort, "I16"},
                                             {at::kChar, "I8"},
                                             {at::kByte, "U8"},
                                             {at::kBool, "BOOL"},
                                             {at::kUInt16, "U16"},
                                             {at::kUInt32, "U32"},
                                             {at::kUInt64, "U64"}}};

/// One entry of the header, checked against the file.
struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

class HeaderReader {
 public:
  HeaderReader(std::string where, std::span<const uint8_t> file) : where_(std::move(where)), file_(file) {}

  /// The parsed header; `data_begin` is where the tensors start.
  json parse(uint64_t& data_begin) const {
    uint64_t header_bytes = 0;
    if (file_.size() < sizeof(header_bytes)) fail(fmt::format("has {} bytes, too few for a header", file_.size()));
    std::memcpy(&header_bytes, file_.data(), sizeof(header_bytes));
    if (header_bytes > kMaxHeaderBytes || header_bytes > file_.size() - sizeof(header_bytes)) {
      fail(fmt::format("claims a header of {} bytes in a file of {}", header_bytes, file_.size()));
    }
    data_begin = sizeof(header_bytes) + header_bytes;
    return parse_json({reinterpret_cast<const char*>(file_.data()) + sizeof(header_bytes), header_bytes});
  }

  Entry entry(const std::string& name, const json& value, uint64_t data_bytes) const {
    if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets")) {
      fail(fmt::format("tensor '{}' has no dtype, shape or data_offsets", name));
    }
    Entry entry{
        .name = name, .dtype = dtype(name, value["dtype"]), .shape = shape(name, value["shape"]), .begin = 0, .end = 0};
    const auto& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail(fmt::format("tensor '{}' has data_offsets {}, expected two numbers", name, shown(offsets)));
    }
    entry.begin = offsets[0];
    entry.end = offsets[1];
    if (entry.begin > entry.end || entry.end > data_bytes) {
      fail(fmt::format("tensor '{}' claims bytes [{}, {}) of {} bytes of data; the file is truncated or damaged", name,
                       entry.begin, entry.end, data_bytes));
    }
    check_size(entry);
    return entry;
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw CheckpointError(fmt::format("[{}] {}", where_, message));
  }

 private:
  /// Refuses what the parser would take: deep nesting, whose memory is many times the text, and duplicate keys.
  json parse_json(std::string_view text) const {
    std::vector<std::set<std::string>> open_keys;
    const auto check = [&](int depth, json::parse_event_t event, const json& value) {
      const bool opens = event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
      if (opens && depth >= kMaxHeaderDepth)
        fail(fmt::format("has a header nested more than {} deep", kMaxHeaderDepth));
      if (event == json::parse_event_t::object_start) open_keys.emplace_back();
      if (event == json::parse_event_t::object_end) open_keys.pop_back();
      if (event == json::parse_event_t::key && !open_keys.back().insert(value.get<std::string>()).second) {
        fail(fmt::format("has '{}' twice in its header", value.get<std::string>()));
      }
      return true;
    };
    auto header = json::parse(text, check, /*allow_exceptions=*/false);
    if (!header.is_object()) fail("has a header that is not a JSON object");
    return header;
  }

  /// What a message shows of a value, which can be as large as the header.
  static std::string shown(const json& value) {
    constexpr size_t kMaxShown = 100;
    auto text = value.dump(-1, ' ', /*ensure_ascii=*/true);
    if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
    return text;
  }

  at::ScalarType dtype(const std::string& name, const json& value) const {
    for (const auto& known : kDtypes) {
      if (value == known.name) return known.dtype;
    }
    fail(fmt::format("tensor '{}' has dtype {}, which is not supported", name, shown(value)));
  }

  std::vector<int64_t> shape(const std::string& name, const json& value) const {
    const auto refuse = [&] {
      fail(fmt::format("tensor '{}' has shape {}, expected up to {} sizes", name, shown(value), kMaxDimensions));
    };
    if (!value.is_array() || value.size() > kMaxDimensions) refuse();
    std::vector<int64_t> sizes;
    for (const auto& size : value) {
      if (!size.is_number_unsigned() || size.get<uint64_t>() > INT64_MAX) refuse();
      sizes.push_back(size.get<int64_t>());
    }
    return sizes;
  }

  void check_size(const Entry& entry) const {
    auto bytes = static_cast<int64_t>(c10::elementSize(entry.dtype));
    bool is_empty = false;
    bool overflow = false;
    for (const int64_t size : entry.shape) {
      // Strides are products too, so the sizes beside a zero must not overflow either.
      is_empty |= size == 0;
      overflow |= __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
    }
    if (is_empty) bytes = 0;
    if (overflow || static_cast<uint64_t>(bytes) != entry.end - entry.begin) {
      fail(fmt::format("tensor '{}' has {} bytes of data, which does not fit its shape [{}] and dtype", entry.name,
                       entry.end - entry.begin, fmt::join(entry.shape, ", ")));
    }
  }

  std::string where_;
  std::span<const uint8_t> file_;
};

/// Sorts the entries by place and refuses overlaps and holes, as the format demands.
void order_entries(std::vector<Entry>& entries, uint64_t data_bytes, const HeaderReader& reader) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t position = 0;
  for (const auto& entry : entries) {
    if (entry.begin != position) {
      reader.fail(fmt::format("tensor '{}' starts at byte {} of the data, expected {}: data overlaps or has holes",
                              entry.name, entry.begin, position));
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    reader.fail(fmt::format("has {} bytes of data, but its tensors account for {}", data_bytes, position));
  }
}

/// `release`: the pages leave memory with the tensor.
torch::Tensor view(const std::shared_ptr<const MappedFile>& mapping, uint64_t offset, const Entry& entry,
                   bool release) {
  const auto options = at::TensorOptions().dtype(entry.dtype);
  if (entry.begin == entry.end) return at::empty(entry.shape, options);
  auto* data = const_cast<uint8_t*>(mapping->bytes().data()) + offset;
  if (entry.dtype == at::kBool) {  // a C++ bool must be 0 or 1, which bytes of a file need not be
    return at::from_blob(data, entry.shape, at::TensorOptions().dtype(at::kByte)).ne(0);
  }
  if (offset % c10::elementSize(entry.dtype) == 0) {
    const auto forget = [mapping, release, offset, size = entry.end - entry.begin](void*) {
      if (release) mapping->release(offset, size);
    };
    return at::from_blob(data, entry.shape, forget, options);
  }
  auto copy = at::empty(entry.shape, options);  // a foreign writer may have left the header unaligned
  std::memcpy(copy.data_ptr(), data, entry.end - entry.begin);
  return copy;
}

const char* dtype_name(const std::string& where, const std::string& name, at::ScalarType dtype) {
  for (const auto& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  throw CheckpointError(fmt::format("[{}] tensor '{}' has dtype {}, which safetensors can't hold here", where, name,
                                    c10::toString(dtype)));
}

uint64_t bytes_of(const LazyTensor& tensor) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(tensor.dtype));
  for (const auto size : tensor.shape) bytes *= size;
  return static_cast<uint64_t>(bytes);
}

std::string make_header(const std::string& where, const std::vector<LazyTensor>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t position = 0;
  for (const auto& tensor : tensors) {
    const auto& name = tensor.name;
    if (name == kMetadataKey) {
      throw CheckpointError(fmt::format("[{}] a tensor can't be named '{}', the format's own word", where, name));
    }
    if (header.contains(name)) throw CheckpointError(fmt::format("[{}] tensor '{}' is given twice", where, name));
    const uint64_t end = position + bytes_of(tensor);
    header[name] = {
        {"dtype", dtype_name(where, name, tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    throw CheckpointError(fmt::format("[{}] a tensor's name or a metadata string is not UTF-8", where));
  }
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return text;
}

}  // namespace

struct SafetensorsFile::Content {
  std::string where;
  std::shared_ptr<const MappedFile> mapping;
  uint64_t data_begin = 0;
  std::map<std::string, Entry> entries;

  torch::Tensor tensor(const std::string& name, bool release) const {
    const auto found = entries.find(name);
    if (found == entries.end()) throw CheckpointError(fmt::format("[{}] has no tensor '{}'", where, name));
    return view(mapping, data_begin + found->second.begin, found->second, release);
  }
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& file) {
  auto content = std::make_shared<Content>();
  content->where = file.string();
  try {
    content->mapping = std::make_shared<MappedFile>(file);
  } catch (const Error& error) {
    throw CheckpointError(error.what());
  }
  const HeaderReader reader(content->where, content->mapping->bytes());
  const auto header = reader.parse(content->data_begin);
  const uint64_t data_bytes = content->mapping->bytes().size() - content->data_begin;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      if (!value.is_object()) reader.fail("has __metadata__ that is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) reader.fail(fmt::format("has __metadata__ '{}' that is not a string", key));
        metadata_[key] = text.get<std::string>();
      }
    } else {
      entries.push_back(reader.entry(name, value, data_bytes));
    }
  }
  order_entries(entries, data_bytes, reader);
  for (const auto& entry : entries) {
    names_.push_back(entry.name);
    content->entries.emplace(entry.name, entry);
  }
  content_ = std::move(content);
}

bool SafetensorsFile::contains(const std::string& name) const {
  return content_->entries.contains(name);
}

torch::Tensor SafetensorsFile::tensor(const std::string& name) const {
  return content_->tensor(name, /*release=*/false);
}

NamedTensors SafetensorsFile::tensors() const {
  NamedTensors all;
  for (const auto& name : names_) all.emplace_back(name, tensor(name));
  return all;
}

std::vector<LazyTensor> SafetensorsFile::lazy_tensors() const {
  std::vector<LazyTensor> all;
  for (const auto& name : names_) {
    const auto& entry = content_->entries.at(name);
    all.push_back({name, entry.dtype, entry.shape,
                   [content = content_, name] { return content->tensor(name, /*release=*/true); }});
  }
  return all;
}

std::string write_safetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                              const std::map<std::string, std::string>& metadata) {
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) throw CheckpointError(fmt::format("[{}] tensor '{}' is undefined", file.string(), name));
  }
  return write_safetensors(file, lazy(tensors), metadata);
}

std::string write_safetensors(const std::filesystem::path& file, const std::vector<LazyTensor>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  const auto header = make_header(file.string(), tensors, metadata);
  const auto header_bytes = static_cast<uint64_t>(header.size());
  try {
    AtomicFile writer(file);
    detail::Sha256Stream digest;
    const auto put = [&](const void* data, size_t size) {
      const std::string_view bytes(static_cast<const char*>(data), size);
      digest.update(bytes);
      writer.write(bytes);
    };
    put(&header_bytes, sizeof(header_bytes));
    put(header.data(), header.size());
    for (const auto& tensor : tensors) {
      const auto plain = tensor.load().detach().cpu().contiguous();
      CONTRASTIVE_INTERNAL_ASSERT(plain.scalar_type() == tensor.dtype && plain.sizes() == tensor.shape);
      put(plain.const_data_ptr(), static_cast<size_t>(plain.nbytes()));
    }
    writer.commit();
    return digest.hex();
  } catch (const CheckpointError&) {
    throw;
  } catch (const Error& error) {
    throw CheckpointError(error.what());
  }
}

}  // namespace contrastive
