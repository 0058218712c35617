#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <string_view>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <zlib.h>

#include "contrastive/core/atomic_file.h"
#include "contrastive/core/error.h"
#include "contrastive/core/torch_file.h"

#include "core/sha256_stream.h"
#include "core/torch_dtypes.h"

namespace contrastive {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr const char* kFolder = "archive/";
constexpr uint64_t kStorageAlignment = 64;
constexpr uint64_t kWide = 0xFFFFFFFF;  ///< in a field of 32 bits: see the zip64 field
constexpr uint64_t kLocalBytes = 30;

template <typename Number>
void append(std::string& bytes, Number value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_u32(std::string& bytes, uint64_t value) {
  append(bytes, static_cast<uint32_t>(value));
}

void append_u16(std::string& bytes, uint64_t value) {
  append(bytes, static_cast<uint16_t>(value));
}

uint64_t saturated(uint64_t value) {
  return std::min(value, kWide);
}

/// Stored members one after the other, in the zip64 format where 32 bits are too few.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& file) : file_(file) {}

  /// `alignment`: of the data, in bytes from the start of the file.
  void add(const std::string& name, std::string_view data, uint64_t alignment = 1) {
    const Entry entry{
        .name = kFolder + name,
        .begin = position_,
        .bytes = data.size(),
        .crc32 = static_cast<uint32_t>(::crc32_z(0, reinterpret_cast<const unsigned char*>(data.data()), data.size()))};
    put(local_header(entry, alignment));
    put(data);
    entries_.push_back(entry);
  }

  /// Writes the directory. Returns: the file's SHA-256.
  std::string finish() {
    const auto begin = position_;
    for (const auto& entry : entries_) put(directory_entry(entry));
    put(end_records(begin, position_ - begin));
    file_.commit();
    return digest_.hex();
  }

 private:
  struct Entry {
    std::string name;
    uint64_t begin;
    uint64_t bytes;
    uint32_t crc32;
  };

  void put(std::string_view bytes) {
    digest_.update(bytes);
    file_.write(bytes);
    position_ += bytes.size();
  }

  /// What local header and directory entry have in common: from the version to the sizes.
  static void append_common(std::string& bytes, const Entry& entry) {
    constexpr uint16_t kNoFlags = 0, kStored = 0, kMidnight = 0;
    constexpr uint16_t kFirstOfJanuary1980 = 1 << 5 | 1;
    const bool is_wide = entry.bytes >= kWide || entry.begin >= kWide;
    append_u16(bytes, is_wide ? 45 : 20);  // the version of the format that a reader must know: 4.5 or 2.0
    append_u16(bytes, kNoFlags);
    append_u16(bytes, kStored);
    append_u16(bytes, kMidnight);
    append_u16(bytes, kFirstOfJanuary1980);
    append(bytes, entry.crc32);
    append_u32(bytes, saturated(entry.bytes));
    append_u32(bytes, saturated(entry.bytes));
    append_u16(bytes, entry.name.size());
  }

  static std::string wide_field(std::initializer_list<uint64_t> values) {
    std::string bytes;
    append_u16(bytes, 0x0001);
    append_u16(bytes, values.size() * sizeof(uint64_t));
    for (const auto value : values) append(bytes, value);
    return bytes;
  }

  static std::string local_header(const Entry& entry, uint64_t alignment) {
    std::string bytes;
    append_u32(bytes, 0x04034b50);
    append_common(bytes, entry);
    std::string extra;
    if (entry.bytes >= kWide) extra += wide_field({entry.bytes, entry.bytes});
    if (alignment > 1) {  // a field of its own takes 4 bytes or more
      const auto unpadded = entry.begin + kLocalBytes + entry.name.size() + extra.size() + 4;
      const auto padding = (alignment - unpadded % alignment) % alignment;
      extra += "FB";  // PyTorch's mark for padding
      append_u16(extra, padding);
      extra.append(padding, 'Z');
    }
    append_u16(bytes, extra.size());
    return bytes + entry.name + extra;
  }

  static std::string directory_entry(const Entry& entry) {
    std::string bytes;
    append_u32(bytes, 0x02014b50);
    append_u16(bytes, 45);  // the version of the format that the writer knows
    append_common(bytes, entry);
    std::string extra;
    if (entry.bytes >= kWide && entry.begin >= kWide) {
      extra = wide_field({entry.bytes, entry.bytes, entry.begin});
    } else if (entry.bytes >= kWide) {
      extra = wide_field({entry.bytes, entry.bytes});
    } else if (entry.begin >= kWide) {
      extra = wide_field({entry.begin});
    }
    append_u16(bytes, extra.size());
    append_u16(bytes, 0);  // no comment
    append_u16(bytes, 0);  // the first disk
    append_u16(bytes, 0);  // internal attributes
    append_u32(bytes, 0);  // external attributes
    append_u32(bytes, saturated(entry.begin));
    return bytes + entry.name + extra;
  }

  std::string end_records(uint64_t begin, uint64_t size) const {
    std::string bytes;
    const uint64_t count = entries_.size();
    if (begin >= kWide || size >= kWide || count >= 0xFFFF) {
      const auto record = begin + size;
      append_u32(bytes, 0x06064b50);
      append<uint64_t>(bytes, 44);  // bytes of this record that follow
      append_u16(bytes, 45);
      append_u16(bytes, 45);
      append_u32(bytes, 0);  // this disk
      append_u32(bytes, 0);  // the directory's disk
      for (const auto value : {count, count, size, begin}) append(bytes, value);
      append_u32(bytes, 0x07064b50);
      append_u32(bytes, 0);  // the disk of the record
      append(bytes, record);
      append_u32(bytes, 1);  // disks
    }
    append_u32(bytes, 0x06054b50);
    append_u32(bytes, 0);  // this disk and the directory's
    append_u16(bytes, std::min<uint64_t>(count, 0xFFFF));
    append_u16(bytes, std::min<uint64_t>(count, 0xFFFF));
    append_u32(bytes, saturated(size));
    append_u32(bytes, saturated(begin));
    append_u16(bytes, 0);  // no comment
    return bytes;
  }

  AtomicFile file_;
  detail::Sha256Stream digest_;
  std::vector<Entry> entries_;
  uint64_t position_ = 0;
};

/// A pickle of protocol 2, written as torch.save would: what was used once is remembered.
class PickleWriter {
 public:
  explicit PickleWriter(std::string where) : where_(std::move(where)) {
    bytes_ += "\x80\x02";
    ordered_dict();
    bytes_ += '(';
  }

