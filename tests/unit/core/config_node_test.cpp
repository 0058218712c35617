#include "contrastive/core/config_node.h"

#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive {
namespace {

using Kind = ConfigNode::Kind;

std::string parse_error(const std::string& text) {
  return test::message_of<ConfigError>([&] { parse_config(text, "c.yaml"); });
}

nlohmann::json json_of(const std::string& yaml) {
  return nlohmann::json::parse(to_json(parse_config(yaml, "c.yaml")));
}

std::string override_error(const std::string& document, const std::string& text) {
  return test::message_of<ConfigError>([&] {
    auto root = parse_config(document, "c.yaml");
    apply_override(root, text);
  });
}

std::string overridden(const std::string& document, const std::string& text) {
  auto root = parse_config(document, "c.yaml");
  apply_override(root, text);
  return to_json(root, -1);
}

/// Equal but for places, and but for quotes around what is a string anyway.
void expect_same(const ConfigNode& a, const ConfigNode& b) {
  ASSERT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.scalar, b.scalar);
  ASSERT_EQ(a.items.size(), b.items.size());
  for (size_t i = 0; i < a.items.size(); ++i) expect_same(a.items[i], b.items[i]);
  ASSERT_EQ(a.entries.size(), b.entries.size());
  for (size_t i = 0; i < a.entries.size(); ++i) {
    EXPECT_EQ(a.entries[i].key, b.entries[i].key);
    expect_same(a.entries[i].value, b.entries[i].value);
  }
}

constexpr const char* kDocument =
    "model:\n"
    "  name: vit  # a comment\n"
    "  sizes: [1, 2]\n"
    "\n"
    "optim: {lr: 1e-3, \"warmup\": 'two words'}\n"
    "list:\n"
    "  - a\n"
    "  - b: 1\n"
    "nothing: ~\n";

TEST(ConfigNodeTest, KnowsWhereEveryKeyAndValueStands) {
  const auto root = parse_config(kDocument, "c.yaml");
  ASSERT_EQ(root.kind, Kind::map);
  EXPECT_EQ(root.place.to_string(), "c.yaml:1:1");
  const auto* model = root.find("model");
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->entries[0].key_place.to_string(), "c.yaml:2:3");
  EXPECT_EQ(model->find("name")->place.to_string(), "c.yaml:2:9");
  EXPECT_EQ(model->find("sizes")->items[1].place.to_string(), "c.yaml:3:14");
  const auto* optim = root.find("optim");
  EXPECT_EQ(optim->find("lr")->scalar, "1e-3");
  EXPECT_FALSE(optim->find("lr")->quoted);
  EXPECT_EQ(optim->entries[1].key_place.to_string(), "c.yaml:5:19");
  EXPECT_EQ(optim->find("warmup")->scalar, "two words");
  EXPECT_TRUE(optim->find("warmup")->quoted);
  EXPECT_EQ(root.find("list")->items[1].find("b")->place.to_string(), "c.yaml:8:8");
  EXPECT_EQ(root.find("nothing")->kind, Kind::null);
  EXPECT_EQ(root.find("absent"), nullptr);
}

TEST(ConfigNodeTest, ReadsJson) {
  const std::string text =
      "{\"a\":1,\"b\":[1,-2.5e3,true,null,\"x\\/\\u00fc\\\"\\n\"],\"c\":{\"d\":{}, \"e\":[]},\n\t\"f\": \"1\"}\n";
  EXPECT_EQ(json_of(text), nlohmann::json::parse(text));
  EXPECT_EQ(parse_config(text, "c.json").find("f")->place.to_string(), "c.json:2:7");
}

TEST(ConfigNodeTest, AnEmptyDocumentIsNull) {
  for (const char* text : {"", "\n\n", "# only a comment\n", "---\n", "null", "~"}) {
    EXPECT_EQ(parse_config(text, "c.yaml").kind, Kind::null) << text;
  }
  EXPECT_EQ(parse_config("", "c.yaml").place.to_string(), "c.yaml");
}

TEST(ConfigNodeTest, KeepsTheLineEndOfBlockText) {
  EXPECT_EQ(json_of("a: |\n  one\n  two\n"), nlohmann::json::parse(R"({"a":"one\ntwo\n"})"));
}

TEST(ConfigNodeTest, ResolvesAliases) {
  EXPECT_EQ(json_of("a: &x {k: [1, two]}\nb: *x\n"),
            nlohmann::json::parse(R"({"a":{"k":[1,"two"]},"b":{"k":[1,"two"]}})"));
}

