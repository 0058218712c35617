#define USE_DISTRIBUTED
#define USE_C10D_GLOO

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <unistd.h>

#include "contrastive/core/error.h"

#include "distributed/backend.h"

namespace contrastive::distributed::detail {
namespace {

/// Any port does: connecting a datagram socket sends nothing, it only picks the route.
constexpr const char* kAnyPort = "9";

struct Socket {
  explicit Socket(const addrinfo& address)
      : descriptor(::socket(address.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, address.ai_protocol)) {}
  ~Socket() {
    if (descriptor >= 0) ::close(descriptor);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int descriptor;
};

/// The numeric local address of a route, or "" if there is none.
std::string route_source(const addrinfo& target) {
  const Socket socket(target);
  sockaddr_storage local{};
  socklen_t size = sizeof(local);
  auto* address = reinterpret_cast<sockaddr*>(&local);
  char text[NI_MAXHOST];
  const bool found = socket.descriptor >= 0 && ::connect(socket.descriptor, target.ai_addr, target.ai_addrlen) == 0 &&
                     ::getsockname(socket.descriptor, address, &size) == 0 &&
                     ::getnameinfo(address, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0;
  return found ? text : "";
}

}  // namespace

std::string local_address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), kAnyPort, &hints, &found);
  if (error != 0) {
    throw DistributedError(fmt::format("[connect] the master's address {} can't be resolved: {}", host,
                                       error == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  for (const auto* address = found; address != nullptr; address = address->ai_next) {
    if (auto source = route_source(*address); !source.empty()) return source;
  }
  throw DistributedError(fmt::format("[connect] this machine has no route to the master's address {}", host));
}

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    const RankEnvironment& environment,
                                                    std::chrono::milliseconds timeout) {
  using c10d::ProcessGroupGloo;
  auto options = ProcessGroupGloo::Options::create(timeout);
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  options->devices.push_back(
      interface != nullptr && *interface != '\0'
          ? ProcessGroupGloo::createDeviceForInterface(interface)
          : ProcessGroupGloo::createDeviceForHostname(local_address_towards(environment.master_address)));
  return c10::make_intrusive<ProcessGroupGloo>(store, static_cast<int>(environment.rank),
                                               static_cast<int>(environment.world_size), options);
}

}  // namespace contrastive::distributed::detail
