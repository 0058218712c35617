#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/adapt/ape.h"
#include "contrastive/adapt/calip.h"
#include "contrastive/adapt/gda.h"
#include "contrastive/adapt/timo.h"
#include "contrastive/adapt/tip_adapter.h"
#include "contrastive/adapt/tip_adapter_f.h"
#include "contrastive/adapt/tip_x.h"
#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

using Settings = std::map<std::string, std::string>;

/// Puts an adapter's settings into its options; what nothing asked for is an error.
class SettingsReader {
 public:
  SettingsReader(const std::string& adapter, const Settings& settings) : adapter_(adapter), settings_(settings) {}

  template <typename Number>
  SettingsReader& number(const char* name, Number& value) {
    const auto* text = find(name);
    if (text == nullptr) return *this;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
    const bool is_finite = std::isfinite(static_cast<double>(value));
    if (error != std::errc() || end != text->data() + text->size() || !is_finite) {
      throw ConfigError(fmt::format("[{}] {} must be a number, but is \"{}\"", adapter_, name, *text));
    }
    return *this;
  }

  template <typename Choice>
  SettingsReader& choice(const char* name, Choice& value,
                         const std::vector<std::pair<std::string_view, Choice>>& choices) {
    const auto* text = find(name);
    if (text == nullptr) return *this;
    for (const auto& [known, meaning] : choices) {
      if (known == *text) {
        value = meaning;
        return *this;
      }
    }
    std::vector<std::string_view> names;
    for (const auto& [known, meaning] : choices) names.push_back(known);
    throw ConfigError(
        fmt::format("[{}] {} must be one of {}, but is \"{}\"", adapter_, name, fmt::join(names, ", "), *text));
  }

  void finish() const {
    for (const auto& [name, value] : settings_) {
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      throw ConfigError(known_.empty() ? fmt::format("[{}] has no options, but \"{}\" is set", adapter_, name)
                                       : fmt::format("[{}] has no option \"{}\": there are {}", adapter_, name,
                                                     fmt::join(known_, ", ")));
    }
  }

 private:
  const std::string* find(const char* name) {
    known_.emplace_back(name);
    const auto found = settings_.find(name);
    return found == settings_.end() ? nullptr : &found->second;
  }

  const std::string& adapter_;
  const Settings& settings_;
  std::vector<std::string> known_;
};

std::unique_ptr<Adapter> make_tip_adapter(SettingsReader reader) {
  TipAdapterOptions options;
  reader.number("max_alpha", options.max_alpha)
      .number("max_beta", options.max_beta)
      .number("alpha", options.alpha)
      .number("beta", options.beta)
      .finish();
  return std::make_unique<TipAdapter>(options);
}

std::unique_ptr<Adapter> make_tip_adapter_f(SettingsReader reader) {
  TipAdapterFOptions options;
  reader.number("epochs", options.epochs)
      .number("batch_size", options.batch_size)
      .number("lr", options.lr)
      .number("eps", options.eps)
      .number("weight_decay", options.weight_decay)
      .number("alpha", options.alpha)
      .number("beta", options.beta)
      .number("max_alpha", options.max_alpha)
      .number("max_beta", options.max_beta)
      .number("seed", options.seed)
      .finish();
  return std::make_unique<TipAdapterF>(options);
}

std::unique_ptr<Adapter> make_tip_x(SettingsReader reader) {
  TipXOptions options;
  reader.number("tau", options.tau)
      .choice<Psi>("psi", options.psi, {{"range", Psi::range}, {"none", Psi::none}})
      .choice<Aggregate>("aggregate", options.aggregate, {{"mean", Aggregate::mean}, {"sum", Aggregate::sum}})
      .finish();
  return std::make_unique<TipX>(options);
}

std::unique_ptr<Adapter> make_calip(SettingsReader reader) {
  CalipOptions options;
  reader.number("largest_b2", options.largest_b2).number("largest_b3", options.largest_b3).finish();
  return std::make_unique<Calip>(options);
}

std::unique_ptr<Adapter> make_ape(SettingsReader reader) {
  ApeOptions options;
  reader.number("dimensions", options.dimensions)
      .number("inter_class_weight", options.inter_class_weight)
      .number("text_variance_weight", options.text_variance_weight)
      .finish();
  return std::make_unique<Ape>(options);
}

std::unique_ptr<Adapter> make_timo(SettingsReader reader) {
  TimoOptions options;
  reader.number("prompts_per_class", options.prompts_per_class).finish();
  return std::make_unique<Timo>(options);
}

template <typename Plain>
std::unique_ptr<Adapter> make_plain(SettingsReader reader) {
  reader.finish();
  return std::make_unique<Plain>();
}

struct Entry {
  const char* name;
  std::unique_ptr<Adapter> (*make)(SettingsReader);
};

constexpr Entry kAdapters[] = {
    {"zero-shot", make_plain<ZeroShotAdapter>},
    {"tip-adapter", make_tip_adapter},
    {"tip-adapter-f", make_tip_adapter_f},
    {"tip-x", make_tip_x},
    {"calip", make_calip},
    {"gda", make_plain<Gda>},
    {"ape", make_ape},
    {"timo", make_timo},
};

}  // namespace

const std::vector<std::string>& adapter_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const auto& entry : kAdapters) list.emplace_back(entry.name);
    return list;
  }();
  return names;
}

std::unique_ptr<Adapter> make_adapter(const std::string& name, const Settings& settings) {
  for (const auto& entry : kAdapters) {
    if (name == entry.name) return entry.make(SettingsReader(name, settings));
  }
  throw ConfigError(fmt::format("there is no adapter \"{}\": there are {}", name, fmt::join(adapter_names(), ", ")));
}

}  // namespace contrastive::adapt
