// Fine-tunes a model on image-text shards and writes it as a folder that the library and open_clip read.
// usage: fine_tune CHECKPOINT SHARDS STEPS OUTPUT    e.g. fine_tune runs/quickstart 'shards/{00000..00009}.tar' 100
// tuned
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <stdexcept>

#include <ATen/ATen.h>
#include <contrastive/core/file.h>
#include <contrastive/core/safetensors.h>
#include <contrastive/data/normalize.h>
#include <contrastive/data/shard_list.h>
#include <contrastive/data/train_loader.h>
#include <contrastive/data/webdataset_source.h>
#include <contrastive/eval/model_folder.h>
#include <contrastive/loss/contrastive_loss.h>
#include <contrastive/optim/adamw.h>
#include <contrastive/text/clip_tokenizer.h>

using namespace contrastive;

int main(int argc, char** argv) try {
  if (argc != 5) throw std::runtime_error("usage: fine_tune CHECKPOINT SHARDS STEPS OUTPUT");
  auto [model, preprocess, folder] = eval::load_model(argv[1]);
  model->train();
  optim::AdamW optimizer(model->named_trainable(), {.weight_decay = 0.1}, optim::open_clip_decays);

  data::TrainLoaderOptions options;
  options.batch_size = 64;
  options.image_size = preprocess.size;
  options.context_length = model->config().text_cfg.context_length;
  data::TrainLoader loader(
      std::make_shared<data::WebdatasetSource>(data::ShardIndex::open(data::expand_shard_list(argv[2]))),
      std::make_shared<text::ClipTokenizer>(find_resource("clip/bpe_simple_vocab_16e6.txt.gz")), options);

  for (int64_t step = 1; step <= std::atoll(argv[3]); ++step) {
    const auto batch = loader.next();
    const auto images = data::normalize_images(batch.images, preprocess.mean, preprocess.std, torch::kCPU);
    const auto output = model->forward(images, batch.tokens);
    const auto loss = loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale).loss;
    loss.backward();
    optimizer.step(/*lr=*/1e-5);
    optimizer.zero_grad();
    model->clamp_logit_scale();
    std::cout << "step " << step << "  loss " << loss.item<double>() << std::endl;
  }

  const std::filesystem::path output = argv[4];
  std::filesystem::create_directories(output);
  write_file_atomically(output / "open_clip_config.json", eval::open_clip_config(model->config(), preprocess));
  write_safetensors(output / "model.safetensors", model->state());
  return 0;
} catch (const std::exception& error) {
  std::cerr << "fine_tune: " << error.what() << "\n";
  return 1;
}
