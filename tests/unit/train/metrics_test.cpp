#include "contrastive/train/metrics.h"

#include <array>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/file.h"

#include "tests/support/paths.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<json> lines_of(const fs::path& run) {
  std::istringstream text(read_text_file(run / "metrics.jsonl"));
  std::vector<json> objects;
  for (std::string line; std::getline(text, line);) objects.push_back(json::parse(line));
  return objects;
}

StepMetrics step_metrics(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 0.5 * static_cast<double>(step);
  return metrics;
}

TEST(MetricsWriterTest, WritesOneObjectALineWithTheDocumentedKeys) {
  const test::TemporaryDirectory run;
  MetricsWriter writer(run.path(), 0, false);
  auto metrics = step_metrics(1);
  metrics.grad_norm = std::numeric_limits<double>::infinity();
  writer.write(metrics);
  writer.write(EvaluationMetrics{.step = 1, .samples_seen = 8, .dataset = "set", .zero_shot = {}, .seconds = 1});
  const auto lines = lines_of(run.path());
  ASSERT_EQ(lines.size(), 2U);
  for (const char* key : {"step", "samples_seen", "loss", "logit_scale", "lr", "grad_norm", "samples_per_s",
                          "data_wait_ms", "step_ms", "skipped_samples"}) {
    EXPECT_TRUE(lines[0].contains(key)) << key;
  }
  EXPECT_TRUE(lines[0]["grad_norm"].is_null()) << "JSON has no infinity";
  EXPECT_EQ(lines[1]["dataset"], "set");
  EXPECT_TRUE(lines[1].contains("top1_accuracy"));
}

TEST(MetricsWriterTest, DropsWhatAKilledRunWroteBehindTheCheckpoint) {
  const test::TemporaryDirectory run;
  {
    MetricsWriter writer(run.path(), 0, false);
    for (int64_t step = 1; step <= 5; ++step) writer.write(step_metrics(step));
  }
  std::ofstream(run.path() / "metrics.jsonl", std::ios::app) << R"({"step": 6, "lo)";  // cut short by a kill
  {
    MetricsWriter writer(run.path(), 3, false);
    writer.write(step_metrics(4));
  }
  const auto lines = lines_of(run.path());
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines.back()["step"], 4);
}

TEST(MetricsWriterTest, DropsTheEvaluationAtTheCheckpointSinceItIsDoneAgain) {
  const test::TemporaryDirectory run;
  {
    MetricsWriter writer(run.path(), 0, false);
    writer.write(step_metrics(2));
    writer.write(EvaluationMetrics{.step = 2, .samples_seen = 8, .dataset = "set", .zero_shot = {}, .seconds = 1});
  }
  const MetricsWriter writer(run.path(), 2, false);
  const auto lines = lines_of(run.path());
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_FALSE(lines[0].contains("evaluation"));
}

/// CRC-32C one bit at a time, from its definition.
uint32_t reference_crc(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) != 0 ? (crc >> 1) ^ 0x82F63B78U : crc >> 1;
  }
  return ~crc;
}

uint32_t masked(uint32_t crc) {
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

/// The payloads of an event file, its checksums verified.
std::vector<std::string> read_events(const fs::path& file) {
  const auto bytes = read_text_file(file);
  std::vector<std::string> payloads;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    uint32_t length_crc = 0;
    uint32_t payload_crc = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&length_crc, bytes.data() + at + 8, 4);
    EXPECT_EQ(length_crc, masked(reference_crc(bytes.substr(at, 8))));
    payloads.push_back(bytes.substr(at + 12, length));
    std::memcpy(&payload_crc, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(payload_crc, masked(reference_crc(payloads.back())));
    at += 16 + length;
  }
  return payloads;
}

TEST(MetricsWriterTest, WritesEventFilesThatTensorBoardReads) {
  EXPECT_EQ(reference_crc("123456789"), 0xE3069283U) << "the check value of CRC-32C";
  const test::TemporaryDirectory run;
  {
    MetricsWriter writer(run.path(), 0, true);
    writer.write(step_metrics(300));
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(run.path() / "tensorboard")) files.push_back(entry.path());
  ASSERT_EQ(files.size(), 1U);
  EXPECT_TRUE(files[0].filename().string().starts_with("events.out.tfevents."));
  const auto events = read_events(files[0]);
  ASSERT_EQ(events.size(), 2U);
  EXPECT_NE(events[0].find("\x1A\x0D"
                           "brain.Event:2"),
            std::string::npos);                                  // field 3, 13 bytes
  EXPECT_NE(events[1].find("\x10\xAC\x02"), std::string::npos);  // field 2, varint 300
  const std::string tag = "\x0A\x0Atrain/loss\x15";              // field 1, then fixed32 field 2
  const auto at = events[1].find(tag);
  ASSERT_NE(at, std::string::npos);
  float value = 0;
  std::memcpy(&value, events[1].data() + at + tag.size(), 4);
  EXPECT_FLOAT_EQ(value, 150.0F);
}

}  // namespace
}  // namespace contrastive::train
