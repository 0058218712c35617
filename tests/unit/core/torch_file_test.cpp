// The files under tests/fixtures/torch_file were written by PyTorch: see make_fixtures.py there.
#include "contrastive/core/torch_file.h"

#include <cstring>
#include <fstream>
#include <map>
#include <string>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

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
using Kind = TorchValue::Kind;

fs::path fixture(const std::string& name) {
  return test::own_fixtures_dir() / "torch_file" / name;
}

/// How messages about a file begin.
std::string about(const fs::path& file) {
  return fmt::format("[{}] ", file.string());
}

const std::vector<std::pair<std::string, at::ScalarType>> kDtypeOrder{{"of.float64", at::kDouble},
                                                                      {"of.float32", at::kFloat},
                                                                      {"of.float16", at::kHalf},
                                                                      {"of.bfloat16", at::kBFloat16},
                                                                      {"of.complex64", at::kComplexFloat},
                                                                      {"of.int64", at::kLong},
                                                                      {"of.int32", at::kInt},
                                                                      {"of.int16", at::kShort},
                                                                      {"of.int8", at::kChar},
                                                                      {"of.uint8", at::kByte},
                                                                      {"of.uint16", at::kUInt16},
                                                                      {"of.uint32", at::kUInt32},
                                                                      {"of.uint64", at::kUInt64},
                                                                      {"of.bool", at::kBool},
                                                                      {"scalar", at::kFloat},
                                                                      {"empty", at::kFloat}};

/// What make_fixtures.py put into the tensor of that name.
at::Tensor expected_tensor(const std::string& name, at::ScalarType dtype) {
  if (name == "scalar") return at::scalar_tensor(3.25);
  if (name == "empty") return at::empty({0, 4});
  if (name == "of.bool") return at::tensor({0, 1, 0, 1, 0}).to(at::kBool);
  const bool is_unsigned = name.find("uint") != std::string::npos;
  return (at::arange(6, at::kLong) + (is_unsigned ? 1 : -2)).to(dtype).view({2, 3});
}

std::map<std::string, at::Tensor> by_name(const NamedTensors& tensors) {
  return {tensors.begin(), tensors.end()};
}

std::string text(const std::string& value) {
  return "X" + little_endian(value.size(), 4) + value;
}

std::string number(int64_t value) {
  return "\x8a\x08" + little_endian(static_cast<uint64_t>(value), 8);
}

std::string tuple(const std::vector<int64_t>& values) {
  std::string result = "(";
  for (const auto value : values) result += number(value);
  return result + "t";
}

std::string storage(const std::string& type, const std::string& key, int64_t numel) {
  return "(" + text("storage") + "c" + type + "\n" + text(key) + text("cpu") + number(numel) + "tQ";
}

/// A call of torch._utils._rebuild_tensor_v2.
std::string tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& sizes,
                   const std::vector<int64_t>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + tuple(sizes) + tuple(strides) +
         "\211ccollections\nOrderedDict\n)RtR";
}

class TorchFileTest : public ::testing::Test {
 protected:
  fs::path at_path(const std::string& name) const { return folder_.path() / name; }

  fs::path put(const std::string& bytes) const {
    const auto file = at_path("file.pt");
    fs::remove(file);  // some file systems flush a file that is written over
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

  /// A file with this pickle and 16 bytes, the numbers 0 to 15, as storage "0".
  fs::path put_pickle(const std::string& instructions, std::vector<ZipEntry> more = {}) const {
    std::string data;
    for (char i = 0; i < 16; ++i) data += i;
    more.push_back({.name = "a/data.pkl", .data = "\x80\x02" + instructions + "."});
    more.push_back({.name = "a/data/0", .data = data});
    return put(zip_bytes(more));
  }

  /// The error of opening a file and reading its tensors, without the file's name.
  static std::string error_of(const fs::path& file) {
    const auto message = test::message_of<CheckpointError>([&] {
      for (const auto& named : TorchFile(file).state_dict()) named.second.sum();
    });
    const auto prefix = about(file);
    return message.find(prefix) == 0 ? message.substr(prefix.size()) : message;
  }

  std::string error_of_pickle(const std::string& instructions) const { return error_of(put_pickle(instructions)); }

  std::string error_of_tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& sizes,
                              const std::vector<int64_t>& strides) const {
    return error_of_pickle("}" + text("w") + tensor(storage, offset, sizes, strides) + "s");
  }

