// The files under tests/fixtures/safetensors were written by the Python package: see make_fixtures.py there.
#include "contrastive/core/safetensors.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

fs::path fixture(const std::string& name) {
  return test::own_fixtures_dir() / "safetensors" / name;
}

/// How messages about a file begin.
std::string about(const fs::path& file) {
  return fmt::format("[{}] ", file.string());
}

std::string with_length(const std::string& header, uint64_t length) {
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header;
}

/// What make_fixtures.py put into the tensor of that name.
at::Tensor expected_tensor(const std::string& name, at::ScalarType dtype) {
  if (name == "scalar") return at::scalar_tensor(3.25);
  if (name == "empty") return at::empty({0, 4});
  if (name == "empty.too") return at::empty({3, 0}, at::kLong);
  if (name == "of.bool") return at::tensor({0, 1, 0, 1, 0}).to(at::kBool);
  const bool is_unsigned = name.find("uint") != std::string::npos;
  const auto values = at::arange(6, at::kLong) + (is_unsigned ? 1 : -2);
  return values.to(dtype).view({2, 3});
}

const std::vector<std::pair<std::string, at::ScalarType>> kFixtureOrder{
    {"of.uint64", at::kUInt64}, {"empty.too", at::kLong},       {"of.int64", at::kLong},   {"of.float64", at::kDouble},
    {"empty", at::kFloat},      {"of.float32", at::kFloat},     {"scalar", at::kFloat},    {"of.uint32", at::kUInt32},
    {"of.int32", at::kInt},     {"of.bfloat16", at::kBFloat16}, {"of.float16", at::kHalf}, {"of.uint16", at::kUInt16},
    {"of.int16", at::kShort},   {"of.int8", at::kChar},         {"of.uint8", at::kByte},   {"of.bool", at::kBool}};

class SafetensorsTest : public ::testing::Test {
 protected:
  fs::path at_path(const std::string& name) const { return folder_.path() / name; }

  fs::path put(const std::string& bytes) const {
    const auto file = at_path("file.safetensors");
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

  /// The error of opening a file of this header and so many bytes of data, without the file's name.
  std::string error_of(const std::string& header, size_t data_bytes = 0) const {
    return error_of_bytes(with_length(header, header.size()) + std::string(data_bytes, '\0'));
  }

  std::string error_of_bytes(const std::string& bytes) const {
    const auto file = put(bytes);
    const auto message = test::message_of<CheckpointError>([&] { SafetensorsFile opened(file); });
    const auto prefix = about(file);
    return message.find(prefix) == 0 ? message.substr(prefix.size()) : message;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(SafetensorsTest, ReadsEveryDtypeThePythonPackageWrote) {
  const SafetensorsFile file(fixture("all_dtypes.safetensors"));
  std::vector<std::string> expected_names;
  for (const auto& [name, dtype] : kFixtureOrder) {
    SCOPED_TRACE(name);
    expected_names.push_back(name);
    ASSERT_TRUE(file.contains(name));
    const auto tensor = file.tensor(name);
    EXPECT_EQ(tensor.scalar_type(), dtype);
    EXPECT_TRUE(test::same_bytes(tensor, expected_tensor(name, dtype)));
  }
  EXPECT_EQ(file.names(), expected_names);
  EXPECT_EQ(file.tensors().size(), expected_names.size());
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"note", "Grüße 漢 😀 \"quoted\""}};
  EXPECT_EQ(file.metadata(), metadata);
}

TEST_F(SafetensorsTest, ReadsAFileWithoutTensors) {
  const SafetensorsFile file(fixture("no_tensors.safetensors"));
  EXPECT_TRUE(file.names().empty());
  EXPECT_TRUE(file.metadata().empty());
  EXPECT_FALSE(file.contains("x"));
}

TEST_F(SafetensorsTest, TensorsOutliveTheFileObject) {
  at::Tensor tensor;
  {
    const SafetensorsFile file(fixture("all_dtypes.safetensors"));
    tensor = file.tensor("of.float32");
  }
  EXPECT_TRUE(test::same_bytes(tensor, expected_tensor("of.float32", at::kFloat)));
}

TEST_F(SafetensorsTest, ReadsDataThatIsNotAligned) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )";
  ASSERT_NE((8 + header.size()) % 4, 0u);
  const float value = -1.5f;
  std::string data(4, '\0');
  std::memcpy(data.data(), &value, 4);
  const SafetensorsFile file(put(with_length(header, header.size()) + data));
  EXPECT_EQ(file.tensor("a").item<float>(), value);
}

