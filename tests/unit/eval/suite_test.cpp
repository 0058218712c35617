#include "contrastive/eval/suite.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

class SuiteTest : public ::testing::Test {
 protected:
  Suite load(const std::string& content) const {
    write_file_atomically(file_, content);
    return load_suite(file_);
  }

  std::string error(const std::string& content) const {
    auto message = test::message_of<ConfigError>([&] { load(content); });
    for (size_t at; (at = message.find(file_.string())) != std::string::npos;) {
      message.replace(at, file_.string().size(), "s.yaml");
    }
    return message;
  }

  test::TemporaryDirectory folder_;
  std::filesystem::path file_ = folder_.path() / "suite.yaml";
};

TEST_F(SuiteTest, NamesTasksAfterTheirDataAndPutsPathsBelowTheRoot) {
  const auto suite = load(
      "root: /sets\n"
      "tasks:\n"
      "  - {data: cifar10, prompts: [dataset, clip_80]}\n"
      "  - {task: retrieval, data: coco/test, captions: /else/where.json}\n"
      "  - {task: linear-probe, data: cifar10/, name: probe}\n"
      "  - {data: synthetic, class_names: imagenet}\n");
  ASSERT_EQ(suite.tasks.size(), 4U);
  EXPECT_EQ(suite.tasks[0].name, "cifar10_zero-shot");
  EXPECT_EQ(suite.tasks[0].data, "/sets/cifar10");
  EXPECT_EQ(suite.tasks[0].prompts, std::vector<std::string>({"dataset", "clip_80"}));
  EXPECT_EQ(suite.tasks[1].name, "coco_retrieval");
  EXPECT_EQ(suite.tasks[1].captions, "/else/where.json");
  EXPECT_EQ(suite.tasks[2].name, "probe");
  EXPECT_EQ(suite.tasks[3].data, "synthetic");
  EXPECT_EQ(suite.tasks[3].class_names, "imagenet");
}

TEST_F(SuiteTest, DefaultsReachTheTasksThatHaveAUseForThem) {
  const auto suite = load(
      "defaults: {canonicalize: true, split: val}\n"
      "tasks:\n"
      "  - {data: a}\n"
      "  - {data: b, canonicalize: false, split: test}\n"
      "  - {data: c, task: retrieval}\n");
  EXPECT_TRUE(suite.tasks[0].canonicalize);
  EXPECT_EQ(suite.tasks[0].split, "val");
  EXPECT_FALSE(suite.tasks[1].canonicalize);
  EXPECT_EQ(suite.tasks[1].split, "test");
  EXPECT_EQ(suite.tasks[2].split, "val");
}

TEST_F(SuiteTest, ReportsEveryMistakeWithItsPlace) {
  const auto message = error(
      "tasks:\n"
      "  - {data: a, promts: [x]}\n"
      "  - {task: retrieval, data: b, prompts: [x]}\n"
      "  - {task: captioning, data: c}\n"
      "  - {prompts: [x]}\n"
      "  - {data: e, name: a/b}\n"
      "  - {data: e, name: same}\n"
      "  - {data: f, name: same}\n");
  for (const auto* part : {"s.yaml:2:15: tasks[0].promts: unknown key (did you mean prompts?)",
                           "s.yaml:3:41: tasks[1].prompts: has no meaning for task retrieval", "tasks[2].task: ",
                           "tasks[3].data: this key is required", "tasks[4].name: \"a/b\" can't be a file's name",
                           "tasks[6].name: an earlier task is called \"same\" as well"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << "\nin\n" << message;
  }
  EXPECT_NE(error("tasks: []\n").find("tasks: there is none"), std::string::npos);
  EXPECT_NE(
      error("defaults: {promts: 1}\ntasks: [{data: a}]\n").find("defaults.promts: unknown key (did you mean prompts?)"),
      std::string::npos);
}

}  // namespace
}  // namespace contrastive::eval