  test::TemporaryDirectory folder_;
};

TEST_F(TorchFileTest, ReadsEveryDtypeOfEveryProtocol) {
  for (const auto* name : {"dtypes_protocol2.pt", "dtypes_protocol3.pt", "dtypes_protocol4.pt", "dtypes_protocol5.pt",
                           "dtypes_deflated.pt"}) {
    SCOPED_TRACE(name);
    const TorchFile file(fixture(name));
    EXPECT_FALSE(file.is_torchscript());
    const auto state = file.state_dict();
    ASSERT_EQ(state.size(), kDtypeOrder.size());
    for (size_t i = 0; i < state.size(); ++i) {
      const auto& [expected_name, dtype] = kDtypeOrder[i];
      EXPECT_EQ(state[i].first, expected_name);
      EXPECT_EQ(state[i].second.scalar_type(), dtype);
      EXPECT_TRUE(test::same_bytes(state[i].second, expected_tensor(expected_name, dtype))) << expected_name;
    }
  }
}

TEST_F(TorchFileTest, ReadsViewsWhetherAlignedOrNotOrDeflated) {
  const auto base = at::arange(24, at::kFloat).view({4, 6});
  const auto shared = at::arange(10, at::kLong);
  const std::vector<std::pair<std::string, at::Tensor>> expected{{"whole", base},
                                                                 {"transposed", base.t()},
                                                                 {"slice", base.slice(0, 1, 3).slice(1, 2, 5)},
                                                                 {"every_second", base.slice(1, 0, 6, 2)},
                                                                 {"expanded", at::full({3, 4}, 7.0)},
                                                                 {"shared.head", shared.slice(0, 0, 4)},
                                                                 {"shared.tail", shared.slice(0, 6, 10)},
                                                                 {"parameter", at::full({2, 2}, 0.5)},
                                                                 {"no_gradient", at::ones({1})},
                                                                 {"tagged", at::ones({2})}};
  for (const auto* name : {"views.pt", "views_unaligned.pt", "views_deflated.pt"}) {
    SCOPED_TRACE(name);
    const auto state = TorchFile(fixture(name)).state_dict();
    ASSERT_EQ(state.size(), expected.size());
    for (size_t i = 0; i < state.size(); ++i) {
      EXPECT_EQ(state[i].first, expected[i].first);
      EXPECT_TRUE(test::same_bytes(state[i].second, expected[i].second)) << state[i].first;
    }
    EXPECT_EQ(state[1].second.strides(), at::IntArrayRef({1, 6})) << "a view, not a copy";
    EXPECT_EQ(state[0].second.const_data_ptr(), state[1].second.const_data_ptr()) << "both views of one storage";
  }
}

TEST_F(TorchFileTest, TensorsOutliveTheFileObject) {
  NamedTensors eager;
  std::vector<LazyTensor> late;
  {
    const TorchFile file(fixture("views.pt"));
    eager = file.state_dict();
    late = file.lazy_state_dict();
  }
  ASSERT_EQ(late.size(), eager.size());
  for (size_t i = 0; i < late.size(); ++i) {
    EXPECT_EQ(late[i].name, eager[i].first);
    EXPECT_EQ(late[i].dtype, eager[i].second.scalar_type());
    EXPECT_EQ(at::IntArrayRef(late[i].shape), eager[i].second.sizes());
    for (int again = 0; again < 2; ++again) EXPECT_TRUE(test::same_bytes(late[i].load(), eager[i].second));
  }
}

