#include "contrastive/distributed/connect.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "contrastive/core/error.h"

#include "distributed/backend.h"
#include "distributed/failure_monitor.h"
#include "distributed/transport.h"

namespace contrastive::distributed {
namespace {

using StorePointer = c10::intrusive_ptr<c10d::Store>;

/// The monitor of this process's job, for report_failure. Never destroyed: a failing process ends at any moment.
struct CurrentJob {
  std::mutex mutex;
  std::shared_ptr<detail::FailureMonitor> monitor;
};

CurrentJob& current_job() {
  static auto* job = new CurrentJob;
  return *job;
}

std::shared_ptr<detail::FailureMonitor> current_monitor() {
  const std::lock_guard lock(current_job().mutex);
  return current_job().monitor;
}

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

StorePointer open_store(const RankEnvironment& environment, std::chrono::milliseconds timeout, bool serve) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(environment.port);
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = timeout;
  try {
    const auto store = c10::make_intrusive<c10d::TCPStore>(environment.master_address, options);
    return c10::make_intrusive<c10d::PrefixStore>(fmt::format("contrastive/{}", environment.attempt), store);
  } catch (const std::exception& error) {
    const auto what = serve ? "can't serve the ranks' store at" : "can't reach the ranks' store at";
    throw DistributedError(fmt::format("[connect] rank {} of {} {} {}:{}: {}", environment.rank, environment.world_size,
                                       what, environment.master_address, environment.port, first_line(error)));
  }
}

void check(const RankEnvironment& environment) {
  if (environment.rank < 0 || environment.rank >= environment.world_size) {
    throw ConfigError(
        fmt::format("[connect] rank {} is not below the world size {}", environment.rank, environment.world_size));
  }
}

}  // namespace

ProcessGroup connect(const RankEnvironment& environment, torch::Device device, const ConnectOptions& options) {
  check(environment);
  if (device.is_cuda()) c10::impl::getDeviceGuardImpl(device.type())->setDevice(device);
  if (environment.world_size == 1) return {};
  const bool serves = environment.rank == 0 && !environment.store_is_hosted;
  const auto store = open_store(environment, options.timeout, serves);
  const auto connection = [&] { return open_store(environment, options.timeout, /*serve=*/false); };
  const auto monitor =
      std::make_shared<detail::FailureMonitor>(connection(), environment.rank, environment.world_size, serves, options);
  {
    const std::lock_guard lock(current_job().mutex);
    current_job().monitor = monitor;
  }
  const auto part = [&](const char* name) { return c10::make_intrusive<c10d::PrefixStore>(name, store); };
  detail::Transport::Parts parts;
  parts.rank = environment.rank;
  parts.world_size = environment.world_size;
  parts.main_store = store;
  parts.value_store = connection();
  parts.monitor = monitor;
  try {
    parts.cpu = detail::make_gloo_backend(part("gloo"), environment, options.timeout);
    if (device.is_cuda()) parts.gpu = detail::make_nccl_backend(part("nccl"), environment, options.timeout);
  } catch (const DistributedError&) {
    throw;
  } catch (const std::exception& error) {
    throw DistributedError(fmt::format("[connect] rank {} of {} can't meet the others: {}", environment.rank,
                                       environment.world_size, monitor->find_cause(first_line(error))));
  }
  return ProcessGroup(std::make_shared<detail::Transport>(std::move(parts)));
}

bool report_failure(const std::string& message, std::string* first_cause) noexcept {
  try {
    const auto monitor = current_monitor();
    if (!monitor) return true;
    const auto cause = monitor->fail(message);
    if (first_cause != nullptr) *first_cause = cause;
    return cause == message;
  } catch (const std::exception&) {
    return true;
  }
}

torch::Device device_of_rank(const RankEnvironment& environment, torch::Device device) {
  if (!device.is_cuda() || device.has_index()) return device;
  const auto count = c10::impl::getDeviceGuardImpl(device.type())->deviceCount();
  if (count == 0) return device;
  return torch::Device(device.type(), static_cast<c10::DeviceIndex>(environment.local_rank % count));
}

int64_t threads_of_rank(const RankEnvironment& environment, int64_t cores) {
  return std::max<int64_t>(1, cores / std::max<int64_t>(1, environment.local_world_size));
}

struct HostedStore::Impl {
  c10::intrusive_ptr<c10d::TCPStore> server;
};

HostedStore::HostedStore() : impl_(std::make_unique<Impl>()) {
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.waitWorkers = false;
  try {
    impl_->server = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  } catch (const std::exception& error) {
    throw DistributedError(fmt::format("[launch] can't serve the ranks' store: {}", first_line(error)));
  }
}

HostedStore::~HostedStore() = default;

int HostedStore::port() const {
  return impl_->server->getPort();
}

bool HostedStore::report_failure(const std::string& message) noexcept {
  try {
    c10d::PrefixStore job("contrastive/0", impl_->server);
    return detail::publish_cause(job, message) == message;
  } catch (const std::exception&) {
    return true;
  }
}

}  // namespace contrastive::distributed
