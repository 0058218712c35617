#include "contrastive/distributed/process_group.h"

#include <algorithm>
#include <array>
#include <thread>
#include <utility>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "distributed/transport.h"

namespace contrastive::distributed {
namespace detail {
namespace {

/// How often a waiting rank looks whether the job has failed.
constexpr std::chrono::milliseconds kWaitSlice{500};
constexpr std::chrono::milliseconds kValuePoll{20};

/// LibTorch appends a C++ stack trace to its messages, Gloo puts a place in its source in front.
std::string reason_in(const std::string& message) {
  const auto line = message.substr(0, message.find('\n'));
  const auto place_end = line.starts_with("[/") ? line.find("] ") : std::string::npos;
  return place_end == std::string::npos ? line : line.substr(place_end + 2);
}

}  // namespace

Transport::~Transport() {
  if (std::uncaught_exceptions() == 0 && !parts_.monitor->cause()) {
    if (parts_.gpu) parts_.gpu->shutdown();
    parts_.monitor->leave();
    return;
  }
  parts_.cpu.release();
  parts_.gpu.release();
  parts_.main_store.release();
}

c10d::Backend& Transport::backend_of(const torch::Tensor& tensor) const {
  if (tensor.is_cpu()) return *parts_.cpu;
  TORCH_CHECK(parts_.gpu, "[process group] a tensor on ", tensor.device(), " can't be sent: the group is one of CPUs");
  return *parts_.gpu;
}

template <typename Start>
std::shared_ptr<Operation> Transport::run(const char* name, const torch::Tensor& tensor, const Start& start) {
  TORCH_CHECK(tensor.is_contiguous(), "[", name, "] the tensor must be contiguous");
  throw_if_failed();
  parts_.monitor->count_operation();
  try {
    return std::make_shared<Operation>(*this, name, start(backend_of(tensor)), tensor.is_cpu());
  } catch (const c10::Error& error) {
    fail(name, reason_in(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    fail(name, reason_in(error.what()));
  }
}

void Transport::throw_if_failed() const {
  if (const auto cause = parts_.monitor->cause()) throw DistributedError(*cause);
}

void Transport::fail(const char* operation, const std::string& reason) const {
  throw DistributedError(parts_.monitor->find_cause(fmt::format("[{}] {}", operation, reason)));
}

void Transport::set_value(const std::string& key, const std::string& value) {
  const std::lock_guard lock(value_mutex_);
  parts_.value_store->set("value/" + key, value);
}

std::string Transport::get_value(const std::string& key) {
  while (true) {
    {
      const std::lock_guard lock(value_mutex_);
      if (parts_.value_store->check({"value/" + key})) return parts_.value_store->get_to_str("value/" + key);
    }
    throw_if_failed();
    std::this_thread::sleep_for(kValuePoll);
  }
}

void Operation::wait() {
  const auto begin = std::chrono::steady_clock::now();
  try {
    if (blocks_) {
      wait_blocking();
    } else {
      work_->wait();
    }
  } catch (const c10::Error& error) {
    transport_.fail(name_, reason_in(error.what_without_backtrace()));
  } catch (const DistributedError&) {
    throw;
  } catch (const std::exception& error) {
    transport_.fail(name_, reason_in(error.what()));
  }
  transport_.waited += std::chrono::steady_clock::now() - begin;
}

/// A job that failed elsewhere may leave an operation hanging until the time-out, so it is waited for in slices.
void Operation::wait_blocking() {
  while (true) {
    try {
      work_->wait(kWaitSlice);
      return;
    } catch (const std::exception&) {
      if (work_->isCompleted()) throw;
      transport_.throw_if_failed();
    }
  }
}

}  // namespace detail

using detail::Operation;

Pending::Pending() = default;
Pending::Pending(std::shared_ptr<Operation> operation) : operation_(std::move(operation)) {}

void Pending::wait() {
  if (operation_) operation_->wait();
  operation_.reset();
}

ProcessGroup::ProcessGroup() = default;
ProcessGroup::ProcessGroup(std::shared_ptr<detail::Transport> transport) : transport_(std::move(transport)) {}

int64_t ProcessGroup::rank() const {
  return transport_ ? transport_->rank() : 0;
}

int64_t ProcessGroup::size() const {
  return transport_ ? transport_->size() : 1;
}

void ProcessGroup::all_reduce(torch::Tensor tensor, ReduceOp op) const {
  start_all_reduce(std::move(tensor), op).wait();
}

Pending ProcessGroup::start_all_reduce(torch::Tensor tensor, ReduceOp op) const {
  if (is_alone()) return {};
  return Pending(transport_->run("all_reduce", tensor, [&](c10d::Backend& backend) {
    std::vector<torch::Tensor> tensors{tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = op == ReduceOp::sum ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
    return backend.allreduce(tensors, options);
  }));
}

torch::Tensor ProcessGroup::all_gather(const torch::Tensor& rows) const {
  if (is_alone()) return rows;
  auto sizes = rows.sizes().vec();
  sizes.at(0) *= size();
  const auto output = at::empty(sizes, rows.options());
  start_all_gather(output, rows).wait();
  return output;
}

Pending ProcessGroup::start_all_gather(torch::Tensor output, const torch::Tensor& rows) const {
  TORCH_CHECK(output.is_contiguous() && output.numel() == size() * rows.numel(), "[all_gather] the output of ", size(),
              " ranks with ", rows.sizes(), " must be contiguous, but is ", output.sizes());
  if (is_alone()) {
    output.copy_(rows);
    return {};
  }
  return Pending(transport_->run("all_gather", rows, [&](c10d::Backend& backend) {
    auto input = rows;
    return backend._allgather_base(output, input);
  }));
}

torch::Tensor ProcessGroup::reduce_scatter(const torch::Tensor& rows) const {
  if (is_alone()) return rows;
  auto sizes = rows.sizes().vec();
  TORCH_CHECK(sizes.at(0) % size() == 0, "[reduce_scatter] ", sizes[0], " rows can't be split over ", size(), " ranks");
  sizes[0] /= size();
  const auto output = at::empty(sizes, rows.options());
  start_reduce_scatter(output, rows).wait();
  return output;
}

Pending ProcessGroup::start_reduce_scatter(torch::Tensor output, const torch::Tensor& rows) const {
  TORCH_CHECK(output.is_contiguous() && output.numel() * size() == rows.numel(), "[reduce_scatter] the share of ",
              rows.sizes(), " over ", size(), " ranks must be contiguous, but is ", output.sizes());
  if (is_alone()) {
    output.copy_(rows);
    return {};
  }
  return Pending(transport_->run("reduce_scatter", rows, [&](c10d::Backend& backend) {
    auto input = rows;
    return backend._reduce_scatter_base(output, input);
  }));
}

Pending ProcessGroup::start_all_to_all(torch::Tensor output, const torch::Tensor& rows) const {
  TORCH_CHECK(output.is_contiguous() && output.sizes() == rows.sizes() && rows.size(0) % size() == 0, "[all_to_all] ",
              rows.sizes(), " can't be exchanged between ", size(), " ranks into ", output.sizes());
  if (is_alone()) {
    output.copy_(rows);
    return {};
  }
  return Pending(transport_->run("all_to_all", rows, [&](c10d::Backend& backend) {
    auto input = rows;
    std::vector<int64_t> equal_parts;
    return backend.alltoall_base(output, input, equal_parts, equal_parts);
  }));
}

void ProcessGroup::broadcast(torch::Tensor tensor, int64_t root) const {
  start_broadcast(std::move(tensor), root).wait();
}

Pending ProcessGroup::start_broadcast(torch::Tensor tensor, int64_t root) const {
  if (is_alone()) return {};
  return Pending(transport_->run("broadcast", tensor, [&](c10d::Backend& backend) {
    std::vector<torch::Tensor> tensors{tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return backend.broadcast(tensors, options);
  }));
}

void ProcessGroup::barrier() const {
  all_reduce(at::zeros({1}, at::kInt));
}

std::string ProcessGroup::broadcast_text(const std::string& text, int64_t root) const {
  if (is_alone()) return text;
  auto length = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
  broadcast(length, root);
  auto bytes = at::zeros({length.item<int64_t>() + 1}, at::kByte);  // no operation on nothing
  if (rank() == root) std::copy(text.begin(), text.end(), bytes.data_ptr<uint8_t>());
  broadcast(bytes, root);
  return std::string(reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>()),
                     static_cast<size_t>(length.item<int64_t>()));
}

std::vector<std::string> ProcessGroup::all_gather_text(const std::string& text) const {
  if (is_alone()) return {text};
  const auto lengths = all_gather(at::full({1}, static_cast<int64_t>(text.size()), at::kLong));
  const auto longest = lengths.max().item<int64_t>() + 1;
  auto row = at::zeros({1, longest}, at::kByte);
  std::copy(text.begin(), text.end(), row.data_ptr<uint8_t>());
  const auto rows = all_gather(row);
  std::vector<std::string> texts;
  for (int64_t i = 0; i < size(); ++i) {
    const auto* begin = reinterpret_cast<const char*>(rows.const_data_ptr<uint8_t>() + i * longest);
    texts.emplace_back(begin, static_cast<size_t>(lengths[i].item<int64_t>()));
  }
  return texts;
}

void ProcessGroup::set_value(const std::string& key, const std::string& value) const {
  TORCH_CHECK(transport_, "[set_value] this process is alone: nobody would read ", key);
  transport_->set_value(key, value);
}

std::string ProcessGroup::get_value(const std::string& key) const {
  TORCH_CHECK(transport_, "[get_value] this process is alone: nobody left ", key);
  return transport_->get_value(key);
}

std::chrono::duration<double> ProcessGroup::waited() const {
  return transport_ ? std::chrono::duration<double>(transport_->waited) : std::chrono::duration<double>(0);
}

}  // namespace contrastive::distributed
