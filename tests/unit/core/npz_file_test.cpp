// The files under tests/fixtures/npz were written by NumPy: see make_fixtures.py there.
#include "contrastive/core/npz_file.h"

#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/tensor_file.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tensors.h"
#include "tests/support/zip.h"

namespace contrastive {
namespace {

namespace fs = std::filesystem;
using test::little_endian;
using test::zip_bytes;
using test::ZipEntry;

fs::path fixture(const std::string& name) {
  return test::own_fixtures_dir() / "npz" / name;
}

std::map<std::string, LazyTensor> by_name(const std::vector<LazyTensor>& tensors) {
  std::map<std::string, LazyTensor> result;
  for (const auto& tensor : tensors) result.emplace(tensor.name, tensor);
  return result;
}

const std::vector<std::pair<std::string, at::ScalarType>> kDtypes{{"of/float64", at::kDouble},
                                                                  {"of/float32", at::kFloat},
                                                                  {"of/float16", at::kHalf},
                                                                  {"of/bfloat16", at::kBFloat16},
                                                                  {"of/complex64", at::kComplexFloat},
                                                                  {"of/complex128", at::kComplexDouble},
                                                                  {"of/int64", at::kLong},
                                                                  {"of/int32", at::kInt},
                                                                  {"of/int16", at::kShort},
                                                                  {"of/int8", at::kChar},
                                                                  {"of/uint8", at::kByte},
                                                                  {"of/uint16", at::kUInt16},
                                                                  {"of/uint32", at::kUInt32},
                                                                  {"of/uint64", at::kUInt64},
                                                                  {"of/bool", at::kBool}};

/// What make_fixtures.py put into the array of that name.
at::Tensor expected_values(const std::string& name, at::ScalarType dtype) {
  if (dtype == at::kBool) return at::tensor({0, 1, 0, 1, 0, 1}).to(at::kBool).view({2, 3});
  const bool is_unsigned = name.find("uint") != std::string::npos;
  return (at::arange(6, at::kLong) + (is_unsigned ? 1 : -2)).to(dtype).view({2, 3});
}

/// A .npy file of version 1 with this header and data.
std::string npy(const std::string& header, const std::string& data) {
  return std::string("\x93NUMPY\x01\x00", 8) + little_endian(header.size(), 2) + header + data;
}

std::string header(const std::string& descriptor, const std::string& shape, const std::string& order = "False") {
  return fmt::format("{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}", descriptor, order, shape);
}

class NpzFileTest : public ::testing::Test {
 protected:
  fs::path put(const std::string& bytes) const {
    const auto file = folder_.path() / "file.npz";
    fs::remove(file);  // some file systems flush a file that is written over
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

  fs::path put_array(const std::string& npy_bytes) const {
    return put(zip_bytes({{.name = "w.npy", .data = npy_bytes}}));
  }

  /// The error of opening a file and reading its arrays, without the file's name.
  static std::string error_of(const fs::path& file) {
    const auto message = test::message_of<CheckpointError>([&] {
      for (const auto& tensor : open_npz_file(file)) tensor.load();
    });
    const auto prefix = fmt::format("[{}] ", file.string());
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  }

  std::string error_of_header(const std::string& text, const std::string& data = std::string(24, '\0')) const {
    return error_of(put_array(npy(text, data)));
  }

  test::TemporaryDirectory folder_;
};

TEST_F(NpzFileTest, ReadsEveryDtypeStoredAndDeflated) {
  for (const auto* name : {"dtypes.npz", "dtypes_deflated.npz"}) {
    SCOPED_TRACE(name);
    const auto tensors = by_name(open_npz_file(fixture(name)));
    EXPECT_EQ(tensors.size(), kDtypes.size() + 3);
    for (const auto& [key, dtype] : kDtypes) {
      const auto& tensor = tensors.at(key);
      EXPECT_EQ(tensor.dtype, dtype) << key;
      EXPECT_EQ(tensor.shape, (std::vector<int64_t>{2, 3})) << key;
      EXPECT_TRUE(test::same_bytes(tensor.load(), expected_values(key, dtype))) << key;
    }
    EXPECT_TRUE(test::same_bytes(tensors.at("scalar").load(), at::scalar_tensor(3.25)));
    EXPECT_TRUE(test::same_bytes(tensors.at("empty").load(), at::empty({0, 4})));
  }
}

TEST_F(NpzFileTest, PutsFortranOrderIntoCOrder) {
  const auto tensor = by_name(open_npz_file(fixture("dtypes.npz"))).at("fortran");
  EXPECT_EQ(tensor.shape, (std::vector<int64_t>{2, 3, 4}));
  EXPECT_TRUE(test::same_bytes(tensor.load(), at::arange(24, at::kFloat).view({2, 3, 4})));
}

TEST_F(NpzFileTest, ReadsEveryVersionOfTheHeader) {
  const auto tensors = open_npz_file(fixture("versions.npz"));
  ASSERT_EQ(tensors.size(), 3U);
  for (const auto& tensor : tensors) {
    EXPECT_TRUE(test::same_bytes(tensor.load(), expected_values("float32", at::kFloat))) << tensor.name;
  }
}

TEST_F(NpzFileTest, IsOpenedAsATensorFileByItsContent) {
  const auto file = folder_.path() / "weights.bin";
  fs::copy_file(fixture("versions.npz"), file);
  const auto opened = open_tensor_file(file);
  ASSERT_EQ(opened.tensors.size(), 3U);
  EXPECT_EQ(opened.tensors[0].name, "version1");
  EXPECT_FALSE(opened.is_torchscript);
}

TEST_F(NpzFileTest, ReadsUnalignedDataZip64AndHeadersOfOtherWriters) {
  const auto data = little_endian(0x3f800000, 4) + little_endian(0x40000000, 4);  // 1 and 2
  const auto text = "{\"shape\":(2L,),\"fortran_order\":False,\"descr\":\"<f4\"}";
  const auto tensors =
      open_npz_file(put(zip_bytes({{.name = "a/b.npy", .data = npy(text, data), .zip64 = true}}, {.zip64 = true})));
  ASSERT_EQ(tensors.size(), 1U);
  EXPECT_EQ(tensors[0].name, "a/b");
  EXPECT_TRUE(test::same_bytes(tensors[0].load(), at::tensor({1.0F, 2.0F})));
}

TEST_F(NpzFileTest, MakesAnyByteButZeroTrue) {
  const auto tensors = open_npz_file(put_array(npy(header("'|b1'", "(3,)"), std::string("\x00\x02\xff", 3))));
  EXPECT_TRUE(test::same_bytes(tensors.at(0).load(), at::tensor({0, 1, 1}).to(at::kBool)));
}

TEST_F(NpzFileTest, RefusesPickles) {
  EXPECT_EQ(error_of_header(header("'|O'", "(3,)")), "array 'w' holds Python objects (a pickle), which are never read");
}

TEST_F(NpzFileTest, RefusesDtypesItCannotHold) {
  const auto expected = [](const std::string& dtype) {
    return fmt::format("array 'w' has dtype {}, which is not supported: little-endian numbers, bool and |V2 are",
                       dtype);
  };
  for (const std::string dtype : {">f4", "<U8", "|S3", "<f16", "|V4", "<M8[s]", "f4", ""}) {
    EXPECT_EQ(error_of_header(header("'" + dtype + "'", "(6,)")), expected(dtype));
  }
  EXPECT_EQ(error_of_header(header("[('a', '<f4'), ('b', '<i4')]", "(3,)")), expected("[('a', '<f4'), ('b', '<i4')]"));
}

TEST_F(NpzFileTest, RefusesShapesThatDoNotFitTheData) {
  EXPECT_EQ(error_of_header(header("'<f4'", "(2, 4)")),
            "array 'w' has shape [2, 4] of 4-byte elements, but 24 bytes of data; the file is damaged");
  EXPECT_EQ(error_of_header(header("'<f4'", "(4611686018427387904, 4)")),
            "array 'w' has shape [4611686018427387904, 4] of 4-byte elements, but 24 bytes of data; the file is "
            "damaged");
  EXPECT_EQ(error_of_header(header("'<f4'", "(0, 9223372036854775807, 9223372036854775807)"), ""),
            "array 'w' has shape [0, 9223372036854775807, 9223372036854775807] of 4-byte elements, but 0 bytes of "
            "data; the file is damaged");
}

TEST_F(NpzFileTest, RefusesHeadersThatAreNoSuchDict) {
  const std::vector<std::string> headers{
      "",
      "{",
      "{'descr': '<f4', 'fortran_order': False}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} + 1",
      "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (6,)}",
      "{'descr': '<f4', 'fortran_order': 0, 'shape': (6,)}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (-6,)}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': 6}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (6",
      "{'descr': ['<f4', 'fortran_order': False, 'shape': (6,)}",
      "{'other': '<f4', 'fortran_order': False, 'shape': (6,)}",
      "__import__('os')",
  };
  for (const auto& text : headers) {
    EXPECT_EQ(error_of_header(text), fmt::format("array 'w' has a header that is not read: {}; the file is damaged or "
                                                 "holds something else",
                                                 text));
  }
}

TEST_F(NpzFileTest, RefusesHeadersThatAreCutOrTooLong) {
  const auto whole = npy(header("'<f4'", "(6,)"), std::string(24, '\0'));
  EXPECT_EQ(error_of(put_array(whole.substr(0, 30))),
            "array 'w' claims a header of 57 bytes in 30 (at most 10000 are accepted); the file is damaged or holds "
            "something else");
  const auto long_header = header("'<f4'", "(6,)") + std::string(11'000, ' ');
  EXPECT_EQ(error_of(put_array(npy(long_header, std::string(24, '\0')))),
            "array 'w' claims a header of 11057 bytes in 11091 (at most 10000 are accepted); the file is damaged or "
            "holds something else");
  EXPECT_EQ(error_of(put_array("")),
            "array 'w' does not begin as a .npy file; the file is damaged or holds something else");
  auto newer = whole;
  newer[6] = 4;
  EXPECT_EQ(error_of(put_array(newer)),
            "array 'w' has .npy version 4, versions 1 to 3 are read; the file is damaged or holds something else");
}

TEST_F(NpzFileTest, RefusesOtherMembersAndEmptyArchives) {
  EXPECT_EQ(error_of(put(zip_bytes({{.name = "data.pkl", .data = "x"}}))),
            "is no .npz file: its member 'data.pkl' is not named as an array, NAME.npy");
  EXPECT_EQ(error_of(put(zip_bytes({}))), "holds no arrays");
}

TEST_F(NpzFileTest, NoticesChangedDataByTheChecksum) {
  const auto data = npy(header("'<f4'", "(6,)"), std::string(24, '\0'));
  EXPECT_EQ(error_of(put(zip_bytes({{.name = "w.npy", .data = data, .crc32 = 1}}))),
            "array 'w' has not the checksum that was stored with it; the file is damaged");
}

TEST_F(NpzFileTest, RefusesAFileThatIsMissing) {
  EXPECT_NE(test::message_of<CheckpointError>([] { open_npz_file("/nowhere/file.npz"); }), "no error");
}

/// Opening and reading either works or throws CheckpointError; nothing else gets out.
void open_damaged(const fs::path& file) {
  test::message_of<CheckpointError>([&] {
    for (const auto& tensor : open_npz_file(file)) tensor.load().sum();
  });
}

TEST_F(NpzFileTest, NeverFailsOtherwiseOnTruncatedFiles) {
  for (const auto* name : {"versions.npz", "dtypes_deflated.npz"}) {
    const auto whole = read_text_file(fixture(name));
    for (size_t size = 0; size < whole.size(); size += 7) {
      EXPECT_NE(error_of(put(whole.substr(0, size))), "no error") << name << " of " << size << " bytes";
    }
  }
}

TEST_F(NpzFileTest, NeverFailsOtherwiseOnChangedBytes) {
  std::mt19937 random(1);
  for (const auto* name : {"versions.npz", "dtypes.npz", "dtypes_deflated.npz"}) {
    const auto whole = read_text_file(fixture(name));
    for (int round = 0; round < 600; ++round) {
      auto changed = whole;
      for (int i = 0; i < 3; ++i) changed[random() % changed.size()] = static_cast<char>(random() % 256);
      open_damaged(put(changed));
    }
  }
}

}  // namespace
}  // namespace contrastive
