#include "contrastive/adapt/retrieval.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/search.h"

namespace contrastive::adapt {
namespace {

constexpr size_t kMaxNamed = 10;
constexpr int64_t kExcludedTile = 4096;

/// An image that a class might take.
struct Candidate {
  int64_t row = 0;
  float score = 0;
  int64_t prompt = 0;  ///< number of the prompt it scores highest for
};

bool is_better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.row < b.row;
}

void check(const RetrievalOptions& options) {
  if (options.per_class < 1) {
    throw ConfigError(fmt::format("[from-shards] per_class must be at least 1, but is {}", options.per_class));
  }
  if (options.min_per_class < 1 || options.min_per_class > options.per_class) {
    throw ConfigError(fmt::format("[from-shards] min_per_class must be in [1, {}], per_class, but is {}",
                                  options.per_class, options.min_per_class));
  }
  if (options.candidates != 0 && options.candidates < options.per_class) {
    throw ConfigError(fmt::format("[from-shards] candidates must be at least per_class, {}, but is {}",
                                  options.per_class, options.candidates));
  }
}

/// The best rows of every prompt over all parts. [P, k]
eval::SearchResult search_parts(const EmbeddingIndex& index, const torch::Tensor& prompts, int64_t k) {
  std::vector<torch::Tensor> rows;
  std::vector<torch::Tensor> scores;
  for (const auto& part : index.parts()) {
    if (part.features.size(0) == 0) continue;
    auto found = eval::search(prompts, part.features, k);
    rows.push_back(found.indices + part.first_row);
    scores.push_back(found.scores);
  }
  const auto all = at::cat(scores, 1);
  const auto order = all.argsort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
  const auto kept = order.slice(1, 0, std::min(k, order.size(1)));
  return {at::cat(rows, 1).gather(1, kept), all.gather(1, kept)};
}

/// The candidates of every class, best first.
std::vector<std::vector<Candidate>> merge_prompts(const eval::SearchResult& found, const torch::Tensor& prompt_class,
                                                  int64_t num_classes) {
  std::vector<std::unordered_map<int64_t, Candidate>> best(static_cast<size_t>(num_classes));
  const auto rows = found.indices.contiguous();
  const auto scores = found.scores.contiguous();
  const auto k = rows.size(1);
  for (int64_t prompt = 0; prompt < rows.size(0); ++prompt) {
    auto& own = best[static_cast<size_t>(prompt_class[prompt].item<int64_t>())];
    for (int64_t i = prompt * k; i < (prompt + 1) * k; ++i) {
      const Candidate candidate{rows.const_data_ptr<int64_t>()[i], scores.const_data_ptr<float>()[i], prompt};
      if (!(candidate.score >= -2)) continue;  // a row that isn't finite
      const auto [place, is_new] = own.emplace(candidate.row, candidate);
      if (!is_new && candidate.score > place->second.score) place->second = candidate;
    }
  }
  std::vector<std::vector<Candidate>> classes;
  for (const auto& own : best) {
    auto& list = classes.emplace_back();
    for (const auto& [row, candidate] : own) list.push_back(candidate);
    std::sort(list.begin(), list.end(), is_better);
  }
  return classes;
}

/// The class that each row scores highest for; of equal ones the lowest.
std::unordered_map<int64_t, int64_t> best_classes(const std::vector<std::vector<Candidate>>& classes) {
  std::unordered_map<int64_t, std::pair<float, int64_t>> best;
  for (size_t c = 0; c < classes.size(); ++c) {
    for (const auto& candidate : classes[c]) {
      const auto [place, is_new] = best.emplace(candidate.row, std::pair{candidate.score, static_cast<int64_t>(c)});
      if (!is_new && candidate.score > place->second.first) place->second = {candidate.score, static_cast<int64_t>(c)};
    }
  }
  std::unordered_map<int64_t, int64_t> classes_of;
  for (const auto& [row, entry] : best) classes_of[row] = entry.second;
  return classes_of;
}

torch::Tensor rows_of(const std::vector<Candidate>& candidates) {
  auto rows = at::empty({static_cast<int64_t>(candidates.size())}, at::kLong);
  for (size_t i = 0; i < candidates.size(); ++i) rows.data_ptr<int64_t>()[i] = candidates[i].row;
  return rows;
}

/// Picks the images of one class out of its candidates.
class ClassPick {
 public:
  ClassPick(const EmbeddingIndex& index, const std::vector<Candidate>& candidates, const torch::Tensor& excluded,
            const RetrievalOptions& options)
      : candidates_(candidates), options_(options), features_(index.features(rows_of(candidates))) {
    is_excluded_ = at::zeros({features_.size(0)}, at::kBool);
    if (!excluded.defined() || features_.size(0) == 0) return;
    for (const auto& part : excluded.split(kExcludedTile)) {
      const auto nearest = std::get<0>(features_.matmul(part.to(at::kFloat).t()).max(1));
      is_excluded_ |= nearest > options.excluded_cosine;
    }
  }

  /// `is_own`: whether an image is best for this class. Returns: positions among the candidates.
  template <typename IsOwn>
  void pick(const IsOwn& is_own, RetrievalReport& report) {
    std::vector<size_t> of_others;
    std::vector<size_t> alike;
    for (size_t i = 0; i < candidates_.size() && size() < options_.per_class; ++i) {
      if (is_excluded_[static_cast<int64_t>(i)].template item<bool>()) {
        ++report.excluded;
      } else if (!is_own(candidates_[i].row)) {
        of_others.push_back(i);
      } else if (is_alike(i)) {
        alike.push_back(i);
      } else {
        picked_.push_back(i);
      }
    }
    report.other_class += static_cast<int64_t>(of_others.size());
    report.duplicates += static_cast<int64_t>(alike.size());
    for (const auto& [reserve, may_be_alike] : {std::pair{&of_others, false}, {&of_others, true}, {&alike, true}}) {
      for (const auto i : *reserve) {
        if (size() >= options_.min_per_class) return;
        if (is_picked(i) || (!may_be_alike && is_alike(i))) continue;
        picked_.push_back(i);
        fallbacks_.push_back(i);
        ++report.fallbacks;
      }
    }
  }

