#pragma once

#include <string>
#include <utility>
#include <vector>

namespace contrastive::models::detail {

/// Parts of names with what stands in their place.
using NameParts = std::vector<std::pair<std::string, std::string>>;

/// Replaces the first of every part that stands in the name, in order.
inline std::string replace_parts(std::string name, const NameParts& parts) {
  for (const auto& [from, to] : parts) {
    const auto place = name.find(from);
    if (place != std::string::npos) name.replace(place, from.size(), to);
  }
  return name;
}

/// The name in timm's VisionTransformer of a tensor that CLIP's image tower calls `name`.
inline std::string to_timm_name(const std::string& name) {
  static const NameParts kParts = {{"conv1.", "patch_embed.proj."},
                                   {"positional_embedding", "pos_embed"},
                                   {"class_embedding", "cls_token"},
                                   {"ln_pre.", "norm_pre."},
                                   {"pre_logits.", "pre_logits.fc."},
                                   {".ls_1.", ".ls1."},
                                   {".ls_2.", ".ls2."},
                                   {"ln_post.", "norm."},
                                   {"transformer.resblocks.", "blocks."},
                                   {".ln_1.", ".norm1."},
                                   {".ln_2.", ".norm2."},
                                   {".attn.in_proj_", ".attn.qkv."},
                                   {".attn.out_proj.", ".attn.proj."},
                                   {".mlp.c_fc.", ".mlp.fc1."},
                                   {".mlp.c_proj.", ".mlp.fc2."}};
  return replace_parts(name, kParts);
}

}  // namespace contrastive::models::detail