  void add(const LazyTensor& tensor, size_t index) {
    check_name(tensor.name);
    const auto* dtype = find_dtype(tensor.dtype);
    if (dtype == nullptr) {
      fail(tensor, fmt::format("has dtype {}, which PyTorch has no storage class for", c10::toString(tensor.dtype)));
    }
    string(tensor.name);
    global("torch._utils", "_rebuild_tensor_v2");
    bytes_ += "((";
    string("storage");
    global("torch", std::string_view(dtype->storage_name).substr(std::string_view("torch.").size()));
    string(std::to_string(index));
    string("cpu");
    integer(numel(tensor));
    bytes_ += "tQ";
    integer(0);  // offset
    tuple(tensor.shape);
    tuple(contiguous_strides(tensor.shape));
    bytes_ += '\x89';  // needs no gradient
    ordered_dict();    // no hooks
    bytes_ += "tR";
  }

  std::string finish() { return bytes_ + "u."; }

 private:
  [[noreturn]] void fail(const LazyTensor& tensor, const std::string& problem) const {
    throw CheckpointError(fmt::format("[{}] tensor '{}' {}", where_, tensor.name, problem));
  }

  static const detail::TorchDtype* find_dtype(at::ScalarType dtype) {
    const auto* found = std::find_if(detail::kTorchDtypes.begin(), detail::kTorchDtypes.end(), [&](const auto& known) {
      return known.dtype == dtype && known.storage_name != nullptr;
    });
    return found == detail::kTorchDtypes.end() ? nullptr : found;
  }

