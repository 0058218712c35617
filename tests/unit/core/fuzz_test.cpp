// Mutates good files and reads what comes out: either it loads and every tensor can be read to its end, or it is
// refused with an Error. CONTRASTIVE_FUZZ_ROUNDS (per test) and CONTRASTIVE_FUZZ_SEED choose more and others; a round
// depends on the seed and its number only. After a crash, the input lies in the temporary folder that the test leaves
// behind.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/torch_file.h"

#include "core/unpickler.h"
#include "core/zip_archive.h"
#include "tests/support/paths.h"
#include "tests/support/zip.h"

namespace contrastive {
namespace {

namespace fs = std::filesystem;
using detail::ZipArchive;
using test::little_endian;
using test::ZipEntry;

uint64_t setting(const char* name, uint64_t standard) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::strtoull(given, nullptr, 10) : standard;
}

uint64_t seed() {
  return setting("CONTRASTIVE_FUZZ_SEED", 1);
}

std::span<const uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

/// Random choices of one round.
class Chance {
 public:
  explicit Chance(uint64_t round) {
    std::seed_seq sequence{seed(), round};
    engine_.seed(sequence);
  }

  /// In [0, end); 0 where that is empty.
  size_t below(size_t end) { return end == 0 ? 0 : engine_() % end; }

  template <typename Container>
  const auto& of(const Container& container) {
    return container[below(std::size(container))];
  }

  /// A number that a size check may have forgotten.
  uint64_t number(size_t file_size) {
    const std::array<uint64_t, 16> edges{
        0,      1,         2,          3,         4,          64,        0x7F,          0xFF,
        0xFFFF, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX, file_size, file_size - 1, uint64_t{1} << 62};
    const auto choice = below(edges.size() + 4);
    if (choice < edges.size()) return edges[choice] + below(3) - 1;
    return choice % 2 == 0 ? engine_() : below(2 * file_size + 16);
  }

 private:
  std::mt19937_64 engine_;
};

void overwrite(std::string& bytes, size_t position, std::string_view with) {
  if (position >= bytes.size()) return;
  const auto size = std::min(with.size(), bytes.size() - position);
  std::memcpy(bytes.data() + position, with.data(), size);
}

/// Damage that knows nothing of the format.
void damage_blindly(std::string& bytes, const std::vector<std::string>& corpus, Chance& chance) {
  const auto position = chance.below(bytes.size());
  const auto length = 1 + chance.below(chance.below(4) == 0 ? 256 : 8);
  switch (chance.below(8)) {
    case 0:
      bytes.resize(position);
      break;
    case 1:
      bytes.insert(position, std::string(length, static_cast<char>(chance.below(256))));
      break;
    case 2:
      bytes.erase(position, length);
      break;
    case 3: {
      const auto& other = chance.of(corpus);
      overwrite(bytes, position, std::string_view(other).substr(chance.below(other.size()), length));
      break;
    }
    case 4:
      bytes.insert(position, bytes.substr(chance.below(bytes.size()), length));
      break;
    case 5:
      overwrite(bytes, position, little_endian(chance.number(bytes.size()), size_t{1} << chance.below(4)));
      break;
    case 6:
      overwrite(bytes, position, std::string(1, static_cast<char>(chance.below(256))));
      break;
    default:
      if (!bytes.empty()) bytes[position] = static_cast<char>(bytes[position] ^ (1 << chance.below(8)));
  }
}

/// Changes a number, a flag or a name in one of a zip archive's records.
void damage_zip_record(std::string& bytes, Chance& chance) {
  constexpr std::array<std::string_view, 5> kRecords{"PK\3\4", "PK\1\2", "PK\5\6", "PK\6\6", "PK\6\7"};
  const auto record = chance.of(kRecords);
  const auto position = bytes.find(record, chance.below(bytes.size()));
  if (position == std::string::npos) return;
  const auto value = chance.number(bytes.size());
  if (record == "PK\1\2" && chance.below(4) == 0) {  // both sizes, which have to agree
    return overwrite(bytes, position + 20, little_endian(value, 4) + little_endian(value, 4));
  }
  constexpr size_t kLongestRecord = 64;  // with the first bytes of the name or extra field
  overwrite(bytes, position + 4 + chance.below(kLongestRecord - 4), little_endian(value, size_t{1} << chance.below(4)));
}

/// Changes a number in the JSON of a safetensors file, or the length of it, and mostly keeps that length right.
void damage_safetensors_header(std::string& bytes, Chance& chance) {
  uint64_t length = 0;
  if (bytes.size() < sizeof(length)) return;
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > bytes.size() - sizeof(length)) return;
  auto header = bytes.substr(sizeof(length), length);
  const auto begin = header.find_first_of("0123456789", chance.below(header.size()));
  if (begin != std::string::npos) {
    const auto end = std::min(header.find_first_not_of("0123456789", begin), header.size());
    header.replace(begin, end - begin, std::to_string(chance.number(bytes.size())));
  }
  constexpr std::array<const char*, 8> kPieces{"F32", "BOOL", "{", "[", "-", "e9", "\"", ","};
  if (chance.below(4) == 0) header.insert(chance.below(header.size()), chance.of(kPieces));
  const auto stated = chance.below(8) == 0 ? chance.number(bytes.size()) : header.size();
  bytes = little_endian(stated, sizeof(length)) + header + bytes.substr(sizeof(length) + length);
}