TEST(ConfigNodeTest, ReportsSyntaxErrorsWithTheirPlace) {
  EXPECT_EQ(parse_error("a: 1\nb: c: d\n"), "c.yaml:2:5: illegal map value");
  EXPECT_EQ(parse_error("a: \"no end\n\nb: 1\n\n"), "c.yaml:3:5: illegal EOF in scalar");
  EXPECT_EQ(parse_error("a: 'no end\n"), "c.yaml:1:11: illegal EOF in scalar");
  EXPECT_EQ(parse_error("{\"a\": \"cut"), "c.yaml:1:11: illegal EOF in scalar");
  EXPECT_NE(parse_error("a: [1, 2\n").find("end of sequence flow not found"), std::string::npos);
  EXPECT_EQ(parse_error("{\"a\": 1} trailing\n"), "c.yaml: more than one document");
  EXPECT_EQ(parse_error("--- 1\n--- 2\n"), "c.yaml: more than one document");
  EXPECT_EQ(parse_error("? [1]\n: 2\n"), "c.yaml:1:3: a key must be a word");
  EXPECT_EQ(parse_error("a: 1\nb: \x04 2\n"), "c.yaml:2:4: the control character 0x04 is not allowed");
  EXPECT_EQ(parse_error("a: !!str 5\n"), "c.yaml:1:4: the tag tag:yaml.org,2002:str is not supported");
  EXPECT_EQ(parse_error("a: !mine {b: 1}\n"), "c.yaml:1:4: the tag !mine is not supported");
}

TEST(ConfigNodeTest, ReportsDuplicateKeysWithBothPlaces) {
  EXPECT_EQ(parse_error("a: 1\nb: 2\na: 3\n"), "c.yaml:3:1: a: duplicate key (first at line 1)");
  EXPECT_EQ(parse_error("a:\n  b: 1\n  c: 2\n  'b': 1\n"), "c.yaml:4:3: b: duplicate key (first at line 2)");
  EXPECT_EQ(parse_error("{\"a\": 1, \"a\": 1}"), "c.yaml:1:10: a: duplicate key (first at line 1)");
  EXPECT_EQ(parse_error("a: {k: 1}\nb: {k: 1}\n"), "no error");
}

