#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/source.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/image/image.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::eval {

struct EncoderOptions {
  std::optional<torch::Device> device;  ///< none: CUDA if it can be used, else the CPU
  bool bf16 = false;                    ///< matrix products in bf16 (autocast); results stay fp32
  int64_t batch_size = 64;              ///< rows of one forward pass
  int64_t threads = 0;                  ///< decoding threads of a call; 0: one a core, at most 16
  bool normalize = true;                ///< rows are divided by their L2 norm
  bool truncate_texts = true;           ///< a text above the context length is cut; else it is an error
  image::DecodeLimits limits;
};

/// An image that could not be encoded.
struct ImageFailure {
  int64_t index = 0;   ///< among the images of the call
  std::string name;    ///< "[a/cat.jpg]", "image 7", or what the source calls it
  std::string reason;  ///< without the name
};

/// The embeddings of what could be encoded.
struct EncodedImages {
  torch::Tensor features;              ///< [N, E]; rows of failures are zero
  std::vector<ImageFailure> failures;  ///< by index
};

/// A trained model ready for use: from image files or texts to embeddings that can be compared.
///
/// Results are fp32 [N, E] in CPU memory, rows in the order of the input, L2-normalised unless the options say
/// otherwise; N may be 0. Images are decoded and preprocessed as in evaluation (RGB first, then open_clip's resize and
/// crop) on `threads` threads, the next batch while the model works on the one before.
/// On a CPU a second copy of the linear layers' weights, in oneDNN's order, is kept from the first pass on.
/// Thread-safe: any number of threads may call the const members at once. Copies are cheap and share the model, which
/// nobody may train or move meanwhile.
/// Throws: DataError naming the file (or the image's number) and the reason if an image can't be read.
class CONTRASTIVE_API Encoder {
 public:
  /// Opens a run, a checkpoint, a published model's folder or a weights file, with its tokenizer: see
  /// CheckpointRequest. A tokenizer whose file is missing is an error only when a text is encoded. Throws:
  /// CheckpointError or ConfigError naming the file, ConfigError if an option is out of range.
  static Encoder open(const std::filesystem::path& path, const EncoderOptions& options = {});
  static Encoder open(const CheckpointRequest& request, const EncoderOptions& options = {});

  /// Takes the model over: it is moved to the device and put into eval mode. Without a tokenizer only images can be
  /// encoded. Throws: ConfigError if an option is out of range or the device can't be used.
  Encoder(LoadedModel model, std::shared_ptr<const text::Tokenizer> tokenizer, const EncoderOptions& options = {});

  torch::Tensor encode_images(std::span<const std::filesystem::path> files) const;

  /// Images in memory, encoded as in files.
  torch::Tensor encode_image_bytes(std::span<const std::span<const uint8_t>> images) const;

  /// Images that are preprocessed already (image::preprocess_for_evaluation). Shapes: pixels uint8 [N, H, W, 3] with
  /// H = W = image_size(). Throws: Error on another shape or dtype.
  torch::Tensor encode_images(const torch::Tensor& pixels) const;

  /// Each image's embedding, then that of each place in it (ImageTower::forward_places). Shapes: N files to
  /// [N, 1 + T, E]. Throws: ConfigError for towers whose places have none.
  torch::Tensor encode_places(std::span<const std::filesystem::path> files) const;

  /// The same as encode_images, but images that can't be read are reported instead of thrown.
  EncodedImages try_encode_images(std::span<const std::filesystem::path> files) const;
  EncodedImages try_encode_image_bytes(std::span<const std::span<const uint8_t>> images) const;

  /// Samples [begin, end) of a source, read by the decoding threads; `index` of a failure counts from `begin`.
  /// Throws: Error unless 0 <= begin <= end <= source.size().
  EncodedImages try_encode_images(const data::SampleSource& source, int64_t begin, int64_t end) const;

  /// Throws: ConfigError without a tokenizer; DataError for a text that is too long, if it is not to be cut.
  torch::Tensor encode_texts(std::span<const std::string> texts) const;

  /// An encoder of the same model whose rows keep the length that the model gives them.
  Encoder unnormalized() const;

  int64_t embed_dim() const;
  int64_t image_size() const;  ///< pixels, both sides
  torch::Device device() const;

  /// What cosines are multiplied by before a softmax (exp of the model's logit_scale).
  double logit_scale() const;

  /// SigLIP's bias, which is added to the scaled cosines before a sigmoid; none for models of the softmax loss.
  std::optional<double> logit_bias() const;

  const image::PreprocessSpec& preprocess() const;

  /// SHA-256 over the model's config, preprocessing and weights: embeddings made with another one can't be compared.
  /// Reads all weights: about a second a gigabyte.
  std::string fingerprint() const;
  const EncoderOptions& options() const;

 private:
  struct Parts;
  explicit Encoder(std::shared_ptr<const Parts> parts);

  std::shared_ptr<const Parts> parts_;
};

}  // namespace contrastive::eval
