#include "bench_profile.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

namespace contrastive::tools {
namespace {

using Clock = std::chrono::steady_clock;

/// What records whose name starts with `prefix` belong to; the first that fits counts. The library's own stretches are
/// RECORD_USER_SCOPEs, its autograd functions go by their type's name. A record that no rule names
/// belongs to what the record around it belongs to, or to "other".
struct PartRule {
  std::string_view prefix;
  const char* part;
  bool with_nested = false;  ///< so do all records within it, whatever their names
};

constexpr const char* kOther = "other";

constexpr PartRule kRules[] = {
    {"contrastive::data", "data wait", true},
    {"contrastive::normalize_images", "copies and casts", true},
    {"contrastive::loss", "loss", true},
    {"contrastive::adamw", "optimiser", true},
    {"contrastive::optim", "optimiser", true},
    {"contrastive::activation", "activation", true},
    {"contrastive::gelu", "activation", true},
    {"contrastive::quick_gelu", "activation", true},
    {"contrastive::relu", "activation", true},
    {"contrastive::layer_norm", "norms", true},
    {"contrastive::batch_norm", "norms", true},
    {"contrastive::attention", "attention", true},
    {"contrastive::embedding", "embedding", true},
    {"contrastive::cast", "copies and casts", true},
    {"contrastive::copy", "copies and casts", true},
    {"contrastive::add_residual", "elementwise and sums", true},
    {"contrastive::column_sums", "elementwise and sums", true},
    {"contrastive::linear", "matrix products"},
    {"contrastive::matmul", "matrix products"},
    {"BatchNorm", "norms", true},
    {"QuickGelu", "activation", true},
    {"KernelAttention", "attention", true},
    {"ContrastiveLoss", "loss", true},
    {"SigmoidLoss", "loss", true},
    {"aten::scaled_dot_product", "attention", true},
    {"aten::_scaled_dot_product", "attention", true},
    {"aten::bmm", "attention"},  // the models multiply batches of matrices in attention only
    {"aten::baddbmm", "attention"},
    {"aten::_softmax", "attention"},
    {"aten::softmax", "attention"},
    {"aten::mm", "matrix products"},
    {"aten::addmm", "matrix products"},
    {"aten::matmul", "matrix products"},
    {"aten::linear", "matrix products"},
    {"aten::_addmm", "matrix products"},
    {"aten::mkldnn_linear", "matrix products"},
    {"mkldnn::_linear", "matrix products"},
    {"aten::conv", "convolutions"},
    {"aten::_conv", "convolutions"},
    {"aten::mkldnn_conv", "convolutions"},
    {"aten::thnn_conv", "convolutions"},
    {"aten::_slow_conv", "convolutions"},
    {"aten::slow_conv", "convolutions"},
    {"aten::cudnn_conv", "convolutions"},
    {"aten::avg_pool", "pooling"},
    {"aten::layer_norm", "norms"},
    {"aten::native_layer_norm", "norms"},
    {"aten::batch_norm", "norms"},
    {"aten::native_batch_norm", "norms"},
    {"aten::_batch_norm", "norms"},
    {"aten::gelu", "activation"},
    {"aten::relu", "activation"},
    {"aten::sigmoid", "activation"},
    {"aten::silu", "activation"},
    {"aten::threshold", "activation"},
    {"aten::_fused_adamw", "optimiser"},
    {"aten::_foreach", "optimiser"},
    {"aten::embedding", "embedding", true},
    {"aten::copy_", "copies and casts"},
    {"aten::_to_copy", "copies and casts"},
    {"aten::to", "copies and casts"},
    {"aten::clone", "copies and casts"},
    {"aten::contiguous", "copies and casts"},
    {"aten::cat", "copies and casts"},
    {"aten::_log_softmax", "loss"},
    {"aten::log_softmax", "loss"},
    {"aten::add", "elementwise and sums"},
    {"aten::sub", "elementwise and sums"},
    {"aten::mul", "elementwise and sums"},
    {"aten::div", "elementwise and sums"},
    {"aten::sum", "elementwise and sums"},
    {"aten::mean", "elementwise and sums"},
    {"aten::zero_", "elementwise and sums"},
    {"aten::fill_", "elementwise and sums"},
};

/// The backward pass of an autograd function of the library is announced by its C++ type, of which the rules know the
/// last name: "torch::autograd::CppNode<contrastive::models::(anonymous namespace)::QuickGelu>".
std::string_view known_name(std::string_view name) {
  if (!name.starts_with("torch::autograd::CppNode<")) return name;
  if (const auto scope = name.rfind("::"); scope != std::string_view::npos) name.remove_prefix(scope + 2);
  return name.substr(0, name.find('>'));
}

const PartRule* find_rule(std::string_view name) {
  const auto* rule = std::find_if(std::begin(kRules), std::end(kRules),
                                  [&](const PartRule& candidate) { return name.starts_with(candidate.prefix); });
  return rule == std::end(kRules) ? nullptr : rule;
}

using Inputs = c10::ArrayRef<const c10::IValue>;

bool are_tensors(Inputs inputs, size_t begin, size_t count) {
  if (inputs.size() < begin + count) return false;
  return std::all_of(inputs.begin() + static_cast<int64_t>(begin), inputs.begin() + static_cast<int64_t>(begin + count),
                     [](const c10::IValue& value) { return value.isTensor() && value.toTensor().defined(); });
}

/// Of a product of a [..., n, k] with b [..., k, m].
double product_flops(Inputs inputs, size_t first) {
  if (!are_tensors(inputs, first, 2) || inputs[first + 1].toTensor().dim() < 2) return 0;
  const auto& a = inputs[first].toTensor();
  return 2.0 * static_cast<double>(a.numel()) * static_cast<double>(inputs[first + 1].toTensor().size(-1));
}

/// Of x [..., k] with weight [m, k].
double linear_flops(Inputs inputs) {
  if (!are_tensors(inputs, 0, 2) || inputs[1].toTensor().dim() != 2) return 0;
  return 2.0 * static_cast<double>(inputs[0].toTensor().numel()) * static_cast<double>(inputs[1].toTensor().size(0));
}

/// Multiplications of one value of a convolution's output, by its weight [out, in / groups, ...].
double flops_per_output(const at::Tensor& weight) {
  return 2.0 * static_cast<double>(weight.numel()) / static_cast<double>(std::max<int64_t>(1, weight.size(0)));
}

/// aten::convolution(input, weight, bias, stride, padding, dilation, transposed, ...), not transposed.
double convolution_flops(Inputs inputs) {
  if (inputs.size() < 7 || !are_tensors(inputs, 0, 2) || !inputs[3].isIntList() || !inputs[4].isIntList() ||
      !inputs[5].isIntList() || inputs[6].toBool()) {
    return 0;
  }
  const auto& input = inputs[0].toTensor();
  const auto& weight = inputs[1].toTensor();
  const auto stride = inputs[3].toIntVector(), padding = inputs[4].toIntVector(), dilation = inputs[5].toIntVector();
  const auto of_axis = [](const std::vector<int64_t>& values, int64_t axis) {
    return values[std::min(static_cast<size_t>(axis), values.size() - 1)];
  };
  double outputs = static_cast<double>(input.size(0) * weight.size(0));
  for (int64_t axis = 0; axis < weight.dim() - 2; ++axis) {
    const auto kernel = of_axis(dilation, axis) * (weight.size(axis + 2) - 1) + 1;
    const auto room = input.size(axis + 2) + 2 * of_axis(padding, axis) - kernel;
    outputs *= static_cast<double>(room / of_axis(stride, axis) + 1);
  }
  return outputs * flops_per_output(weight);
}

/// aten::convolution_backward(grad_output, input, weight, ..., output_mask).
double convolution_backward_flops(Inputs inputs) {
  if (!are_tensors(inputs, 0, 3) || !inputs.back().isBoolList()) return 0;
  const auto mask = inputs.back().toBoolList();
  const double products = (mask.size() > 0 && mask[0] ? 1 : 0) + (mask.size() > 1 && mask[1] ? 1 : 0);
  return products * static_cast<double>(inputs[0].toTensor().numel()) * flops_per_output(inputs[2].toTensor());
}

double flops_of(std::string_view name, Inputs inputs) {
  if (name == "aten::mm" || name == "aten::bmm") return product_flops(inputs, 0);
  if (name.starts_with("contrastive::matmul")) return product_flops(inputs, 0);
  if (name == "aten::addmm" || name == "aten::addmm_" || name == "aten::baddbmm" || name == "aten::baddbmm_" ||
      name == "aten::_addmm_activation") {
    return product_flops(inputs, 1);
  }
  if (name == "aten::linear" || name.starts_with("contrastive::linear") || name.starts_with("mkldnn::_linear"))
    return linear_flops(inputs);
  if (name == "aten::convolution") return convolution_flops(inputs);
  if (name == "aten::convolution_backward") return convolution_backward_flops(inputs);
  return 0;
}

/// A record that has begun and not ended.
struct Frame {
  Clock::time_point start;
  double nested_seconds = 0;
  double flops = 0;         ///< of its own inputs
  double nested_flops = 0;  ///< counted by records within it: an operator and its implementation count once
  const char* part = kOther;
  bool with_nested = false;
};

struct Totals {
  std::mutex mutex;
  std::map<std::pair<std::string, std::string>, StepProfile::Sum> sums;  ///< by part and name
  double covered_seconds = 0;                                            ///< of the outermost records
};

Totals& totals() {
  static Totals instance;
  return instance;
}

thread_local std::vector<Frame> frames;

std::unique_ptr<at::ObserverContext> begin_record(const at::RecordFunction& record) {
  const Frame* outer = frames.empty() ? nullptr : &frames.back();
  Frame frame;
  if (outer != nullptr) frame.part = outer->part;
  if (outer != nullptr && outer->with_nested) {
    frame.with_nested = true;
  } else if (const auto* rule = find_rule(known_name(record.name())); rule != nullptr) {
    frame.part = rule->part;
    frame.with_nested = rule->with_nested;
  }
  frame.flops = flops_of(record.name(), record.inputs());
  frame.start = Clock::now();
  frames.push_back(frame);
  return nullptr;
}

void end_record(const at::RecordFunction& record, at::ObserverContext*) {
  if (frames.empty()) return;  // began before the profile did
  const Frame frame = frames.back();
  frames.pop_back();
  const double seconds = std::chrono::duration<double>(Clock::now() - frame.start).count();
  const double own_seconds = std::max(0.0, seconds - frame.nested_seconds);
  const double own_flops = frame.nested_flops > 0 ? 0 : frame.flops;
  const std::lock_guard lock(totals().mutex);
  if (frames.empty()) {
    totals().covered_seconds += seconds;
  } else {
    frames.back().nested_seconds += seconds;
    frames.back().nested_flops += frame.nested_flops + own_flops;
  }
  auto& sum = totals().sums[{frame.part, std::string(known_name(record.name()))}];
  ++sum.calls;
  sum.seconds += own_seconds;
  sum.flops += own_flops;
}

struct Row {
  std::string name, part;
  StepProfile::Sum sum;
};

void sort_by_falling_time(std::vector<Row>& rows) {
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.sum.seconds > b.sum.seconds; });
}

