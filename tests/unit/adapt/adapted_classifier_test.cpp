#include "contrastive/adapt/adapted_classifier.h"

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "contrastive/adapt/adaptation.h"
#include "contrastive/adapt/adaptation_record.h"
#include "contrastive/core/error.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

namespace fs = std::filesystem;

class AdaptedClassifierTest : public ::testing::Test {
 protected:
  AdaptedClassifierTest() : f_(test::adapt_fixture_f2()) {
    std::vector<std::string> names{"ant", "bee", "cat", "dog", "eel", "fox"};
    classifier_ = make_text_classifier(f_.weights, at::arange(6, at::kLong), names);
    support_ = SupportFeatures{f_.keys, f_.labels, 6, {}};
    file_ = fs::path(::testing::TempDir()) / ("adapted_" + std::to_string(::getpid()) + ".safetensors");
  }
  ~AdaptedClassifierTest() override { fs::remove(file_); }

  LabelledQueries test_images() const { return {{f_.queries, {}}, f_.targets}; }

  test::AdaptFixture f_;
  TextClassifier classifier_;
  SupportFeatures support_;
  fs::path file_;
};

TEST_F(AdaptedClassifierTest, EveryAdapterComesBackFromItsFile) {
  for (const auto& name : adapter_names()) {
    if (name == "calip") continue;  // needs spatial features
    std::shared_ptr<Adapter> adapter = make_adapter(name);
    adapter->fit(support_, classifier_);
    const auto values = adapter->fixed_values();
    const AdaptedClassifier saved(adapter, values, classifier_.class_names, "aa", {{"protocol", "fixed"}});
    saved.save(file_);
    const auto opened = AdaptedClassifier::open(file_);
    EXPECT_TRUE(opened.logits({f_.queries, {}}).equal(adapter->logits(f_.queries, values))) << name;
    EXPECT_EQ(opened.about().at("protocol"), "fixed");
    opened.require_model("aa");
    EXPECT_EQ(test::message_of<DataError>([&] { opened.require_model("bb"); }),
              "[adapted_classifier] was fitted on features of the model aa, but these are of bb");
  }
}

TEST_F(AdaptedClassifierTest, NamesTheBestClasses) {
  std::shared_ptr<Adapter> adapter = make_adapter("zero-shot");
  adapter->fit({}, classifier_);
  const AdaptedClassifier classifier(adapter, {}, classifier_.class_names, "aa");
  const auto best = classifier.classify({f_.weights.slice(0, 3, 4), {}}, 2);
  ASSERT_EQ(best.size(), 1U);
  ASSERT_EQ(best[0].size(), 2U);
  EXPECT_EQ(best[0][0].name, "dog");
  EXPECT_GT(best[0][0].probability, best[0][1].probability);
}

TEST_F(AdaptedClassifierTest, RefusesOtherFiles) {
  write_safetensors(file_, {{"x", at::ones({1})}});
  EXPECT_NE(test::message_of<CheckpointError>([&] { AdaptedClassifier::open(file_); }).find("is no adapted classifier"),
            std::string::npos);
  write_safetensors(file_, {{"x", at::ones({1})}}, {{"adapted_classifier", "{\"format\":1,\"adapter\":\"tip-y\"}"}});
  EXPECT_NE(test::message_of<CheckpointError>([&] { AdaptedClassifier::open(file_); }).find("malformed"),
            std::string::npos);
}