TEST_F(SafetensorsTest, TakesEveryByteOfABoolBut0ForTrue) {
  const std::string header = R"({"a":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})";
  const SafetensorsFile file(put(with_length(header, header.size()) + std::string("\0\1\x80", 3)));
  EXPECT_TRUE(test::same_bytes(file.tensor("a"), at::tensor({0, 1, 1}).to(at::kBool)));
}

TEST_F(SafetensorsTest, EveryTruncationIsAnError) {
  const auto whole = read_text_file(fixture("all_dtypes.safetensors"));
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_NE(error_of_bytes(whole.substr(0, size)), "no error") << size << " of " << whole.size() << " bytes";
  }
  ASSERT_EQ(error_of_bytes(whole), "no error");
  EXPECT_EQ(error_of_bytes(whole + "x"), "has 286 bytes of data, but its tensors account for 285");
}

TEST_F(SafetensorsTest, EveryDamagedHeaderByteIsReadOrRefused) {
  const auto whole = read_text_file(fixture("all_dtypes.safetensors"));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), sizeof(header_bytes));
  for (size_t i = 0; i < sizeof(header_bytes) + header_bytes; ++i) {
    for (const char wrong : {'\0', '"', '[', '}', '9', '-', 'e', '\xff'}) {
      auto damaged = whole;
      damaged[i] = wrong;
      error_of_bytes(damaged);  // anything but CheckpointError would end the test
    }
  }
}

TEST_F(SafetensorsTest, RefusesHeadersThatDoNotFitTheFile) {
  EXPECT_EQ(error_of_bytes(""), "has 0 bytes, too few for a header");
  EXPECT_EQ(error_of_bytes("1234567"), "has 7 bytes, too few for a header");
  EXPECT_EQ(error_of_bytes(with_length("{}", 3)), "claims a header of 3 bytes in a file of 10");
  EXPECT_EQ(error_of_bytes(with_length("{}", UINT64_MAX)),
            "claims a header of 18446744073709551615 bytes in a file of 10");
  EXPECT_EQ(error_of_bytes(with_length("{}", UINT64_MAX - 7)),
            "claims a header of 18446744073709551608 bytes in a file of 10");
  for (const char* header : {"", "{", "[]", "null", "{}x",
                             "\xef\xbb\xbf"
                             "{",
                             "{\"\xff\":1}", "{'a':1}", "{\"a\":1,}"}) {
    EXPECT_EQ(error_of(header), "has a header that is not a JSON object") << header;
  }
}

TEST_F(SafetensorsTest, RefusesDeepNestingBeforeItTakesMemory) {
  constexpr size_t kHeaderBytes = 100'000'000;
  EXPECT_EQ(error_of(std::string(kHeaderBytes, '[')), "has a header nested more than 3 deep");
  std::string objects;
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  EXPECT_EQ(error_of(objects), "has a header nested more than 3 deep");
  EXPECT_EQ(error_of(std::string(kHeaderBytes + 1, '[')), "claims a header of 100000001 bytes in a file of 100000009");
}

TEST_F(SafetensorsTest, RefusesNamesGivenTwice) {
  const std::string tensor = R"({"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  EXPECT_EQ(error_of("{\"a\":" + tensor + ",\"b\":" + tensor + ",\"a\":" + tensor + "}"),
            "has 'a' twice in its header");
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F32","shape":[1],"dtype":"F64","data_offsets":[0,4]}})", 4),
            "has 'dtype' twice in its header");
  EXPECT_EQ(error_of(R"({"__metadata__":{"k":"1","k":"2"}})"), "has 'k' twice in its header");
}

TEST_F(SafetensorsTest, RefusesEntriesThatAreNotTensors) {
  EXPECT_EQ(error_of(R"({"a":1})"), "tensor 'a' has no dtype, shape or data_offsets");
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "tensor 'a' has no dtype, shape or data_offsets");
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4),
            "tensor 'a' has dtype \"F33\", which is not supported");
  EXPECT_EQ(error_of(R"({"a":{"dtype":[32],"shape":[1],"data_offsets":[0,4]}})", 4),
            "tensor 'a' has dtype [32], which is not supported");
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}})", 4),
            "tensor 'a' has data_offsets [0,4.0], expected two numbers");
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4),
            "tensor 'a' has data_offsets [0], expected two numbers");
  for (const char* shape : {"[-1]", "1", "[1.0]", "[\"1\"]", "[9223372036854775808]", "{}"}) {
    const auto header = R"({"a":{"dtype":"F32","shape":)" + std::string(shape) + R"(,"data_offsets":[0,4]}})";
    EXPECT_EQ(error_of(header, 4), "tensor 'a' has shape " + std::string(shape) + ", expected up to 64 sizes");
  }
  std::string many = "1";
  for (int i = 0; i < 100'000; ++i) many += ",1";
  const auto message = error_of(R"({"a":{"dtype":"F32","shape":[)" + many + R"(],"data_offsets":[0,4]}})", 4);
  EXPECT_EQ(message.find("tensor 'a' has shape [1,1,1,1,"), 0u);
  EXPECT_LT(message.size(), 200u) << "a message must not repeat the file";
  EXPECT_EQ(error_of(R"({"__metadata__":[]})"), "has __metadata__ that is not an object");
  EXPECT_EQ(error_of(R"({"__metadata__":{"k":1}})"), "has __metadata__ 'k' that is not a string");
}

