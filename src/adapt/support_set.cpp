#include "contrastive/adapt/support_set.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <unordered_map>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::adapt {
namespace {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr int kFormat = 1;
constexpr int64_t kMaxManifestBytes = int64_t{4} << 30;
constexpr size_t kMaxNamed = 10;

fs::path manifest_of(const fs::path& file) {
  if (file.extension() != ".safetensors") {
    throw ConfigError(fmt::format("[support_set] the file must end in .safetensors, but is {}", file.string()));
  }
  return fs::path(file).replace_extension(".json");
}

std::string digest_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::string digest_of(const torch::Tensor& tensor) {
  const auto own = tensor.cpu().contiguous();
  return sha256_hex({static_cast<const uint8_t*>(own.const_data_ptr()), own.nbytes()});
}

ordered_json to_json(const SupportSource& row, int64_t label) {
  ordered_json entry{{"label", label}, {"data", row.data}, {"key", row.key}};
  if (!row.prompt.empty()) entry["prompt"] = row.prompt;
  if (!std::isnan(row.score)) entry["score"] = row.score;
  if (!row.note.empty()) entry["note"] = row.note;
  return entry;
}

SupportSource to_source(const ordered_json& entry) {
  SupportSource row;
  row.data = entry.at("data").get<std::string>();
  row.key = entry.at("key").get<std::string>();
  row.prompt = entry.value("prompt", "");
  row.score = entry.value("score", row.score);
  row.note = entry.value("note", "");
  return row;
}

ordered_json manifest(const SupportSet& set, const std::string& tensors_sha256) {
  ordered_json classes = ordered_json::array();
  const auto counts = set.features.counts();
  for (size_t i = 0; i < set.class_names.size(); ++i) {
    ordered_json entry{{"name", set.class_names[i]}};
    if (!set.class_ids.empty()) entry["id"] = set.class_ids[i];
    entry["rows"] = counts[static_cast<int64_t>(i)].item<int64_t>();
    classes.push_back(std::move(entry));
  }
  ordered_json rows = ordered_json::array();
  const auto* labels = set.features.labels.const_data_ptr<int64_t>();
  for (size_t i = 0; i < set.rows.size(); ++i) rows.push_back(to_json(set.rows[i], labels[i]));
  return {{"format", kFormat},
          {"tensors_sha256", tensors_sha256},
          {"model_sha256", set.model_sha256},
          {"preprocess", set.preprocess},
          {"preprocess_sha256", set.preprocess_sha256},
          {"made_by", set.made_by},
          {"classes", classes},
          {"rows", rows}};
}

void check_whole(const SupportSet& set) {
  set.features.check();
  TORCH_CHECK(set.features.num_classes == set.num_classes() &&
                  (set.class_ids.empty() || set.class_ids.size() == set.class_names.size()) &&
                  static_cast<int64_t>(set.rows.size()) == set.size(),
              "[support_set] there must be a source a row, and a name (and an id, if there are any) a class: ",
              set.size(), " rows with ", set.rows.size(), " sources, ", set.features.num_classes, " classes with ",
              set.class_names.size(), " names and ", set.class_ids.size(), " ids");
}

/// What the classes of two sets are told apart by.
const std::vector<std::string>& class_keys(const SupportSet& set, bool by_id) {
  return by_id ? set.class_ids : set.class_names;
}

/// Throws: DataError if a class occurs twice, as rows couldn't be assigned.
std::unordered_map<std::string, int64_t> positions_of(const std::vector<std::string>& keys, const char* what) {
  std::unordered_map<std::string, int64_t> positions;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!positions.emplace(keys[i], static_cast<int64_t>(i)).second) {
      throw DataError(
          fmt::format("[support_set] {} \"{}\" stands for several classes: give every class an id", what, keys[i]));
    }
  }
  return positions;
}

/// The set with these rows, labelled anew and sorted.
SupportSet with_rows(const SupportSet& set, const std::vector<int64_t>& indices, const std::vector<int64_t>& labels,
                     int64_t num_classes) {
  SupportSet result = set;
  const auto taken = at::tensor(indices, at::kLong);
  const auto new_labels = at::tensor(labels, at::kLong);
  const auto order = new_labels.argsort(/*stable=*/true);
  const auto rows = taken.index_select(0, order);
  result.features = set.features.rows(rows);
  result.features.labels = new_labels.index_select(0, order);
  result.features.num_classes = num_classes;
  result.rows.clear();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    result.rows.push_back(set.rows[static_cast<size_t>(rows[i].item<int64_t>())]);
  }
  return result;
}

