#include "data/embedding_cache_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

namespace contrastive::data::detail {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kVersion = 1;
constexpr int64_t kMaxSamples = int64_t{1} << 40;

constexpr std::array<std::pair<torch::ScalarType, const char*>, 3> kDtypes{
    {{at::kHalf, "fp16"}, {at::kBFloat16, "bf16"}, {at::kFloat, "fp32"}}};

std::string sha256_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

ordered_json to_json(const CacheDescription& d) {
  return {{"num_samples", d.num_samples},
          {"samples_per_part", d.samples_per_part},
          {"num_views", d.num_views},
          {"view_seed", d.view_seed},
          {"feature_width", d.feature_width},
          {"dtype", dtype_name(d.dtype)},
          {"precision", d.precision},
          {"tower", d.tower},
          {"preprocessing", d.preprocessing},
          {"preprocessing_sha256", sha256_of(d.preprocessing)},
          {"data", d.data},
          {"data_settings", d.data_settings},
          {"tokenizer", d.tokenizer},
          {"context_length", d.context_length}};
}

/// Typed values of a JSON object that isn't trusted.
class ObjectReader {
 public:
  ObjectReader(const ordered_json& object, std::string file) : object_(object), file_(std::move(file)) {
    if (!object_.is_object()) fail("it is not a JSON object");
  }

  const ordered_json& value(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) fail(fmt::format("it has no '{}'", key));
    return *found;
  }

  int64_t number(const char* key) const {
    const auto& found = value(key);
    if (!found.is_number_integer() || found.get<int64_t>() < 0) fail(fmt::format("'{}' is not a count", key));
    return found.get<int64_t>();
  }

  std::string text(const char* key) const {
    const auto& found = value(key);
    if (!found.is_string()) fail(fmt::format("'{}' is not a text", key));
    return found.get<std::string>();
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw DataError(fmt::format("[{}] is not the description of an embedding cache: {}", file_, message));
  }

 private:
  const ordered_json& object_;
  std::string file_;
};

CacheDescription description_from_json(const ObjectReader& reader) {
  CacheDescription d;
  d.num_samples = reader.number("num_samples");
  d.samples_per_part = reader.number("samples_per_part");
  d.num_views = reader.number("num_views");
  d.view_seed = reader.number("view_seed");
  d.feature_width = reader.number("feature_width");
  const auto dtype = reader.text("dtype");
  const auto known =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& entry) { return dtype == entry.second; });
  if (known == kDtypes.end()) reader.fail(fmt::format("'dtype' must be fp16, bf16 or fp32, but is '{}'", dtype));
  d.dtype = known->first;
  d.precision = reader.text("precision");
  d.tower = reader.text("tower");
  d.preprocessing = reader.text("preprocessing");
  if (reader.text("preprocessing_sha256") != sha256_of(d.preprocessing)) {
    reader.fail("'preprocessing_sha256' is not that of 'preprocessing'");
  }
  d.data = reader.text("data");
  d.data_settings = reader.text("data_settings");
  d.tokenizer = reader.text("tokenizer");
  d.context_length = reader.number("context_length");
  try {
    check_description(d);
  } catch (const ConfigError& error) {
    reader.fail(error.what());
  }
  return d;
}

ordered_json parse(std::string_view text, const std::string& file) {
  auto parsed = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  const ObjectReader reader(parsed, file);
  const auto version = reader.number("version");
  if (version != kVersion) {
    reader.fail(fmt::format("its version is {}, this library knows version {}", version, kVersion));
  }
  return parsed;
}

std::string dump(const ordered_json& value) {
  return value.dump(2, ' ', /*ensure_ascii=*/false, ordered_json::error_handler_t::replace) + "\n";
}

torch::Tensor text_tensor(const std::string& text) {
  auto tensor = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  if (!text.empty()) std::memcpy(tensor.data_ptr(), text.data(), text.size());
  return tensor;
}

template <typename T>
torch::Tensor copied(const std::vector<T>& values, torch::ScalarType dtype) {
  auto tensor = at::empty({static_cast<int64_t>(values.size())}, dtype);
  if (!values.empty()) std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(T));
  return tensor;
}

/// Texts one after the other, and where each begins.
struct JoinedTexts {
  std::string text;
  std::vector<int64_t> begin{0};

  void add(std::string_view part) {
    text += part;
    begin.push_back(static_cast<int64_t>(text.size()));
  }
};

std::string_view slice(const torch::Tensor& text, const torch::Tensor& begin, int64_t i) {
  const auto* offsets = begin.const_data_ptr<int64_t>();
  const auto* characters = static_cast<const char*>(text.const_data_ptr());
  return {characters + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i])};
}

}  // namespace

std::string dtype_name(torch::ScalarType dtype) {
  for (const auto& [known, name] : kDtypes) {
    if (known == dtype) return name;
  }
  return c10::toString(dtype);
}

std::string part_name(int64_t number) {
  return fmt::format("part_{:05}.safetensors", number);
}

