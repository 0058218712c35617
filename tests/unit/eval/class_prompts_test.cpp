#include "contrastive/eval/class_prompts.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

using Prompts = std::vector<std::vector<std::string>>;
using test::message_of;

data::ClassificationSet make_set() {
  data::ClassificationSet set;
  set.class_names = {"missile", "owl", "missile"};
  set.class_ids = {"n01", "n02", "n03"};
  set.templates = {"a {c}.", "the {}"};
  set.name = "set";
  return set;
}

class ClassPromptsTest : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) const {
    const auto file = folder_.path() / name;
    write_file_atomically(file, content);
    return file.string();
  }

  test::TemporaryDirectory folder_;
};

TEST_F(ClassPromptsTest, FillsTheDataSetsTemplatesUnlessOthersAreNamed) {
  const auto own = class_prompts("", make_set());
  EXPECT_EQ(own.name, "dataset");
  EXPECT_EQ(own.prompts,
            Prompts({{"a missile.", "the missile"}, {"a owl.", "the owl"}, {"a missile.", "the missile"}}));
  EXPECT_EQ(class_prompts("dataset", make_set()).prompts, own.prompts);
  EXPECT_EQ(class_prompts("class_name", make_set()).prompts, Prompts({{"missile"}, {"owl"}, {"missile"}}));
  const auto file = write("two.txt", "{c}?\n{c}!\n");
  const auto from_file = class_prompts(file, make_set());
  EXPECT_EQ(from_file.name, "two.txt");
  EXPECT_EQ(from_file.prompts[1], std::vector<std::string>({"owl?", "owl!"}));
}

TEST_F(ClassPromptsTest, CanonicalizesTemplatesAndNames) {
  auto set = make_set();
  set.class_names[1] = "Great_Owl, hooter";
  EXPECT_EQ(class_prompts("", set, /*canonicalize=*/true).prompts[1],
            std::vector<std::string>({"a great owl", "the great owl"}));
}

TEST_F(ClassPromptsTest, ReadsPromptsOfEachClassByIdOrByName) {
  const auto file = write("cupl.json", R"({"n01": ["m1", "m2"], "owl": "o", "n03": ["m3"], "n99": ["other"]})");
  const auto prompts = class_prompts(file, make_set());
  EXPECT_EQ(prompts.name, "cupl.json");
  EXPECT_EQ(prompts.prompts, Prompts({{"m1", "m2"}, {"o"}, {"m3"}}));
}

TEST_F(ClassPromptsTest, RefusesANameThatSeveralClassesHave) {
  const auto file = write("cupl.json", R"({"missile": ["m"], "owl": ["o"]})");
  const auto message = message_of<DataError>([&] { class_prompts(file, make_set()); });
  EXPECT_NE(message.find("\"missile\" is the name of 2 classes, 0 the first of them: their prompts need the classes' "
                         "ids as keys"),
            std::string::npos)
      << message;
}

TEST_F(ClassPromptsTest, NamesClassesWithoutPromptsAndMalformedEntries) {
  const auto error = [&](const std::string& content) {
    const auto file = write("p.json", content);
    const auto message = message_of<DataError>([&] { class_prompts(file, make_set()); });
    EXPECT_EQ(message.find("[" + file + "]"), 0U) << message;
    return message.substr(std::min(message.size(), file.size() + 3));
  };
  EXPECT_EQ(error(R"({"n01": ["m"]})"), "has no prompts for 2 of 3 classes: \"owl\", \"missile\"");
  EXPECT_EQ(error("[1]"), "expected a JSON object from classes to lists of prompts");
  EXPECT_EQ(error("{"), "expected a JSON object from classes to lists of prompts");
  EXPECT_EQ(error(R"({"n01": [1]})"), "\"n01\": expected a text or a list of texts, but found number");
  EXPECT_EQ(error(R"({"n01": []})"), "\"n01\": expected a text or a list of texts, but found an empty list");
  EXPECT_EQ(error(R"({"n01": [""]})"), "\"n01\": expected a text or a list of texts, but found an empty text");
}

TEST_F(ClassPromptsTest, SaysWhatMayBeNamed) {
  EXPECT_EQ(message_of<ConfigError>([] { class_prompts("clip_81", make_set()); }),
            "prompts: there is no set \"clip_81\" and no file of that name; sets are dataset, clip_paper, clip_80, "
            "clip_best, class_name");
  auto set = make_set();
  set.templates.clear();
  EXPECT_NE(message_of<ConfigError>([&] { class_prompts("", set); }).find("the data set has no templates"),
            std::string::npos);
}

TEST(ClassPromptsFingerprintTest, ChangesWithEveryPromptAndItsPlace) {
  const auto of = [](Prompts prompts) { return ClassPrompts{"", std::move(prompts)}.fingerprint(); };
  const auto one = of({{"a", "b"}, {"c"}});
  EXPECT_EQ(one, (ClassPrompts{"other name", {{"a", "b"}, {"c"}}}.fingerprint()));
  EXPECT_NE(one, of({{"a"}, {"b", "c"}}));
  EXPECT_NE(one, of({{"b", "a"}, {"c"}}));
  EXPECT_NE(one, of({{"a", "b"}, {"d"}}));
  EXPECT_NE(of({{"a\nb"}}), of({{"a", "b"}}));
}

TEST(FirstOfSameNameTest, PointsToTheFirst) {
  EXPECT_EQ(first_of_same_name({"a", "b", "a", "c", "b"}), std::vector<int64_t>({0, 1, 0, 3, 1}));
}

}  // namespace
}  // namespace contrastive::eval
