"""What a long window costs: hidden states of one text on random weights, by our encoder and by
transformers' model with torch's attention ("sdpa"), each in a process of its own, in turns.

    python benchmarks/long_texts.py --windows 512,2048,8192
    python benchmarks/long_texts.py --family eurobert --windows 8192 --train

The shape is that of ModernBERT-base (22 layers, 768 wide, a global layer in three, 64 positions to
each side in the others) unless --layers says less; of the other families it has the same width. A
small vocabulary keeps the embeddings out of the memory that is measured. Seconds are the
processor's; memory is the peak of the process above what it had with the weights loaded.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from contenders import peak_rss

SIDES = ("ours", "transformers")
SHAPES = {
    "modernbert": {"intermediate_size": 1152, "local_attention": 128},
    "eurobert": {"intermediate_size": 3072},
    "gte": {"intermediate_size": 3072},
}
VOCABULARY = 1000


def main(
    windows: Annotated[str, typer.Option(help="Lengths of the text, in wordpieces")] = "512,8192",
    family: str = "modernbert",
    layers: int = 22,
    train: Annotated[bool, typer.Option("--train", help="With a backward pass")] = False,
    rounds: int = 3,
    side: Annotated[str | None, typer.Option(hidden=True)] = None,
    checkpoint: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a row for each window."""
    if side is not None:
        assert checkpoint is not None
        print(json.dumps(measure(side, checkpoint, int(windows), train)))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {family}, {layers} layers"
    )
    print(f"\n| window | {' | '.join(f'{s}: CPU s, MiB' for s in SIDES)} | largest difference |")
    print("|---" * (len(SIDES) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        make_random(Path(folder), family, layers, max(map(int, windows.split(","))))
        for window in windows.split(","):
            runs: dict[str, list[dict]] = {name: [] for name in SIDES}
            for _ in range(rounds):
                for name in SIDES:
                    command = [sys.executable, __file__, "--side", name, "--checkpoint", folder]
                    command += ["--windows", window, *(["--train"] if train else [])]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    runs[name].append(json.loads(out.stdout.splitlines()[-1]))
            cells = [format_runs(found) for found in runs.values()]
            a, b = (np.asarray(runs[name][0]["states"]) for name in SIDES)
            print(f"| {window} | {' | '.join(cells)} | {np.abs(a - b).max():.1e} |", flush=True)


def format_runs(runs: list[dict]) -> str:
    seconds = [run["seconds"] for run in runs]
    spread = f"({min(seconds):.1f} – {max(seconds):.1f})" if len(seconds) > 1 else ""
    memory = statistics.median(run["mib"] for run in runs)
    return f"{statistics.median(seconds):.1f} {spread}, {memory:,.0f}"


def make_random(folder: Path, family: str, layers: int, longest: int) -> None:
    """Save a random checkpoint with a tokenizer, which nothing is tokenized with."""
    from tokenizers import Tokenizer, models, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    shape = {"num_hidden_layers": layers, "hidden_size": 768, "num_attention_heads": 12}
    shape |= {"vocab_size": VOCABULARY, "max_position_embeddings": longest, "pad_token_id": 0}
    shape |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 3)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **shape, **SHAPES[family])
    AutoModel.from_config(config).save_pretrained(folder)


def measure(side: str, folder: Path, window: int, train: bool) -> dict:
    """Seconds of the processor, MiB above the loaded weights, and some of the hidden states."""
    ids = torch.randint(5, VOCABULARY, (window,), generator=torch.Generator().manual_seed(0))
    read = load_ours(folder, train) if side == "ours" else load_theirs(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is forgotten
    before, start = rss(), time.process_time()
    with torch.set_grad_enabled(train):
        states = read(ids)
        if train:
            states.square().sum().backward()
    return {
        "seconds": time.process_time() - start,
        "mib": peak_rss() - before,
        "states": states[:: max(window // 8, 1), :8].tolist(),
    }


def load_ours(folder: Path, train: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    from spacy_bert_heads.encoder.encoder import Encoder
    from spacy_bert_heads.encoder.inference import for_inference
    from spacy_bert_heads.encoder.loading import load_checkpoint
    from spacy_bert_heads.text.batch import PackedBatch

    encoder = Encoder(load_checkpoint(str(folder))).eval()
    if not train:
        encoder = for_inference(encoder, "fp32")

    def read(ids: torch.Tensor) -> torch.Tensor:
        one, ends = np.ones(1, dtype=np.int64), np.asarray([0, len(ids)])
        batch = PackedBatch(ids.numpy(), np.zeros_like(ids.numpy()), ends, one)
        return encoder.encode(batch, max_batch_tokens=len(ids), train=train).states

    return read


def load_theirs(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    return lambda ids: model(ids[None], attention_mask=torch.ones_like(ids)[None])[0][0]


def rss() -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 2**10


if __name__ == "__main__":
    typer.run(main)
