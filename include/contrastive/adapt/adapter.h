#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/support_features.h"
#include "contrastive/adapt/text_classifier.h"
#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::adapt {

/// What a hyper-parameter does to the logits, which decides how a search goes through its values.
enum class ParameterRole {
  shape,  ///< the terms themselves depend on it
  outer,  ///< a factor of ScoreTerms::outer
  inner,  ///< a factor of ScoreTerms::inner
};

/// One hyper-parameter of an adapter.
struct Parameter {
  std::string name;          ///< as in the paper: "alpha"
  double fixed = 0;          ///< the value of the protocol `fixed`
  std::vector<double> grid;  ///< the values of a search, rising
  ParameterRole role = ParameterRole::inner;
};

/// A value for each of an adapter's parameters, in their order.
using ParameterValues = std::vector<double>;

/// Images to be classified.
struct QueryFeatures {
  torch::Tensor features = {};  ///< [N, D] fp32 or fp64, L2-normalised
  torch::Tensor tokens = {};    ///< [N, T, D], L2-normalised features of places in the image, for CALIP only

  int64_t size() const { return features.size(0); }
  CONTRASTIVE_API QueryFeatures rows(int64_t begin, int64_t end) const;
};

/// The parts of some images' logits: base + outer_value * outer + inner_value * inner. [n, C] each.
struct ScoreTerms {
  torch::Tensor base = {};
  torch::Tensor outer = {};  ///< undefined where no parameter has this role
  torch::Tensor inner = {};  ///< the same
};

/// Called for a tile of rows that begins at `first_row`, for every point of the shape parameters' grids (numbered in
/// the order of the parameters, the last one fastest).
using TermsVisitor = std::function<void(int64_t first_row, int64_t shape_point, const ScoreTerms& terms)>;

/// A classifier made of class texts and a few labelled images, whose image and text encoders stay as they are.
///
/// fit() once; after that const members may be called by several threads. Computes in the dtype of what it is given,
/// which must be the same for all: fp32 or fp64. Memory beyond arguments, results and the fitted state is bounded:
/// images are taken in tiles, and nothing of the size N x M is made.
class CONTRASTIVE_API Adapter {
 public:
  virtual ~Adapter() = default;

  /// As in tables and files: "tip-x".
  virtual std::string name() const = 0;

  /// In the order of the search's loops, outermost first: of equally good points the first one wins. At most one has
  /// the role outer, and one inner.
  virtual std::vector<Parameter> parameters() const = 0;

  /// The options that it was made with, as make_adapter takes them.
  virtual std::map<std::string, std::string> settings() const { return {}; }

  virtual bool needs_tokens() const { return false; }

  /// Whether fit() uses the support set at all.
  virtual bool needs_support() const { return true; }

  /// Throws: Error if shapes or dtypes don't go together; DataError as SupportFeatures::check.
  void fit(const SupportFeatures& support, const TextClassifier& classifier);

  /// Takes whatever the scores' scale depends on from these images, of which every rank has its share (TIP-X's ranges);
  /// fit() has taken it from the support set. Most adapters have no use for it.
  virtual void observe(const QueryFeatures& queries, const distributed::ProcessGroup& group = {});

  /// The scores of every class. Shapes: queries [N, D] to [N, C]. Throws: Error before fit(), for other shapes or
  /// dtypes, or unless there is a value for each parameter; DataError for features that aren't finite.
  torch::Tensor logits(const QueryFeatures& queries, const ParameterValues& values) const;
  torch::Tensor logits(const torch::Tensor& features, const ParameterValues& values) const;

  /// The terms of all images at every point of the shape parameters' grids, tile by tile.
  void visit_terms(const QueryFeatures& queries, const TermsVisitor& visit) const;

  ParameterValues fixed_values() const;

  /// What fit() and observe() have made, to be saved; restore() takes it in their place. Throws: CheckpointError naming
  /// a tensor that is missing or has a wrong shape.
  NamedTensors state() const;
  void restore(const NamedTensors& state);

  int64_t num_classes() const { return weights_.size(0); }
  int64_t embed_dim() const { return weights_.size(1); }

 protected:
  virtual void do_fit(const SupportFeatures& support, const TextClassifier& classifier) = 0;

  /// Of one tile of rows, at the shape parameters' `values` (those of other parameters are there but don't matter).
  virtual ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const = 0;

  /// Calls `visit` for every point of the shape parameters' grids, in order: here terms() at each. To be overridden
  /// where neighbouring points share work.
  virtual void sweep_terms(const QueryFeatures& tile,
                           const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const;

  /// Every fitted tensor by name, beyond the classifier's; the same function serves state() and restore().
  virtual std::vector<std::pair<std::string, torch::Tensor*>> fitted() { return {}; }

  /// Looks at what restore() has taken from a file, by the two functions below.
  virtual void check_fitted() const {}

  /// Throws: CheckpointError unless the tensor has this shape and dtype (undefined: that of the weights).
  void require_shape(const char* tensor_name, const torch::Tensor& tensor, at::IntArrayRef shape,
                     at::ScalarType dtype = at::ScalarType::Undefined) const;

  /// Throws: CheckpointError unless there is one a class, and the end, and they rise from 0 to num_keys.
  void require_offsets(const torch::Tensor& offsets, int64_t num_keys) const;

  /// Rows of a tile.
  virtual int64_t tile_rows() const { return 256; }

  /// scale * f . W^T of a tile.
  torch::Tensor zero_shot_logits(const torch::Tensor& features) const;

  const torch::Tensor& weights() const { return weights_; }  ///< [C, D]
  double scale() const { return scale_; }

 private:
  void check(const QueryFeatures& queries) const;
  ParameterValues shape_values(int64_t shape_point) const;

  torch::Tensor weights_;
  double scale_ = 100;
};

/// The text classifier alone.
class CONTRASTIVE_API ZeroShotAdapter : public Adapter {
 public:
  std::string name() const override { return "zero-shot"; }
  std::vector<Parameter> parameters() const override { return {}; }
  bool needs_support() const override { return false; }

 protected:
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
};

/// The names that make_adapter knows, in the order of tables.
CONTRASTIVE_API const std::vector<std::string>& adapter_names();

/// An adapter by name, with options as its settings() shows them ("tau": "0.5"); those that are missing have their
/// defaults. Throws: ConfigError that lists what there is, for an unknown name or option, or a value out of range.
CONTRASTIVE_API std::unique_ptr<Adapter> make_adapter(const std::string& name,
                                                      const std::map<std::string, std::string>& settings = {});

/// `count` values from `first` in equal steps of (end - first) / count, as the published searches have them: `end`
/// itself is left out.
CONTRASTIVE_API std::vector<double> half_open_grid(double first, double end, int64_t count);

}  // namespace contrastive::adapt
