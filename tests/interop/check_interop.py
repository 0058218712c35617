"""Exchanges checkpoints with open_clip and transformers and compares features. Run by hand, in a virtual environment:

    python -m venv interop && . interop/bin/activate
    pip install open_clip_torch==3.3.0 transformers==4.57.6
    python tests/interop/check_interop.py build/default/bin

Every line is one comparison: features of the same images and texts, each project with its own preprocessing and
tokenizer, L2-normalised; the largest difference must stay below 1e-5. transformers gets open_clip's pixels and ids:
its processor crops images with odd margins one pixel beside, its tokenizer does not repair text. --siglip adds a
full-size SigLIP model (1 GB of disk, pip install sentencepiece).
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5
TEXTS = [
    "a photo of a cat.",
    "It's \u201cquoted\u201d &amp; na\u00efve",
    "sch\u00c3\u00b6n \u2014 \u65e5\u672c\u306e\u732b",
    "\U0001f600 emoji " * 40,  # longer than the context
    "",
]

# Heads of 64 and QuickGELU, so that OpenAI's format can hold the first two.
CONFIGS = {
    "vit_quickgelu": dict(
        embed_dim=48, quick_gelu=True,
        vision_cfg=dict(image_size=64, layers=2, width=128, patch_size=16),
        text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)),
    "resnet_quickgelu": dict(
        embed_dim=48, quick_gelu=True,
        vision_cfg=dict(image_size=64, layers=[1, 1, 2, 1], width=16, patch_size=None),
        text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)),
    "vit_gelu": dict(
        embed_dim=40,
        vision_cfg=dict(image_size=56, layers=2, width=96, head_width=32, patch_size=14, mlp_ratio=3.5),
        text_cfg=dict(context_length=32, vocab_size=49408, width=48, heads=3, layers=2)),
    "vit_clipa_style": dict(
        embed_dim=40,
        vision_cfg=dict(image_size=56, layers=2, width=96, head_width=32, patch_size=14, no_ln_pre=True,
                        pool_type="avg", final_ln_after_pool=True),
        text_cfg=dict(context_length=32, vocab_size=49408, width=48, heads=3, layers=2, pool_type="last",
                      no_causal_mask=True)),
    "vit_layer_scale": dict(
        embed_dim=40,
        vision_cfg=dict(image_size=56, layers=2, width=96, head_width=32, patch_size=14, ls_init_value=0.1),
        text_cfg=dict(context_length=32, vocab_size=49408, width=48, heads=3, layers=2, ls_init_value=0.1)),
}


class Checker:
    def __init__(self, programs, folder):
        self.programs, self.folder, self.failures = programs, folder, 0
        generator = numpy.random.default_rng(3)
        self.images = folder / "images"
        self.images.mkdir()
        for i, (width, height) in enumerate([(97, 64), (64, 131), (56, 56), (200, 180)]):
            pixels = generator.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).resize((width, height), Image.BICUBIC).save(self.images / f"{i}.png")
        self.texts = folder / "texts.txt"
        self.texts.write_text("\n".join(TEXTS) + "\n")

    def run(self, program, *arguments):
        command = [str(self.programs / program), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{result.stderr}")
        return result.stdout

    def ours(self, checkpoint, *options):
        """(image features, text features) by clip_embed."""
        features = []
        for kind, source in (("images", self.images), ("texts", self.texts)):
            out = self.folder / f"{kind}_{len(list(self.folder.iterdir()))}.safetensors"
            self.run("clip_embed", kind, source, "--checkpoint", checkpoint, "--output", out, *options)
            features.append(load_file(out)["features"])
        return features

    def open_clip(self, model, preprocess, tokenizer):
        images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in sorted(self.images.iterdir())])
        with torch.no_grad():
            return model.encode_image(images, normalize=True), model.encode_text(tokenizer(TEXTS), normalize=True)

    def transformers(self, folder):
        model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessor.from_pretrained(folder)
        transform = open_clip.image_transform(processor.crop_size["height"], is_train=False,
                                              mean=processor.image_mean, std=processor.image_std)
        images = torch.stack([transform(Image.open(file).convert("RGB")) for file in sorted(self.images.iterdir())])
        tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=model.config.text_config.max_position_embeddings)
        with torch.no_grad():
            image, text = model.get_image_features(images), model.get_text_features(tokenizer(TEXTS))
        return torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(text, dim=-1)

    def compare(self, what, actual, expected):
        differences = [float((a - b).abs().max()) for a, b in zip(actual, expected)]
        good = all(difference <= TOLERANCE for difference in differences)
        self.failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {what}: images {differences[0]:.1e}, texts {differences[1]:.1e}")


def local(folder):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


def check_config(checker, name, config):
    folder = checker.folder / name
    folder.mkdir()
    torch.manual_seed(11)
    model = open_clip.model.CLIP(**config).eval()
    preprocess = dict(mean=[0.48145466, 0.4578275, 0.40821073], std=[0.26862954, 0.26130258, 0.27577711],
                      interpolation="bicubic", resize_mode="shortest")
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=preprocess)))
    state = model.state_dict()
    save_file(state, folder / "open_clip_model.safetensors", metadata=dict(format="pt"))
    expected = checker.open_clip(*local(folder))
    checker.compare(f"{name}: open_clip folder read here", checker.ours(folder), expected)

    for kind, saved in (("a state dict (.bin)", state),
                        ("a training checkpoint (.pt)",
                         dict(epoch=1, name="x", state_dict={"module." + key: value for key, value in state.items()}))):
        file = folder / ("weights.bin" if ".bin" in kind else "epoch_1.pt")
        torch.save(saved, file)
        (folder / "model.json").write_text(json.dumps(config))
        checker.compare(f"{name}: {kind} read here",
                        checker.ours(file, "--model", folder / "model.json"), expected)

    converted = checker.folder / f"{name}_converted"
    checker.run("clip_convert", folder, converted)
    checker.compare(f"{name}: open_clip reads clip_convert's folder", checker.open_clip(*local(converted)), expected)
    if name in ("vit_quickgelu", "vit_gelu"):
        hf = checker.folder / f"{name}_hf"
        checker.run("clip_convert", folder, hf, "--to", "hf")
        checker.compare(f"{name}: transformers reads clip_convert's folder", checker.transformers(hf), expected)
        checker.compare(f"{name}: transformers' folder read here", checker.ours(hf), expected)
        tokenizer = CLIPTokenizer.from_pretrained(hf)
        same = tokenizer("a photo of a cat.")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
        checker.failures += not same
        print(f"{'ok  ' if same else 'FAIL'} {name}: transformers' CLIPTokenizer reads the vocabulary")
    if config.get("quick_gelu"):
        file = checker.folder / f"{name}.pt"
        checker.run("clip_convert", folder, file, "--to", "openai")
        openai = open_clip.load_openai_model(str(file), precision="fp32", device="cpu").eval()
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        transform = open_clip.image_transform(config["vision_cfg"]["image_size"], is_train=False)
        checker.compare(f"{name}: open_clip reads the OpenAI file; read here", checker.ours(file),
                        checker.open_clip(openai, transform, tokenizer))


def check_training_checkpoint(checker):
    run = checker.folder / "run"
    checker.run("clip_train", "--config", REPOSITORY / "tests/fixtures/configs/tiny.yaml", f"output={run}",
                "train.steps=20")
    latest = run / "tiny" / "checkpoints" / "latest"
    checker.compare("clip_train's checkpoint in open_clip", checker.ours(run / "tiny"),
                    checker.open_clip(*local(latest)))


def train_sentencepiece(folder):
    """A small vocabulary with T5's control ids, as SigLIP's."""
    import sentencepiece

    words = (REPOSITORY / "README.md").read_text().split()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[i:i + 12]) for i in range(0, len(words), 6)]),
        model_prefix=str(folder / "spiece"), vocab_size=500, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def check_siglip(checker):
    """Full size: open_clip can't make smaller SigLIP towers."""
    name = "ViT-B-16-SigLIP"
    torch.manual_seed(11)
    model = open_clip.create_model(name).eval()
    folder, again = checker.folder / "siglip", checker.folder / "siglip_again"
    folder.mkdir()
    save_file(model.state_dict(), folder / "siglip.safetensors", metadata=dict(format="pt"))
    processor = train_sentencepiece(folder)
    checker.run("clip_convert", folder / "siglip.safetensors", again, "--model", name)
    converted = load_file(again / "open_clip_model.safetensors")
    same = all(torch.equal(value, converted[key]) for key, value in model.state_dict().items())
    checker.failures += not same
    print(f"{'ok  ' if same else 'FAIL'} {name}: every tensor of the converted folder has the same bits")

    transform = open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash")
    clean = open_clip.tokenizer.canonicalize_text

    def tokenizer(texts):
        rows = [(processor.encode(clean(open_clip.tokenizer.basic_clean(text)))[:63] + [1] * 64)[:64] for text in texts]
        return torch.tensor(rows)

    checker.compare(f"{name}: read here", checker.ours(again), checker.open_clip(model, transform, tokenizer))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, help="the folder of clip_convert and its like")
    parser.add_argument("--siglip", action="store_true", help="a full-size SigLIP model as well (1 GB of disk)")
    arguments = parser.parse_args()
    print(f"open_clip {open_clip.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(arguments.programs.resolve(), pathlib.Path(folder))
        for name, config in CONFIGS.items():
            check_config(checker, name, config)
        check_training_checkpoint(checker)
        if arguments.siglip:
            check_siglip(checker)
    sys.exit(f"{checker.failures} comparisons failed" if checker.failures else 0)


if __name__ == "__main__":
    main()
