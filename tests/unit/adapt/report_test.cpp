#include "contrastive/adapt/report.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

AdaptationRecord record(const std::string& adapter, const std::string& protocol, int64_t shots, int64_t seed,
                        double accuracy) {
  AdaptationRecord made;
  made.dataset = "pets";
  made.model = "runs/a";
  made.model_sha256 = "aa";
  made.prompts = "clip_80";
  made.support = shots > 0 ? "few-shot" : adapter == "zero-shot" ? "none" : "retrieved";
  made.shots = shots;
  made.support_rows = adapter == "zero-shot" ? 0 : 40;
  made.seed = seed;
  made.adapter = adapter;
  made.protocol = protocol;
  made.num_samples = 200;
  made.top1_accuracy = accuracy;
  made.zero_shot_accuracy = 0.5;
  return made;
}

std::vector<AdaptationRecord> some_records() {
  return {record("zero-shot", "fixed", 0, 0, 0.5),  record("tip-x", "fixed", 1, 1, 0.1),
          record("tip-x", "fixed", 1, 1, 0.52),  // repeated: this one counts
          record("tip-x", "fixed", 1, 2, 0.54),     record("tip-x", "fixed", 16, 1, 0.6),
          record("gda", "fixed", 16, 1, 0.65),      record("gda", "test-oracle", 16, 1, 0.7),
          record("tip-x", "support-cv", 0, 0, 0.56)};
}

TEST(ReportTest, ProtocolsAreRowsOfTheirOwnWithMeanAndDeviationOfTheSeeds) {
  const auto tables = make_report(some_records());
  ASSERT_EQ(tables.size(), 1U);
  const auto& rows = tables[0].rows;
  ASSERT_EQ(rows.size(), 5U);
  EXPECT_EQ(rows[0].method, "zero-shot/fixed");
  EXPECT_EQ(rows[1].method, "tip-x/fixed");
  EXPECT_EQ(rows[2].method, "tip-x/support-cv");
  EXPECT_EQ(rows[3].method, "gda/fixed");
  EXPECT_EQ(rows[4].method, "gda/test-oracle");
  ASSERT_EQ(rows[1].cells.size(), 2U);
  EXPECT_EQ(rows[1].cells[0].num_seeds, 2);
  EXPECT_DOUBLE_EQ(rows[1].cells[0].mean, 0.53);
  EXPECT_NEAR(rows[1].cells[0].deviation, 0.0141421356, 1e-9);
  EXPECT_EQ(rows[1].cells[1].deviation, 0);
}

TEST(ReportTest, SettingsThatDifferMakeRowsAndAreNamed) {
  auto records = some_records();
  auto other = record("tip-x", "fixed", 1, 1, 0.55);
  for (auto& each : records) each.settings = {{"psi", "range"}, {"tau", "0.5"}};
  other.settings = {{"psi", "range"}, {"tau", "0.1"}};
  records.push_back(other);
  const auto rows = make_report(records)[0].rows;
  EXPECT_EQ(rows[1].method, "tip-x/fixed [tau=0.1]");
  EXPECT_EQ(rows[2].method, "tip-x/fixed [tau=0.5]");
  EXPECT_EQ(rows[3].method, "tip-x/support-cv");
}

TEST(ReportTest, MarkdownAndCsv) {
  const auto tables = make_report(some_records());
  EXPECT_EQ(report_markdown(tables),
            "pets, 200 images, runs/a, prompts: clip_80. Accuracy in percent; zero-shot 50.00.\n"
            "\n"
            "| method | no images | retrieved, 40 images | 1 shot | 16 shots |\n"
            "|---|---|---|---|---|\n"
            "| zero-shot/fixed | **50.0** | | | |\n"
            "| tip-x/fixed | | | **53.0 ± 1.4** | 60.0 |\n"
            "| tip-x/support-cv | | **56.0** | | |\n"
            "| gda/fixed | | | | **65.0** |\n"
            "| gda/test-oracle (upper bound) | | | | 70.0 |\n"
            "\n"
            "Mean ± standard deviation of 2 draws. test-oracle looks at the test labels: an upper bound, no result.\n");
  auto quoted = some_records();
  quoted.resize(1);
  quoted[0].model = "a,\"b\"";
  EXPECT_EQ(report_csv(make_report(quoted)),
            "dataset,model,prompts,method,support,shots,images,seeds,mean,deviation\n"
            "pets,\"a,\"\"b\"\"\",clip_80,zero-shot/fixed,none,0,0,1,0.5,0\n");
}

TEST(ReportTest, SupportSetsOfOtherSizesAreOtherColumns) {
  auto records = some_records();
  records.push_back(record("tip-x", "support-cv", 0, 0, 0.6));
  records.back().support_rows = 80;
  const auto cells = make_report(records)[0].rows[2].cells;
  ASSERT_EQ(cells.size(), 2U);
  EXPECT_EQ(cells[0].images, 40);
  EXPECT_EQ(cells[0].mean, 0.56);
  EXPECT_EQ(cells[1].images, 80);
  EXPECT_EQ(cells[1].mean, 0.6);
}

TEST(ReportTest, FiguresOfOtherModelsPromptsOrScalesAreOtherTables) {
  auto records = some_records();
  records.back().scale = 20;
  EXPECT_EQ(make_report(records).size(), 2U);
  records = some_records();
  records[1].model_sha256 = "bb";
  records[5].prompts = "cupl";
  EXPECT_EQ(make_report(records).size(), 3U);
  records = some_records();
  records[3].zero_shot_accuracy = 0.51;  // of 200 images
  EXPECT_EQ(make_report(records).size(), 1U);
  records[3].zero_shot_accuracy = 0.6;
  EXPECT_NE(test::message_of<DataError>([&] { make_report(records); }).find("don't belong together"),
            std::string::npos);
  EXPECT_EQ(test::message_of<DataError>([] { make_report({}); }), "[report] there is no result");
}

/// Counts a text's occurrences.
size_t count(const std::string& text, const std::string& part) {
  size_t number = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++number;
  return number;
}

TEST(ReportTest, ThePlotHasALineAMethodAndEscapesNames) {
  auto records = some_records();
  for (auto& each : records) each.dataset = "cats & <dogs>";
  const auto svg = report_svg(make_report(records)[0]);
  EXPECT_NE(svg.find("cats &amp; &lt;dogs&gt;, 200 images"), std::string::npos);
  EXPECT_EQ(count(svg, "<polyline"), 3U);                 // tip-x, gda, gda's upper bound
  EXPECT_EQ(count(svg, "stroke-dasharray=\"6 4\""), 2U);  // the upper bound and its name
  const auto colour_after = [&svg](size_t from) { return svg.substr(svg.find("stroke=\"#", from), 16); };
  const auto tip_x = svg.find("<polyline"), gda = svg.find("<polyline", tip_x + 1),
             bound = svg.find("<polyline", gda + 1);
  EXPECT_EQ(colour_after(gda), colour_after(bound));
  EXPECT_NE(colour_after(gda), colour_after(tip_x));
  EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
  // 1 shot lies at the left end, 16 at the right one.
  EXPECT_NE(svg.find("<circle cx=\"80.0\""), std::string::npos);
  EXPECT_NE(svg.find("<circle cx=\"580.0\""), std::string::npos);
  EXPECT_EQ(test::message_of<DataError>([] { report_svg(make_report({record("zero-shot", "fixed", 0, 0, 0.5)})[0]); }),
            "[report] pets has no figures over shots to draw");
}

}  // namespace
}  // namespace contrastive::adapt
