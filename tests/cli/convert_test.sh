#!/usr/bin/env bash
# clip_convert: a run through every format and back with equal bytes, training from what came out, and what it refuses.
source "$(dirname "$0")/common.sh"
export OMP_NUM_THREADS=1  # the models are so small that more threads only wait for each other
convert=("$BIN/clip_convert")

# Heads of 64 and QuickGELU, which OpenAI's format needs.
model='{embed_dim: 16, quick_gelu: true, vision_cfg: {image_size: 32, layers: 1, width: 64, patch_size: 16},
  text_cfg: {context_length: 77, vocab_size: 49408, width: 64, heads: 1, layers: 1}}'
expect_success "$BIN/clip_train" --config "$TINY" train.steps=6 "model=$model"
expect_success "${convert[@]}" runs/tiny first
grep -q 'wrote first/open_clip_model.safetensors' out.txt || fail "no list of what was written: $(cat out.txt)"
expect_success "${convert[@]}" first hf --to hf
[[ -f hf/vocab.json && -f hf/preprocessor_config.json ]] || fail "no tokenizer or preprocessing in $(ls hf)"
expect_success "${convert[@]}" hf second
cmp first/open_clip_model.safetensors second/open_clip_model.safetensors || fail "tensors changed on the way through transformers' names"
cmp first/open_clip_config.json second/open_clip_config.json || fail "the config changed on the way through transformers"
expect_success "${convert[@]}" first openai.pt --to openai
expect_success "${convert[@]}" openai.pt half
expect_success "${convert[@]}" half openai_again.pt --to openai
cmp openai.pt openai_again.pt || fail "OpenAI's file changed on the way through open_clip's"

# Every one of them evaluates, and trains on.
for checkpoint in runs/tiny first hf openai.pt half; do
  expect_success "$BIN/clip_eval" zero-shot --checkpoint $checkpoint --data synthetic --output result.json
done
sed '/^model:/,/^[a-z]/{/^model:/d;/^ /d}' "$TINY" >tuned.yaml
expect_success "$BIN/clip_train" --config tuned.yaml name=tuned weights=hf train.steps=6
grep -q 'quick_gelu: true' runs/tuned/config.yaml || fail "a run without a model has not that of its weights"
expect_success "${convert[@]}" first larger --image-size 64 --context-length 40 --position-resize bilinear
grep -q '"image_size": 64' larger/open_clip_config.json || fail "the config kept the old image size"
expect_success "$BIN/clip_eval" zero-shot --checkpoint larger --data synthetic --output result.json

# A SigLIP model trains, carries its vocabulary, and goes on when the original is gone.
siglip='{embed_dim: 24, custom_text: true, init_logit_bias: -10, init_logit_scale: 2.3, vision_cfg: {image_size: 32,
  timm_model_name: vit_base_patch16_siglip_224, timm_pool: map, timm_proj: none,
  timm_model_kwargs: {embed_dim: 24, depth: 1, num_heads: 2, patch_size: 8}}, text_cfg: {context_length: 16,
  vocab_size: 32000, width: 32, heads: 2, layers: 1, no_causal_mask: true, pool_type: last, proj_bias: true,
  norm_kwargs: {eps: 1.0e-6}, hf_tokenizer_name: timm/ViT-B-16-SigLIP, tokenizer_kwargs: {clean: canonicalize}}}'
expect_failure 2 "spiece.model" "$BIN/clip_train" --config "$TINY" name=siglip "model=$siglip" train.steps=6
mkdir vocabulary
cp "$SOURCE/tests/fixtures/siglip_tokenizer/spiece.model" vocabulary/
expect_success "$BIN/clip_train" --config "$TINY" name=siglip "model=$siglip" tokenizer=vocabulary train.steps=6
rm -r vocabulary
expect_success "$BIN/clip_train" --config runs/siglip/config.yaml --resume auto
expect_success "${convert[@]}" runs/siglip siglip
[[ -f siglip/spiece.model ]] || fail "the vocabulary was left behind"
expect_success "$BIN/clip_eval" zero-shot --checkpoint siglip --data synthetic --output result.json
expect_failure 2 "transformers' CLIPModel can't hold an image tower of timm's" "${convert[@]}" siglip out --to hf

# Refused.
expect_failure 2 "[first] exists already; --force writes over it" "${convert[@]}" hf first
expect_success "${convert[@]}" hf first --force
expect_failure 2 "[first] is the input as well" "${convert[@]}" first first --force
expect_failure 1 "[nowhere] does not exist" "${convert[@]}" nowhere out
expect_failure 2 "model 'ViT-B-23' is neither a file nor a shipped config (did you mean ViT-B-32?)" \
  "${convert[@]}" first/open_clip_model.safetensors out --model ViT-B-23
expect_failure 2 "was trained with QuickGELU (by its header), but the model ViT-B-32 computes the exact GELU" \
  "${convert[@]}" first/open_clip_model.safetensors out --model ViT-B-32
expect_failure 1 "visual.conv1.weight: expected [768, 3, 32, 32], found [64, 3, 16, 16]" \
  "${convert[@]}" first/open_clip_model.safetensors out --model ViT-B-32-quickgelu
expect_failure 2 "is not a regular expression" "${convert[@]}" first out --allow-missing '('
mkdir damaged
cp first/open_clip_config.json damaged/
head -c 3000 first/open_clip_model.safetensors >damaged/open_clip_model.safetensors
expect_failure 1 "[damaged/open_clip_model.safetensors]" "${convert[@]}" damaged out
head -c 3000 openai.pt >cut.pt
expect_failure 1 "[cut.pt]" "${convert[@]}" cut.pt out
[[ ! -e out && ! -e out.pt ]] || fail "a refused conversion left something behind"
echo "$checks checks passed"
