#pragma once

#include <memory>
#include <string>

#include <torch/nn/module.h>

namespace contrastive::models::detail {

/// A child of `parent` that computes nothing: what is registered in it has its name in front.
inline std::shared_ptr<torch::nn::Module> named_scope(torch::nn::Module& parent, const std::string& name) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>());
}

}  // namespace contrastive::models::detail
