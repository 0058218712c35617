#include "contrastive/eval/evaluation_result.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/version.h"

#include "eval/json_text.h"

namespace contrastive::eval {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMaxResultBytes = int64_t{1} << 30;

ordered_json skipped_json(const SkippedSamples& skipped) {
  auto first = ordered_json::array();
  for (const auto& each : skipped.first) first.push_back({{"name", each.name}, {"reason", each.reason}});
  return {{"count", skipped.count}, {"first", first}};
}

/// A field of CSV: quoted if it has to be (RFC 4180).
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

std::string headline(const EvaluationResult& result) {
  return result.shown.empty() ? "" : result.shown.front();
}

/// Results with other prompts are no more evidence of the same: they have a mean of their own.
std::string kind(const EvaluationResult& result) {
  return result.prompts.empty() ? result.task : fmt::format("{} ({})", result.task, result.prompts);
}

/// A row of the table: one result's headline metric, for every subject.
struct Row {
  std::string name;
  std::string kind;  ///< rows of the same kind are averaged
  std::string metric;
  std::vector<std::optional<double>> values;
};

std::vector<Row> rows_of(const std::vector<SubjectResults>& subjects) {
  std::vector<Row> rows;
  for (size_t column = 0; column < subjects.size(); ++column) {
    for (const auto& result : subjects[column].results) {
      auto row = std::find_if(rows.begin(), rows.end(), [&](const Row& each) { return each.name == result.name; });
      if (row == rows.end()) {
        row = rows.insert(rows.end(), {result.name, kind(result), headline(result),
                                       std::vector<std::optional<double>>(subjects.size())});
      }
      if (const auto* value = result.metric(headline(result))) row->values[column] = *value;
    }
  }
  return rows;
}

/// The mean over the rows of a kind that every subject has, if there are several.
std::optional<Row> mean_row(const std::vector<Row>& rows, const std::string& kind, size_t columns) {
  Row mean{"mean of " + kind, kind, "", std::vector<std::optional<double>>(columns, 0.0)};
  int64_t count = 0;
  for (const auto& row : rows) {
    const auto& values = row.values;
    const bool is_whole =
        std::all_of(values.begin(), values.end(), [](const auto& value) { return value.has_value(); });
    if (row.kind != kind || !is_whole) continue;
    ++count;
    for (size_t i = 0; i < columns; ++i) *mean.values[i] += *values[i];
  }
  if (count < 2) return std::nullopt;
  for (auto& value : mean.values) *value /= static_cast<double>(count);
  mean.metric = fmt::format("{} rows", count);
  return mean;
}

std::string lines_of(const std::vector<Row>& rows, const std::vector<SubjectResults>& subjects) {
  size_t name_width = 0, metric_width = 0;
  for (const auto& row : rows) {
    name_width = std::max(name_width, row.name.size());
    metric_width = std::max(metric_width, row.metric.size());
  }
  std::string text = fmt::format("{:<{}}  {:<{}}", "", name_width, "", metric_width);
  std::vector<size_t> widths;
  for (const auto& subject : subjects) {
    widths.push_back(std::max<size_t>(6, subject.label.size()));
    text += fmt::format("  {:>{}}", subject.label, widths.back());
  }
  text += "\n";
  for (const auto& row : rows) {
    text += fmt::format("{:<{}}  {:<{}}", row.name, name_width, row.metric, metric_width);
    for (size_t i = 0; i < widths.size(); ++i) {
      const auto value = row.values[i] ? fmt::format("{:.2f}", *row.values[i] * 100) : std::string("-");
      text += fmt::format("  {:>{}}", value, widths[i]);
    }
    text += "\n";
  }
  return text;
}

}  // namespace

const double* EvaluationResult::metric(const std::string& metric_name) const {
  const auto found =
      std::find_if(metrics.begin(), metrics.end(), [&](const auto& each) { return each.first == metric_name; });
  return found == metrics.end() ? nullptr : &found->second;
}

