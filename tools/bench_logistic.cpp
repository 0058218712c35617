#include "bench_logistic.h"

#include <optional>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/eval/linear_probe.h"

#include "bench_measure.h"
#include "bench_memory.h"

namespace contrastive::tools {
namespace {

eval::LabelledFeatures read(const SafetensorsFile& file, const std::string& part, const LogisticArguments& arguments) {
  const auto dtype = arguments.fp64 ? at::kDouble : at::kFloat;
  const auto device = at::hasCUDA() ? at::kCUDA : at::kCPU;
  return {file.tensor(part + "_features").to(device, dtype, /*non_blocking=*/false, /*copy=*/true),
          file.tensor(part + "_labels").clone()};
}

eval::LinearProbeOptions probe_options(const LogisticArguments& arguments) {
  eval::LinearProbeOptions options;
  options.sweep = arguments.sweep ? eval::SweepMode::binary : eval::SweepMode::none;
  options.regression.c = arguments.c;
  options.regression.tolerance = arguments.tolerance;
  options.regression.objective_tolerance = arguments.objective_tolerance;
  return options;
}

}  // namespace

nlohmann::ordered_json bench_logistic(const LogisticArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(static_cast<int>(arguments.threads));
  const SafetensorsFile file(arguments.features);
  const auto train = read(file, "train", arguments), test = read(file, "test", arguments);
  const auto num_classes = train.labels.max().item<int64_t>() + 1;
  const auto options = probe_options(arguments);
  eval::LinearProbeResult result;
  reset_peak_memory();
  const double before = resident_memory();
  const auto seconds = time_each(arguments.repetitions,
                                 [&] { result = eval::linear_probe(train, std::nullopt, test, num_classes, options); });
  const double extra = peak_memory() - before;
  return {{"benchmark", "logistic"},
          {"precision", arguments.fp64 ? "fp64" : "fp32"},
          {"samples", train.features.size(0)},
          {"dim", train.features.size(1)},
          {"classes", num_classes},
          {"fits", result.curve.size() + 1},
          {"c", result.c},
          {"iterations", result.fit.iterations},
          {"evaluations", result.fit.evaluations},
          {"converged", result.fit.converged},
          {"objective", result.fit.objective},
          {"test_accuracy", result.test.top1_accuracy},
          {"device", train.features.device().str()},
          {"threads", at::get_num_threads()},
          {"seconds_min", seconds.front()},
          {"seconds_median", median(seconds)},
          {"peak_extra_mb", extra / 1e6}};
}

}  // namespace contrastive::tools
