#include "bench_memory.h"

#include <fstream>
#include <limits>
#include <string>

namespace contrastive::tools {
namespace {

/// A value in kB of this process's status, in bytes.
double status_value(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kilobytes = 0;
    if (word == key + ":" && status >> kilobytes) return kilobytes * 1024;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

double resident_memory() {
  return status_value("VmRSS");
}

double peak_memory() {
  return status_value("VmHWM");
}

void reset_peak_memory() {
  std::ofstream("/proc/self/clear_refs") << 5;
}

}  // namespace contrastive::tools
