#include "contrastive/text/prompts.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

TEST(PromptsTest, FillsBothKindsOfPlaceholder) {
  EXPECT_EQ(fill_template("a photo of a {c}.", "great white shark"), "a photo of a great white shark.");
  EXPECT_EQ(fill_template("a photo of a {}.", "great white shark"), "a photo of a great white shark.");
}

TEST(PromptsTest, FillsEveryPlaceholder) {
  EXPECT_EQ(fill_template("{c}, {} and {c}", "cat"), "cat, cat and cat");
}

TEST(PromptsTest, DoesNotFillPlaceholdersOfTheClassName) {
  EXPECT_EQ(fill_template("a {c}!", "{}{c}"), "a {}{c}!");
}

TEST(PromptsTest, LeavesOtherBracesAlone) {
  EXPECT_EQ(fill_template("{x} {c} {", "cat"), "{x} cat {");
}

TEST(PromptsTest, RefusesATemplateWithoutPlaceholder) {
  try {
    fill_template("a photo of a cat.", "cat");
    FAIL() << "expected a DataError";
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(),
                 "[fill_template] template \"a photo of a cat.\" must contain {c} or {}, but has neither");
  }
}

TEST(PromptsTest, PublishedSetsHaveThePublishedNumberOfDistinctTemplates) {
  const auto best = prompt_set("clip_best");
  EXPECT_EQ(best.size(), 8U);
  EXPECT_EQ(fill_template(best.front(), "cat"), "itap of a cat.");
  EXPECT_EQ(fill_template(best.back(), "cat"), "cat");
  EXPECT_EQ(prompt_set("class_name"), std::vector<std::string>{"{c}"});
  std::vector<std::string> eighty;
  try {
    eighty = prompt_set("clip_80");
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  EXPECT_EQ(std::set<std::string>(eighty.begin(), eighty.end()).size(), 80U);
  auto paper = prompt_set("clip_paper");
  ASSERT_EQ(paper.size(), 81U);
  EXPECT_EQ(paper.back(), "{c}");
  paper.pop_back();
  EXPECT_EQ(paper, eighty);
  for (size_t i = 0; i + 1 < best.size(); ++i) {
    EXPECT_NE(std::find(eighty.begin(), eighty.end(), best[i]), eighty.end()) << best[i];
  }
}

TEST(PromptsTest, AnUnknownSetIsAnErrorThatNamesTheSets) {
  EXPECT_EQ(test::message_of<ConfigError>([] { prompt_set("clip_81"); }),
            "[prompt_set] there is no set \"clip_81\"; sets are clip_paper, clip_80, clip_best, class_name");
}

TEST(PromptsTest, ReadsAFileOfTemplates) {
  const test::TemporaryDirectory folder;
  const auto file = folder.path() / "templates.txt";
  const auto write = [&](const std::string& text) { std::ofstream(file) << text; };
  write("a {c}.\r\nthe {}\n\n");
  EXPECT_EQ(read_templates(file), (std::vector<std::string>{"a {c}.", "the {}"}));
  write("a {c}.\n\nthe {}\n");
  EXPECT_NE(test::message_of<DataError>([&] { read_templates(file); }).find("line 2: template \"\" must contain"),
            std::string::npos);
  write("\n");
  EXPECT_NE(test::message_of<DataError>([&] { read_templates(file); }).find("holds no template"), std::string::npos);
  EXPECT_NE(test::message_of<DataError>([&] { read_templates(folder.path() / "none"); }).find("none"),
            std::string::npos);
}

// Expected texts are those of big_vision's prompt_engineering._canonicalize.
TEST(PromptsTest, CanonicalTemplatesKeepTheirPlaceholders) {
  EXPECT_EQ(canonicalize_template("A close-up  photo of_a {}!"), "a closeup photo of a {}");
  EXPECT_EQ(canonicalize_template("itap of my {c}."), "itap of my {c}");
  EXPECT_EQ(canonicalize_template("{x} {"), "x");
  EXPECT_EQ(canonicalize_template("{}"), "{}");
}

TEST(PromptsTest, CanonicalClassNamesAreTheFirstAlias) {
  EXPECT_EQ(canonicalize_class_name("great_white_shark, white shark"), "great white shark");
  EXPECT_EQ(canonicalize_class_name("Jack-o'-lantern"), "jackolantern");
  EXPECT_EQ(canonicalize_class_name(" \u00C9cole \t A&B "), "\u00E9cole ab");
  EXPECT_EQ(canonicalize_class_name("tabby"), "tabby");
}

}  // namespace
}  // namespace contrastive::text
