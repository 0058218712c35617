#include "contrastive/core/log.h"

#include <atomic>
#include <mutex>
#include <utility>

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace contrastive {
namespace {

std::mutex sink_mutex;
LogSink replaced_sink;
std::atomic<LogLevel> lowest_level{LogLevel::info};

spdlog::logger& default_logger() {
  static spdlog::logger logger = [] {
    spdlog::logger made("contrastive", std::make_shared<spdlog::sinks::stderr_color_sink_st>());
    made.set_pattern("%H:%M:%S %^%L%$ %v");
    made.set_level(spdlog::level::trace);
    made.flush_on(spdlog::level::trace);
    return made;
  }();
  return logger;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void set_log_sink(LogSink sink) {
  const std::lock_guard lock(sink_mutex);
  replaced_sink = std::move(sink);
}

void set_log_level(LogLevel level) {
  lowest_level = level;
}

void log(LogLevel level, std::string_view message) {
  if (level < lowest_level) return;
  const std::lock_guard lock(sink_mutex);
  if (replaced_sink) {
    replaced_sink(level, message);
  } else {
    default_logger().log(spdlog_level(level), message);
  }
}

}  // namespace contrastive