TEST_F(SafetensorsTest, NamesDtypesItCannotHold) {
  const auto file = fixture("float8.safetensors");
  EXPECT_EQ(test::message_of<CheckpointError>([&] { SafetensorsFile opened(file); }),
            about(file) + "tensor 'weight' has dtype \"F8_E4M3\", which is not supported");
}

TEST_F(SafetensorsTest, RefusesOffsetsThatOverlapLeaveHolesOrLieOutside) {
  const auto two = [](const char* first, const char* second) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + std::string(first) +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  EXPECT_EQ(error_of(two("[0,4]", "[4,8]"), 8), "no error");
  EXPECT_EQ(error_of(two("[4,8]", "[0,4]"), 8), "no error");
  EXPECT_EQ(error_of(two("[0,4]", "[2,6]"), 8),
            "tensor 'b' starts at byte 2 of the data, expected 4: data overlaps or has holes");
  EXPECT_EQ(error_of(two("[0,4]", "[0,4]"), 4),
            "tensor 'b' starts at byte 0 of the data, expected 4: data overlaps or has holes");
  EXPECT_EQ(error_of(two("[0,4]", "[5,9]"), 9),
            "tensor 'b' starts at byte 5 of the data, expected 4: data overlaps or has holes");
  EXPECT_EQ(error_of(two("[1,5]", "[5,9]"), 9),
            "tensor 'a' starts at byte 1 of the data, expected 0: data overlaps or has holes");
  EXPECT_EQ(error_of(two("[0,4]", "[4,8]"), 9), "has 9 bytes of data, but its tensors account for 8");
  EXPECT_EQ(error_of(two("[0,4]", "[4,8]"), 7),
            "tensor 'b' claims bytes [4, 8) of 7 bytes of data; the file is truncated or damaged");
  EXPECT_EQ(error_of(two("[4,0]", "[4,8]"), 8),
            "tensor 'a' claims bytes [4, 0) of 8 bytes of data; the file is truncated or damaged");
  EXPECT_EQ(error_of(two("[0,4]", "[18446744073709551612,18446744073709551615]"), 8),
            "tensor 'b' claims bytes [18446744073709551612, 18446744073709551615) of 8 bytes of data; the file is "
            "truncated or damaged");
}

TEST_F(SafetensorsTest, RefusesSizesThatDoNotFitTheShape) {
  const auto tensor = [](const char* dtype, const char* shape, const char* offsets) {
    return R"({"a":{"dtype":")" + std::string(dtype) + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_EQ(error_of(tensor("F32", "[3]", "[0,8]"), 8),
            "tensor 'a' has 8 bytes of data, which does not fit its shape [3] and dtype");
  EXPECT_EQ(error_of(tensor("F64", "[]", "[0,4]"), 4),
            "tensor 'a' has 4 bytes of data, which does not fit its shape [] and dtype");
  EXPECT_EQ(error_of(tensor("F32", "[0]", "[0,4]"), 4),
            "tensor 'a' has 4 bytes of data, which does not fit its shape [0] and dtype");
  // Products that are 4 or 0 modulo 2^64.
  EXPECT_EQ(error_of(tensor("F32", "[4294967296,4294967296]", "[0,0]")),
            "tensor 'a' has 0 bytes of data, which does not fit its shape [4294967296, 4294967296] and dtype");
  EXPECT_EQ(error_of(tensor("U8", "[6148914691236517206,3,2]", "[0,4]"), 4),
            "tensor 'a' has 4 bytes of data, which does not fit its shape [6148914691236517206, 3, 2] and dtype");
  EXPECT_EQ(error_of(tensor("F32", "[0,4611686018427387904,8]", "[0,0]")),
            "tensor 'a' has 0 bytes of data, which does not fit its shape [0, 4611686018427387904, 8] and dtype");
}