/// Makes pickles that are mostly right: dicts, lists, objects and tensors with odd numbers in them.
class PickleMaker {
 public:
  explicit PickleMaker(Chance& chance) : chance_(chance) {}

  std::string make() { return "\x80\x02" + dict(0) + "."; }

 private:
  static std::string text(const std::string& value) { return "X" + little_endian(value.size(), 4) + value; }

  std::string small(size_t end) { return "K" + std::string(1, static_cast<char>(chance_.below(end))); }

  std::string number() { return "\x8a\x08" + little_endian(chance_.number(16), 8); }

  std::string count() { return chance_.below(40) == 0 ? number() : small(4); }

  std::string counts(size_t dimensions) {
    std::string result = "(";
    for (size_t i = 0; i < dimensions; ++i) result += count();
    return result + "t";
  }

  std::string storage() {
    constexpr std::array<const char*, 6> kClasses{"torch\nFloatStorage", "torch\nByteStorage",
                                                  "torch\nBoolStorage",  "torch\nDoubleStorage",
                                                  "torch\nHalfStorage",  "torch.storage\nUntypedStorage"};
    constexpr std::array<char, 6> kElements{4, 16, 16, 2, 8, 16};
    const auto which = chance_.below(kClasses.size());
    const auto numel = chance_.below(40) == 0 ? number() : std::string{'K', kElements[which]};
    const auto* key = chance_.below(40) == 0 ? "1" : "0";
    return "(" + text("storage") + "c" + kClasses[which] + "\n" + text(key) + text("cpu") + numel + "tQ";
  }

  std::string tensor() {
    const auto dimensions = chance_.below(4);
    const auto body = storage() + count() + counts(dimensions) + counts(dimensions);
    switch (chance_.below(5)) {
      case 0:
        return "ctorch._utils\n_rebuild_tensor\n(" + body + "tR";
      case 1:
        return "ctorch._utils\n_rebuild_tensor_v3\n(" + body + "\x89}ctorch\nfloat16\n}tR";
      case 2:
        return storage();
      default:
        return "ctorch._utils\n_rebuild_tensor_v2\n(" + body + "\x89}tR";
    }
  }

  std::string items(size_t depth) {
    std::string result = "(";
    for (size_t i = chance_.below(4); i > 0; --i) result += value(depth);
    return result;
  }

  std::string pairs(size_t depth) {
    std::string result = "(";
    for (size_t i = chance_.below(5); i > 0; --i) {
      result += chance_.below(8) == 0 ? value(depth) : text("k" + std::to_string(chance_.below(1000)));
      result += value(depth);
    }
    return result + "u";
  }

  std::string dict(size_t depth) {
    return (chance_.below(2) == 0 ? "}" : "ccollections\nOrderedDict\n)R") + pairs(depth + 1);
  }

  /// A number under which something was remembered, mostly.
  std::string remembered() {
    if (num_remembered_ == 0 && chance_.below(10) != 0) return "N";
    return "h" + std::string(1, static_cast<char>(1 + chance_.below(num_remembered_)));
  }

  std::string object(size_t depth) {
    constexpr std::array<const char*, 8> kClasses{"os\nsystem",
                                                  "__torch__.m\nM",
                                                  "argparse\nNamespace",
                                                  "torch\nSize",
                                                  "torch._utils\n_rebuild_parameter",
                                                  "torch.jit._pickle\nrestore_type_tag",
                                                  "torch._tensor\n_rebuild_from_type_v2",
                                                  "builtins\nset"};
    auto result = std::string("c") + chance_.of(kClasses) + "\n";
    if (chance_.below(8) == 0) return result;
    result += items(depth + 1) + (chance_.below(2) == 0 ? "tR" : "t\x81");
    if (chance_.below(3) == 0) result += pairs(depth + 1);
    if (chance_.below(3) == 0) result += dict(depth + 1) + "b";
    return result;
  }