TEST_F(AdaptedClassifierTest, ProtocolsLookAtWhatTheirNamesSay) {
  AdaptationRequest request;
  request.adapter = "tip-adapter";
  const auto fixed = adapt_and_test(request, support_, classifier_, test_images());
  EXPECT_EQ(fixed.values, fixed.adapter->fixed_values());
  EXPECT_FALSE(fixed.search.has_value());

  request.protocol = Protocol::test_oracle;
  const auto oracle = adapt_and_test(request, support_, classifier_, test_images());
  EXPECT_EQ(oracle.search->best_correct(), 5);  // the fixture's
  EXPECT_DOUBLE_EQ(oracle.top1_accuracy, 5.0 / 12);

  request.protocol = Protocol::val;
  EXPECT_EQ(test::message_of<ConfigError>([&] { adapt_and_test(request, support_, classifier_, test_images()); }),
            "[adaptation] the protocol val needs a labelled validation set");
  const LabelledQueries validation{{f_.keys, {}}, f_.labels};
  const auto searched = adapt_and_test(request, support_, classifier_, test_images(), &validation);
  EXPECT_EQ(searched.search->num_samples, 24);

  request.protocol = Protocol::support_cv;
  EXPECT_EQ(adapt_and_test(request, support_, classifier_, test_images()).search->num_samples, 24);
}

TEST_F(AdaptedClassifierTest, UnknownAdaptersAndSettingsAreNamed) {
  EXPECT_EQ(
      test::message_of<ConfigError>([] { make_adapter("tip"); }),
      "there is no adapter \"tip\": there are zero-shot, tip-adapter, tip-adapter-f, tip-x, calip, gda, ape, timo");
  EXPECT_EQ(test::message_of<ConfigError>([] {
              make_adapter("tip-x", {{"taux", "1"}});
            }),
            "[tip-x] has no option \"taux\": there are tau, psi, aggregate");
  EXPECT_EQ(test::message_of<ConfigError>([] {
              make_adapter("tip-x", {{"psi", "global"}});
            }),
            "[tip-x] psi must be one of range, none, but is \"global\"");
  EXPECT_EQ(test::message_of<ConfigError>([] {
              make_adapter("tip-x", {{"tau", "1e"}});
            }),
            "[tip-x] tau must be a number, but is \"1e\"");
  EXPECT_EQ(test::message_of<ConfigError>([] {
              make_adapter("gda", {{"x", "1"}});
            }),
            "[gda] has no options, but \"x\" is set");
  for (const auto& name : adapter_names()) {
    EXPECT_EQ(make_adapter(name, make_adapter(name)->settings())->settings(), make_adapter(name)->settings());
  }
}

TEST(AdaptationRecordTest, ComesBackToTheBitAndNamesWhatIsMissing) {
  AdaptationRecord record;
  record.dataset = "cifar10";
  record.adapter = "tip-x";
  record.protocol = "support-cv";
  record.shots = 16;
  record.values = {{"beta", 0.1 + 0.2}, {"alpha", 3}};
  record.sensitivity = {{"beta", {0.1, 2.0 / 3}}};
  record.settings = {{"tau", "0.5"}};
  record.top1_accuracy = 1.0 / 3;
  const auto text = to_json(record);
  const auto read = parse_record(text, "r.jsonl:1");
  EXPECT_EQ(to_json(read), text);
  EXPECT_EQ(read.values, record.values);
  EXPECT_EQ(read.top1_accuracy, 1.0 / 3);
  EXPECT_EQ(read.method(), "tip-x/support-cv");

  auto missing = text;
  missing.replace(missing.find("\"shots\":16,"), 11, "");
  EXPECT_EQ(test::message_of<DataError>([&] { parse_record(missing, "r.jsonl:7"); }),
            "r.jsonl:7: the result has no shots");
  auto unknown = text;
  unknown.replace(unknown.find("\"shots\":16,"), 11, "\"shots\":16,\"shot\":1,");
  EXPECT_EQ(test::message_of<DataError>([&] { parse_record(unknown, "r.jsonl:7"); }),
            "r.jsonl:7: a result has no key shot");
  auto mistyped = text;
  mistyped.replace(mistyped.find("\"shots\":16,"), 11, "\"shots\":\"16\",");
  EXPECT_EQ(test::message_of<DataError>([&] { parse_record(mistyped, "r.jsonl:7"); }),
            "r.jsonl:7: shots is of another kind than a result's: \"16\"");
}

}  // namespace
}  // namespace contrastive::adapt