TEST_F(SafetensorsTest, NamesMissingFilesAndTensors) {
  const auto missing = at_path("none");
  EXPECT_EQ(test::message_of<CheckpointError>([&] { SafetensorsFile file(missing); }),
            about(missing) + "can't be opened: No such file or directory");
  EXPECT_EQ(test::message_of<CheckpointError>([&] { SafetensorsFile file(folder_.path()); }),
            about(folder_.path()) + "is not a regular file");
  const auto path = fixture("no_tensors.safetensors");
  const SafetensorsFile file(path);
  EXPECT_EQ(test::message_of<CheckpointError>([&] { file.tensor("x"); }), about(path) + "has no tensor 'x'");
}

TEST_F(SafetensorsTest, WritesTheBytesThePythonPackageWrites) {
  NamedTensors tensors;
  for (const auto& [name, dtype] : kFixtureOrder) tensors.emplace_back(name, expected_tensor(name, dtype));
  const auto file = at_path("ours.safetensors");
  const auto digest = write_safetensors(file, tensors, {{"note", "Grüße 漢 😀 \"quoted\""}, {"format", "pt"}});
  EXPECT_EQ(digest, sha256_hex_of_file(file));

  // Only the order of the keys within the header is our own.
  const auto parts_of = [](const fs::path& path) {
    const auto bytes = read_text_file(path);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    return std::pair(json::parse(bytes.substr(8, header_bytes)), bytes.substr(8 + header_bytes));
  };
  EXPECT_EQ(parts_of(file), parts_of(fixture("all_dtypes.safetensors")));
  EXPECT_EQ(fs::file_size(file), fs::file_size(fixture("all_dtypes.safetensors")));
}

TEST_F(SafetensorsTest, WritesWhatItReadsBackInOrder) {
  const auto values = at::arange(12, at::kFloat).view({3, 4});
  const NamedTensors tensors{{"z.transposed", values.t()},
                             {"a.odd", at::ones({3}, at::kByte)},
                             {"m.expanded", at::ones({1}).expand({5})},
                             {"slice \"x\"\n", values.slice(1, 1, 3)},
                             {"grad", at::ones({2}).requires_grad_()},
                             {"", at::scalar_tensor(7, at::kLong)}};
  const auto file = at_path("file");
  const auto digest = write_safetensors(file, tensors);
  EXPECT_EQ(write_safetensors(at_path("again"), tensors), digest);
  const SafetensorsFile read(file);
  const auto back = read.tensors();
  ASSERT_EQ(back.size(), tensors.size());
  for (size_t i = 0; i < back.size(); ++i) {
    EXPECT_EQ(back[i].first, tensors[i].first);
    EXPECT_TRUE(test::same_bytes(back[i].second, tensors[i].second.detach())) << tensors[i].first;
  }
  EXPECT_TRUE(read.metadata().empty());
}

TEST_F(SafetensorsTest, RefusesToWriteWhatTheFormatCannotHold) {
  const auto file = at_path("file");
  const auto one = at::ones({1});
  const auto error = [&](const NamedTensors& tensors, const std::map<std::string, std::string>& metadata = {}) {
    return test::message_of<CheckpointError>([&] { write_safetensors(file, tensors, metadata); });
  };
  const auto where = about(file);
  EXPECT_EQ(error({{"a", one}, {"a", one}}), where + "tensor 'a' is given twice");
  EXPECT_EQ(error({{"c", at::ones({1}, at::kComplexFloat)}}),
            where + "tensor 'c' has dtype ComplexFloat, which safetensors can't hold here");
  EXPECT_EQ(error({{"u", at::Tensor()}}), where + "tensor 'u' is undefined");
  EXPECT_EQ(error({{"__metadata__", one}}), where + "a tensor can't be named '__metadata__', the format's own word");
  EXPECT_EQ(error({{"\xff", one}}), where + "a tensor's name or a metadata string is not UTF-8");
  EXPECT_EQ(error({{"a", one}}, {{"k", "\xc3"}}), where + "a tensor's name or a metadata string is not UTF-8");
  EXPECT_FALSE(fs::exists(file));
}

TEST_F(SafetensorsTest, AFailedWriteKeepsTheOldFileAndNamesTheReason) {
  const auto file = at_path("file");
  const auto digest = write_safetensors(file, {{"a", at::ones({2})}});
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit limit{4096, old_limit.rlim_max};
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  const auto message = test::message_of<CheckpointError>([&] { write_safetensors(file, {{"a", at::ones({10'000})}}); });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(message, about(file) + "writing the file failed: File too large");
  EXPECT_EQ(sha256_hex_of_file(file), digest);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace contrastive
