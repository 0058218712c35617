#pragma once

#include <string_view>

namespace contrastive::eval::detail {

/// Whether a setting of EvaluationTask has a meaning for that kind of task.
bool task_uses(std::string_view task, std::string_view key);

}  // namespace contrastive::eval::detail
