#include "contrastive/eval/feature_writer.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/utils.h>

#include "contrastive/core/atomic_file.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxReported = 10;
constexpr size_t kAlignment = 8;

torch::Tensor text_tensor(const std::string& text) {
  auto tensor = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  if (!text.empty()) std::memcpy(tensor.data_ptr(), text.data(), text.size());
  return tensor;
}

std::string_view text_of(const torch::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

/// A line break would shift every line that follows.
void require_one_line(const std::string& name) {
  if (name.find_first_of("\n\r") == std::string::npos) return;
  throw DataError(fmt::format("the name '{}' holds a line break, which a list of names can't", name));
}

/// Throws: ConfigError unless the file was made with these settings.
void require_same(const fs::path& file, const std::map<std::string, std::string>& before,
                  const std::map<std::string, std::string>& now) {
  std::vector<std::string> differences;
  for (const auto& [key, value] : now) {
    const auto found = before.find(key);
    const auto old_value = found == before.end() ? "not set" : found->second;
    if (old_value != value) differences.push_back(fmt::format("{}: {}, now {}", key, old_value, value));
  }
  if (differences.empty()) return;
  throw ConfigError(fmt::format("[{}] was made with other settings: {}; remove it or choose another place",
                                file.string(), fmt::join(differences, "; ")));
}

/// The header of a safetensors file with one tensor. Settings are plain words and numbers.
std::string features_header(const std::map<std::string, std::string>& settings, const char* dtype, int64_t rows,
                            int64_t width, int64_t bytes) {
  std::vector<std::string> entries;
  for (const auto& [key, value] : settings) entries.push_back(fmt::format("\"{}\":\"{}\"", key, value));
  auto text =
      fmt::format(R"({{"__metadata__":{{{}}},"features":{{"dtype":"{}","shape":[{},{}],"data_offsets":[0,{}]}}}})",
                  fmt::join(entries, ","), dtype, rows, width, bytes);
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return text;
}

void require_plain(const std::string& text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
  if (plain && text.find_first_of("\"\\") == std::string::npos) return;
  throw ConfigError(fmt::format("[feature_writer] a setting must be plain ASCII, but is '{}'", text));
}

void check(const FeatureFileOptions& options) {
  if (options.num_inputs < 1 || options.inputs_per_part < 1) {
    throw ConfigError(
        fmt::format("[feature_writer] num_inputs and inputs_per_part must be at least 1, but are {} and {}",
                    options.num_inputs, options.inputs_per_part));
  }
  for (const auto& [key, value] : options.settings) {
    require_plain(key);
    require_plain(value);
  }
}

/// Calls `visit` with each line that ends in a line break.
template <typename Visit>
void for_each_line(std::string_view text, const Visit& visit) {
  while (!text.empty()) {
    const auto end = text.find('\n');
    visit(text.substr(0, end));
    if (end == std::string_view::npos) return;
    text.remove_prefix(end + 1);
  }
}

}  // namespace

FeatureWriter::FeatureWriter(const FeatureFileOptions& options) : options_(options), parts_folder_(options.features) {
  options_.settings.emplace("num_inputs", std::to_string(options_.num_inputs));
  options_.settings.emplace("inputs_per_part", std::to_string(options_.inputs_per_part));
  check(options_);
  parts_folder_ += ".parts";
  if (fs::exists(options_.features)) {
    require_same(options_.features, SafetensorsFile(options_.features).metadata(), options_.settings);
    is_complete_ = true;
    next_input_ = options_.num_inputs;
    return;
  }
  for (int64_t number = 0; next_input_ < options_.num_inputs && fs::exists(part_file(number)); ++number) {
    require_same(parts_folder_, SafetensorsFile(part_file(number)).metadata(), options_.settings);
    next_input_ = part_end();
  }
}

fs::path FeatureWriter::part_file(int64_t number) const {
  return parts_folder_ / fmt::format("part_{:05}.safetensors", number);
}

int64_t FeatureWriter::part_end() const {
  return std::min(options_.num_inputs, next_input_ + options_.inputs_per_part);
}