TEST_F(TorchFileTest, ReadsTrainingCheckpointsOfEveryProtocol) {
  for (const int protocol : {2, 3, 4, 5}) {
    SCOPED_TRACE(protocol);
    const TorchFile file(fixture(fmt::format("checkpoint_protocol{}.pt", protocol)));
    const auto& root = file.root();
    EXPECT_EQ(root.find("epoch")->as_int(), 3);
    EXPECT_EQ(root.find("name")->as_string(), "run 漢");
    EXPECT_EQ(root.find("negative")->as_int(), -(int64_t{1} << 40));
    EXPECT_EQ(root.find("big")->as_object().type.as_string(), "builtins.int");
    EXPECT_EQ(root.find("big")->as_object().items.as_string(), std::string("\0\0\0\0\0\0\0\0\x40", 9));
    EXPECT_EQ(root.find("size")->items()[1].as_int(), 3);
    EXPECT_EQ(root.find("dtype")->as_object().type.as_string(), "torch.float16");
    EXPECT_TRUE(root.find("flags")->items()[0].as_bool());
    EXPECT_TRUE(root.find("flags")->items()[2].is(Kind::kNone));
    EXPECT_EQ(root.find("absent"), nullptr);

    const auto& args = *root.find("args");
    EXPECT_EQ(args.as_object().type.as_string(), "argparse.Namespace");
    EXPECT_EQ(args.find("lr")->as_float(), 1e-3);
    EXPECT_EQ(args.find("beta")->items()[1].as_float(), 0.98);
    EXPECT_TRUE(root.find("best")->as_object().type.as_string().ends_with("multiarray.scalar"));
    const auto& counts = root.find("counts")->as_object();
    EXPECT_EQ(counts.type.as_string(), "collections.defaultdict");
    EXPECT_EQ(counts.items.find("a")->items()[0].as_int(), 1);

    const auto state = file.state_dict();
    const std::vector<std::string> names{
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"};
    ASSERT_EQ(state.size(), names.size());
    for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(state[i].first, "module." + names[i]);
    EXPECT_EQ(state[6].second.item<int64_t>(), 7);  // filled with 6, then one step

    const auto& optimizer = *root.find("optimizer");
    EXPECT_EQ(optimizer.find("param_groups")->items()[0].find("betas")->items()[1].as_float(), 0.98);
    const auto moments = by_name(file.tensors(*optimizer.find("state")));
    EXPECT_EQ(moments.size(), 12u);
    EXPECT_EQ(moments.at("0.step").item<float>(), 1);
    EXPECT_EQ(moments.at("0.exp_avg").sizes(), at::IntArrayRef({3, 2}));
  }
}

TEST_F(TorchFileTest, ReadsADictWithMoreValuesThanOneByteCanNumber) {
  const auto state = TorchFile(fixture("big_dict.pt")).state_dict();
  ASSERT_EQ(state.size(), 300u);
  for (size_t i = 0; i < state.size(); ++i) {
    EXPECT_EQ(state[i].first, fmt::format("layers.{}.weight", i));
    EXPECT_EQ(state[i].second.item<int32_t>(), static_cast<int32_t>(i));
  }
}

TEST_F(TorchFileTest, ReadsTheParametersAndBuffersOfATorchScriptArchive) {
  const TorchFile file(fixture("scripted.pt"));
  EXPECT_TRUE(file.is_torchscript());
  EXPECT_TRUE(file.root().as_object().type.as_string().starts_with("__torch__."));
  EXPECT_FALSE(file.root().find("training")->is(Kind::kTensor));
  EXPECT_EQ(file.root().find("names")->items()[1].as_string(), "b");
  EXPECT_EQ(file.root().find("sizes")->items()[1].as_int(), 2);
  const auto state = file.state_dict();
  ASSERT_EQ(state.size(), 3u);
  EXPECT_EQ(state[0].first, "scale");
  EXPECT_EQ(state[0].second.item<float>(), 4.5f);
  EXPECT_EQ(state[1].first, "input_resolution");
  EXPECT_EQ(state[1].second.item<int64_t>(), 224);
  EXPECT_EQ(state[2].first, "inner.weight");
  EXPECT_TRUE(test::same_bytes(state[2].second, at::tensor({1.0, 2.0}).view({1, 2}).to(at::kHalf)));
}

TEST_F(TorchFileTest, TellsHowToConvertLegacyFiles) {
  const std::string advice =
      "is in PyTorch's format of before 1.6, which is not read; convert it with Python: "
      "torch.save(torch.load(\"old.pt\", "
      "map_location=\"cpu\"), \"new.pt\")";
  EXPECT_EQ(error_of(fixture("legacy.pt")), advice);
  EXPECT_EQ(error_of(test::own_fixtures_dir() / "tar" / "python_gnu.tar"), advice);
}

TEST_F(TorchFileTest, RefusesFilesThatAreNotPyTorchs) {
  EXPECT_EQ(error_of(at_path("none")), "can't be opened: No such file or directory");
  EXPECT_EQ(error_of(put("")), "is not a PyTorch file: it does not begin as a zip archive");
  EXPECT_EQ(error_of(put("<html>")), "is not a PyTorch file: it does not begin as a zip archive");
  EXPECT_EQ(error_of(put("PK")), "has 2 bytes without the end of a zip archive; the file is truncated or damaged");
  const std::string no_pickle = "is a zip archive, but not a PyTorch file: no folder in it has a data.pkl";
  EXPECT_EQ(error_of(put(zip_bytes({{.name = "word/document.xml", .data = "x"}}))), no_pickle);
  EXPECT_EQ(error_of(put(zip_bytes({{.name = "/data.pkl", .data = "N."}}))), no_pickle);
  EXPECT_EQ(error_of(put(zip_bytes({{.name = "a/b/data.pkl", .data = "N."}}))), no_pickle);
  EXPECT_EQ(error_of(put(zip_bytes({{.name = "a/data.pkl", .data = "N."}, {.name = "b/data.pkl", .data = "N."}}))),
            "has two folders with a data.pkl");
}

TEST_F(TorchFileTest, RefusesBigEndianFiles) {
  const auto with_order = [&](const std::string& order) {
    return error_of(put_pickle("}" + text("w") + tensor(storage("torch\nByteStorage", "0", 16), 0, {16}, {1}) + "s",
                               {{.name = "a/byteorder", .data = order}}));
  };
  EXPECT_EQ(with_order("little"), "no error");
  EXPECT_EQ(with_order("big"), "has byte order 'big', only 'little' is read");
  EXPECT_EQ(with_order(""), "has byte order '', only 'little' is read");
  EXPECT_NE(with_order(std::string(1 << 20, 'x')), "no error");
}

TEST_F(TorchFileTest, EveryTruncationIsAnError) {
  for (const auto* name : {"views.pt", "scripted.pt"}) {
    const auto whole = read_text_file(fixture(name));
    for (size_t size = 0; size < whole.size(); ++size) {
      ASSERT_NE(error_of(put(whole.substr(0, size))), "no error") << size << " of " << whole.size() << " bytes";
    }
    EXPECT_EQ(error_of(put(whole)), "no error");
  }
}

TEST_F(TorchFileTest, RefusesTensorsOutsideOfTheirStorage) {
  const auto bytes = storage("torch\nByteStorage", "0", 16);
  const auto floats = storage("torch\nFloatStorage", "0", 4);
  const auto refusal = [](const char* sizes, const char* strides, int64_t offset, int64_t numel) {
    return fmt::format(
        "the pickle holds a tensor of sizes [{}], strides [{}] and offset {}, which does not fit its storage of {} "
        "elements",
        sizes, strides, offset, numel);
  };
  EXPECT_EQ(error_of_tensor(floats, 0, {2, 2}, {2, 1}), "no error");
  EXPECT_EQ(error_of_tensor(floats, 3, {}, {}), "no error");
  EXPECT_EQ(error_of_tensor(floats, 9, {0}, {1}), "no error");
  EXPECT_EQ(error_of_tensor(floats, 0, {5}, {1}), refusal("5", "1", 0, 4));
  EXPECT_EQ(error_of_tensor(floats, 1, {4}, {1}), refusal("4", "1", 1, 4));
  EXPECT_EQ(error_of_tensor(floats, 4, {}, {}), refusal("", "", 4, 4));
  EXPECT_EQ(error_of_tensor(floats, 0, {2, 2}, {3, 1}), refusal("2, 2", "3, 1", 0, 4));
  EXPECT_EQ(error_of_tensor(floats, 0, {2, 2}, {2}), refusal("2, 2", "2", 0, 4));
  // Products and sums that are small modulo 2^64.
  constexpr auto kHuge = int64_t{1} << 62;
  EXPECT_EQ(error_of_tensor(bytes, 0, {kHuge, 4}, {4, 1}), refusal("4611686018427387904, 4", "4, 1", 0, 16));
  EXPECT_EQ(error_of_tensor(bytes, 0, {3}, {kHuge}), refusal("3", "4611686018427387904", 0, 16));
  EXPECT_EQ(error_of_tensor(bytes, INT64_MAX, {2}, {1}), refusal("2", "1", INT64_MAX, 16));
  EXPECT_EQ(error_of_tensor(bytes, 0, {0, kHuge, 8}, {0, 0, 0}),
            refusal("0, 4611686018427387904, 8", "0, 0, 0", 0, 16));
  EXPECT_EQ(error_of_tensor(bytes, 0, {2}, {-1}),
            "the pickle makes a tensor with a size, stride or offset that is not a count");
  EXPECT_EQ(error_of_tensor(bytes, -1, {2}, {1}),
            "the pickle makes a tensor with a size, stride or offset that is not a count");
  EXPECT_EQ(error_of_tensor(bytes, 0, std::vector<int64_t>(65, 1), std::vector<int64_t>(65, 1)),
            "the pickle makes a tensor whose sizes or strides are not up to 64 numbers");
}

TEST_F(TorchFileTest, RefusesStoragesThatAreNotWhatTheyClaim) {
  const auto error = [&](const std::string& storage) { return error_of_tensor(storage, 0, {1}, {1}); };
  EXPECT_EQ(error(storage("torch\nByteStorage", "0", 16)), "no error");
  EXPECT_EQ(error(storage("torch.storage\nUntypedStorage", "0", 16)), "no error");
  EXPECT_EQ(error(storage("torch\nByteStorage", "0", 17)),
            "the pickle claims 17 elements of 1 bytes in storage '0', which has 16 bytes");
  EXPECT_EQ(error(storage("torch\nFloatStorage", "0", INT64_MAX)),
            "the pickle claims 9223372036854775807 elements of 4 bytes in storage '0', which has 16 bytes");
  EXPECT_EQ(error(storage("torch\nByteStorage", "1", 16)),
            "the pickle refers to storage '1', which the file does not have");
  EXPECT_EQ(error(storage("torch\nByteStorage", "../data.pkl", 16)),
            "the pickle refers to storage '../data.pkl', which the file does not have");
  EXPECT_EQ(error(storage("torch\nQInt8Storage", "0", 16)),
            "the pickle has a storage of class 'torch.QInt8Storage', which is not supported");
  const std::string outside = "the pickle refers to something outside that is not a storage";
  EXPECT_EQ(error(storage("torch\nByteStorage", "0", -1)), outside);
  EXPECT_EQ(error(storage("torch\nByteStorage", std::string(300, '0'), 16)), outside);
  EXPECT_EQ(error_of_pickle("K\x01Q"), outside);
  EXPECT_EQ(error_of_pickle("(" + text("storage") + "tQ"), outside);
  const std::string wrong = "the pickle makes a tensor without a storage, an offset, sizes and strides";
  EXPECT_EQ(error_of_pickle("ctorch._utils\n_rebuild_tensor_v2\n)R"), wrong);
  EXPECT_EQ(error_of_pickle("ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR"), wrong);
  EXPECT_EQ(error_of_pickle("ctorch._utils\n_rebuild_parameter\n(NNNtR"),
            "the pickle makes a parameter without a tensor");
}

TEST_F(TorchFileTest, ExpandedTensorsAreViewsUpToABound) {
  const auto bytes = storage("torch\nByteStorage", "0", 16);
  const TorchFile file(put_pickle("}" + text("w") + tensor(bytes, 15, {1000, 1000}, {0, 0}) + "s"));
  const auto tensor_of_file = file.state_dict()[0].second;
  EXPECT_EQ(tensor_of_file.storage().nbytes(), 16u);
  EXPECT_EQ(tensor_of_file.sum().item<int64_t>(), 15'000'000);

  const auto huge = error_of_tensor(bytes, 0, {int64_t{1} << 40}, {0});
  EXPECT_EQ(huge.find("the pickle expands a tensor to 1099511627776 bytes, at most 67"), 0u) << huge;
  std::string instructions = "}(";
  for (int i = 0; i < 100; ++i) instructions += text(std::to_string(i)) + tensor(bytes, 0, {1 << 20}, {0});
  const auto many = error_of_pickle(instructions + "u");
  EXPECT_EQ(many.find("expands its tensors to more than 67"), 0u) << many;
}

TEST_F(TorchFileTest, TakesEveryByteOfABoolBut0ForTrue) {
  const auto bools = storage("torch\nBoolStorage", "0", 16);
  const TorchFile file(put_pickle("}" + text("w") + tensor(bools, 0, {3}, {1}) + "s"));
  EXPECT_TRUE(test::same_bytes(file.state_dict()[0].second, at::tensor({0, 1, 1}).to(at::kBool)));
}

TEST_F(TorchFileTest, NothingOfAPickleRuns) {
  const auto witness = at_path("witness");
  const auto command = "cos\nsystem\n(" + text("touch " + witness.string()) + "tR";
  const TorchFile file(put_pickle(command));
  EXPECT_EQ(file.root().as_object().type.as_string(), "os.system");
  EXPECT_FALSE(fs::exists(witness));
  EXPECT_EQ(error_of_pickle(command), "holds no tensors in a dict, a list or a TorchScript module");
}

TEST_F(TorchFileTest, RefusesPicklesThatDoNotFitADict) {
  EXPECT_EQ(error_of_pickle("}(" + text("a") + "N" + text("a") + "Nu"), "the pickle has 'a' twice in one dict");
  EXPECT_EQ(error_of_pickle("}(K\x01NK\x01Nu"), "the pickle has 1 twice in one dict");
  EXPECT_EQ(error_of_pickle("}" + text(std::string(5000, 'k')) + "Ns"),
            "the pickle has a key of 5000 bytes, at most 4096 are accepted");
  const auto bytes = tensor(storage("torch\nByteStorage", "0", 16), 0, {1}, {1});
  EXPECT_EQ(error_of_pickle("}(" + text("a.b") + bytes + text("a") + "}" + text("b") + bytes + "su"),
            "has two tensors named 'a.b'");
  EXPECT_EQ(error_of_pickle("]q\x01h\x01"
                            "a"),
            "the pickle holds a value that contains itself");
}

TEST_F(TorchFileTest, ABillionLaughsEndInAnError) {
  std::string instructions = "](";
  for (int i = 0; i < 1000; ++i) instructions += "K\1";
  instructions += "eq\1";
  for (char i = 2; i < 60; ++i) {
    instructions += "](";
    for (int j = 0; j < 10; ++j) instructions += std::string("h") + static_cast<char>(i - 1);
    instructions += std::string("eq") + i;
  }
  EXPECT_EQ(error_of_pickle(instructions), "holds more than 2000000 values to look through");
}

TEST_F(TorchFileTest, BoundsTheNamesOfSharedParts) {
  // One dict of 1,000 tensors, under 100 long keys.
  const auto bytes = tensor(storage("torch\nByteStorage", "0", 16), 0, {0}, {1});
  std::string instructions = "}q\x01(";
  for (int i = 0; i < 1000; ++i) instructions += text(std::to_string(i)) + bytes;
  instructions += "u0}(";
  for (int i = 0; i < 100; ++i) instructions += text(std::string(4000, 'k') + std::to_string(i)) + "h\x01";
  EXPECT_EQ(error_of_pickle(instructions + "u"), "needs names of more than 67108864 bytes for its tensors");
  // Each dict holds the one before twice, under keys that are remembered.
  instructions = text(std::string(4000, 'a')) + "q\x64" + text(std::string(4000, 'b')) + "q\x65}q\1";
  for (char i = 2; i < 90; ++i) {
    const auto before = std::string("h") + static_cast<char>(i - 1);
    instructions += "}(h\x64" + before + "h\x65" + before + "uq" + i;
  }
  EXPECT_EQ(error_of_pickle(instructions), "needs names of more than 67108864 bytes for its tensors");
}

TEST_F(TorchFileTest, ValuesNameTheirKindWhenAskedForAnother) {
  const TorchValue value(int64_t{5});
  EXPECT_EQ(value.as_float(), 5.0);
  EXPECT_EQ(test::message_of<CheckpointError>([&] { value.as_string(); }),
            "[PyTorch file] a value is an int, but a string was expected");
  EXPECT_EQ(test::message_of<CheckpointError>([&] { value.items(); }),
            "[PyTorch file] a value is an int, but a list was expected");
  EXPECT_EQ(test::message_of<CheckpointError>([&] { value.as_bool(); }),
            "[PyTorch file] a value is an int, but a bool was expected");
  EXPECT_EQ(test::message_of<CheckpointError>([&] { TorchValue().as_tensor(); }),
            "[PyTorch file] a value is None, but a tensor was expected");
  EXPECT_EQ(value.find("x"), nullptr);
}

/// The values of views.pt, as PyTorch would write them after cloning.
NamedTensors dense_views() {
  NamedTensors result;
  for (const auto& [name, view] : TorchFile(fixture("views.pt")).state_dict()) result.emplace_back(name, view.clone());
  return result;
}

TEST_F(TorchFileTest, WritesWhatItReadsBackAligned) {
  auto tensors = dense_views();
  tensors.emplace_back("", at::ones({}, at::kLong));
  tensors.emplace_back("storage", at::ones({3}, at::kBool));
  tensors.emplace_back("漢", at::arange(70'000, at::kDouble));
  tensors.emplace_back("odd", at::ones({3}, at::kByte));
  tensors.emplace_back("empty", at::ones({2, 0, 3}, at::kBFloat16));
  const auto file = at_path("file.pt");
  const auto digest = write_torch_file(file, lazy(tensors));
  EXPECT_EQ(digest, sha256_hex_of_file(file));
  EXPECT_EQ(write_torch_file(at_path("again.pt"), lazy(tensors)), digest);
  const auto back = TorchFile(file).state_dict();
  ASSERT_EQ(back.size(), tensors.size());
  for (size_t i = 0; i < back.size(); ++i) {
    EXPECT_EQ(back[i].first, tensors[i].first);
    EXPECT_TRUE(test::same_bytes(back[i].second, tensors[i].second)) << back[i].first;
    const auto address = reinterpret_cast<uintptr_t>(back[i].second.const_data_ptr());
    EXPECT_TRUE(back[i].second.numel() == 0 || address % 64 == 0) << back[i].first;
  }
}

TEST_F(TorchFileTest, AsksForOneTensorAtATime) {
  int held = 0;
  const auto make = [&] {
    EXPECT_EQ(held, 0);
    ++held;
    auto* data = new float[4]{1, 2, 3, 4};
    const auto forget = [&held](void* memory) {
      --held;
      delete[] static_cast<float*>(memory);
    };
    return at::from_blob(data, {4}, forget, at::kFloat);
  };
  const std::vector<LazyTensor> tensors{{"a", at::kFloat, {4}, make}, {"b", at::kFloat, {4}, make}};
  write_torch_file(at_path("file.pt"), tensors);
  EXPECT_EQ(held, 0);
}

TEST_F(TorchFileTest, WritesAnEmptyDict) {
  const auto file = at_path("file.pt");
  write_torch_file(file, {});
  EXPECT_TRUE(TorchFile(file).root().entries().empty());
}

TEST_F(TorchFileTest, RefusesToWriteWhatTheFormatCannotHold) {
  const auto file = at_path("file.pt");
  const auto one = at::ones({1});
  const auto error = [&](const std::vector<LazyTensor>& tensors) {
    return test::message_of<CheckpointError>([&] { write_torch_file(file, tensors); });
  };
  const auto where = about(file);
  EXPECT_EQ(error(lazy({{"a", one}, {"a", one}})), where + "tensor 'a' is given twice");
  EXPECT_EQ(error(lazy({{"\xff", one}})), where + "a tensor's name is not UTF-8");
  EXPECT_EQ(error(lazy({{"u", one.to(at::kUInt16)}})),
            where + "tensor 'u' has dtype UInt16, which PyTorch has no storage class for");
  const auto announce = [&](at::ScalarType dtype, std::vector<int64_t> shape, at::Tensor tensor) {
    return error({{"a", dtype, std::move(shape), [tensor] { return tensor; }}});
  };
  EXPECT_EQ(announce(at::kHalf, {1}, one), where + "tensor 'a' was announced as Half [1], but is Float [1]");
  EXPECT_EQ(announce(at::kFloat, {2, 3}, one), where + "tensor 'a' was announced as Float [2, 3], but is Float [1]");
  EXPECT_EQ(announce(at::kFloat, {2}, {}), where + "tensor 'a' was announced as Float [2], but is undefined");
  EXPECT_EQ(announce(at::kFloat, {-1}, one), where + "tensor 'a' can't have shape [-1]");
  EXPECT_FALSE(fs::exists(file));
  EXPECT_EQ(test::message_of<CheckpointError>([&] {
              write_torch_file(at_path("none") / "file.pt", lazy({{"a", one}}));
            }),
            about(at_path("none") / "file.pt") + "creating the file failed: No such file or directory");
}

}  // namespace
}  // namespace contrastive
