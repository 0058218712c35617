#include "contrastive/core/options.h"

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

namespace contrastive {
namespace {

struct RuleOptions {
  std::string pattern;
  std::optional<double> scale;

  template <typename Fields>
  void fields(Fields& f) {
    f("pattern", pattern, required());
    f("scale", scale, between(0, 1));
  }
};

struct OptimOptions {
  std::string name = "adamw";
  double lr = 1e-3;
  int64_t warmup_steps = 500;
  std::vector<double> betas{0.9, 0.98};
  bool decoupled = true;
  std::vector<RuleOptions> rules;

  template <typename Fields>
  void fields(Fields& f) {
    f("name", name, one_of({"adamw", "adafactor", "sgd"}));
    f("lr", lr, greater_than(0));
    f("warmup_steps", warmup_steps, at_least(0));
    f("betas", betas, between(0, 1));
    f("decoupled", decoupled);
    f("rules", rules);
  }

  void validate(const OptionScope& scope) const {
    if (betas.size() != 2) scope.fail("betas", "two numbers are needed");
    if (name == "sgd" && decoupled) scope.fail("decoupled", "sgd knows no decoupled decay");
    if (name == "adafactor" && warmup_steps == 0) scope.fail("", "adafactor needs warm-up");
  }
};

struct EvalOptions {
  int64_t every_steps = 1000;

  template <typename Fields>
  void fields(Fields& f) {
    f("every_steps", every_steps, at_least(1));
  }
};

struct TestRunOptions {
  std::string output;
  int64_t seed = 0;
  OptimOptions optim;
  std::optional<EvalOptions> evaluation;
  std::optional<int64_t> max_steps;
  ConfigNode model;

