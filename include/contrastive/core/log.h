#pragma once

#include <functional>
#include <string_view>

#include "contrastive/core/export.h"

namespace contrastive {

enum class LogLevel { debug, info, warning, error };

/// Receives every message of the library. Called from any thread, one call at a time.
using LogSink = std::function<void(LogLevel, std::string_view)>;

/// Replaces the process-wide sink; an empty function restores the default, which writes to stderr. Thread-safe.
CONTRASTIVE_API void set_log_sink(LogSink sink);

/// Messages below this level are dropped before they reach the sink. Default: info.
CONTRASTIVE_API void set_log_level(LogLevel level);

/// Hands one message, without a line end, to the sink. Thread-safe.
CONTRASTIVE_API void log(LogLevel level, std::string_view message);

}  // namespace contrastive
