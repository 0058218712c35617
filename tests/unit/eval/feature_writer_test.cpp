#include "contrastive/eval/feature_writer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

FeatureFileOptions options_in(const fs::path& folder) {
  return {.features = folder / "features.safetensors",
          .names = folder / "names.txt",
          .num_inputs = 10,
          .inputs_per_part = 4,
          .settings = {{"dtype", "fp32"}}};
}

/// Input i gives the row (i, -i) and the name "input i"; inputs 3 and 8 are left out.
void write_next_part(FeatureWriter& writer) {
  std::vector<float> values;
  std::vector<std::string> names;
  std::vector<SkippedInput> skipped;
  for (auto i = writer.next_input(); i < writer.part_end(); ++i) {
    const auto name = "input " + std::to_string(i);
    if (i == 3 || i == 8) {
      skipped.push_back({name, "damaged\nin two lines"});
      continue;
    }
    names.push_back(name);
    values.insert(values.end(), {static_cast<float>(i), -static_cast<float>(i)});
  }
  writer.write_part(at::tensor(values).view({-1, 2}), names, skipped);
}

TEST(FeatureWriterTest, JoinsPartsAndReportsWhatWasLeftOut) {
  const test::TemporaryDirectory folder;
  FeatureWriter writer(options_in(folder.path()));
  while (writer.next_input() < 10) write_next_part(writer);
  const auto report = writer.finish();
  EXPECT_EQ(report.num_rows, 8);
  EXPECT_EQ(report.num_skipped, 2);
  ASSERT_EQ(report.first_skipped.size(), 2U);
  EXPECT_EQ(report.first_skipped[1].name, "input 8");
  EXPECT_EQ(report.first_skipped[1].reason, "damaged");

  const SafetensorsFile file(folder.path() / "features.safetensors");
  const auto kept = at::tensor({0.0F, 1.0F, 2.0F, 4.0F, 5.0F, 6.0F, 7.0F, 9.0F});
  EXPECT_TRUE(at::equal(file.tensor("features"), at::stack({kept, -kept}, 1)));
  EXPECT_EQ(file.metadata().at("dtype"), "fp32");
  EXPECT_EQ(read_text_file(folder.path() / "names.txt"),
            "input 0\ninput 1\ninput 2\ninput 4\ninput 5\ninput 6\ninput 7\ninput 9\n");
  EXPECT_FALSE(fs::exists(folder.path() / "features.safetensors.parts"));
}

TEST(FeatureWriterTest, WritesTheSameBytesHoweverOftenItIsInterrupted) {
  const test::TemporaryDirectory straight;
  FeatureWriter writer(options_in(straight.path()));
  while (writer.next_input() < 10) write_next_part(writer);
  writer.finish();

  const test::TemporaryDirectory interrupted;
  for (const int64_t expected_start : {0, 4, 8}) {
    FeatureWriter again(options_in(interrupted.path()));
    EXPECT_EQ(again.next_input(), expected_start);
    write_next_part(again);
  }
  FeatureWriter(options_in(interrupted.path())).finish();
  for (const char* name : {"features.safetensors", "names.txt"}) {
    EXPECT_EQ(read_text_file(straight.path() / name), read_text_file(interrupted.path() / name)) << name;
  }
  FeatureWriter complete(options_in(interrupted.path()));
  EXPECT_TRUE(complete.is_complete());
  EXPECT_EQ(complete.next_input(), 10);
  EXPECT_EQ(complete.finish().num_rows, 8);
}

TEST(FeatureWriterTest, NamesTheSettingsThatDiffer) {
  const test::TemporaryDirectory folder;
  FeatureWriter writer(options_in(folder.path()));
  write_next_part(writer);
  auto other = options_in(folder.path());
  other.settings = {{"dtype", "fp16"}, {"kind", "images"}};
  other.inputs_per_part = 5;
  EXPECT_EQ(test::message_of<ConfigError>([&] { FeatureWriter refused(other); }),
            "[" + (folder.path() / "features.safetensors.parts").string() +
                "] was made with other settings: dtype: fp32, now fp16; inputs_per_part: 4, now 5; kind: not set, now "
                "images; remove it or choose another place");
}

TEST(FeatureWriterTest, RefusesADamagedPart) {
  const test::TemporaryDirectory folder;
  FeatureWriter writer(options_in(folder.path()));
  write_next_part(writer);
  const auto part = folder.path() / "features.safetensors.parts" / "part_00000.safetensors";
  fs::resize_file(part, fs::file_size(part) - 1);
  EXPECT_NE(
      test::message_of<CheckpointError>([&] { FeatureWriter refused(options_in(folder.path())); }).find("part_00000"),
      std::string::npos);
}

TEST(FeatureWriterTest, KeepsHalvesAndAnEmptyPart) {
  const test::TemporaryDirectory folder;
  auto options = options_in(folder.path());
  options.num_inputs = 3;
  options.inputs_per_part = 2;
  FeatureWriter writer(options);
  writer.write_part(at::empty({0, 2}, at::kHalf), {}, {{"a", "bad"}, {"b", "bad"}});
  writer.write_part(at::ones({1, 2}, at::kHalf), {"c"}, {});
  EXPECT_EQ(writer.finish().num_rows, 1);
  const auto features = SafetensorsFile(options.features).tensor("features");
  EXPECT_TRUE(at::equal(features, at::ones({1, 2}, at::kHalf)));
}

TEST(FeatureWriterTest, RefusesWrongRowsNamesAndOptions) {
  const test::TemporaryDirectory folder;
  FeatureWriter writer(options_in(folder.path()));
  EXPECT_THROW(writer.write_part(at::ones({3, 2}), {"a", "b", "c"}, {}), c10::Error);
  EXPECT_THROW(writer.write_part(at::ones({4, 2}, at::kDouble), {"a", "b", "c", "d"}, {}), c10::Error);
  EXPECT_EQ(test::message_of<DataError>([&] {
              writer.write_part(at::ones({4, 2}), {"a", "b\n", "c", "d"}, {});
            }),
            "the name 'b\n' holds a line break, which a list of names can't");
  auto options = options_in(folder.path());
  options.num_inputs = 0;
  EXPECT_EQ(test::message_of<ConfigError>([&] { FeatureWriter refused(options); }),
            "[feature_writer] num_inputs and inputs_per_part must be at least 1, but are 0 and 4");
  options = options_in(folder.path());
  options.settings["kind"] = "a \"quoted\" word";
  EXPECT_THROW(FeatureWriter refused(options), ConfigError);
}

}  // namespace
}  // namespace contrastive::eval