  void check_name(const std::string& name) {
    try {
      nlohmann::json(name).dump();
    } catch (const nlohmann::json::exception&) {
      throw CheckpointError(fmt::format("[{}] a tensor's name is not UTF-8", where_));
    }
    if (!names_.insert(name).second) {
      throw CheckpointError(fmt::format("[{}] tensor '{}' is given twice", where_, name));
    }
  }

  int64_t numel(const LazyTensor& tensor) const {
    int64_t bytes = static_cast<int64_t>(c10::elementSize(tensor.dtype));
    int64_t numel = 1;
    bool is_wrong = false;
    for (const auto size : tensor.shape) {
      // Strides are products of the sizes beside a zero, too.
      is_wrong |= size < 0 || __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
      numel = is_wrong ? 0 : numel * size;
    }
    if (is_wrong) fail(tensor, fmt::format("can't have shape [{}]", fmt::join(tensor.shape, ", ")));
    return numel;
  }

  static std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape) {
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
    return strides;
  }

  void ordered_dict() {
    global("collections", "OrderedDict");
    bytes_ += ")R";
  }

  void global(std::string_view module, std::string_view name) { once(fmt::format("c{}\n{}\n", module, name)); }

  void string(std::string_view text) {
    std::string instruction = "X";
    append_u32(instruction, text.size());
    instruction += text;
    // Names come once each.
    if (text == "storage" || text == "cpu") {
      once(instruction);
    } else {
      bytes_ += instruction;
    }
  }

  /// Makes a value and remembers it, or recalls it.
  void once(const std::string& instruction) {
    const auto found = std::find(memo_.begin(), memo_.end(), instruction);
    const auto index = static_cast<uint8_t>(found - memo_.begin());
    if (found == memo_.end()) {
      bytes_ += instruction + "q";
      memo_.push_back(instruction);
    } else {
      bytes_ += "h";
    }
    append(bytes_, index);
  }

  void integer(int64_t value) {
    if (value >= 0 && value <= std::numeric_limits<uint8_t>::max()) {
      bytes_ += 'K';
      append(bytes_, static_cast<uint8_t>(value));
    } else if (value >= 0 && value <= std::numeric_limits<int32_t>::max()) {
      bytes_ += 'J';
      append(bytes_, static_cast<int32_t>(value));
    } else {
      bytes_ += "\x8a\x08";
      append(bytes_, value);
    }
  }

  void tuple(const std::vector<int64_t>& values) {
    bytes_ += '(';
    for (const auto value : values) integer(value);
    bytes_ += 't';
  }

  std::string where_;
  std::string bytes_;
  std::set<std::string> names_;
  std::vector<std::string> memo_;
};

std::string_view bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

void write_storages(const std::string& where, ZipWriter& zip, const std::vector<LazyTensor>& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& announced = tensors[i];
    const auto tensor = announced.load();
    if (!tensor.defined() || tensor.scalar_type() != announced.dtype || tensor.sizes() != announced.shape) {
      throw CheckpointError(fmt::format("[{}] tensor '{}' was announced as {} [{}], but is {}", where, announced.name,
                                        c10::toString(announced.dtype), fmt::join(announced.shape, ", "),
                                        tensor.defined() ? fmt::format("{} [{}]", c10::toString(tensor.scalar_type()),
                                                                       fmt::join(tensor.sizes(), ", "))
                                                         : std::string("undefined")));
    }
    const auto plain = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg();
    zip.add("data/" + std::to_string(i), bytes_of(plain), kStorageAlignment);
  }
}

}  // namespace

std::string write_torch_file(const std::filesystem::path& file, const std::vector<LazyTensor>& tensors) {
  PickleWriter pickle(file.string());
  for (size_t i = 0; i < tensors.size(); ++i) pickle.add(tensors[i], i);
  try {
    ZipWriter zip(file);
    zip.add("data.pkl", pickle.finish());
    zip.add("byteorder", "little");
    write_storages(file.string(), zip, tensors);
    zip.add("version", "3\n");
    return zip.finish();
  } catch (const CheckpointError&) {
    throw;
  } catch (const Error& error) {
    throw CheckpointError(error.what());
  }
}

}  // namespace contrastive