std::vector<Row> operator_rows() {
  std::vector<Row> rows;
  for (const auto& [key, sum] : totals().sums) rows.push_back({key.second, key.first, sum});
  sort_by_falling_time(rows);
  return rows;
}

std::vector<Row> part_rows(const StepProfile::Sum& uncovered) {
  std::map<std::string, StepProfile::Sum> sums = {{"outside of operators", uncovered}};
  for (const auto& [key, sum] : totals().sums) {
    auto& part = sums[key.first];
    part.calls += sum.calls;
    part.seconds += sum.seconds;
    part.flops += sum.flops;
  }
  std::vector<Row> rows;
  for (const auto& [name, sum] : sums) rows.push_back({name, "", sum});
  sort_by_falling_time(rows);
  return rows;
}

nlohmann::ordered_json entry(const Row& row, int64_t steps, double seconds) {
  const auto& sum = row.sum;
  const auto count = static_cast<double>(steps);
  nlohmann::ordered_json result = {{"name", row.name},
                                   {"calls", static_cast<double>(sum.calls) / count},
                                   {"ms", 1e3 * sum.seconds / count},
                                   {"share", sum.seconds / seconds}};
  if (!row.part.empty()) result["part"] = row.part;
  if (sum.flops > 0) {
    result["gflop"] = sum.flops / 1e9 / count;
    result["gflop_per_s"] = sum.flops / 1e9 / sum.seconds;
  }
  return result;
}

