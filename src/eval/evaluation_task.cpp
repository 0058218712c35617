#include "contrastive/eval/evaluation_task.h"

#include <algorithm>
#include <initializer_list>

#include <fmt/format.h>

#include "eval/task_keys.h"

namespace contrastive::eval {
namespace detail {

bool task_uses(std::string_view task, std::string_view key) {
  const auto is_any = [&](std::initializer_list<std::string_view> keys) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
  };
  if (is_any({"task", "data", "name", "split", "image_key", "separator"})) return true;
  if (task == "retrieval") return is_any({"images", "captions", "captions_per_image", "caption_key"});
  if (is_any({"class_names", "class_ids", "label_key"})) return true;
  if (task == "zero-shot") {
    return is_any(
        {"labels", "prompts", "canonicalize", "merge_duplicates", "per_class", "confusion", "accept_class_order"});
  }
  if (is_any({"train", "train_split", "shots", "seeds"})) return true;
  return task == "few-shot" ? key == "l2" : is_any({"val_split", "features", "c", "sweep"});
}

}  // namespace detail

void EvaluationTask::validate(const OptionScope& scope) const {
  const auto own = options_to_node(*this);
  const auto defaults = options_to_node(EvaluationTask{});
  for (const auto& entry : own.entries) {
    if (detail::task_uses(task, entry.key)) continue;
    if (to_yaml(entry.value) == to_yaml(*defaults.find(entry.key))) continue;
    scope.fail(entry.key, fmt::format("has no meaning for task {}", task));
  }
  if (c && sweep != EvaluationTask{}.sweep) scope.fail("sweep", "has no meaning where c is given");
}

}  // namespace contrastive::eval