  std::string value(size_t depth) {
    if (chance_.below(6) == 0 && num_remembered_ < 100) {
      const auto made = plain_value(depth);
      return made + "q" + std::string(1, static_cast<char>(++num_remembered_));
    }
    return plain_value(depth);
  }

  std::string plain_value(size_t depth) {
    constexpr size_t kDeep = 5;
    switch (chance_.below(depth > kDeep ? 7 : 11)) {
      case 0:
        return "N";
      case 1:
        return "\x88";
      case 2:
        return number();
      case 3:
        return text(std::string(chance_.below(9), 's'));
      case 4:
        return remembered();
      case 5:
      case 6:
        return tensor();
      case 7:
        return "]" + items(depth + 1) + "e";
      case 8:
        return items(depth + 1) + (chance_.below(8) == 0 ? "\x91" : "t");
      case 9:
        return object(depth);
      default:
        return dict(depth);
    }
  }

  Chance& chance_;
  size_t num_remembered_ = 0;
};

void read_to_the_end(const at::Tensor& tensor) {
  const auto plain = tensor.contiguous();
  const auto* bytes = static_cast<const uint8_t*>(plain.const_data_ptr());
  volatile uint8_t sum = 0;
  for (size_t i = 0; i < plain.nbytes(); i += 64) sum = sum ^ bytes[i];
  if (plain.nbytes() > 0) sum = sum ^ bytes[plain.nbytes() - 1];
  if (plain.scalar_type() == at::kBool && plain.numel() > 0) {
    ASSERT_LE(at::from_blob(plain.data_ptr(), plain.sizes(), at::kByte).max().item<int64_t>(), 1);
  }
}

size_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

class FuzzTest : public ::testing::Test {
 protected:
  static std::vector<std::string> corpus(const std::string& folder, const std::vector<std::string>& names) {
    std::vector<std::string> files;
    for (const auto& name : names) files.push_back(read_text_file(test::own_fixtures_dir() / folder / name));
    return files;
  }

  static std::vector<std::string> torch_corpus() {
    return corpus("torch_file",
                  {"views.pt", "views_unaligned.pt", "views_deflated.pt", "scripted.pt", "dtypes_protocol2.pt",
                   "dtypes_deflated.pt", "checkpoint_protocol2.pt", "checkpoint_protocol4.pt", "legacy.pt"});
  }

  /// Runs `round` with its chance; counts what was read and what was refused. Anything but Error ends the test.
  void run(uint64_t standard_rounds, const std::function<void(Chance&)>& round) {
    const auto rounds = setting("CONTRASTIVE_FUZZ_ROUNDS", standard_rounds);
    const auto peak_before = peak_bytes();
    for (uint64_t i = 0; i < rounds; ++i) {
      Chance chance(i);
      try {
        round(chance);
        ++num_read_;
      } catch (const Error&) {
        ++num_refused_;
      } catch (const std::exception& error) {
        FAIL() << "round " << i << " of seed " << seed() << ": " << error.what();
      }
    }
    std::cout << "seed " << seed() << ": " << rounds << " rounds, " << num_read_ << " read, " << num_refused_
              << " refused\n";
    EXPECT_GT(num_refused_, 0u);
    constexpr size_t kMostMemory = size_t{1} << 30;
    EXPECT_LT(peak_bytes() - peak_before, kMostMemory);
  }