std::string table_row(const nlohmann::ordered_json& row) {
  std::string rate;
  if (row.contains("gflop_per_s")) rate = fmt::format("{:.0f}", row["gflop_per_s"].get<double>());
  return fmt::format("{:<46} {:>8.0f} {:>10.2f} {:>6.1f} {:>9}  {}\n", row["name"].get<std::string>().substr(0, 46),
                     row["calls"].get<double>(), row["ms"].get<double>(), 100 * row["share"].get<double>(), rate,
                     row.value("part", ""));
}

}  // namespace

StepProfile::StepProfile() {
  restart();
  frames.clear();
  handle_ = at::addThreadLocalCallback(
      at::RecordFunctionCallback(begin_record, end_record)
          .needsInputs(true)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE}));
}

StepProfile::~StepProfile() {
  at::removeCallback(handle_);
}

void StepProfile::restart() {
  const std::lock_guard lock(totals().mutex);
  totals().sums.clear();
  totals().covered_seconds = 0;
}

nlohmann::ordered_json StepProfile::result(int64_t steps, double seconds) const {
  constexpr size_t kOperators = 10;
  const std::lock_guard lock(totals().mutex);
  const StepProfile::Sum uncovered{steps, std::max(0.0, seconds - totals().covered_seconds), 0};
  nlohmann::ordered_json result = {{"parts", nlohmann::ordered_json::array()},
                                   {"operators", nlohmann::ordered_json::array()}};
  for (const auto& row : part_rows(uncovered)) result["parts"].push_back(entry(row, steps, seconds));
  const auto rows = operator_rows();
  for (size_t i = 0; i < std::min(kOperators, rows.size()); ++i) {
    result["operators"].push_back(entry(rows[i], steps, seconds));
  }
  return result;
}

std::string profile_table(const nlohmann::ordered_json& profile) {
  const auto head = [](const char* first) {
    return fmt::format("{:<46} {:>8} {:>10} {:>6} {:>9}\n", first, "calls", "ms", "%", "GFLOP/s");
  };
  std::string table = head("part of a step");
  for (const auto& part : profile["parts"]) table += table_row(part);
  table += "\n";
  table += head("operator, without those within it");
  for (const auto& row : profile["operators"]) table += table_row(row);
  return table;
}

}  // namespace contrastive::tools