std::string to_json(const EvaluationResult& result, const EvaluationSubject& subject) {
  auto metrics = ordered_json::object();
  for (const auto& [name, value] : result.metrics) metrics[name] = value;
  ordered_json document{{"dataset", result.dataset}, {"model", subject.model}, {"pretrained", subject.pretrained},
                        {"task", result.task},       {"metrics", metrics},     {"language", "en"},
                        {"name", result.name},       {"shown", result.shown}};
  if (!result.prompts.empty()) document["prompts"] = result.prompts;
  document["num_samples"] = result.num_samples;
  document["skipped_samples"] = skipped_json(result.skipped);
  for (const auto& [name, value] : result.origin) document[name] = value;
  if (!result.details.empty()) document.update(ordered_json::parse(result.details));
  if (!result.hints.empty()) document["hints"] = result.hints;
  document["seconds"] = result.seconds;
  if (result.images_per_s > 0) document["images_per_s"] = result.images_per_s;
  if (result.prompts_per_s > 0) document["prompts_per_s"] = result.prompts_per_s;
  document["library"] = "libcontrastive " + version();
  document["command"] = subject.command;
  document["key"] = result.key;
  return detail::json_text(document, 2) + "\n";
}

EvaluationResult read_result(const std::filesystem::path& file) {
  try {
    const auto document = ordered_json::parse(read_text_file(file, kMaxResultBytes));
    EvaluationResult result;
    result.name = document.at("name");
    result.dataset = document.at("dataset");
    result.task = document.at("task");
    result.shown = document.at("shown").get<std::vector<std::string>>();
    result.prompts = document.value("prompts", "");
    result.num_samples = document.at("num_samples");
    result.skipped.count = document.at("skipped_samples").at("count");
    result.seconds = document.at("seconds");
    result.key = document.at("key");
    result.hints = document.value("hints", std::vector<std::string>());
    for (const auto& item : document.at("metrics").items()) {
      if (item.value().is_number()) result.metrics.emplace_back(item.key(), item.value().get<double>());
    }
    return result;
  } catch (const nlohmann::json::exception& error) {
    throw DataError(fmt::format("[{}] is not a result of this program: {}", file.string(), error.what()));
  } catch (const Error& error) {
    throw DataError(error.what());
  }
}

std::string summary(const EvaluationResult& result) {
  std::string text = fmt::format("{}{}:", result.dataset, result.prompts.empty() ? "" : " (" + result.prompts + ")");
  const char* separator = " ";
  for (const auto& name : result.shown) {
    const auto* value = result.metric(name);
    text += fmt::format("{}{} {}", separator, name, value == nullptr ? "-" : fmt::format("{:.2f} %", *value * 100));
    separator = ", ";
  }
  return fmt::format("{}, of {} images{}", text, result.num_samples,
                     result.skipped.count == 0 ? "" : fmt::format(", {} skipped", result.skipped.count));
}

std::string results_csv(const std::vector<SubjectResults>& subjects) {
  std::string text = "subject,name,dataset,task,prompts,metric,value\n";
  for (const auto& subject : subjects) {
    for (const auto& result : subject.results) {
      for (const auto& [metric, value] : result.metrics) {
        text += fmt::format("{},{},{},{},{},{},{}\n", csv_field(subject.label), csv_field(result.name),
                            csv_field(result.dataset), result.task, csv_field(result.prompts), metric, value);
      }
    }
  }
  return text;
}

std::string results_table(const std::vector<SubjectResults>& subjects) {
  auto rows = rows_of(subjects);
  std::vector<std::string> kinds;
  for (const auto& row : rows) {
    if (std::find(kinds.begin(), kinds.end(), row.kind) == kinds.end()) kinds.push_back(row.kind);
  }
  const auto results = rows;
  for (const auto& each : kinds) {
    if (auto mean = mean_row(results, each, subjects.size())) rows.push_back(*mean);
  }
  return lines_of(rows, subjects);
}

}  // namespace contrastive::eval