void FeatureWriter::write_part(const torch::Tensor& features, const std::vector<std::string>& names,
                               const std::vector<SkippedInput>& skipped) {
  TORCH_CHECK(features.dim() == 2 && (features.scalar_type() == at::kFloat || features.scalar_type() == at::kHalf) &&
                  features.size(0) == static_cast<int64_t>(names.size()) &&
                  names.size() + skipped.size() == static_cast<size_t>(part_end() - next_input_),
              "[write_part] features must be fp32 or fp16 [n, E] with a name a row and, with those left out, ",
              part_end() - next_input_, " inputs, but are ", features.sizes(), " with ", names.size(), " names and ",
              skipped.size(), " left out");
  std::string name_lines;
  for (const auto& name : names) {
    require_one_line(name);
    name_lines += name + "\n";
  }
  std::string skipped_lines;
  for (const auto& [name, reason] : skipped) {
    require_one_line(name);
    skipped_lines += name + "\t" + reason.substr(0, reason.find('\n')) + "\n";
  }
  fs::create_directories(parts_folder_);
  write_safetensors(
      part_file(next_input_ / options_.inputs_per_part),
      {{"features", features}, {"names", text_tensor(name_lines)}, {"skipped", text_tensor(skipped_lines)}},
      options_.settings);
  next_input_ = part_end();
}

void FeatureWriter::join_names() const {
  AtomicFile names(options_.names);
  for (int64_t begin = 0; begin < options_.num_inputs; begin += options_.inputs_per_part) {
    const auto lines = SafetensorsFile(part_file(begin / options_.inputs_per_part)).tensor("names");
    names.write(text_of(lines));
  }
  names.commit();
}

/// What a kill leaves of the file lies in the folder of the parts, which goes at the end.
void FeatureWriter::join_features(int64_t num_rows) const {
  const auto first = SafetensorsFile(part_file(0)).tensor("features");
  const auto* dtype = first.scalar_type() == at::kHalf ? "F16" : "F32";
  const auto width = first.size(1);
  const auto bytes = num_rows * width * static_cast<int64_t>(first.element_size());
  const auto header = features_header(options_.settings, dtype, num_rows, width, bytes);
  const auto header_size = static_cast<uint64_t>(header.size());
  const auto joined = parts_folder_ / options_.features.filename();
  AtomicFile file(joined);
  file.write({reinterpret_cast<const char*>(&header_size), sizeof(header_size)});
  file.write(header);
  for (int64_t begin = 0; begin < options_.num_inputs; begin += options_.inputs_per_part) {
    const auto features = SafetensorsFile(part_file(begin / options_.inputs_per_part)).tensor("features");
    file.write(text_of(features));
  }
  file.commit();
  fs::rename(joined, options_.features);
  flush_directory(options_.features.has_parent_path() ? options_.features.parent_path() : fs::path("."));
}

FeatureFileReport FeatureWriter::finish() {
  CONTRASTIVE_INTERNAL_ASSERT(next_input_ == options_.num_inputs);
  FeatureFileReport report;
  if (is_complete_) {
    fs::remove_all(parts_folder_);  // of a run that ended before it could
    report.num_rows = SafetensorsFile(options_.features).tensor("features").size(0);
    report.num_skipped = options_.num_inputs - report.num_rows;
    return report;
  }
  for (int64_t begin = 0; begin < options_.num_inputs; begin += options_.inputs_per_part) {
    const SafetensorsFile part(part_file(begin / options_.inputs_per_part));
    report.num_rows += part.tensor("features").size(0);
    const auto skipped = part.tensor("skipped");
    for_each_line(text_of(skipped), [&](std::string_view line) {
      ++report.num_skipped;
      if (report.first_skipped.size() == kMaxReported) return;
      const auto tab = line.find('\t');
      report.first_skipped.push_back({std::string(line.substr(0, tab)), std::string(line.substr(tab + 1))});
    });
  }
  join_names();
  join_features(report.num_rows);
  fs::remove_all(parts_folder_);
  return report;
}

}  // namespace contrastive::eval
