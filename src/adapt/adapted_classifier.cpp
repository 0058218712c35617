#include "contrastive/adapt/adapted_classifier.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::adapt {
namespace {

using nlohmann::ordered_json;

constexpr const char* kMetadataKey = "adapted_classifier";
constexpr int kFormat = 1;

ordered_json description(const Adapter& adapter, const ParameterValues& values,
                         const std::vector<std::string>& class_names, const std::string& model_sha256,
                         const std::map<std::string, std::string>& about) {
  ordered_json parameters = ordered_json::object();
  const auto own = adapter.parameters();
  for (size_t i = 0; i < own.size(); ++i) parameters[own[i].name] = values[i];
  return {{"format", kFormat},
          {"adapter", adapter.name()},
          {"settings", adapter.settings()},
          {"parameters", parameters},
          {"classes", class_names},
          {"model_sha256", model_sha256},
          {"about", about}};
}

ParameterValues read_values(const ordered_json& document, const Adapter& adapter) {
  const auto& stored = document.at("parameters");
  ParameterValues values;
  for (const auto& parameter : adapter.parameters()) values.push_back(stored.at(parameter.name).get<double>());
  return values;
}

}  // namespace

AdaptedClassifier::AdaptedClassifier(std::shared_ptr<const Adapter> adapter, ParameterValues values,
                                     std::vector<std::string> class_names, std::string model_sha256,
                                     std::map<std::string, std::string> about)
    : adapter_(std::move(adapter)),
      values_(std::move(values)),
      class_names_(std::move(class_names)),
      model_sha256_(std::move(model_sha256)),
      about_(std::move(about)) {
  TORCH_CHECK(adapter_ != nullptr && values_.size() == adapter_->parameters().size(),
              "[adapted_classifier] there must be a value for each hyper-parameter");
  TORCH_CHECK(adapter_->state().front().second.size(0) == static_cast<int64_t>(class_names_.size()),
              "[adapted_classifier] the adapter has ", adapter_->num_classes(), " classes, but there are ",
              class_names_.size(), " names");
}

AdaptedClassifier AdaptedClassifier::open(const std::filesystem::path& file) {
  const SafetensorsFile content(file);
  const auto found = content.metadata().find(kMetadataKey);
  if (found == content.metadata().end()) {
    throw CheckpointError(
        fmt::format("[{}] is no adapted classifier (no {} in its metadata)", file.string(), kMetadataKey));
  }
  try {
    const auto document = ordered_json::parse(found->second);
    const auto format = document.at("format").get<int>();
    if (format != kFormat) {
      throw CheckpointError(
          fmt::format("[{}] has format {}, but this library reads {}", file.string(), format, kFormat));
    }
    auto adapter = make_adapter(document.at("adapter").get<std::string>(),
                                document.at("settings").get<std::map<std::string, std::string>>());
    adapter->restore(content.tensors());
    auto values = read_values(document, *adapter);
    auto names = document.at("classes").get<std::vector<std::string>>();
    return {std::move(adapter), std::move(values), std::move(names), document.at("model_sha256").get<std::string>(),
            document.at("about").get<std::map<std::string, std::string>>()};
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError(fmt::format("[{}] holds a malformed adapted classifier: {}", file.string(), error.what()));
  } catch (const c10::Error& error) {
    throw CheckpointError(
        fmt::format("[{}] holds a malformed adapted classifier: {}", file.string(), error.what_without_backtrace()));
  } catch (const ConfigError& error) {
    throw CheckpointError(fmt::format("[{}] holds a malformed adapted classifier: {}", file.string(), error.what()));
  }
}

void AdaptedClassifier::save(const std::filesystem::path& file) const {
  NamedTensors tensors;
  for (const auto& [name, tensor] : adapter_->state()) tensors.emplace_back(name, tensor.cpu().contiguous());
  const auto document = description(*adapter_, values_, class_names_, model_sha256_, about_);
  write_safetensors(file, tensors,
                    {{kMetadataKey, document.dump(-1, ' ', false, ordered_json::error_handler_t::replace)}});
}

torch::Tensor AdaptedClassifier::logits(const QueryFeatures& queries) const {
  const auto dtype = adapter_->state().front().second.scalar_type();
  auto own = queries;
  own.features = queries.features.to(dtype);
  if (queries.tokens.defined()) own.tokens = queries.tokens.to(dtype);
  return adapter_->logits(own, values_);
}

std::vector<std::vector<eval::Prediction>> AdaptedClassifier::classify(const QueryFeatures& queries, int64_t k) const {
  TORCH_CHECK(k >= 1, "[adapted_classifier] k must be at least 1, but is ", k);
  const auto probabilities = logits(queries).to(at::kCPU, at::kDouble).softmax(1);
  const auto order = probabilities.argsort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
  const auto count = std::min<int64_t>(k, static_cast<int64_t>(class_names_.size()));
  std::vector<std::vector<eval::Prediction>> all;
  for (int64_t row = 0; row < probabilities.size(0); ++row) {
    auto& best = all.emplace_back();
    for (int64_t place = 0; place < count; ++place) {
      const auto label = order[row][place].item<int64_t>();
      best.push_back({label, class_names_[static_cast<size_t>(label)], probabilities[row][label].item<double>()});
    }
  }
  return all;
}

void AdaptedClassifier::require_model(const std::string& model_sha256) const {
  if (model_sha256 == model_sha256_) return;
  throw DataError(fmt::format("[adapted_classifier] was fitted on features of the model {}, but these are of {}",
                              model_sha256_, model_sha256));
}

}  // namespace contrastive::adapt
