#include "contrastive/train/metrics.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>
#include <string_view>

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/log.h"

#include "train/event_file.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// JSON has no NaN or infinity; null is what readers expect then.
ordered_json number(double value) {
  return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}

/// Whether a line stays when a run goes on from `step`. The evaluation at that step is done again.
bool survives(const nlohmann::json& object, int64_t step) {
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) return false;
  const int64_t line_step = object["step"];
  return line_step < step || (line_step == step && !object.contains("evaluation"));
}

/// Drops lines of later steps, and a last line that a kill cut short.
void drop_later_lines(const fs::path& file, int64_t step) {
  if (!fs::exists(file)) return;
  const auto content = read_text_file(file, INT64_MAX);
  std::string kept;
  std::istringstream lines(content);
  for (std::string line; std::getline(lines, line);) {
    if (survives(nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false), step)) kept += line + "\n";
  }
  if (kept != content) write_file_atomically(file, kept);
}

ordered_json to_json(const StepMetrics& m) {
  return {{"step", m.step},
          {"samples_seen", m.samples_seen},
          {"loss", number(m.loss)},
          {"accuracy", number(m.accuracy)},
          {"logit_scale", number(m.logit_scale)},
          {"lr", number(m.lr)},
          {"grad_norm", number(m.grad_norm)},
          {"samples_per_s", number(m.samples_per_s)},
          {"data_wait_ms", number(m.data_wait_ms)},
          {"communication_ms", number(m.communication_ms)},
          {"step_ms", number(m.step_ms)},
          {"read_mb", number(m.read_mb)},
          {"skipped_samples", m.skipped_samples},
          {"skipped_steps", m.skipped_steps}};
}

ordered_json to_json(const EvaluationMetrics& m) {
  return {{"step", m.step},
          {"samples_seen", m.samples_seen},
          {"evaluation", "zero_shot"},
          {"dataset", m.dataset},
          {"top1_accuracy", m.zero_shot.top1_accuracy},
          {"top5_accuracy", m.zero_shot.top5_accuracy},
          {"mean_per_class_recall", m.zero_shot.mean_per_class_recall},
          {"num_samples", m.zero_shot.num_samples},
          {"seconds", number(m.seconds)}};
}

ordered_json to_json(const SuiteMetrics& m) {
  ordered_json object{{"step", m.step},
                      {"samples_seen", m.samples_seen},
                      {"evaluation", m.result.task},
                      {"name", m.result.name},
                      {"dataset", m.result.dataset}};
  for (const auto& [name, value] : m.result.metrics) object[name] = number(value);
  object["num_samples"] = m.result.num_samples;
  object["seconds"] = number(m.result.seconds);
  return object;
}

}  // namespace

struct MetricsWriter::Impl {
  fs::path file;
  int descriptor = -1;
  std::string pending;
  bool failed = false;
  std::optional<detail::EventFile> events;

  void write_line(const ordered_json& object) {
    pending += object.dump() + "\n";
    while (!pending.empty()) {
      const ssize_t written = ::write(descriptor, pending.data(), pending.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return report_failure(std::strerror(errno));
      pending.erase(0, static_cast<size_t>(written));
    }
    failed = false;
  }

  void report_failure(const char* reason) {
    if (!failed) {
      log(LogLevel::error,
          fmt::format("[{}] writing failed: {}; lines are kept in memory and tried again", file.string(), reason));
    }
    failed = true;
  }

  void write_events(const ordered_json& object, const std::string& group) {
    if (!events) return;
    std::vector<std::pair<std::string, double>> scalars;
    for (const auto& [key, value] : object.items()) {
      if (key != "step" && value.is_number()) scalars.emplace_back(group + "/" + key, value.get<double>());
    }
    if (!events->write(object.at("step"), scalars)) report_failure("TensorBoard events");
  }
};

MetricsWriter::MetricsWriter(const fs::path& run_directory, int64_t step, bool tensorboard)
    : impl_(std::make_unique<Impl>()) {
  impl_->file = run_directory / "metrics.jsonl";
  drop_later_lines(impl_->file, step);
  impl_->descriptor = ::open(impl_->file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (impl_->descriptor < 0) {
    throw Error(fmt::format("[{}] can't be opened for writing: {}", impl_->file.string(), std::strerror(errno)));
  }
  if (tensorboard) impl_->events.emplace(run_directory / "tensorboard", step > 0 ? step + 1 : 0);
}

MetricsWriter::~MetricsWriter() {
  if (impl_->descriptor >= 0) ::close(impl_->descriptor);
}

void MetricsWriter::write(const StepMetrics& metrics) {
  const auto object = to_json(metrics);
  impl_->write_line(object);
  impl_->write_events(object, "train");
}

void MetricsWriter::write(const EvaluationMetrics& metrics) {
  const auto object = to_json(metrics);
  impl_->write_line(object);
  impl_->write_events(object, "zero_shot/" + metrics.dataset);
}

void MetricsWriter::write(const SuiteMetrics& metrics) {
  const auto object = to_json(metrics);
  impl_->write_line(object);
  impl_->write_events(object, "suite/" + metrics.result.name);
}

}  // namespace contrastive::train
