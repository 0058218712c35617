#include "contrastive/eval/suite.h"

#include <algorithm>
#include <exception>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/options.h"
#include "contrastive/text/prompts.h"

#include "eval/task_keys.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

struct SuiteFile {
  std::string root;
  ConfigNode defaults = ConfigNode::make_map();
  std::vector<ConfigNode> tasks;

  template <typename Fields>
  void fields(Fields& f) {
    f("root", root);
    f("defaults", defaults);
    f("tasks", tasks, required());
  }
};

bool is_file_name(const std::string& name) {
  const auto is_plain = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' ||
           c == '-' || c == '@';
  };
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), is_plain);
}

/// "cifar10_zero-shot"
std::string default_name(const EvaluationTask& task) {
  auto path = fs::path(task.data).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  auto name = path.filename().string();
  if (name == task.split && path.has_parent_path()) name = path.parent_path().filename().string();
  for (auto& c : name) {
    if (!is_file_name(std::string("x") + c)) c = '_';
  }
  return fmt::format("{}_{}", name.empty() ? "data" : name, task.task);
}

/// The task's own settings, then those defaults that it has a use for.
ConfigNode with_defaults(ConfigNode task, const ConfigNode& defaults) {
  const auto* kind = task.find("task");
  if (kind == nullptr) kind = defaults.find("task");
  const auto name = kind == nullptr ? EvaluationTask{}.task : kind->scalar;
  for (const auto& entry : defaults.entries) {
    if (task.find(entry.key) == nullptr && detail::task_uses(name, entry.key)) task.entries.push_back(entry);
  }
  return task;
}

void put_below(const std::string& root, EvaluationTask& task) {
  if (root.empty()) return;
  const auto place = [&](std::string& path, const char* word) {
    if (!path.empty() && path != word && fs::path(path).is_relative()) path = (fs::path(root) / path).string();
  };
  place(task.data, "synthetic");
  place(task.train, "synthetic");
  place(task.class_names, "imagenet");
  place(task.class_ids, "imagenet");
  place(task.labels, "");
  place(task.images, "");
  place(task.captions, "");
  for (auto& prompts : task.prompts) {
    if (fs::exists(fs::path(root) / prompts)) place(prompts, "");
  }
}

/// Reports defaults that no kind of task knows.
void check_defaults(const ConfigNode& defaults, OptionErrors& errors) {
  if (defaults.kind == ConfigNode::Kind::null) return;
  if (defaults.kind != ConfigNode::Kind::map) {
    errors.add(defaults.place, "defaults", "expected a map of settings");
    return;
  }
  const auto known = options_to_node(EvaluationTask{});
  for (const auto& entry : defaults.entries) {
    if (known.find(entry.key) != nullptr) continue;
    std::vector<std::string> keys;
    for (const auto& each : known.entries) keys.push_back(each.key);
    const auto nearest = nearest_word(entry.key, keys);
    errors.add(entry.key_place, "defaults." + entry.key,
               nearest.empty() ? "unknown key" : fmt::format("unknown key (did you mean {}?)", nearest));
  }
}

std::vector<EvaluationTask> read_tasks(const SuiteFile& file) {
  OptionErrors errors;
  check_defaults(file.defaults, errors);
  errors.throw_if_any();
  std::vector<EvaluationTask> tasks;
  std::set<std::string> names;
  for (size_t i = 0; i < file.tasks.size(); ++i) {
    const auto path = fmt::format("tasks[{}]", i);
    const auto& place = file.tasks[i].place;
    if (file.tasks[i].kind != ConfigNode::Kind::map) {
      errors.add(place, path, "expected a map of settings");
      continue;
    }
    EvaluationTask task;
    contrastive::detail::OptionsReader::read_struct(with_defaults(file.tasks[i], file.defaults), path, task, errors);
    if (task.name.empty()) task.name = default_name(task);
    if (!is_file_name(task.name)) {
      errors.add(place, path + ".name",
                 fmt::format("\"{}\" can't be a file's name: use a-z, 0-9, '.', '_', '-'", task.name));
    } else if (!names.insert(task.name).second) {
      errors.add(place, path + ".name", fmt::format("an earlier task is called \"{}\" as well", task.name));
    }
    put_below(file.root, task);
    tasks.push_back(std::move(task));
  }
  if (file.tasks.empty()) errors.add({}, "tasks", "there is none");
  errors.throw_if_any();
  return tasks;
}

