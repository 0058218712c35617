#include "contrastive/adapt/adaptation_record.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

namespace contrastive::adapt {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;

/// Shows every field with its key to `field`, in the order of the file: one list for writing and reading.
template <typename Record, typename Field>
void each_field(Record& record, const Field& field) {
  field("dataset", record.dataset);
  field("model", record.model);
  field("model_sha256", record.model_sha256);
  field("prompts", record.prompts);
  field("prompt_pooling", record.prompt_pooling);
  field("prompt_sha256", record.prompt_sha256);
  field("scale", record.scale);
  field("support", record.support);
  field("support_sha256", record.support_sha256);
  field("support_rows", record.support_rows);
  field("shots", record.shots);
  field("seed", record.seed);
  field("support_accuracy", record.support_accuracy);
  field("adapter", record.adapter);
  field("protocol", record.protocol);
  field("transductive", record.transductive);
  field("settings", record.settings);
  field("values", record.values);
  field("num_samples", record.num_samples);
  field("acc1", record.top1_accuracy);
  field("mean_per_class_recall", record.mean_per_class_recall);
  field("zero_shot_acc1", record.zero_shot_accuracy);
  field("searched_acc1", record.searched_accuracy);
  field("plateau", record.plateau);
  field("sensitivity", record.sensitivity);
  field("seconds", record.seconds);
  field("version", record.version);
  field("command", record.command);
}

using Values = std::vector<std::pair<std::string, double>>;

template <typename T>
ordered_json to_value(const T& value) {
  return value;
}
ordered_json to_value(const Values& values) {
  auto object = ordered_json::object();
  for (const auto& [name, value] : values) object[name] = value;
  return object;
}

template <typename T>
void from_value(const ordered_json& value, T& field) {
  field = value.get<T>();
}
void from_value(const ordered_json& value, Values& field) {
  for (const auto& [name, each] : value.items()) field.emplace_back(name, each.get<double>());
}

}  // namespace

std::string AdaptationRecord::method() const {
  return fmt::format("{}/{}{}", adapter, protocol, transductive ? " (transductive)" : "");
}

std::string to_json(const AdaptationRecord& record) {
  auto document = ordered_json::object();
  each_field(record, [&document](const char* key, const auto& value) { document[key] = to_value(value); });
  return document.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

AdaptationRecord parse_record(const std::string& json, const std::string& origin) {
  AdaptationRecord record;
  try {
    auto document = ordered_json::parse(json);
    each_field(record, [&](const char* key, auto& value) {
      const auto found = document.find(key);
      if (found == document.end()) throw DataError(fmt::format("{}: the result has no {}", origin, key));
      try {
        from_value(*found, value);
      } catch (const nlohmann::json::exception&) {
        throw DataError(fmt::format("{}: {} is of another kind than a result's: {}", origin, key, found->dump()));
      }
      document.erase(found);
    });
    if (!document.empty()) {
      throw DataError(fmt::format("{}: a result has no key {}", origin, document.begin().key()));
    }
  } catch (const nlohmann::json::exception& error) {
    throw DataError(fmt::format("{}: is no JSON object: {}", origin, error.what()));
  }
  return record;
}

std::vector<AdaptationRecord> read_records(const std::filesystem::path& file) {
  const auto text = read_text_file(file, kMaxFileBytes);
  std::vector<AdaptationRecord> records;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    ++line;
    if (end > begin) {
      records.push_back(parse_record(text.substr(begin, end - begin), fmt::format("{}:{}", file.string(), line)));
    }
    begin = end + 1;
  }
  return records;
}

}  // namespace contrastive::adapt