int64_t num_parts(const CacheDescription& description) {
  return (description.num_samples + description.samples_per_part - 1) / description.samples_per_part;
}

int64_t part_size(const CacheDescription& description, int64_t number) {
  const auto begin = number * description.samples_per_part;
  return std::min(description.samples_per_part, description.num_samples - begin);
}

void check_description(const CacheDescription& description) {
  const auto require = [](const char* name, int64_t value, int64_t minimum, int64_t maximum) {
    if (value >= minimum && value <= maximum) return;
    throw ConfigError(
        fmt::format("[embedding cache] {} must be in [{}, {}], but is {}", name, minimum, maximum, value));
  };
  require("num_samples", description.num_samples, 1, kMaxSamples);
  require("samples_per_part", description.samples_per_part, 1, 1 << 24);
  require("num_views", description.num_views, 1, 1 << 10);
  require("feature_width", description.feature_width, 1, 1 << 16);
  require("context_length", description.context_length, 1, 1 << 16);
  const auto is_known = [&](const auto& entry) { return entry.first == description.dtype; };
  if (std::any_of(kDtypes.begin(), kDtypes.end(), is_known)) return;
  throw ConfigError(
      fmt::format("[embedding cache] dtype must be fp16, bf16 or fp32, but is {}", c10::toString(description.dtype)));
}

std::string to_text(const CacheDescription& description) {
  ordered_json json{{"version", kVersion}};
  json.update(to_json(description));
  return dump(json);
}

std::vector<std::string> differences(const CacheDescription& before, const CacheDescription& now) {
  const auto old_values = to_json(before), new_values = to_json(now);
  std::vector<std::string> result;
  for (const auto& [key, value] : new_values.items()) {
    const auto shown = [](const ordered_json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); };
    if (key == "preprocessing_sha256" || old_values.at(key) == value) continue;
    result.push_back(fmt::format("{}: {}, now {}", key, shown(old_values.at(key)), shown(value)));
  }
  return result;
}

CacheDescription description_from_text(std::string_view text, const std::string& file) {
  const auto json = parse(text, file);
  return description_from_json(ObjectReader(json, file));
}

std::string to_text(const CacheManifest& manifest) {
  ordered_json json{{"version", kVersion}};
  json.update(to_json(manifest.description));
  json["num_missing"] = manifest.num_missing;
  auto& parts = json["parts"] = ordered_json::array();
  for (size_t i = 0; i < manifest.parts.size(); ++i) {
    const auto& [bytes, sha256] = manifest.parts[i];
    parts.push_back({{"file", part_name(static_cast<int64_t>(i))}, {"bytes", bytes}, {"sha256", sha256}});
  }
  return dump(json);
}

CacheManifest manifest_from_text(std::string_view text, const std::string& file) {
  const auto json = parse(text, file);
  const ObjectReader reader(json, file);
  CacheManifest manifest{description_from_json(reader), reader.number("num_missing"), {}};
  const auto& parts = reader.value("parts");
  const auto expected = num_parts(manifest.description);
  if (!parts.is_array() || static_cast<int64_t>(parts.size()) != expected) {
    reader.fail(fmt::format("'parts' must be a list of {}", expected));
  }
  for (const auto& part : parts) {
    const ObjectReader entry(part, file);
    const auto name = part_name(static_cast<int64_t>(manifest.parts.size()));
    if (entry.text("file") != name) entry.fail(fmt::format("{} is missing in its list of parts", name));
    manifest.parts.push_back({entry.number("bytes"), entry.text("sha256")});
  }
  return manifest;
}

CachePart::CachePart(const std::filesystem::path& folder, const CacheDescription& description, int64_t number)
    : file_((folder / part_name(number)).string()),
      first_sample_(number * description.samples_per_part),
      context_length_(description.context_length) {
  try {
    const SafetensorsFile file(file_);
    const std::map<std::string, std::string> expected{{"cache", sha256_of(to_text(description))},
                                                      {"part", std::to_string(number)}};
    if (file.metadata() != expected) fail("is a part of another cache");
    const auto samples = part_size(description, number);
    caption_begin_ = take(file, "caption_begin", at::kLong, {samples + 1});
    key_begin_ = take(file, "key_begin", at::kLong, {samples + 1});
    missing_ = take(file, "missing", at::kLong, {-1});
    reason_begin_ = take(file, "reason_begin", at::kLong, {missing_.numel() + 1});
    tokens_ = take(file, "tokens", at::kInt, {-1, context_length_});
    lengths_ = take(file, "lengths", at::kInt, {tokens_.size(0)});
    features_ = take(file, "features", description.dtype, {samples, description.num_views, description.feature_width});
    keys_ = take(file, "keys", at::kByte, {-1});
    reasons_ = take(file, "reasons", at::kByte, {-1});
  } catch (const CheckpointError& error) {
    throw DataError(error.what());
  }
  check_offsets("caption_begin", caption_begin_, lengths_.numel());
  check_offsets("key_begin", key_begin_, keys_.numel());
  check_offsets("reason_begin", reason_begin_, reasons_.numel());
  check_lengths();
  check_missing(first_sample_);
}

