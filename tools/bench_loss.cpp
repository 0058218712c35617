#include "bench_loss.h"

#include <string>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/loss/sigmoid_loss.h"

#include "bench_measure.h"
#include "bench_memory.h"

namespace contrastive::tools {
namespace {

/// The largest memory in use since it was made, beyond what was in use then: resident, or allocated on a GPU.
class PeakMemory {
 public:
  explicit PeakMemory(torch::Device device) : device_(device) {
    if (device_.is_cuda()) at::getDeviceAllocator(device_.type())->resetPeakStats(device_index());
    reset_peak_memory();
    before_ = device_.is_cuda() ? static_cast<double>(on_gpu().current) : resident_memory();
  }

  double extra_bytes() const {
    return (device_.is_cuda() ? static_cast<double>(on_gpu().peak) : peak_memory()) - before_;
  }

 private:
  c10::DeviceIndex device_index() const { return device_.has_index() ? device_.index() : c10::DeviceIndex{0}; }

  c10::CachingAllocator::Stat on_gpu() const {
    const auto stats = at::getDeviceAllocator(device_.type())->getDeviceStats(device_index());
    return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
  }

  torch::Device device_;
  double before_;
};

torch::ScalarType dtype_of(const std::string& precision) {
  if (precision == "bf16") return at::kBFloat16;
  return precision == "fp64" ? at::kDouble : at::kFloat;
}

torch::Tensor random_unit_rows(const LossArguments& arguments, const at::TensorOptions& options) {
  const auto rows = at::randn({arguments.rows, arguments.dim}, options.dtype(at::kFloat));
  return (rows / rows.norm(2, 1, true)).to(options).requires_grad_();
}

/// Takes loss and gradients once.
class LossRun {
 public:
  explicit LossRun(const LossArguments& arguments, const at::TensorOptions& options)
      : is_sigmoid_(arguments.kind == "sigmoid"),
        image_(random_unit_rows(arguments, options)),
        text_(random_unit_rows(arguments, options)),
        scale_(at::full({}, arguments.scale, options).requires_grad_()),
        bias_(at::full({}, -10.0, options).requires_grad_()) {}

  void operator()() {
    const auto loss = is_sigmoid_ ? loss::sigmoid_loss(image_, text_, scale_, bias_).loss
                                  : loss::contrastive_loss(image_, text_, scale_).loss;
    loss.backward();
    (void)loss.item<double>();  // a GPU's work ends here
    for (auto* input : {&image_, &text_, &scale_, &bias_}) input->mutable_grad().reset();
  }

 private:
  bool is_sigmoid_;
  torch::Tensor image_, text_, scale_, bias_;
};

}  // namespace

nlohmann::ordered_json bench_loss(const LossArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(static_cast<int>(arguments.threads));
  const torch::Device device = at::hasCUDA() ? torch::kCUDA : torch::kCPU;
  LossRun run(arguments, at::TensorOptions(device).dtype(dtype_of(arguments.precision)));
  const PeakMemory memory(device);
  const auto seconds = time_each(arguments.repetitions, [&] { run(); });
  const double extra = memory.extra_bytes();
  return {{"benchmark", "loss"},
          {"kind", arguments.kind},
          {"precision", arguments.precision},
          {"rows", arguments.rows},
          {"dim", arguments.dim},
          {"scale", arguments.scale},
          {"repetitions", arguments.repetitions},
          {"device", device.str()},
          {"threads", at::get_num_threads()},
          {"seconds_min", seconds.front()},
          {"seconds_median", median(seconds)},
          {"peak_extra_mb", extra / 1e6}};
}

}  // namespace contrastive::tools