void require_same(const std::string& a, const std::string& b, const char* what) {
  if (a == b) return;
  throw DataError(fmt::format("[support_set] {} differ: {} and {}", what, a, b));
}

bool holds_row(const torch::Tensor& rows, const torch::Tensor& row) {
  return rows.size(0) > 0 && rows.eq(row).all(1).any().item<bool>();
}

}  // namespace

std::string SupportSet::fingerprint() const {
  return digest_of(fmt::format("{} {} {} {}", digest_of(features.keys), digest_of(features.labels),
                               fmt::join(class_names, "\n"),
                               features.views.defined() ? digest_of(features.views) : ""));
}

void write_support_set(const fs::path& file, const SupportSet& set) {
  const auto manifest_file = manifest_of(file);
  check_whole(set);
  NamedTensors tensors{{"features", set.features.keys.cpu().to(at::kFloat).contiguous()},
                       {"labels", set.features.labels.contiguous()}};
  if (set.features.views.defined()) {
    tensors.emplace_back("views", set.features.views.cpu().to(at::kFloat).contiguous());
  }
  const auto sha256 = write_safetensors(file, tensors, {{"support_set", fmt::format("{}", kFormat)}});
  write_file_atomically(manifest_file,
                        manifest(set, sha256).dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

SupportSet read_support_set(const fs::path& file) {
  const auto manifest_file = manifest_of(file);
  SupportSet set;
  try {
    const auto document = ordered_json::parse(read_text_file(manifest_file, kMaxManifestBytes));
    if (const auto format = document.at("format").get<int>(); format != kFormat) {
      throw CheckpointError(
          fmt::format("[{}] has format {}, but this library reads {}", manifest_file.string(), format, kFormat));
    }
    if (document.at("tensors_sha256").get<std::string>() != sha256_hex_of_file(file)) {
      throw CheckpointError(fmt::format("[{}] isn't the file that {} is about", file.string(), manifest_file.string()));
    }
    set.model_sha256 = document.at("model_sha256").get<std::string>();
    set.preprocess = document.at("preprocess").get<std::string>();
    set.preprocess_sha256 = document.at("preprocess_sha256").get<std::string>();
    set.made_by = document.at("made_by").get<std::map<std::string, std::string>>();
    for (const auto& entry : document.at("classes")) {
      set.class_names.push_back(entry.at("name").get<std::string>());
      if (entry.contains("id")) set.class_ids.push_back(entry.at("id").get<std::string>());
    }
    for (const auto& entry : document.at("rows")) set.rows.push_back(to_source(entry));
    const SafetensorsFile content(file);
    set.features.keys = content.tensor("features").clone();
    set.features.labels = content.tensor("labels").clone();
    if (content.contains("views")) set.features.views = content.tensor("views").clone();
    set.features.num_classes = set.num_classes();
    check_whole(set);
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError(fmt::format("[{}] is malformed: {}", manifest_file.string(), error.what()));
  } catch (const c10::Error& error) {
    throw CheckpointError(fmt::format("[{}] is malformed: {}", file.string(), error.what_without_backtrace()));
  }
  return set;
}

SupportSet select_classes(const SupportSet& set, const std::vector<std::string>& class_names,
                          const std::vector<std::string>& class_ids) {
  const bool by_id = !class_ids.empty() && !set.class_ids.empty();
  const auto& wanted = by_id ? class_ids : class_names;
  if (!by_id && set.class_names == class_names) return set;  // also where names repeat
  const auto positions = positions_of(class_keys(set, by_id), by_id ? "id" : "name");
  positions_of(wanted, by_id ? "id" : "name");
  std::vector<std::string> missing;
  std::vector<int64_t> indices;
  std::vector<int64_t> labels;
  const auto offsets = set.features.offsets();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto found = positions.find(wanted[i]);
    if (found == positions.end()) {
      missing.push_back(wanted[i]);
      continue;
    }
    for (auto row = offsets[found->second].item<int64_t>(); row < offsets[found->second + 1].item<int64_t>(); ++row) {
      indices.push_back(row);
      labels.push_back(static_cast<int64_t>(i));
    }
  }
  if (!missing.empty()) {
    const auto shown = std::span(missing).first(std::min(missing.size(), kMaxNamed));
    throw DataError(fmt::format("[support_set] {} of {} classes are not in the support set: {}{}", missing.size(),
                                wanted.size(), fmt::join(shown, ", "), missing.size() > kMaxNamed ? ", ..." : ""));
  }
  auto result = with_rows(set, indices, labels, static_cast<int64_t>(wanted.size()));
  result.class_names = class_names;
  result.class_ids = by_id ? class_ids : std::vector<std::string>{};
  return result;
}

SupportSet append(const SupportSet& a, const SupportSet& b) {
  require_same(a.model_sha256, b.model_sha256, "the models that made the features");
  require_same(a.preprocess_sha256, b.preprocess_sha256, "the preprocessings");
  if (a.features.keys.size(1) != b.features.keys.size(1) || a.features.views.defined() != b.features.views.defined() ||
      (a.features.views.defined() && a.features.views.size(1) != b.features.views.size(1))) {
    throw DataError("[support_set] sets of other widths or numbers of views can't be joined");
  }
  const bool by_id = !a.class_ids.empty() && !b.class_ids.empty();
  auto positions = positions_of(class_keys(a, by_id), by_id ? "id" : "name");
  positions_of(class_keys(b, by_id), by_id ? "id" : "name");
  SupportSet all = a;
  if (!by_id) all.class_ids.clear();
  std::vector<int64_t> label_in_all;
  for (int64_t c = 0; c < b.num_classes(); ++c) {
    const auto at = static_cast<size_t>(c);
    const auto [found, is_new] = positions.emplace(class_keys(b, by_id)[at], all.num_classes());
    if (is_new) {
      all.class_names.push_back(b.class_names[at]);
      if (by_id) all.class_ids.push_back(b.class_ids[at]);
    }
    label_in_all.push_back(found->second);
  }
  std::vector<int64_t> indices(static_cast<size_t>(a.size()));
  for (int64_t i = 0; i < a.size(); ++i) indices[static_cast<size_t>(i)] = i;
  std::vector<int64_t> labels(a.features.labels.const_data_ptr<int64_t>(),
                              a.features.labels.const_data_ptr<int64_t>() + a.size());
  const auto offsets = a.features.offsets();
  for (int64_t row = 0; row < b.size(); ++row) {
    const auto label = label_in_all[static_cast<size_t>(b.features.labels[row].item<int64_t>())];
    if (label < a.num_classes() &&
        holds_row(a.features.keys.slice(0, offsets[label].item<int64_t>(), offsets[label + 1].item<int64_t>()),
                  b.features.keys[row])) {
      continue;
    }
    indices.push_back(a.size() + row);
    labels.push_back(label);
  }
  all.features.keys = at::cat({a.features.keys, b.features.keys});
  if (a.features.views.defined()) all.features.views = at::cat({a.features.views, b.features.views});
  all.features.labels = at::cat({a.features.labels, b.features.labels});
  all.rows.insert(all.rows.end(), b.rows.begin(), b.rows.end());
  all.made_by["appended"] = b.fingerprint();
  return with_rows(all, indices, labels, all.num_classes());
}

SupportSet cap_per_class(const SupportSet& set, int64_t max_per_class) {
  if (max_per_class < 1) {
    throw ConfigError(fmt::format("[support_set] max_per_class must be at least 1, but is {}", max_per_class));
  }
  std::vector<int64_t> indices;
  std::vector<int64_t> labels;
  const auto offsets = set.features.offsets();
  for (int64_t c = 0; c < set.num_classes(); ++c) {
    const auto begin = offsets[c].item<int64_t>();
    const auto end = std::min(offsets[c + 1].item<int64_t>(), begin + max_per_class);
    for (auto row = begin; row < end; ++row) {
      indices.push_back(row);
      labels.push_back(c);
    }
  }
  auto result = with_rows(set, indices, labels, set.num_classes());
  result.made_by["max_per_class"] = fmt::format("{}", max_per_class);
  return result;
}

void require_model(const SupportSet& set, const std::string& model_sha256, const std::string& preprocess_sha256) {
  if (set.model_sha256 != model_sha256) {
    throw DataError(fmt::format("[support_set] its features are of the model {}, but this one is {}", set.model_sha256,
                                model_sha256));
  }
  if (set.preprocess_sha256 != preprocess_sha256) {
    throw DataError(fmt::format("[support_set] its images were preprocessed otherwise ({}): sha256 {}, but here {}",
                                set.preprocess, set.preprocess_sha256, preprocess_sha256));
  }
}

}  // namespace contrastive::adapt