  template <typename Fields>
  void fields(Fields& f) {
    f("output", output, required());
    f("seed", seed);
    f("optim", optim);
    f("evaluation", evaluation);
    f("max_steps", max_steps, at_least(1));
    f("model", model);
  }
};

TestRunOptions read(const std::string& text) {
  return read_options<TestRunOptions>(parse_config(text, "run.yaml"));
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

std::string read_error(const std::string& text) {
  return error_of([&] { read(text); });
}

TEST(OptionsTest, KeepsDefaultsOfWhatIsNotGiven) {
  const auto options = read("output: runs/a\noptim:\n  lr: 5e-4\n");
  EXPECT_EQ(options.output, "runs/a");
  EXPECT_EQ(options.seed, 0);
  EXPECT_EQ(options.optim.name, "adamw");
  EXPECT_EQ(options.optim.lr, 5e-4);
  EXPECT_EQ(options.optim.warmup_steps, 500);
  EXPECT_EQ(options.optim.betas, (std::vector<double>{0.9, 0.98}));
  EXPECT_TRUE(options.optim.decoupled);
  EXPECT_FALSE(options.evaluation.has_value());
  EXPECT_FALSE(options.max_steps.has_value());
  EXPECT_EQ(options.model.kind, ConfigNode::Kind::null);
}

TEST(OptionsTest, ReadsEveryKindOfField) {
  const auto options = read(
      "output: 2024\n"  // looks like a number, is asked for as text
      "seed: -9223372036854775808\n"
      "optim:\n"
      "  name: 'sgd'\n"
      "  lr: 1\n"
      "  betas: [0, 0.5]\n"
      "  decoupled: false\n"
      "  rules:\n"
      "    - {pattern: \"^visual\\\\.\", scale: 0.1}\n"
      "    - pattern: .*\n"
      "      scale: ~\n"
      "evaluation: {}\n"
      "max_steps: 7\n"
      "model: {anything: [goes, 1]}\n");
  EXPECT_EQ(options.output, "2024");
  EXPECT_EQ(options.seed, std::numeric_limits<int64_t>::min());
  EXPECT_EQ(options.optim.name, "sgd");
  EXPECT_EQ(options.optim.lr, 1.0);
  EXPECT_EQ(options.optim.betas, (std::vector<double>{0.0, 0.5}));
  EXPECT_FALSE(options.optim.decoupled);
  ASSERT_EQ(options.optim.rules.size(), 2u);
  EXPECT_EQ(options.optim.rules[0].pattern, "^visual\\.");
  EXPECT_EQ(options.optim.rules[0].scale, 0.1);
  EXPECT_EQ(options.optim.rules[1].pattern, ".*");
  EXPECT_FALSE(options.optim.rules[1].scale.has_value());
  ASSERT_TRUE(options.evaluation.has_value());
  EXPECT_EQ(options.evaluation->every_steps, 1000);
  EXPECT_EQ(options.max_steps, 7);
  EXPECT_EQ(to_json(options.model, -1), R"({"anything":["goes",1]})");
}

TEST(OptionsTest, ReportsEverythingThatIsWrongTogether) {
  EXPECT_EQ(read_error("sede: 1\n"
                       "optim:\n"
                       "  lr: -1e-3\n"
                       "  warmup_stepz: 10\n"
                       "  warmup_steps: soon\n"
                       "  betas: [0.9, 1.5]\n"
                       "  decoupled: 1\n"
                       "  name: adanw\n"
                       "  rules:\n"
                       "    - patern: x\n"
                       "      scale: 2\n"
                       "evaluation:\n"
                       "  every_steps: 0\n"
                       "max_steps: 1.5\n"),
            "run.yaml:1:1: output: this key is required\n"
            "run.yaml:8:9: optim.name: 'adanw' is not one of adamw, adafactor, sgd (did you mean adamw?)\n"
            "run.yaml:3:7: optim.lr: -0.001 is out of range: must be greater than 0\n"
            "run.yaml:5:17: optim.warmup_steps: expected an integer, found 'soon'\n"
            "run.yaml:6:16: optim.betas[1]: 1.5 is out of range: must be between 0 and 1\n"
            "run.yaml:7:14: optim.decoupled: expected true or false, found '1'\n"
            "run.yaml:10:7: optim.rules[0].pattern: this key is required\n"
            "run.yaml:11:14: optim.rules[0].scale: 2 is out of range: must be between 0 and 1\n"
            "run.yaml:10:7: optim.rules[0].patern: unknown key (did you mean pattern?)\n"
            "run.yaml:4:3: optim.warmup_stepz: unknown key (did you mean warmup_steps?)\n"
            "run.yaml:13:16: evaluation.every_steps: 0 is out of range: must be at least 1\n"
            "run.yaml:14:12: max_steps: expected an integer, found '1.5'\n"
            "run.yaml:1:1: sede: unknown key (did you mean seed?)");
}

TEST(OptionsTest, ListsTheKnownKeysWhenNoneIsNear) {
  EXPECT_EQ(read_error("output: x\nevaluation: {frequency: 1}\n"),
            "run.yaml:2:14: evaluation.frequency: unknown key; known here: every_steps");
}

TEST(OptionsTest, ReportsWrongKindsOfValues) {
  const auto error = [](const std::string& line) { return read_error("output: x\n" + line); };
  EXPECT_EQ(error("optim: fast"), "run.yaml:2:8: optim: expected a map, found 'fast'");
  EXPECT_EQ(error("optim: [1]"), "run.yaml:2:8: optim: expected a map, found a list");
  EXPECT_EQ(error("optim:"), "run.yaml:2:1: optim: expected a map, found null");
  EXPECT_EQ(error("optim: {betas: 0.9}"), "run.yaml:2:16: optim.betas: expected a list, found '0.9'");
  EXPECT_EQ(error("optim: {lr: '1e-3'}"), "run.yaml:2:13: optim.lr: expected a number, found '1e-3'");
  EXPECT_EQ(error("optim: {lr: .inf}"), "run.yaml:2:13: optim.lr: expected a number, found '.inf'");
  EXPECT_EQ(error("optim: {lr: nan}"), "run.yaml:2:13: optim.lr: expected a number, found 'nan'");
  EXPECT_EQ(error("optim: {lr: 1e999}"), "run.yaml:2:13: optim.lr: expected a number, found '1e999'");
  EXPECT_EQ(error("optim: {decoupled: 'true'}"),
            "run.yaml:2:20: optim.decoupled: expected true or false, found 'true'");
  EXPECT_EQ(error("optim: {decoupled: yes}"), "run.yaml:2:20: optim.decoupled: expected true or false, found 'yes'");
  EXPECT_EQ(error("optim: {name: [adamw]}"), "run.yaml:2:15: optim.name: expected a string, found a list");
  EXPECT_EQ(error("optim: {name: ~}"), "run.yaml:2:15: optim.name: expected a string, found null");
  for (const char* number : {"1.0", "1e3", "9223372036854775808", "0x10", "1_000", "''", "12 "}) {
    const auto message = error("seed: " + std::string(number));
    if (std::string(number) == "12 ") {
      EXPECT_EQ(message, "no error");
    } else {
      EXPECT_EQ(message.find("run.yaml:2:7: seed: expected an integer, found "), 0u) << message;
    }
  }
  EXPECT_EQ(read_error("- 1\n- 2\n"), "run.yaml:1:1: expected a map of keys and values");
}

TEST(OptionsTest, AnEmptyFileStillLacksItsRequiredKeys) {
  EXPECT_EQ(read_error(""), "run.yaml: output: this key is required");
  EXPECT_EQ(read_error("# nothing\n"), "run.yaml: output: this key is required");
  EXPECT_EQ(read_options<EvalOptions>(parse_config("", "run.yaml")).every_steps, 1000);
}

TEST(OptionsTest, RangesIncludeTheirEndsUnlessExcluded) {
  EXPECT_EQ(read_error("output: x\noptim: {betas: [0, 1], warmup_steps: 0}\nmax_steps: 1\n"), "no error");
  EXPECT_EQ(read_error("output: x\noptim: {lr: 0}\n"),
            "run.yaml:2:13: optim.lr: 0 is out of range: must be greater than 0");
}

TEST(OptionsTest, ChecksAcrossFieldsPointToTheFieldOrTheScope) {
  EXPECT_EQ(read_error("output: x\noptim:\n  betas: [0.9]\n"), "run.yaml:3:10: optim.betas: two numbers are needed");
  EXPECT_EQ(read_error("output: x\noptim:\n  name: sgd\n"),
            "run.yaml:3:3: optim.decoupled: sgd knows no decoupled decay");
  EXPECT_EQ(read_error("output: x\noptim:\n  name: adafactor\n  warmup_steps: 0\n"),
            "run.yaml:3:3: optim: adafactor needs warm-up");
}

TEST(OptionsTest, OverridesTakePrecedenceAndAreNamedInErrors) {
  auto root = parse_config("output: x\noptim: {lr: 1}\n", "run.yaml");
  apply_override(root, "optim.lr=2");
  apply_override(root, "evaluation.every_steps=5");
  const auto options = read_options<TestRunOptions>(root);
  EXPECT_EQ(options.optim.lr, 2.0);
  EXPECT_EQ(options.evaluation.value().every_steps, 5);

  apply_override(root, "optim.lr=zero");
  apply_override(root, "optim.warmup=3");
  EXPECT_EQ(
      error_of([&] { read_options<TestRunOptions>(root); }),
      "override 'optim.lr=zero': optim.lr: expected a number, found 'zero'\n"
      "override 'optim.warmup=3': optim.warmup: unknown key; known here: name, lr, warmup_steps, betas, decoupled, "
      "rules");
}

TEST(OptionsTest, ReadsJson) {
  const auto options = read(R"({"output":"x","seed":3,"optim":{"lr":1e-05,"rules":[{"pattern":"a","scale":null}]}})");
  EXPECT_EQ(options.seed, 3);
  EXPECT_EQ(options.optim.lr, 1e-5);
  EXPECT_EQ(options.optim.rules.at(0).pattern, "a");
  EXPECT_EQ(read_error("{\"output\": \"x\",\n \"seed\": \"3\"}"),
            "run.yaml:2:10: seed: expected an integer, found '3'");
}

TestRunOptions unusual_options() {
  TestRunOptions options;
  options.output = "two words: # 'quoted' \"twice\" \\ ü\n";
  options.seed = std::numeric_limits<int64_t>::max();
  options.optim.lr = 0.1 + 0.2;
  options.optim.warmup_steps = 0;
  options.optim.betas = {5e-324, 1.0 / 3};
  options.optim.decoupled = false;
  options.optim.rules = {{"null", 0.5}, {"true", std::nullopt}, {"", 1.0}, {"1e5", 0.0}, {"[a, b]", 1.0}, {"-", 1.0}};
  options.evaluation = EvalOptions{3};
  options.model = parse_config("{'null': ~, n: '5', list: [1, {a: b}]}", "model");
  return options;
}

void expect_equal(const TestRunOptions& a, const TestRunOptions& b) {
  EXPECT_EQ(a.output, b.output);
  EXPECT_EQ(a.seed, b.seed);
  EXPECT_EQ(a.optim.name, b.optim.name);
  EXPECT_EQ(a.optim.lr, b.optim.lr);
  EXPECT_EQ(a.optim.warmup_steps, b.optim.warmup_steps);
  EXPECT_EQ(a.optim.betas, b.optim.betas);
  EXPECT_EQ(a.optim.decoupled, b.optim.decoupled);
  ASSERT_EQ(a.optim.rules.size(), b.optim.rules.size());
  for (size_t i = 0; i < a.optim.rules.size(); ++i) {
    EXPECT_EQ(a.optim.rules[i].pattern, b.optim.rules[i].pattern);
    EXPECT_EQ(a.optim.rules[i].scale, b.optim.rules[i].scale);
  }
  ASSERT_EQ(a.evaluation.has_value(), b.evaluation.has_value());
  if (a.evaluation) {
    EXPECT_EQ(a.evaluation->every_steps, b.evaluation->every_steps);
  }
  EXPECT_EQ(a.max_steps, b.max_steps);
  EXPECT_EQ(to_json(a.model), to_json(b.model));
}

TEST(OptionsPrintTest, PrintedOptionsReadBackEqual) {
  TestRunOptions defaults;
  defaults.output = "x";
  for (const auto& options : {defaults, unusual_options()}) {
    const auto node = options_to_node(options);
    SCOPED_TRACE(to_yaml(node));
    expect_equal(read(to_yaml(node)), options);
    expect_equal(read(to_json(node)), options);
    expect_equal(read_options<TestRunOptions>(node), options);
    EXPECT_EQ(to_yaml(options_to_node(read(to_yaml(node)))), to_yaml(node));
  }
}

TEST(OptionsPrintTest, PrintsEveryFieldInOrder) {
  TestRunOptions options;
  options.output = "runs/a";
  options.optim.rules = {{"x", 0.5}};
  EXPECT_EQ(to_yaml(options_to_node(options)),
            "output: runs/a\n"
            "seed: 0\n"
            "optim:\n"
            "  name: adamw\n"
            "  lr: 0.001\n"
            "  warmup_steps: 500\n"
            "  betas: [0.9,0.98]\n"
            "  decoupled: true\n"
            "  rules: [{\"pattern\":\"x\",\"scale\":0.5}]\n"
            "evaluation: null\n"
            "max_steps: null\n"
            "model: null\n");
}

TEST(NearestWordTest, FindsMisspellingsOnly) {
  const std::vector<std::string> words{"warmup_steps", "lr", "weight_decay", "betas"};
  EXPECT_EQ(nearest_word("warmup_stepz", words), "warmup_steps");
  EXPECT_EQ(nearest_word("wamrup_steps", words), "warmup_steps");
  EXPECT_EQ(nearest_word("weightdecay", words), "weight_decay");
  EXPECT_EQ(nearest_word("rl", words), "lr");
  EXPECT_EQ(nearest_word("beta", words), "betas");
  EXPECT_EQ(nearest_word("momentum", words), "");
  EXPECT_EQ(nearest_word("x", {}), "");
  EXPECT_EQ(nearest_word(std::string(10'000'000, 'w'), words), "");
}

}  // namespace
}  // namespace contrastive