  int64_t size() const { return static_cast<int64_t>(picked_.size()); }
  const std::vector<size_t>& picked() const { return picked_; }
  bool is_fallback(size_t i) const { return std::find(fallbacks_.begin(), fallbacks_.end(), i) != fallbacks_.end(); }
  torch::Tensor features(size_t i) const { return features_[static_cast<int64_t>(i)]; }

 private:
  bool is_picked(size_t i) const { return std::find(picked_.begin(), picked_.end(), i) != picked_.end(); }

  /// Whether an image that was picked is nearly the same.
  bool is_alike(size_t i) const {
    if (picked_.empty()) return false;
    auto rows = at::empty({size()}, at::kLong);
    for (int64_t p = 0; p < size(); ++p)
      rows.data_ptr<int64_t>()[p] = static_cast<int64_t>(picked_[static_cast<size_t>(p)]);
    return features_.index_select(0, rows).mv(features(i)).max().item<double>() > options_.duplicate_cosine;
  }

  const std::vector<Candidate>& candidates_;
  const RetrievalOptions& options_;
  torch::Tensor features_;     ///< [n, E]
  torch::Tensor is_excluded_;  ///< [n]
  std::vector<size_t> picked_;
  std::vector<size_t> fallbacks_;
};

std::vector<std::string> texts_of(const eval::ClassPrompts& prompts) {
  std::vector<std::string> texts;
  for (const auto& own : prompts.prompts) texts.insert(texts.end(), own.begin(), own.end());
  return texts;
}

void refuse(const std::vector<std::string>& poor, const RetrievalOptions& options) {
  const auto shown =
      std::vector<std::string>(poor.begin(), poor.begin() + static_cast<int64_t>(std::min(poor.size(), kMaxNamed)));
  throw DataError(
      fmt::format("[from-shards] {} classes have fewer than {} images (min_per_class): {}{}; more candidates "
                  "or a larger index may help",
                  poor.size(), options.min_per_class, fmt::join(shown, ", "), poor.size() > kMaxNamed ? ", ..." : ""));
}

}  // namespace

SupportSet retrieve_support(const EmbeddingIndex& index, const TextClassifier& classifier,
                            const eval::ClassPrompts& prompts, const torch::Tensor& excluded,
                            const RetrievalOptions& options, RetrievalReport* report) {
  check(options);
  const auto num_classes = classifier.num_classes();
  const auto texts = texts_of(prompts);
  TORCH_CHECK(static_cast<int64_t>(texts.size()) == classifier.prompts.size(0), "[from-shards] there are ",
              texts.size(), " prompts and ", classifier.prompts.size(0), " embeddings of prompts");
  if (classifier.prompts.size(1) != index.embed_dim()) {
    throw DataError(fmt::format("[from-shards] the index has {} features, but the prompts {}", index.embed_dim(),
                                classifier.prompts.size(1)));
  }
  const auto k = options.candidates > 0 ? options.candidates : 4 * options.per_class + 64;
  const auto found = search_parts(index, classifier.prompts.to(at::kCPU, at::kFloat), k);
  const auto classes = merge_prompts(found, classifier.prompt_class, num_classes);
  const auto class_of = options.one_class ? best_classes(classes) : std::unordered_map<int64_t, int64_t>{};

  SupportSet set;
  RetrievalReport own_report;
  std::vector<torch::Tensor> features;
  std::vector<int64_t> labels;
  std::vector<std::string> poor;
  for (int64_t c = 0; c < num_classes; ++c) {
    const auto& candidates = classes[static_cast<size_t>(c)];
    ClassPick pick(index, candidates, excluded, options);
    pick.pick([&](int64_t row) { return !options.one_class || class_of.at(row) == c; }, own_report);
    if (pick.size() < options.min_per_class) {
      poor.push_back(fmt::format("{} ({})", classifier.class_names[static_cast<size_t>(c)], pick.size()));
    }
    for (const auto i : pick.picked()) {
      const auto& candidate = candidates[i];
      set.rows.push_back({index.folder(candidate.row), index.name(candidate.row),
                          texts[static_cast<size_t>(candidate.prompt)], candidate.score,
                          pick.is_fallback(i) ? "fallback" : ""});
      features.push_back(pick.features(i));
      labels.push_back(c);
    }
  }
  if (!poor.empty()) refuse(poor, options);
  set.features = SupportFeatures{at::stack(features), at::tensor(labels, at::kLong), num_classes, {}};
  set.class_names = classifier.class_names;
  set.model_sha256 = index.model_sha256();
  set.made_by = {{"builder", "from-shards"},
                 {"index_rows", fmt::format("{}", index.size())},
                 {"prompts", prompts.name},
                 {"prompt_sha256", prompts.fingerprint()},
                 {"per_class", fmt::format("{}", options.per_class)},
                 {"min_per_class", fmt::format("{}", options.min_per_class)},
                 {"candidates", fmt::format("{}", k)},
                 {"duplicate_cosine", fmt::format("{}", options.duplicate_cosine)},
                 {"excluded_cosine", excluded.defined() ? fmt::format("{}", options.excluded_cosine) : "none"},
                 {"one_class", options.one_class ? "yes" : "no"}};
  set.features.check();
  if (report != nullptr) *report = own_report;
  return set;
}

}  // namespace contrastive::adapt
