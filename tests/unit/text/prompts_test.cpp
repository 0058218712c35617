#include "contrastive/text/prompts.h"

#include <string>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

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

}  // namespace
}  // namespace contrastive::text