/// Results of that key in their files; empty unless all are there.
std::vector<EvaluationResult> kept_results(const fs::path& folder, const std::vector<std::string>& names,
                                           const std::string& key) {
  std::vector<EvaluationResult> results;
  for (const auto& name : names) {
    const auto file = folder / (name + ".json");
    if (!fs::exists(file)) return {};
    try {
      results.push_back(read_result(file));
    } catch (const DataError&) {
      return {};  // of another program, or damaged: made anew
    }
    if (results.back().key != key) return {};
  }
  return results;
}

/// One task of a suite at work.
class SuiteRun {
 public:
  SuiteRun(Evaluator& evaluator, const EvaluationSubject& subject, const fs::path& folder, const SuiteHooks& hooks,
           const distributed::ProcessGroup& group)
      : evaluator_(evaluator), subject_(subject), folder_(folder), hooks_(hooks), group_(group) {}

  void run(const EvaluationTask& task) {
    try {
      evaluate(task);
    } catch (const DistributedError&) {
      throw;
    } catch (const std::exception& error) {
      outcome_.failures.push_back({task.name, error.what()});
      if (is_first() && hooks_.on_failure) hooks_.on_failure(outcome_.failures.back());
    }
  }

  SuiteOutcome take() { return std::move(outcome_); }

 private:
  bool is_first() const { return group_.rank() == 0; }

  void evaluate(const EvaluationTask& task) {
    const auto prepared = evaluator_.prepare(task);
    std::string key;
    std::vector<EvaluationResult> results;
    if (!folder_.empty()) {
      key = evaluator_.key(*prepared);
      // What the first rank finds decides for all.
      if (is_first()) results = kept_results(folder_, Evaluator::result_names(*prepared), key);
      const bool is_kept = group_.broadcast_text(results.empty() ? "" : "kept") == "kept";
      if (is_kept) {
        for (auto& result : results) add(std::move(result), /*was_kept=*/true);
        return;
      }
    }
    results = evaluator_.run(*prepared);
    for (auto& result : results) {
      result.key = key;
      if (is_first() && !folder_.empty()) {
        write_file_atomically(folder_ / (result.name + ".json"), to_json(result, subject_));
      }
      add(std::move(result), /*was_kept=*/false);
    }
  }

  void add(EvaluationResult result, bool was_kept) {
    outcome_.num_kept += was_kept ? 1 : 0;
    outcome_.results.push_back(std::move(result));
    if (is_first() && hooks_.on_result) hooks_.on_result(outcome_.results.back(), was_kept);
  }

  Evaluator& evaluator_;
  const EvaluationSubject& subject_;
  const fs::path& folder_;
  const SuiteHooks& hooks_;
  const distributed::ProcessGroup& group_;
  SuiteOutcome outcome_;
};

}  // namespace

Suite load_suite(const fs::path& file) {
  return {read_tasks(read_options<SuiteFile>(load_config(file)))};
}

SuiteOutcome run_suite(const Suite& suite, Evaluator& evaluator, const EvaluationSubject& subject,
                       const fs::path& folder, const SuiteHooks& hooks, const distributed::ProcessGroup& group) {
  if (!folder.empty()) fs::create_directories(folder);
  SuiteRun run(evaluator, subject, folder, hooks, group);
  for (const auto& task : suite.tasks) run.run(task);
  return run.take();
}

}  // namespace contrastive::eval