TEST(ConfigNodeTest, RefusesDocumentsThatGrowBeyondAConfiguration) {
  std::string multiplying = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  std::string deepening = "a0: &a0 [x]\n";
  for (int i = 1; i < 40; ++i) {
    const auto name = "a" + std::to_string(i);
    const auto alias = "*a" + std::to_string(i - 1);
    multiplying += name + ": &" + name + " [" + alias + ", " + alias + ", " + alias + ", " + alias + "]\n";
    deepening += name + ": &" + name + " [[[[" + alias + "]]]]\n";
  }
  EXPECT_NE(parse_error(multiplying).find("more than 20000 values: not a configuration"), std::string::npos);
  EXPECT_NE(parse_error(deepening).find("nested more than 100 deep: not a configuration"), std::string::npos);
  EXPECT_NE(parse_error("a: &x [1, *x]").find("an alias refers to the map or list it stands in"), std::string::npos);

  std::string anchors_in_anchors;
  for (int i = 0; i < 90; ++i) anchors_in_anchors += "&a" + std::to_string(i) + " [";
  for (int i = 0; i < 2000; ++i) anchors_in_anchors += "x,";
  EXPECT_NE(parse_error(anchors_in_anchors + std::string(90, ']')).find("more than 20000 values"), std::string::npos);

  for (const char* piece : {"[", "{", "- ", "? ", "[{"}) {
    std::string deep;
    while (deep.size() < 100'000) deep += piece;
    EXPECT_NE(parse_error(deep).find("nested more than 100 deep"), std::string::npos) << piece;
  }
  EXPECT_EQ(parse_error(std::string((4 << 20) + 1, ' ')), "c.yaml: 4194305 bytes are too many for a configuration");
}

TEST(ConfigNodeTest, BadInputOfAnyKindIsAConfigError) {
  // Every prefix, and every single wrong byte, of a document: read or refused, nothing else.
  const std::string document = std::string(kDocument) + "alias: [&x {k: \"\\u00fc\"}, *x, |\n  text\n]\n";
  for (size_t size = 0; size < document.size(); ++size) parse_error(document.substr(0, size));
  for (size_t i = 0; i < document.size(); ++i) {
    for (const char wrong :
         {'\0', '\t', '\n', '"', '\'', '[', '}', '&', '*', '!', '|', '%', '-', ':', '?', '\\', '\xff'}) {
      auto damaged = document;
      damaged[i] = wrong;
      parse_error(damaged);
    }
  }
}

TEST(ConfigNodeTest, LoadsAFileAndNamesIt) {
  const test::TemporaryDirectory folder;
  const auto file = folder.path() / "c.yaml";
  std::ofstream(file) << "a: 1\na: 2\n";
  EXPECT_EQ(test::message_of<ConfigError>([&] { load_config(file); }),
            file.string() + ":2:1: a: duplicate key (first at line 1)");
  const auto missing = folder.path() / "none.yaml";
  EXPECT_EQ(test::message_of<ConfigError>([&] { load_config(missing); }),
            "[" + missing.string() + "] can't be read: No such file or directory");
}

TEST(ConfigOverrideTest, ReplacesAndMakesValues) {
  EXPECT_EQ(overridden("optim: {lr: 1, wd: 2}", "optim.lr=3e-4"), R"({"optim":{"lr":0.0003,"wd":2}})");
  EXPECT_EQ(overridden("a: 1", "b.c.d=[1, x]"), R"({"a":1,"b":{"c":{"d":[1,"x"]}}})");
  EXPECT_EQ(overridden("", "a='1'"), R"({"a":"1"})");
  EXPECT_EQ(overridden("a: {b: 1}", "a="), R"({"a":""})");
  EXPECT_EQ(overridden("a: {b: 1}", "a=null"), R"({"a":null})");
  EXPECT_EQ(overridden("a: ~", "a.b=x=y"), R"({"a":{"b":"x=y"}})");
}

TEST(ConfigOverrideTest, ValuesCarryTheOverrideAsTheirPlaceAndTheRestKeepsIts) {
  auto root = parse_config("a:\n  b: 1\n", "c.yaml");
  apply_override(root, "a.c.d=[2]");
  EXPECT_EQ(root.entries[0].key_place.to_string(), "c.yaml:1:1");
  EXPECT_EQ(root.find("a")->find("b")->place.to_string(), "c.yaml:2:6");
  const auto* made = root.find("a")->find("c");
  EXPECT_EQ(made->place.to_string(), "override 'a.c.d=[2]'");
  EXPECT_EQ(made->find("d")->items[0].place.to_string(), "override 'a.c.d=[2]'");
}

TEST(ConfigOverrideTest, ReportsWhatIsWrong) {
  EXPECT_EQ(override_error("a: 1", "a"), "'a': an override reads key=value, e.g. optim.lr=1e-3");
  EXPECT_EQ(override_error("a: 1", "=1"), "'=1': an override reads key=value, e.g. optim.lr=1e-3");
  for (const char* text : {"a..b=1", ".a=1", "a.=1", ".=1"}) {
    EXPECT_EQ(override_error("", text), "override '" + std::string(text) + "': a part of the key is empty");
  }
  EXPECT_EQ(override_error("a:\n  b: 1", "a.b.c=2"),
            "override 'a.b.c=2': there can be no key 'c' here, since c.yaml:2:6 gives a value and not a map");
  EXPECT_EQ(override_error("", "a=[1").find("override 'a=[1':1:"), 0u);
  EXPECT_EQ(override_error("", "a={b: 1, b: 2}"), "override 'a={b: 1, b: 2}':1:8: b: duplicate key (first at line 1)");
}

TEST(ConfigPrintTest, WhatIsPrintedReadsBackTheSame) {
  const auto root =
      parse_config(std::string(kDocument) +
                       "'null': 1\n"
                       "'': 2\n"
                       "'a b: c': '# no comment'\n"
                       "strings: ['1', 'true', 'null', '~', '', '-', '---', '1e5', \"tab\\t\", \"ü 漢 \\\\\"]\n"
                       "'yes': 'false'\n"
                       "path: ../some-dir/file_1.tar\n"
                       "negative: -5\n"
                       "empty: {map: {}, list: []}\n",
                   "c.yaml");
  const auto printed = to_yaml(root);
  const auto again = parse_config(printed, "again");
  SCOPED_TRACE(printed);
  expect_same(root, again);
  EXPECT_EQ(to_yaml(again), printed);
  EXPECT_EQ(to_json(again), to_json(root));
  expect_same(parse_config(to_json(root), "json"), parse_config(to_json(again), "json"));
}

TEST(ConfigPrintTest, WritesNestedMapsTwoSpacesAnIndent) {
  EXPECT_EQ(to_yaml(parse_config("{a: {b: {c: 1.50}, d: [x, 2]}, e: 'two words', f: '3', g: }", "c.yaml")),
            "a:\n"
            "  b:\n"
            "    c: 1.50\n"
            "  d: [\"x\",2]\n"
            "e: \"two words\"\n"
            "f: \"3\"\n"
            "g: null\n");
  EXPECT_EQ(to_yaml(ConfigNode::make_map()), "{}\n");
  EXPECT_EQ(to_yaml(ConfigNode{}), "null\n");
}

TEST(ConfigPrintTest, JsonKnowsNumbersBooleansAndNull) {
  EXPECT_EQ(to_json(parse_config("[1, +2, -3, 1.5, 1e3, true, False, null, ~, '1', x, 0x10, .inf, nan]", "c.yaml"), -1),
            R"([1,2,-3,1.5,1000.0,true,false,null,null,"1","x","0x10",".inf","nan"])");
}

}  // namespace
}  // namespace contrastive
