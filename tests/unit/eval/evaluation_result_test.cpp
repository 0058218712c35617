#include "contrastive/eval/evaluation_result.h"

#include <limits>
#include <regex>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

EvaluationResult make_result(const std::string& name, const std::string& task, double value) {
  EvaluationResult result;
  result.name = name;
  result.dataset = "set, \"quoted\"";
  result.task = task;
  result.shown = {"acc1"};
  result.metrics = {{"acc1", value}, {"acc5", 1.0}};
  result.num_samples = 10;
  return result;
}

TEST(EvaluationResultTest, BeginsWithTheKeysOfClipBenchmark) {
  auto result = make_result("a", "zeroshot_classification", 0.5);
  result.origin = {{"model_sha256", "12"}};
  result.details = R"({"per_class": [1]})";
  result.skipped = {2, {{"x.jpg", "truncated"}}};
  const auto document =
      nlohmann::ordered_json::parse(to_json(result, {"ViT-B-32", "file.pt", "file", "clip_eval ..."}));
  std::vector<std::string> keys;
  for (const auto& item : document.items()) keys.push_back(item.key());
  EXPECT_EQ(std::vector<std::string>(keys.begin(), keys.begin() + 6),
            std::vector<std::string>({"dataset", "model", "pretrained", "task", "metrics", "language"}));
  EXPECT_EQ(document["metrics"]["acc1"], 0.5);
  EXPECT_EQ(document["per_class"][0], 1);
  EXPECT_EQ(document["skipped_samples"]["count"], 2);
  EXPECT_EQ(document["skipped_samples"]["first"][0]["reason"], "truncated");
  EXPECT_EQ(document["model_sha256"], "12");
  EXPECT_EQ(document["command"], "clip_eval ...");
}

TEST(EvaluationResultTest, ComesBackFromItsFile) {
  const test::TemporaryDirectory folder;
  auto result = make_result("a", "zeroshot_classification", 1.0 / 3);
  result.key = "k";
  result.prompts = "clip_80";
  result.hints = {"odd"};
  result.metrics.emplace_back("undefined", std::numeric_limits<double>::quiet_NaN());
  write_file_atomically(folder.path() / "a.json", to_json(result, {}));
  const auto read = read_result(folder.path() / "a.json");
  EXPECT_EQ(read.name, "a");
  EXPECT_EQ(read.dataset, result.dataset);
  EXPECT_EQ(read.prompts, "clip_80");
  EXPECT_EQ(read.key, "k");
  EXPECT_EQ(read.hints, result.hints);
  EXPECT_EQ(read.num_samples, 10);
  ASSERT_NE(read.metric("acc1"), nullptr);
  EXPECT_EQ(*read.metric("acc1"), 1.0 / 3);
  EXPECT_EQ(read.metric("undefined"), nullptr);
}

TEST(EvaluationResultTest, RefusesFilesOfOthers) {
  const test::TemporaryDirectory folder;
  for (const std::string content : {"", "[]", "{\"dataset\": 1}", "{\"name\": \"a\"}"}) {
    write_file_atomically(folder.path() / "a.json", content);
    EXPECT_NE(test::message_of<DataError>([&] { read_result(folder.path() / "a.json"); }).find("is not a result"),
              std::string::npos)
        << content;
  }
  EXPECT_NE(test::message_of<DataError>([&] { read_result(folder.path() / "none.json"); }), "no error");
}

TEST(ResultsCsvTest, QuotesWhatHoldsCommasAndQuotes) {
  const auto csv = results_csv({{"run", {make_result("a", "zeroshot_classification", 0.25)}}});
  EXPECT_EQ(csv,
            "subject,name,dataset,task,prompts,metric,value\n"
            "run,a,\"set, \"\"quoted\"\"\",zeroshot_classification,,acc1,0.25\n"
            "run,a,\"set, \"\"quoted\"\"\",zeroshot_classification,,acc5,1\n");
}

TEST(ResultsTableTest, AveragesRowsOfOneKindThatAllSubjectsHave) {
  const auto z = "zeroshot_classification", r = "zeroshot_retrieval";
  auto other_prompts = make_result("a2", z, 0.9);
  other_prompts.prompts = "clip_80";
  const auto table = results_table(
      {{"one", {make_result("a", z, 0.1), make_result("b", z, 0.3), make_result("c", z, 0.5), other_prompts}},
       {"other", {make_result("a", z, 0.2), make_result("c", z, 0.9), make_result("d", r, 0.9), other_prompts}}});
  const auto has = [&](const std::string& pattern) {
    EXPECT_TRUE(std::regex_search(table, std::regex(pattern))) << pattern << "\nin\n" << table;
  };
  has("a +acc1 +10.00 +20.00\n");
  has("b +acc1 +30.00 +-\n");
  has("d +acc1 +- +90.00\n");
  has("mean of zeroshot_classification +2 rows +30.00 +55.00\n");  // of a and c
  EXPECT_EQ(table.find("mean of zeroshot_retrieval"), std::string::npos) << "one row is no mean";
  EXPECT_EQ(table.find("(clip_80)"), std::string::npos);
}

TEST(SummaryTest, ShowsTheChosenMetricsInPercent) {
  auto result = make_result("a", "zeroshot_retrieval", 0.5);
  result.dataset = "set";
  result.metrics = {{"image_retrieval_recall@5", 0.5}, {"image_retrieval_mean_rank", 3.25}};
  result.shown = {"image_retrieval_recall@5"};
  result.skipped.count = 3;
  EXPECT_EQ(summary(result), "set: image_retrieval_recall@5 50.00 %, of 10 images, 3 skipped");
}

}  // namespace
}  // namespace contrastive::eval