  fs::path put(const std::string& bytes) const {
    const auto file = folder_.path() / "input";
    fs::remove(file);  // some file systems flush a file that is written over
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

  void read_torch_file(const std::string& bytes) const {
    const TorchFile file(put(bytes));
    for (const auto& [name, tensor] : file.tensors(file.root())) read_to_the_end(tensor);
    for (const auto& tensor : file.lazy_state_dict()) {
      EXPECT_EQ(tensor.load().sizes(), at::IntArrayRef(tensor.shape));
    }
  }

  test::TemporaryDirectory folder_;
  uint64_t num_read_ = 0;
  uint64_t num_refused_ = 0;
};

TEST_F(FuzzTest, DamagedSafetensorsAreReadOrRefused) {
  const auto files = corpus("safetensors", {"all_dtypes.safetensors", "no_tensors.safetensors", "float8.safetensors"});
  run(3000, [&](Chance& chance) {
    auto bytes = chance.of(files);
    for (size_t i = 1 + chance.below(3); i > 0; --i) {
      if (chance.below(3) == 0) {
        damage_blindly(bytes, files, chance);
      } else {
        damage_safetensors_header(bytes, chance);
      }
    }
    const SafetensorsFile file(put(bytes));
    for (const auto& [name, tensor] : file.tensors()) read_to_the_end(tensor);
    for (const auto& tensor : file.lazy_tensors()) read_to_the_end(tensor.load());
  });
}

TEST_F(FuzzTest, DamagedPyTorchFilesAreReadOrRefused) {
  const auto files = torch_corpus();
  run(3000, [&](Chance& chance) {
    auto bytes = chance.of(files);
    for (size_t i = 1 + chance.below(3); i > 0; --i) {
      if (chance.below(2) == 0) {
        damage_blindly(bytes, files, chance);
      } else {
        damage_zip_record(bytes, chance);
      }
    }
    read_torch_file(bytes);
  });
}

TEST_F(FuzzTest, DamagedPicklesInGoodArchivesAreReadOrRefused) {
  std::vector<std::vector<ZipEntry>> archives;
  std::vector<std::string> pickles;
  auto files = torch_corpus();
  files.pop_back();  // the legacy file is no archive
  for (const auto& bytes : files) {
    const ZipArchive archive("seed", as_bytes(bytes));
    auto& entries = archives.emplace_back();
    for (const auto& member : archive.members()) {
      std::string data(member.bytes, '\0');
      archive.read(member, {reinterpret_cast<uint8_t*>(data.data()), data.size()});
      if (member.name.ends_with("/data.pkl")) pickles.push_back(data);
      entries.push_back({.name = std::string(member.name), .data = data, .deflate = member.is_deflated});
    }
  }
  run(3000, [&](Chance& chance) {
    auto entries = chance.of(archives);
    const auto pickle = std::find_if(entries.begin(), entries.end(),
                                     [](const auto& entry) { return entry.name.ends_with("/data.pkl"); });
    for (size_t i = 1 + chance.below(2); i > 0; --i) damage_blindly(pickle->data, pickles, chance);
    read_torch_file(test::zip_bytes(entries));
  });
}

TEST_F(FuzzTest, RandomPicklesAreReadOrRefused) {
  const std::string data("\0\1\2\3\4\5\6\7\x08\x09\x7f\x80\xfe\xff\xff\xff", 16);
  run(4000, [&](Chance& chance) {
    read_torch_file(test::zip_bytes({{.name = "a/data.pkl", .data = PickleMaker(chance).make()},
                                     {.name = "a/data/0", .data = data, .deflate = chance.below(4) == 0}}));
  });
}

TEST_F(FuzzTest, DamagedZipArchivesAreReadOrRefused) {
  auto files = torch_corpus();
  for (const bool zip64 : {false, true}) {
    const std::string letters(300, 'x');
    files.push_back(test::zip_bytes({{.name = "a/data.pkl", .data = letters, .zip64 = zip64},
                                     {.name = "b", .data = letters, .deflate = true, .zip64 = zip64},
                                     {.name = "c/", .data = ""}},
                                    {.zip64 = zip64, .comment = "a comment"}));
  }
  run(6000, [&](Chance& chance) {
    auto bytes = chance.of(files);
    for (size_t i = 1 + chance.below(3); i > 0; --i) {
      if (chance.below(4) == 0) {
        damage_blindly(bytes, files, chance);
      } else {
        damage_zip_record(bytes, chance);
      }
    }
    // A copy of just this size lets a memory checker see a read behind the end.
    const std::vector<uint8_t> exact(bytes.begin(), bytes.end());
    const ZipArchive archive("input", exact);
    for (const auto& member : archive.members()) {
      std::vector<uint8_t> target(member.bytes);
      archive.read(member, target);
      ASSERT_EQ(archive.find(member.name), &member);
    }
  });
}

TEST_F(FuzzTest, DamagedRandomPicklesAreReadOrRefused) {
  run(10000, [&](Chance& chance) {
    auto pickle = PickleMaker(chance).make();
    const auto other = PickleMaker(chance).make();
    for (size_t i = 1 + chance.below(3); i > 0; --i) damage_blindly(pickle, {pickle, other}, chance);
    const std::vector<char> exact(pickle.begin(), pickle.end());
    const auto graph = detail::read_pickle("input", {exact.data(), exact.size()});
    ASSERT_LE(graph.order.size(), graph.nodes.size());
    ASSERT_LE(graph.nodes.size(), exact.size());
  });
}

}  // namespace
}  // namespace contrastive