void CachePart::fail(const std::string& message) const {
  throw DataError(fmt::format("[{}] {}", file_, message));
}

/// -1 stands for any size.
torch::Tensor CachePart::take(const SafetensorsFile& file, const char* name, torch::ScalarType dtype,
                              at::IntArrayRef sizes) {
  auto tensor = file.tensor(name);
  bool fits = tensor.scalar_type() == dtype && tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = sizes[i] == -1 || tensor.sizes()[i] == sizes[i];
  if (!fits) {
    fail(fmt::format("'{}' should be {} [{}], but is {} [{}]", name, c10::toString(dtype), fmt::join(sizes, ", "),
                     c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", ")));
  }
  return tensor;
}

void CachePart::check_offsets(const char* name, const torch::Tensor& begin, int64_t size) const {
  const auto* offsets = begin.const_data_ptr<int64_t>();
  const auto* end = offsets + begin.numel();
  if (offsets[0] == 0 && end[-1] == size && std::is_sorted(offsets, end)) return;
  fail(fmt::format("'{}' does not ascend from 0 to {}", name, size));
}

void CachePart::check_lengths() const {
  const auto* lengths = lengths_.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < lengths_.numel(); ++i) {
    if (lengths[i] >= 1 && lengths[i] <= context_length_) continue;
    fail(fmt::format("caption {} has {} ids, expected 1 to {}", i, lengths[i], context_length_));
  }
}

/// Those without captions are the missing ones.
void CachePart::check_missing(int64_t first_sample) const {
  const auto* missing = missing_.const_data_ptr<int64_t>();
  int64_t found = 0;
  for (int64_t row = 0; row + 1 < caption_begin_.numel(); ++row) {
    if (num_captions(row) > 0) continue;
    if (found == num_missing() || missing[found] != first_sample + row) {
      fail(fmt::format("sample {} has no caption, but is not listed as missing", first_sample + row));
    }
    ++found;
  }
  if (found != num_missing()) fail(fmt::format("lists {} missing samples, but {} are", num_missing(), found));
}

std::string_view CachePart::key(int64_t row) const {
  return slice(keys_, key_begin_, row);
}

int64_t CachePart::find_missing(int64_t row) const {
  if (num_captions(row) > 0) return -1;
  const auto* begin = missing_.const_data_ptr<int64_t>();
  return std::lower_bound(begin, begin + num_missing(), first_sample_ + row) - begin;
}

MissingSample CachePart::missing(int64_t place) const {
  const auto text = slice(reasons_, reason_begin_, place);
  const auto tab = std::min(text.find('\t'), text.size());
  return {missing_.const_data_ptr<int64_t>()[place], std::string(text.substr(0, tab)),
          std::string(text.substr(std::min(tab + 1, text.size())))};
}

const void* CachePart::features(int64_t row, int64_t view) const {
  const auto place = (row * features_.size(1) + view) * features_.size(2) * static_cast<int64_t>(features_.itemsize());
  return static_cast<const uint8_t*>(features_.const_data_ptr()) + place;
}

const int32_t* CachePart::tokens(int64_t row, int64_t caption) const {
  return tokens_.const_data_ptr<int32_t>() + (caption_begin(row) + caption) * context_length_;
}

int64_t CachePart::length(int64_t row, int64_t caption) const {
  return lengths_.const_data_ptr<int32_t>()[caption_begin(row) + caption];
}

std::string CachePart::write(const std::filesystem::path& folder, const CacheDescription& description, int64_t number,
                             const torch::Tensor& features, const CachedSamples& samples) {
  std::vector<int64_t> caption_begin{0}, missing;
  for (const auto count : samples.num_captions) caption_begin.push_back(caption_begin.back() + count);
  JoinedTexts keys, reasons;
  for (const auto& key : samples.keys) keys.add(key);
  for (const auto& [sample, reason, message] : samples.missing) {
    missing.push_back(sample);
    auto line = reason + "\t" + message;
    std::replace(line.begin(), line.end(), '\n', ' ');
    reasons.add(line);
  }
  return write_safetensors(
      folder / part_name(number),
      {{"caption_begin", copied(caption_begin, at::kLong)},
       {"key_begin", copied(keys.begin, at::kLong)},
       {"missing", copied(missing, at::kLong)},
       {"reason_begin", copied(reasons.begin, at::kLong)},
       {"tokens", copied(samples.tokens, at::kInt).reshape({caption_begin.back(), description.context_length})},
       {"lengths", copied(samples.lengths, at::kInt)},
       {"features", features},
       {"keys", text_tensor(keys.text)},
       {"reasons", text_tensor(reasons.text)}},
      {{"cache", sha256_of(to_text(description))}, {"part", std::to_string(number)}});
}

}  // namespace contrastive::data::detail
