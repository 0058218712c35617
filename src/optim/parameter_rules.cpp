#include "contrastive/optim/parameter_rules.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <numeric>
#include <regex>
#include <set>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

constexpr size_t kNearestNames = 3;
constexpr size_t kMaxPatternLength = 500;

/// What of a pattern is plain text, with other characters left out.
std::string literal_part(const std::string& pattern) {
  std::string text;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      if (std::isalnum(static_cast<unsigned char>(pattern[++i])) == 0) text += pattern[i];
    } else if (pattern[i] == '.' && i + 1 < pattern.size() &&
               std::string("*+?").find(pattern[i + 1]) != std::string::npos) {
      ++i;
    } else if (std::string("^$*+?()[]{}|").find(pattern[i]) == std::string::npos) {
      text += pattern[i];
    }
  }
  return text;
}

/// Edits that make `word` a part of `text`. Source: Sellers 1980.
size_t distance_within(const std::string& word, const std::string& text) {
  std::vector<size_t> row(text.size() + 1, 0);
  for (size_t i = 1; i <= word.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= text.size(); ++j) {
      const size_t replaced = diagonal + (word[i - 1] == text[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return *std::min_element(row.begin(), row.end());
}

std::string nearest_names(const std::string& pattern, const NamedTensors& parameters) {
  const auto word = literal_part(pattern);
  std::vector<std::pair<size_t, std::string>> ranked;
  for (const auto& [name, tensor] : parameters) ranked.emplace_back(distance_within(word, name), name);
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  ranked.resize(std::min(ranked.size(), kNearestNames));
  std::vector<std::string> names;
  for (auto& [distance, name] : ranked) names.push_back(std::move(name));
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Collects problems of all rules.
class RuleErrors {
 public:
  void add(size_t rule, const std::string& match, const std::string& message) {
    lines_.push_back(fmt::format("rule {} ({}): {}", rule + 1, match, message));
  }
  void throw_if_any() const {
    if (!lines_.empty()) throw ConfigError(fmt::format("[parameter rules] {}", fmt::join(lines_, "\n  ")));
  }

 private:
  std::vector<std::string> lines_;
};

/// A rule with the parameters that it matches.
struct MatchedRule {
  const ParameterRule* rule = nullptr;
  std::vector<bool> matches;
  size_t schedule = 0;  ///< into the plan's
};

void check_settings(size_t index, const ParameterRule& rule, int64_t total_steps, RuleErrors& errors) {
  const auto fail = [&](const std::string& message) { errors.add(index, rule.match, message); };
  if (!rule.lr && !rule.decay && !rule.freeze && !rule.unlock_at && !rule.schedule) {
    fail("sets nothing; expected lr, decay, freeze, unlock_at or schedule");
  }
  if (rule.lr && !(std::isfinite(*rule.lr) && *rule.lr > 0)) {
    fail(fmt::format("lr must be above 0, but is {} (freeze locks a parameter)", *rule.lr));
  }
  if (rule.decay && !(std::isfinite(*rule.decay) && *rule.decay >= 0)) {
    fail(fmt::format("decay must be at least 0, but is {}", *rule.decay));
  }
  if (rule.unlock_at && (*rule.unlock_at < 0 || *rule.unlock_at >= std::max<int64_t>(total_steps, 1))) {
    fail(fmt::format("unlock_at must be at least 0 and below {} (the steps of the run), but is {}", total_steps,
                     *rule.unlock_at));
  }
  if (rule.freeze.value_or(false) && (rule.lr || rule.decay || rule.unlock_at || rule.schedule)) {
    fail("freezes what it has other settings for");
  }
}

std::vector<bool> matches_of(size_t index, const ParameterRule& rule, const NamedTensors& parameters,
                             RuleErrors& errors) {
  std::vector<bool> matches(parameters.size());
  if (rule.match.size() > kMaxPatternLength) {
    errors.add(index, rule.match.substr(0, kMaxPatternLength), "the regular expression is too long");
    return matches;
  }
  try {
    const std::regex pattern(rule.match, std::regex::ECMAScript);
    for (size_t i = 0; i < parameters.size(); ++i) matches[i] = std::regex_match(parameters[i].first, pattern);
  } catch (const std::regex_error& error) {
    errors.add(index, rule.match, fmt::format("is no regular expression: {}", error.what()));
    return matches;
  }
  if (std::find(matches.begin(), matches.end(), true) == matches.end()) {
    errors.add(index, rule.match,
               fmt::format("matches no parameter; the nearest are {}", nearest_names(rule.match, parameters)));
  }
  return matches;
}

/// The first rule that matches parameter `index` and has a setting; null if there is none.
template <typename HasSetting>
const MatchedRule* first_with(const std::vector<MatchedRule>& rules, size_t index, const HasSetting& has_setting) {
  for (const auto& rule : rules) {
    if (rule.matches[index] && has_setting(*rule.rule)) return &rule;
  }
  return nullptr;
}

PlannedParameter plan_parameter(const NamedTensors& parameters, size_t index, const std::vector<MatchedRule>& rules,
                                const PlanDefaults& defaults) {
  const auto& [name, tensor] = parameters[index];
  PlannedParameter planned{.name = name, .tensor = tensor};
  const auto find = [&](const auto& has_setting) { return first_with(rules, index, has_setting); };
  const auto* training = find([](const ParameterRule& r) { return r.freeze || r.unlock_at || r.schedule; });
  planned.trained = tensor.requires_grad() && (training == nullptr || !training->rule->freeze.value_or(false));
  if (!planned.trained) return planned;
  if (const auto* rule = find([](const ParameterRule& r) { return r.lr.has_value(); })) {
    planned.lr_multiplier = *rule->rule->lr;
  }
  if (const auto* rule = find([](const ParameterRule& r) { return r.schedule.has_value(); })) {
    planned.schedule = rule->schedule;
  }
  if (const auto* rule = find([](const ParameterRule& r) { return r.unlock_at.has_value(); })) {
    planned.unlock_at = *rule->rule->unlock_at;
  }
  if (defaults.decays(name, tensor)) planned.decay = defaults.weight_decay;
  if (const auto* rule = find([](const ParameterRule& r) { return r.decay.has_value(); })) {
    planned.decay *= *rule->rule->decay;
  }
  const bool follows_schedule = defaults.convention == DecayConvention::schedule_only;
  if (follows_schedule && planned.decay > 0) planned.decay /= defaults.lr * planned.lr_multiplier;
  return planned;
}

bool is_digit(char c) {
  return std::isdigit(static_cast<unsigned char>(c)) != 0;
}

/// "visual.blocks.3" of "visual.blocks.3.attn.weight", "text.ln_final" of "text.ln_final.weight".
std::string default_group(const std::string& name) {
  const auto is_boundary = [&](size_t i) { return i == name.size() || name[i] == '.'; };
  for (size_t begin = 0; begin < name.size(); begin = std::min(name.find('.', begin), name.size() - 1) + 1) {
    auto end = begin;
    while (end < name.size() && is_digit(name[end])) ++end;
    if (end > begin && is_boundary(end)) return name.substr(0, end);
  }
  const auto dot = name.rfind('.');
  const auto last = name.substr(dot + 1);
  return last == "weight" || last == "bias" ? name.substr(0, dot) : name;
}

/// A group's name around its last number.
struct GroupName {
  std::string before, number, after;

  explicit GroupName(const std::string& group) {
    auto end = group.size();
    while (end > 0 && !is_digit(group[end - 1])) --end;
    auto begin = end;
    while (begin > 0 && is_digit(group[begin - 1])) --begin;
    before = group.substr(0, begin);
    number = group.substr(begin, end - begin);
    after = group.substr(end);
  }
  bool is_beside(const GroupName& other) const {
    return !number.empty() && !other.number.empty() && before == other.before && after == other.after;
  }
};

bool same_settings(const PlanRow& a, const PlanRow& b) {
  const bool same_decay = a.decay == b.decay || a.decayed_values == 0 || b.decayed_values == 0;
  return a.trained == b.trained && a.lr == b.lr && a.unlock_at == b.unlock_at && a.schedule == b.schedule && same_decay;
}

void merge(PlanRow& into, const PlanRow& row) {
  into.tensors += row.tensors;
  into.values += row.values;
  into.decayed_values += row.decayed_values;
  into.decay = std::max(into.decay, row.decay);
}

/// Rows of one group, by settings; those of equal settings in neighbouring groups go together.
struct RowGroup {
  std::string first, last;
  std::vector<PlanRow> rows;
  bool is_single_parameter = false;

  void add(const PlanRow& row) {
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return same_settings(r, row); });
    if (found == rows.end()) {
      rows.push_back(row);
    } else {
      merge(*found, row);
    }
  }

  bool continues(const RowGroup& before) const {
    return GroupName(first).is_beside(GroupName(before.last)) &&
           std::equal(rows.begin(), rows.end(), before.rows.begin(), before.rows.end(), same_settings);
  }

  void append(const RowGroup& next) {
    last = next.last;
    for (size_t i = 0; i < rows.size(); ++i) merge(rows[i], next.rows[i]);
  }

  std::string label() const {
    if (is_single_parameter) return first;
    const GroupName from(first), to(last);
    const auto number = from.number == to.number ? from.number : fmt::format("{}-{}", from.number, to.number);
    return fmt::format("{}{}{}.*", from.before, number, from.after);
  }
};

/// 85054464 as "85,054,464".
std::string with_commas(int64_t count) {
  if (count < 1000) return fmt::format("{}", count);
  return fmt::format("{},{:03}", with_commas(count / 1000), count % 1000);
}

std::string settings_text(const PlanRow& row) {
  if (!row.trained) return "locked";
  auto text = fmt::format("lr {:g}, {}", row.lr, row.schedule);
  if (row.decayed_values == row.values) {
    text += fmt::format(", decay {:g}", row.decay);
  } else if (row.decayed_values > 0) {
    text += fmt::format(", decay {:g} on {}", row.decay, with_commas(row.decayed_values));
  }
  return row.unlock_at == 0 ? text : text + fmt::format(", from step {}", row.unlock_at);
}

}  // namespace

DecayConvention decay_convention(const std::string& name) {
  if (name == "coupled") return DecayConvention::coupled;
  if (name == "schedule_only") return DecayConvention::schedule_only;
  throw ConfigError(fmt::format("[decay_convention] expected coupled or schedule_only, found {}", name));
}

ParameterPlan resolve(const NamedTensors& parameters, const std::vector<ParameterRule>& rules,
                      const PlanDefaults& defaults) {
  ParameterPlan plan;
  plan.schedules_.emplace_back(defaults.schedule, defaults.lr, defaults.total_steps);
  if (defaults.convention == DecayConvention::schedule_only && defaults.weight_decay > 0 && !(defaults.lr > 0)) {
    throw ConfigError("[parameter rules] weight decay that follows the schedule only needs a learning rate above 0");
  }
  RuleErrors errors;
  std::vector<MatchedRule> matched;
  for (size_t i = 0; i < rules.size(); ++i) {
    check_settings(i, rules[i], defaults.total_steps, errors);
    matched.push_back({&rules[i], matches_of(i, rules[i], parameters, errors), 0});
    if (!rules[i].schedule) continue;
    try {
      plan.schedules_.emplace_back(*rules[i].schedule, defaults.lr, defaults.total_steps);
      matched.back().schedule = plan.schedules_.size() - 1;
    } catch (const ConfigError& error) {
      errors.add(i, rules[i].match, error.what());
    }
  }
  errors.throw_if_any();
  for (size_t i = 0; i < parameters.size(); ++i) {
    plan.parameters_.push_back(plan_parameter(parameters, i, matched, defaults));
  }
  if (plan.trained().empty()) throw ConfigError("[parameter rules] nothing is trained: every parameter is locked");
  return plan;
}

NamedTensors ParameterPlan::trained() const {
  NamedTensors result;
  for (const auto& planned : parameters_) {
    if (planned.trained) result.emplace_back(planned.name, planned.tensor);
  }
  return result;
}

std::vector<ParameterSettings> ParameterPlan::settings() const {
  std::vector<ParameterSettings> result;
  for (const auto& planned : parameters_) {
    if (planned.trained) result.push_back({.decay = planned.decay, .own_step = planned.unlock_at > 0});
  }
  return result;
}

std::vector<double> ParameterPlan::learning_rates(int64_t step) const {
  std::vector<double> rates;
  for (const auto& schedule : schedules_) rates.push_back(schedule.at(step));
  std::vector<double> result;
  for (const auto& planned : parameters_) {
    if (!planned.trained) continue;
    result.push_back(step < planned.unlock_at ? 0.0 : rates[planned.schedule] * planned.lr_multiplier);
  }
  return result;
}

ParameterPlan ParameterPlan::only(const NamedTensors& some) const {
  std::map<std::string, const PlannedParameter*> by_name;
  for (const auto& planned : parameters_) {
    if (planned.trained) by_name.emplace(planned.name, &planned);
  }
  ParameterPlan part;
  part.schedules_ = schedules_;
  for (const auto& [name, tensor] : some) {
    const auto found = by_name.find(name);
    TORCH_CHECK(found != by_name.end(), "[ParameterPlan] ", name, " is not among the trained parameters");
    part.parameters_.push_back(*found->second);
  }
  return part;
}

NamedTensors ParameterPlan::unlocked(int64_t step) const {
  NamedTensors result;
  for (const auto& planned : parameters_) {
    if (planned.trained && planned.unlock_at <= step) result.emplace_back(planned.name, planned.tensor);
  }
  return result;
}

std::vector<int64_t> ParameterPlan::unlock_steps() const {
  std::set<int64_t> steps;
  for (const auto& planned : parameters_) {
    if (planned.trained && planned.unlock_at > 0) steps.insert(planned.unlock_at);
  }
  return {steps.begin(), steps.end()};
}

std::vector<PlanRow> ParameterPlan::rows(const std::function<std::string(const std::string& name)>& group_of) const {
  std::vector<RowGroup> groups;
  for (const auto& planned : parameters_) {
    const auto group = group_of ? group_of(planned.name) : default_group(planned.name);
    const auto& schedule = schedules_[planned.schedule];
    const auto values = planned.tensor.numel();
    const PlanRow row{.group = "",
                      .trained = planned.trained,
                      .tensors = 1,
                      .values = values,
                      .lr = planned.trained ? schedule.base_lr() * planned.lr_multiplier : 0,
                      .decay = planned.decay,
                      .decayed_values = planned.decay > 0 ? values : 0,
                      .unlock_at = planned.unlock_at,
                      .schedule = planned.trained ? schedule.options().schedule : ""};
    if (groups.empty() || groups.back().first != group) groups.push_back({group, group, {}, group == planned.name});
    groups.back().add(row);
  }
  std::vector<RowGroup> merged;
  for (const auto& group : groups) {
    if (!merged.empty() && group.continues(merged.back())) {
      merged.back().append(group);
    } else {
      merged.push_back(group);
    }
  }
  std::vector<PlanRow> result;
  for (const auto& group : merged) {
    for (auto row : group.rows) {
      row.group = group.label();
      result.push_back(std::move(row));
    }
  }
  return result;
}

std::string to_text(const std::vector<PlanRow>& rows) {
  size_t name_width = 0, value_width = 0;
  for (const auto& row : rows) {
    name_width = std::max(name_width, row.group.size());
    value_width = std::max(value_width, with_commas(row.values).size());
  }
  std::string text;
  for (const auto& row : rows) {
    text += fmt::format("{:<{}}  {:>{}} values  {}\n", row.group, name_width, with_commas(row.values), value_width,
                        settings_text(row));
  }
  return text;
}

}  // namespace contrastive::optim
